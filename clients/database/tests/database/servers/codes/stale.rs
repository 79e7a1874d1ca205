//! Statements that were prepared before a table was changed elsewhere: on every warm connection.

use super::*;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Both connections of the pool have prepared it.
async fn warm(db: &PgDatabase, sql: &'static str) {
    let mut held = futures_util::future::try_join_all((0..2).map(|_| db.acquire())).await.unwrap();
    for connection in &mut held {
        sqlx::query(sql).fetch_all(connection).await.unwrap();
    }
    drop(held);
    until_at_rest(db).await;
    assert_eq!(db.pool_status().idle, 2);
}

/// 0A000: it is said before anything is done, and all who are idle would meet it as well.
#[tokio::test]
async fn a_changed_table_costs_one_attempt_and_no_write() {
    let admin = postgres("stale-admin");
    let add = async |column: &str| {
        run(&admin, &format!("alter table stale add {column} int")).await.unwrap();
    };
    run(&admin, "create table stale (a int)").await.unwrap();
    let db: PgDatabase = DatabaseClient::builder()
        .name("stale")
        .url(POSTGRES.url())
        .max_connections(2)
        .connect_timeout(ms(10_000))
        .policy(|p| p.max_attempts(2).timeout(ms(20_000)).base_delay(ms(5)))
        .build()
        .unwrap();
    let before = counts("stale");

    let select = "select * from stale";
    warm(&db, select).await;
    add("b").await;
    assert!(sqlx::query(select).fetch_all(&db).await.unwrap().is_empty());

    let insert = "insert into stale (a) values (1) returning *";
    warm(&db, insert).await;
    add("c").await;
    let row = sqlx::query(insert).fetch_one(&db).await.unwrap();
    assert_eq!(sqlx::Row::columns(&row).len(), 3);
    let rows: i64 = sqlx::query_scalar("select count(*) from stale").fetch_one(&db).await.unwrap();
    assert_eq!(rows, 3);

    warm(&db, select).await;
    add("d").await;
    let runs = AtomicU32::new(0);
    let read = db.transaction(async |tx| {
        runs.fetch_add(1, SeqCst);
        Ok::<_, Error>(sqlx::query(select).fetch_all(&mut *tx).await?.len())
    });
    assert_eq!((read.await.unwrap(), runs.into_inner()), (3, 2));

    // Of a session it is the end, and the next one has another connection.
    warm(&db, select).await;
    add("e").await;
    let mut session = db.session().await.unwrap();
    let stale = sqlx::query(select).fetch_all(&mut session).await.unwrap_err();
    assert_eq!(stale.as_database_error().unwrap().code().unwrap(), "0A000");
    let error = session.commit().await.unwrap_err();
    assert!(text(&error).contains("prepared before"), "{}", text(&error));
    let mut session = db.session().await.unwrap();
    sqlx::query(select).fetch_all(&mut session).await.unwrap();
    session.commit().await.unwrap();
    assert_eq!(counts("stale").1, before.1, "no fault of the server's");
}
