//! What the check of a probe says: the server as it is, whatever became of old connections, of the
//! host that did last, or of other people's connections.

use super::*;
use mainstay_policy::{Health, HealthStatus};
use mainstay_test_support::{Proxy, proxy::Accept};

/// With this many idle connections.
async fn idle<DB: Backend>(db: &DatabaseClient<DB>, many: usize) {
    drop(futures_util::future::try_join_all((0..many).map(|_| db.acquire())).await.unwrap());
    until_at_rest(db).await;
    assert_eq!(db.pool_status().idle as usize, many);
}

fn hosts(proxies: &[&Proxy]) -> String {
    let addresses: Vec<_> = proxies.iter().map(|proxy| proxy.addr().to_string()).collect();
    format!("postgres://postgres@{}/postgres", addresses.join(","))
}

fn assert_is(health: &Health, status: HealthStatus) {
    assert_eq!(health.status, status, "{} after {:?}", health.detail, health.latency);
}

/// Their host was switched off, say, and nothing tells that it is gone: another one answers.
#[tokio::test]
async fn old_connections_that_fell_silent_do_not_speak_for_the_server() {
    let [old, new] = [(); 2].map(|()| Proxy::in_front_of(POSTGRES.address()));
    let db: PgDatabase = client("health-silent-links", hosts(&[&old, &new]));
    idle(&db, 3).await;
    old.set(mainstay_test_support::proxy::Faults::hold);
    old.refuse();
    for _ in 0..3 {
        assert_is(&db.health_check().await, HealthStatus::Healthy);
    }
    assert_eq!(db.pool_status().in_use, 0);
    sqlx::query("select 1").execute(&db).await.unwrap();
}

/// Nobody gets through to a host that is silent, and nobody waits for that to be certain.
#[tokio::test]
async fn a_silent_host_does_not_hide_the_one_that_answers() {
    let proxies = [(); 3].map(|()| Proxy::in_front_of(POSTGRES.address()));
    let [first, second, third] = &proxies;
    for name in ["health-silent-hosts", "health-silent-hosts-call"] {
        let db: PgDatabase = DatabaseClient::builder()
            .name(name)
            .url(hosts(&[first, second, third]))
            .connect_timeout(ms(10_000))
            .policy(|p| p.max_attempts(1).timeout(ms(5_000)))
            .build()
            .unwrap();
        for silent in [first, second] {
            silent.set(|faults| faults.accept = Accept::Silent);
        }
        if name == "health-silent-hosts" {
            assert_is(&db.health_check().await, HealthStatus::Healthy);
        } else {
            sqlx::query("select 1").execute(&db).await.unwrap();
        }
    }
}

/// Any standby is better than the primary, but not than no connection.
#[tokio::test]
async fn a_silent_standby_does_not_hide_the_primary_that_will_do() {
    let standby = Proxy::in_front_of(POSTGRES.address());
    standby.set(|faults| faults.accept = Accept::Silent);
    let primary = Proxy::in_front_of(POSTGRES.address());
    let url = format!("{}?target_session_attrs=prefer-standby", hosts(&[&standby, &primary]));
    let db: PgDatabase = DatabaseClient::builder()
        .name("health-silent-standby")
        .url(url)
        .connect_timeout(ms(10_000))
        .policy(|p| p.max_attempts(1).timeout(ms(5_000)))
        .build()
        .unwrap();
    assert_is(&db.health_check().await, HealthStatus::Healthy);
    sqlx::query("select 1").execute(&db).await.unwrap();
}

/// A host that is silent says nothing, and so not that the other one was wrong.
#[tokio::test]
async fn what_a_host_says_is_told_though_another_one_is_silent() {
    let [silent, speaks] = [(); 2].map(|()| Proxy::in_front_of(POSTGRES.address()));
    silent.set(|faults| faults.accept = Accept::Silent);
    let db: PgDatabase = DatabaseClient::builder()
        .name("health-says")
        .url(format!("postgres://postgres@{},{}/nowhere", silent.addr(), speaks.addr()))
        .connect_timeout(ms(3_000))
        .policy(|p| p.max_attempts(1).timeout(ms(10_000)))
        .build()
        .unwrap();
    let error = Error::from(sqlx::query("select 1").execute(&db).await.unwrap_err());
    assert!(text(&error).contains("3D000"), "{}", text(&error));
}

