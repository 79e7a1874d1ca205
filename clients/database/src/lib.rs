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
//! | `client` | the executor that repeats what may be repeated |
//! | `session`, `transaction` | one connection, honest about COMMIT; a whole transaction run again |
//! | `pool` | connections of one runtime, and why there is none |
//! | `classify`, `backend` | what an error means, by phase and by database |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(not(any(feature = "postgres", feature = "mysql", feature = "sqlite")))]
compile_error!("mainstay-database: switch on at least one of `postgres`, `mysql`, `sqlite`");

mod backend;
mod classify;
mod client;
mod config;
mod health;
mod pool;
mod session;
mod statement;
mod transaction;

pub use backend::Backend;
pub use classify::DatabaseFailure;
#[cfg(feature = "mysql")]
pub use client::MySqlDatabase;
#[cfg(feature = "postgres")]
pub use client::PgDatabase;
#[cfg(feature = "sqlite")]
pub use client::SqliteDatabase;
pub use client::{DatabaseClient, Idempotent};
pub use config::{
    DatabaseClientBuilder, get_database_client, get_database_client_named, set_database_client,
};
pub use session::{DatabaseConnection, Session};
pub use sqlx;
pub use transaction::TxFn;
