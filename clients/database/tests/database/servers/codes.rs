//! Rows of the error table, each by an error that a real server gives: what the caller may do next,
//! and what the breaker makes of it.

mod mariadb;
mod postgres;
mod sqlite;
mod stale;

use super::*;
use mainstay_database::sqlx::AssertSqlSafe;
use mainstay_policy::{Effect, get_resilience_health};

/// What the breaker counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    Success,
    Failure,
    Neutral,
}

fn counts(name: &str) -> (u64, u64, u64) {
    let health = get_resilience_health();
    let one = &health.circuit_breakers[&format!("database:{name}")];
    let (ok, failed) = (one.successful_calls, one.failed_calls);
    (ok, failed, one.total_calls - ok - failed)
}

/// A client that tries once, with a breaker of its own that only counts.
fn once<DB: Backend>(name: &str, url: &str) -> DatabaseClient<DB> {
    DatabaseClient::builder()
        .name(name)
        .url(url)
        .connect_timeout(ms(10_000))
        .policy(|p| {
            let counting = p.failure_threshold(1_000).without_failure_rate().without_slow_rate();
            counting.max_attempts(1).timeout(ms(10_000))
        })
        .build()
        .unwrap()
}

/// The effect of a statement's error; an answer that is not repeated comes plain, and is permanent.
async fn judge<DB: Backend>(
    name: &str,
    code: &str,
    call: impl Future<Output = Result<(), Error>>,
    expected: (Effect, Breaker),
) {
    let before = counts(name);
    let error = call.await.unwrap_err();
    let after = counts(name);
    let breaker = match (after.0 - before.0, after.1 - before.1, after.2 - before.2) {
        (1, 0, 0) => Breaker::Success,
        (0, 1, 0) => Breaker::Failure,
        (0, 0, 1) => Breaker::Neutral,
        other => panic!("{name} {code}: {other:?}"),
    };
    let seen = code_of(&error);
    println!("{} {code}: {:?}, breaker {breaker:?}: {}", DB::NAME, error.effect(), text(&error));
    assert!(code.split('|').any(|code| code == seen), "{seen}, not {code}: {}", text(&error));
    assert_eq!((error.effect(), breaker), expected, "{code}");
}

/// The SQLSTATE or number that the server gave; empty without one.
fn code_of(error: &Error) -> String {
    let driver = error.downcast_ref::<sqlx::Error>().and_then(|e| e.as_database_error());
    driver.and_then(|e| e.code()).unwrap_or_default().into_owned()
}

/// A statement on the client.
async fn run<DB: Backend>(db: &DatabaseClient<DB>, sql: &str) -> Result<(), Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await?;
    Ok(())
}

const CONFLICT: (Effect, Breaker) = (Effect::Transient, Breaker::Neutral);
const ILL: (Effect, Breaker) = (Effect::Transient, Breaker::Failure);
const OWN_FAULT: (Effect, Breaker) = (Effect::Permanent, Breaker::Success);
const REFUSED: (Effect, Breaker) = (Effect::Permanent, Breaker::Failure);
const LOST: (Effect, Breaker) = (Effect::Unknown, Breaker::Failure);
