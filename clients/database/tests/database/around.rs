//! Policies of one's own around the client.

use super::{accounts, amount};
use mainstay_database::SqliteDatabase;
use mainstay_policy::{BreakerState, Kind, Policy, breaker};
use std::time::Duration;

async fn execute(db: &SqliteDatabase, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(db).await.map(drop)
}

async fn fetch(db: &SqliteDatabase, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query_scalar::<_, String>(sql).fetch_one(db).await.map(drop)
}

/// As sqlx gives them, of a database that is well: they are not repeated, and are no failures.
#[tokio::test]
async fn answers_of_the_database_leave_a_breaker_around_them_closed() {
    let (_dir, db) = accounts("t-around").await;
    let policy = Policy::database("t-around answers");
    for _ in 0..4 {
        for error in [
            policy.call(|| fetch(&db, "select 'none' where false")).await,
            policy.call(|| fetch(&db, "select amount from account")).await,
            policy.call(|| execute(&db, "insert into account values (1, 7)")).await,
            policy.call(|| execute(&db, "insert into account values (7, null)")).await,
        ] {
            let error = error.unwrap_err();
            assert_eq!((error.attempts(), error.is_outcome_unknown()), (1, false), "{error}");
        }
    }
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
}

/// What was decided inside is read from within sqlx's error.
#[tokio::test]
async fn a_refusal_by_the_client_is_no_failure_of_what_is_around_it() {
    let (_dir, db) = accounts("t-around-refused").await;
    let client = breaker("database:t-around-refused").unwrap();
    let policy = Policy::builder(Kind::Database, "t-around refusals").base_delay(Duration::ZERO);
    let policy = policy.build().unwrap();
    client.isolate();
    for _ in 0..4 {
        policy.call(|| fetch(&db, "select 'one'")).await.unwrap_err();
    }
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
    client.reset();
    assert_eq!(amount(&db, 1).await, 100);
}
