//! A write that was acknowledged and is not there: on plain sqlx, and not here.
//!
//! A caller's timeout gives up on `begin` while it is under way, to a server five milliseconds away.
//! sqlx returns the connection to its pool with the transaction open, and the next caller's INSERT,
//! answered by Ok, becomes part of a transaction that nobody will commit. Needs PostgreSQL installed;
//! starts one of its own.

use mainstay::{DatabaseClient, PgDatabase, sqlx, sqlx::postgres::PgPoolOptions};
use mainstay_test_support::{Postgres, Proxy};
use std::time::Duration;
use tokio::time::timeout;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const WRITES: i32 = 120;

async fn on_plain_sqlx(url: &str) -> Result<i64> {
    let pool = PgPoolOptions::new().max_connections(1).connect(url).await?;
    sqlx::query("create table plain (n int)").execute(&pool).await?;
    for n in 0..WRITES {
        let _ = timeout(patience(n), pool.begin()).await;
        sqlx::query("insert into plain values ($1)").bind(n).execute(&pool).await?; // Ok
    }
    pool.close().await;
    let pool = PgPoolOptions::new().connect(url).await?;
    Ok(sqlx::query_scalar("select count(*) from plain").fetch_one(&pool).await?)
}

async fn here(url: &str) -> Result<i64> {
    let db: PgDatabase = DatabaseClient::builder().url(url).max_connections(1).build()?;
    sqlx::query("create table here (n int)").execute(&db).await?;
    for n in 0..WRITES {
        let _ = timeout(patience(n), db.session()).await;
        sqlx::query("insert into here values ($1)").bind(n).execute(&db).await?; // Ok
    }
    Ok(sqlx::query_scalar("select count(*) from here").fetch_one(&db).await?)
}

/// Up to 12 ms: some callers give up while `begin` is under way, some before, some not at all.
fn patience(n: i32) -> Duration {
    Duration::from_millis(u64::from(n.unsigned_abs()) % 12)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let server = Postgres::start();
    let network = Proxy::in_front_of(server.address());
    network.set(|faults| faults.replies.latency = Duration::from_millis(5));
    let url = Postgres::url_at(network.addr());
    let (plain, ours) = (on_plain_sqlx(&url).await?, here(&url).await?);
    let lost = i64::from(WRITES) - plain;
    println!("{WRITES} writes were acknowledged on each side.");
    println!("In the table on plain sqlx: {plain}. {lost} acknowledged writes are lost.");
    println!("In the table here:          {ours}.");
    assert_eq!(ours, i64::from(WRITES));
    Ok(())
}