/// MariaDB does not say whether it is the primary: whoever answers first may be its replica.
#[tokio::test]
async fn a_slow_primary_of_mariadb_is_not_left_for_its_replica() {
    let [primary, replica] = [(); 2].map(|()| Proxy::in_front_of(MARIADB.address()));
    primary.set(|faults| faults.replies.latency = ms(100));
    let db: MySqlDatabase = DatabaseClient::builder()
        .name("health-slow-primary")
        .url(format!("mysql://root@{},{}/mysql", primary.addr(), replica.addr()))
        .connect_timeout(ms(10_000))
        .acquire_timeout(ms(10_000))
        .build()
        .unwrap();
    // The probe has a second, and asks both; callers do not follow it.
    assert_is(&db.health_check().await, HealthStatus::Healthy);
    assert_eq!((primary.accepted(), replica.accepted()), (1, 1));
    idle(&db, 2).await;
    assert_eq!((primary.accepted(), replica.accepted()), (3, 1));
}

/// It answers, after longer than others are silent: no reason to leave it.
#[tokio::test]
async fn a_slow_connection_is_waited_for() {
    let proxy = Proxy::in_front_of(POSTGRES.address());
    let db: PgDatabase = client("health-slow", Postgres::url_at(proxy.addr()));
    idle(&db, 2).await;
    proxy.set(|faults| faults.replies.latency = ms(300));
    assert_is(&db.health_check().await, HealthStatus::Healthy);
    assert_eq!(db.pool_status().idle, 2);
}

/// Draining, say, or the password is another one by now: the connections that there are go on.
#[tokio::test]
async fn a_refused_connection_does_not_speak_for_one_that_is_slow() {
    let proxy = Proxy::in_front_of(POSTGRES.address());
    let db: PgDatabase = client("health-refused", Postgres::url_at(proxy.addr()));
    idle(&db, 2).await;
    proxy.set(|faults| faults.replies.latency = ms(300));
    proxy.refuse();
    assert_is(&db.health_check().await, HealthStatus::Healthy);
    assert_eq!(db.pool_status().idle, 2);
}

/// Load, and not a fault: the connections that there are go on.
#[tokio::test]
async fn a_full_server_is_degraded_for_whom_it_serves() {
    async fn fill<DB: Backend>(url: String, room: u32) {
        let db: DatabaseClient<DB> = DatabaseClient::builder()
            .name(format!("health-full-{}", DB::NAME))
            .url(url.clone())
            .max_connections(room)
            .build()
            .unwrap();
        let mut held = Vec::new();
        // The server may not have cleared away yet who looked whether it is up.
        until("the server is full", || async {
            futures_util::future::try_join_all((0..room).map(|_| db.acquire())).await.is_ok()
        })
        .await;
        for _ in 0..room {
            held.push(db.acquire().await.unwrap());
        }
        let health = db.health_check().await;
        assert_is(&health, HealthStatus::Degraded);
        assert!(health.detail.contains("no more connections"), "{}", health.detail);
        let none: DatabaseClient<DB> = client(&format!("health-full-none-{}", DB::NAME), url);
        assert_is(&none.health_check().await, HealthStatus::Unhealthy);
    }
    let postgres =
        Postgres::start_with(&["--max_connections=4", "--superuser_reserved_connections=0"]);
    fill::<sqlx::Postgres>(postgres.url(), 4).await;
    // And one for root, which we are.
    let mariadb = Mariadb::start_with(&["--max-connections=10"]);
    fill::<sqlx::MySql>(mariadb.url(), 11).await;
}
