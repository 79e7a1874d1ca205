//! What the breaker learns from statements of those who hold a session or a connection, and that it
//! stands in the way of none.

use super::*;
use mainstay_policy::{BreakerState, Deadline, PolicyBuilder, get_resilience_health};
use mainstay_test_support::{
    Proxy,
    servers::{Program, Server},
};

fn holding<DB: Backend>(
    name: &str,
    url: String,
    policy: fn(PolicyBuilder) -> PolicyBuilder,
) -> DatabaseClient<DB> {
    let name = format!("learning-{name}-{}", DB::NAME);
    DatabaseClient::builder()
        .name(name)
        .url(url)
        .max_connections(30)
        .policy(policy)
        .build()
        .unwrap()
}

/// Everybody is inside a session when the server dies, and nobody asks for another.
async fn dies<P: Program, DB: Backend>(mut server: Server<P>)
where
    for<'c> &'c mut mainstay_database::Session<DB>: sqlx::Executor<'c, Database = DB>,
{
    let db: DatabaseClient<DB> = holding("dies", server.url(), |p| p.failure_threshold(4));
    let all = (0..6).map(|_| db.session());
    let mut sessions = futures_util::future::try_join_all(all).await.unwrap();
    server.kill();
    for (n, session) in sessions.iter_mut().enumerate() {
        let state = db.policy().breaker().state();
        let expected = if n < 4 { BreakerState::Closed } else { BreakerState::Open };
        assert_eq!(state, expected, "after {n} statements");
        assert!(sqlx::raw_sql("select 1").execute(session).await.is_err());
    }
    let error = db.session().await.unwrap_err();
    assert!(error.is_circuit_open(), "{}", text(&error));
    println!("{}", text(&error));
    let health = get_resilience_health();
    let cause = health.circuit_breakers[db.policy().name()].last_failure.clone().unwrap();
    assert_eq!(cause.operation, "statement");
}

/// Everybody's statement hangs: the window of failures fills, whatever the count in a row may be.
async fn hangs<P: Program, DB: Backend>(mut server: Server<P>)
where
    for<'c> &'c mut mainstay_database::Session<DB>: sqlx::Executor<'c, Database = DB>,
{
    let policy = |p: PolicyBuilder| p.failure_threshold(1_000).timeout(ms(1_000)).ramp(false);
    let db: DatabaseClient<DB> = holding("hangs", server.url(), policy);
    let mut sessions = Vec::new();
    for _ in 0..24 {
        sessions.push(db.session().await.unwrap());
    }
    server.hang();
    let all = sessions.iter_mut().map(|session| sqlx::raw_sql("select 1").execute(session));
    let ends = futures_util::future::join_all(all).await;
    for end in ends {
        let error = Error::from(end.err().unwrap());
        assert!(error.is_timeout() && !error.is_outcome_unknown(), "{}", text(&error));
    }
    assert_eq!(db.policy().breaker().state(), BreakerState::Open);
    server.resume();
}

#[tokio::test]
async fn of_a_postgres_that_dies_while_all_are_in_sessions() {
    dies::<_, sqlx::Postgres>(Postgres::start()).await;
}

#[tokio::test]
async fn of_a_mariadb_that_dies_while_all_are_in_sessions() {
    dies::<_, sqlx::MySql>(Mariadb::start()).await;
}

#[tokio::test]
async fn of_a_postgres_that_hangs_while_all_are_in_sessions() {
    hangs::<_, sqlx::Postgres>(Postgres::start()).await;
}

#[tokio::test]
async fn of_a_mariadb_that_hangs_while_all_are_in_sessions() {
    hangs::<_, sqlx::MySql>(Mariadb::start()).await;
}

/// Work that has begun is finished.
#[tokio::test]
async fn an_open_breaker_stops_no_session_that_has_begun() {
    let db: PgDatabase = holding("open", POSTGRES.url(), |p| p);
    sqlx::query("create table begun (n int)").execute(&db).await.unwrap();
    let mut session = db.session().await.unwrap();
    let mut connection = db.acquire().await.unwrap();
    db.policy().breaker().isolate();
    let insert = "insert into begun values (1)";
    assert!(Error::from(sqlx::query(insert).execute(&db).await.unwrap_err()).is_rejected());
    sqlx::query(insert).execute(&mut session).await.unwrap();
    session.commit().await.unwrap();
    sqlx::query(insert).execute(&mut connection).await.unwrap();
    db.policy().breaker().reset();
    let rows: i64 = sqlx::query_scalar("select count(*) from begun").fetch_one(&db).await.unwrap();
    assert_eq!(rows, 2);
}

/// A server's answer, a caller's own deadline and a conflict say nothing against the server.
#[tokio::test]
async fn nothing_of_what_is_no_fault_of_the_server() {
    let db: PgDatabase = holding("innocent", POSTGRES.url(), |p| p.failure_threshold(1));
    sqlx::query("create table innocent (n int primary key)").execute(&db).await.unwrap();
    for late in [false, true] {
        let mut session = db.session().await.unwrap();
        let sql = if late { "select pg_sleep(60)" } else { "insert into innocent values (null)" };
        let statement = sqlx::query(sql).execute(&mut session);
        let error = Error::from(Deadline::within(ms(50)).scope(statement).await.unwrap_err());
        if late {
            assert_eq!(error.decider(), Some(mainstay_policy::Decider::Deadline));
        }
        assert_eq!(db.policy().breaker().state(), BreakerState::Closed, "{}", text(&error));
    }
    let mut session = db.session().await.unwrap();
    let mut other = db.session().await.unwrap();
    sqlx::query("lock table innocent").execute(&mut other).await.unwrap();
    let conflict = sqlx::query("lock table innocent nowait").execute(&mut session).await;
    conflict.unwrap_err();
    assert_eq!(db.policy().breaker().state(), BreakerState::Closed);
}

/// BEGIN has taken a part of the attempt's time: the closure has the rest, by our own clock, which knows
/// that nothing was committed, and not by the policy's, which does not.
async fn takes_too_long(name: &str, work: &'static str) {
    let proxy = Proxy::in_front_of(POSTGRES.address());
    let policy = |p: PolicyBuilder| p.max_attempts(1).failure_threshold(1).timeout(ms(3_000));
    let db: PgDatabase = holding(name, Postgres::url_at(proxy.addr()), policy);
    db.session().await.unwrap().commit().await.unwrap();
    proxy.set(|faults| faults.replies.latency = ms(20));
    let error = db
        .transaction(async |tx| {
            sqlx::query(work).execute(&mut *tx).await?;
            std::future::pending::<Result<(), Error>>().await
        })
        .await
        .unwrap_err();
    assert!(error.is_timeout() && !error.is_outcome_unknown(), "{}", text(&error));
    assert_eq!(error.decider(), Some(mainstay_policy::Decider::Timeout));
    assert_eq!(db.policy().breaker().state(), BreakerState::Open, "{}", text(&error));
}

#[tokio::test]
async fn of_a_transaction_whose_statement_hangs_after_a_slow_begin() {
    takes_too_long("begin", "select pg_sleep(60)").await;
}

#[tokio::test]
async fn of_a_transaction_that_waits_for_something_else_after_a_slow_begin() {
    takes_too_long("begin-else", "select 1").await;
}
