//! The primary goes and its standby takes over: found without a restart, behind a URL of two hosts
//! and behind one address.

use super::*;
use mainstay_test_support::Proxy;

/// Writes until one is acknowledged, and says how long that took.
async fn until_written(db: &PgDatabase) -> Duration {
    let started = Instant::now();
    loop {
        let write = sqlx::query("insert into t values (1)").execute(db).await;
        match write.map_err(Error::from) {
            Ok(_) => return started.elapsed(),
            Err(error) => {
                assert!(started.elapsed() < ms(20_000), "{}", text(&error));
                tokio::time::sleep(error.retry_after().unwrap_or(ms(5))).await;
            }
        }
    }
}

async fn until_following(standby: &PgDatabase) {
    until("the standby has the table", || async {
        sqlx::query("select n from t").fetch_all(standby).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_promoted_standby_is_found_behind_two_hosts() {
    let mut primary = Postgres::start();
    let standby = primary.standby();
    let url = format!("postgres://postgres@{},{}/postgres", standby.address(), primary.address());
    // With two hosts it wants the one that writes, though the standby comes first.
    let db: PgDatabase = client("failover-hosts", url.clone());
    sqlx::query("create table t (n int)").execute(&db).await.unwrap();
    let referee: PgDatabase = client("failover-hosts-referee", standby.url());
    until_following(&referee).await;

    let reading = format!("{url}?target_session_attrs=standby");
    let reader: PgDatabase = client("failover-hosts-reader", reading);
    let is_standby: bool =
        sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&reader).await.unwrap();
    assert!(is_standby);

    primary.kill();
    let error = db.session().await.unwrap_err();
    println!("while there is no primary: {}", text(&error));
    sqlx::query("select pg_promote(true, 10)").execute(&referee).await.unwrap();
    println!("written {:?} after the promotion", until_written(&db).await);
}

/// One address, which leads to the standby from one moment to the next: its old connections are to
/// a server that has become read-only.
#[tokio::test]
async fn a_server_that_turned_read_only_costs_the_connections() {
    let primary = Postgres::start();
    let standby = primary.standby();
    let proxy = Proxy::in_front_of(primary.address());
    let db: PgDatabase = client("failover-address", Postgres::url_at(proxy.addr()));
    sqlx::query("create table t (n int)").execute(&db).await.unwrap();
    let referee: PgDatabase = client("failover-address-referee", standby.url());
    until_following(&referee).await;

    proxy.point_at(standby.address());
    proxy.cut();
    // Once more, whatever became of it on the connection that was cut.
    let write = sqlx::query("insert into t values (1)").execute(db.idempotent()).await;
    let error = Error::from(write.unwrap_err());
    println!("on the standby: {}", text(&error));
    until_at_rest(&db).await;
    assert_eq!(db.pool_status().idle, 0, "a connection to a read-only server was kept");
    sqlx::query("select pg_promote(true, 10)").execute(&referee).await.unwrap();
    println!("written {:?} after the promotion", until_written(&db).await);
}

#[tokio::test]
async fn without_a_host_that_fits_it_says_so() {
    let primary = Postgres::start();
    let url = format!("{}?target_session_attrs=standby", primary.url());
    let db: PgDatabase = client("failover-none", url);
    let error = db.session().await.unwrap_err();
    assert!(text(&error).contains("target_session_attrs"), "{}", text(&error));
    let prefers = format!("{}?target_session_attrs=prefer-standby", primary.url());
    let db: PgDatabase = client("failover-prefers", prefers);
    sqlx::query("select 1").execute(&db).await.unwrap();
}

/// Who asked for one has no reason to wonder that it refuses a write.
#[tokio::test]
async fn a_write_to_a_standby_that_was_asked_for_is_no_failover() {
    let primary = Postgres::start();
    let standby = primary.standby();
    let writer: PgDatabase = client("failover-writer", primary.url());
    sqlx::query("create table t (n int)").execute(&writer).await.unwrap();
    for target in ["standby", "read-only", "prefer-standby"] {
        let db: PgDatabase = DatabaseClient::builder()
            .name(format!("failover-{target}"))
            .url(format!("{}?target_session_attrs={target}", standby.url()))
            .policy(|p| p.failure_threshold(1))
            .build()
            .unwrap();
        until_following(&db).await;
        until_at_rest(&db).await;
        let idle = db.pool_status().idle;
        let write = sqlx::query("insert into t values (1)").execute(&db).await;
        let error = Error::from(write.unwrap_err());
        let driver = error.downcast_ref::<sqlx::Error>().unwrap().as_database_error().unwrap();
        assert_eq!((driver.code().unwrap().as_ref(), error.attempts()), ("25006", 1), "{target}");
        assert_eq!(db.policy().breaker().state(), mainstay_policy::BreakerState::Closed);
        assert_eq!(db.pool_status().idle, idle, "{target}");
    }
}
