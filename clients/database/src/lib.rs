//! A SQL client over sqlx whose sessions lose no acknowledged write.
//!
//! ```no_run
//! # async fn example() -> Result<(), mainstay_policy::Error> {
//! use mainstay_database::{SqliteDatabase, get_database_client};
//!
//! let db: SqliteDatabase = get_database_client()?;
//! let mut session = db.session().await?;
//! sqlx::query("update users set name = ?").bind("John").execute(&mut session).await?;
//! session.commit().await?;
//! let users: i64 = sqlx::query_scalar("select count(*) from users").fetch_one(&db).await?;
//! # Ok(()) }
//! ```
//!
//! | module | idea |
//! |---|---|
//! | `client`, `executor` | the executor that repeats what may be repeated |
//! | `session`, `wire` | what callers hold; one connection, honest about COMMIT |
//! | `transaction`, `options` | a whole transaction run again, and how it is to run |
//! | `pool`, `hosts` | connections of one runtime, cancelled when given up; which host will do |
//! | `classify`, `backend` | what an error means, by phase and by database |
//! | `config` | what is set in code, file and environment |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(not(any(feature = "postgres", feature = "mysql", feature = "sqlite")))]
compile_error!("mainstay-database: switch on at least one of `postgres`, `mysql`, `sqlite`");

mod backend;
mod classify;
mod client;
mod config;
mod executor;
mod health;
mod hosts;
mod options;
mod pool;
mod session;
mod statement;
mod transaction;
mod wire;

pub use backend::Backend;
pub use classify::DatabaseFailure;
#[cfg(feature = "mysql")]
pub use client::MySqlDatabase;
#[cfg(feature = "postgres")]
pub use client::PgDatabase;
#[cfg(feature = "sqlite")]
pub use client::SqliteDatabase;
pub use client::{DatabaseClient, View};
pub use config::{
    DatabaseClientBuilder, TlsMode, all_database_clients, get_database_client,
    get_database_client_named, set_database_client, set_database_client_named,
};
pub use executor::BareConnection;
pub use mainstay_policy::Error;
pub use options::{CommitOutcome, Isolation, SessionOptions};
pub use pool::PoolStatus;
pub use session::{DatabaseConnection, Savepoint, Session};
pub use sqlx;
pub use transaction::TxFn;
