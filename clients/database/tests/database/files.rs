//! A file of SQLite that others change, lock or spoil.

use super::{accounts, ms};
use futures_util::TryStreamExt;
use mainstay_database::{SqliteDatabase, sqlx::AssertSqlSafe};
use mainstay_policy::{Error, HealthStatus};
use std::time::Instant;

fn other(dir: &tempfile::TempDir, name: &str) -> SqliteDatabase {
    let url = format!("sqlite://{}", dir.path().join("a.db").display());
    SqliteDatabase::builder()
        .name(name)
        .url(url)
        .max_connections(2)
        .policy(|p| p.max_attempts(2).base_delay(ms(5)))
        .build()
        .unwrap()
}

/// The driver's worker dies of a row that has grown, on each connection that had read the table
/// before, and does not say so.
#[tokio::test]
async fn a_table_that_was_changed_elsewhere_costs_one_attempt() {
    let (dir, admin) = accounts("f-changed-admin").await;
    let db = other(&dir, "f-changed");
    let select = "select * from account";
    for (columns, way) in (3..).zip(["all", "first", "stream", "transaction"]) {
        let mut held = [db.acquire().await.unwrap(), db.acquire().await.unwrap()];
        for connection in &mut held {
            assert_eq!(sqlx::query(select).fetch_all(connection).await.unwrap().len(), 2);
        }
        drop(held);
        let add = format!("alter table account add column by_{way} text");
        sqlx::raw_sql(AssertSqlSafe(add)).execute(&admin).await.unwrap();
        let row = match way {
            "all" => sqlx::query(select).fetch_all(&db).await.unwrap().remove(0),
            "first" => sqlx::query(select).fetch_one(&db).await.unwrap(),
            "stream" => sqlx::query(select).fetch(&db).try_next().await.unwrap().unwrap(),
            _ => {
                let read = db.transaction(async |tx| {
                    Ok::<_, Error>(sqlx::query(select).fetch_one(&mut *tx).await?)
                });
                read.await.unwrap()
            }
        };
        assert_eq!(sqlx::Row::columns(&row).len(), columns, "{way}");
    }
    // Of a text of several statements the first may have ended well, so that it is not sent again.
    let several = "update account set id = id; select * from account";
    let mut held = [db.acquire().await.unwrap(), db.acquire().await.unwrap()];
    for connection in &mut held {
        assert_eq!(sqlx::query(several).fetch_all(connection).await.unwrap().len(), 2);
    }
    drop(held);
    sqlx::raw_sql("alter table account add column by_several text").execute(&admin).await.unwrap();
    let error = sqlx::query(several).fetch_all(&db).await.map(|rows| rows.len()).unwrap_err();
    assert!(Error::from(error).is_outcome_unknown());
    // What gives no row is told from what gives none any more.
    let none = sqlx::query("select * from account where id = 9").fetch_optional(&db).await;
    assert!(none.unwrap().is_none());
    assert!(sqlx::raw_sql("-- nothing").fetch_all(&db).await.unwrap().is_empty());
    assert_eq!(sqlx::raw_sql("").execute(&db).await.unwrap().rows_affected(), 0);
}

/// On a connection that is closed then, as nobody knows what a pragma did.
async fn lock_wait(db: &SqliteDatabase) -> i64 {
    sqlx::query_scalar("pragma busy_timeout").fetch_one(db).await.unwrap()
}

/// An open connection answers, whatever has become of its file.
#[tokio::test]
async fn health_is_that_of_the_file() {
    let (dir, used) = accounts("f-health").await;
    let new = other(&dir, "f-health-new");
    let all = async |status| {
        for db in [&used, &new] {
            let started = Instant::now();
            let health = db.health_check().await;
            println!("{:?} after {:?}: {}", health.status, started.elapsed(), health.detail);
            assert_eq!(health.status, status, "{}", health.detail);
        }
    };
    all(HealthStatus::Healthy).await;
    // Whoever has it is at work.
    let lock = other(&dir, "f-health-lock");
    let mut locking = lock.acquire().await.unwrap();
    sqlx::raw_sql("begin exclusive").execute(&mut locking).await.unwrap();
    all(HealthStatus::Healthy).await;
    sqlx::raw_sql("rollback").execute(&mut locking).await.unwrap();
    sqlx::query("select * from account").execute(&used).await.unwrap();
    // It waits for a lock as long as before.
    assert!(used.pool_status().size <= 1);
    assert_eq!(lock_wait(&used).await, lock_wait(&used).await);
    sqlx::query("select * from account").execute(&used).await.unwrap();
    std::fs::write(dir.path().join("a.db"), [7; 8192]).unwrap();
    all(HealthStatus::Unhealthy).await;
}
