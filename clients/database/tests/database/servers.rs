//! Against private PostgreSQL and MariaDB servers that are broken in every way.

mod cancel;
mod codes;
mod endings;
mod failover;
mod faults;
mod health;
mod learning;
mod ledger;
mod mistakes;
mod plain_sqlx;
mod pool;
mod pooler;
mod reload;
mod returning;
mod session;
mod tls;

use super::poll_once;
use mainstay_database::{Backend, DatabaseClient, Error, MySqlDatabase, PgDatabase};
use mainstay_test_support::{Mariadb, Postgres};
use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// For tests that do it no harm.
static POSTGRES: LazyLock<Postgres> = LazyLock::new(Postgres::start);
static MARIADB: LazyLock<Mariadb> = LazyLock::new(Mariadb::start);

fn postgres(name: &str) -> PgDatabase {
    client(name, POSTGRES.url())
}

fn mariadb(name: &str) -> MySqlDatabase {
    client(name, MARIADB.url())
}

/// Quick to retry, and slow to give up.
fn client<DB: Backend>(name: &str, url: String) -> DatabaseClient<DB> {
    let quick = |p: mainstay_policy::PolicyBuilder| {
        p.timeout(ms(20_000)).base_delay(ms(5)).recovery_timeout(ms(200))
    };
    let patient = DatabaseClient::builder().connect_timeout(ms(10_000));
    patient.name(name).url(url).policy(quick).build().unwrap()
}

/// Asks again and again: the answer is the server's own state.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < end, "still waiting until {what}");
        tokio::task::yield_now().await;
    }
}

/// All connections are back, and none is in use.
async fn until_at_rest<DB: Backend>(db: &DatabaseClient<DB>) {
    until("the pool is at rest", || async { db.pool_status().in_use == 0 }).await;
}

fn text(error: &Error) -> String {
    format!("{error:?} {}", mainstay_policy::report(error))
}
