//! The four clients as one: the getters from two runtimes of one process, and an outage of each
//! server that ends without a restart of this program.
#![cfg(feature = "test-servers")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mainstay::{
    BreakerState, Error, HealthStatus, PgDatabase, RedisClient, RedisState, get_database_client,
    get_redis_client, get_resilience_health, set_database_client, set_redis_client, sqlx,
};
use mainstay_test_support::{Postgres, Redis};
use std::{
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One PostgreSQL and one Redis for the getters of this process; the kernel ends them with it.
fn install() {
    static SERVERS: OnceLock<Mutex<(Postgres, Redis)>> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let servers = (Postgres::start(), Redis::start());
        let db = PgDatabase::builder().name("t-getter-db").url(servers.0.url()).build();
        set_database_client(db.unwrap());
        let redis = RedisClient::builder().name("t-getter-redis").url(servers.1.url()).build();
        set_redis_client(redis.unwrap());
        Mutex::new(servers)
    });
}

/// What each of the two tests does in the runtime of its own.
async fn work(who: &str) {
    let db: PgDatabase = get_database_client().unwrap();
    let said: String = sqlx::query_scalar("select $1").bind(who).fetch_one(&db).await.unwrap();
    assert_eq!(said, who);
    let mut session = db.session().await.unwrap();
    sqlx::query("select 1").execute(&mut session).await.unwrap();
    session.commit().await.unwrap();
    let redis = get_redis_client().unwrap();
    redis.set(who, who).await.unwrap();
    assert_eq!(redis.get::<String>(who).await.unwrap().as_deref(), Some(who));
    assert_eq!(redis.state(), RedisState::Connected, "the server answers, not the fallback");
    assert_eq!(db.health_check().await.status, HealthStatus::Healthy);
    assert_eq!(redis.health_check().await.status, HealthStatus::Healthy);
}

#[tokio::test]
async fn the_getters_work_in_one_tests_runtime() {
    install();
    work("one").await;
}

#[tokio::test]
async fn the_getters_work_in_anothers() {
    install();
    work("another").await;
}

/// ```text
/// up | killed: work fails, the breaker opens, calls are refused | restarted: a probe closes it
/// ```
#[tokio::test]
async fn a_killed_postgres_opens_the_breaker_and_its_return_closes_it() {
    let mut server = Postgres::start();
    let db = PgDatabase::builder()
        .name("t-bundle-db")
        .url(server.url())
        .policy(|p| p.base_delay(ms(10)).recovery_timeout(ms(1_000)).timeout(ms(2_000)))
        .build()
        .unwrap();
    let state = || db.policy().breaker().state();
    let insert = async || {
        let mut session = db.session().await?;
        sqlx::query("insert into work default values").execute(&mut session).await?;
        session.commit().await
    };
    sqlx::query("create table work (id serial)").execute(&db).await.unwrap();
    insert().await.unwrap();

    server.kill();
    let killed = Instant::now();
    let first: Error = insert().await.unwrap_err();
    assert!(killed.elapsed() < ms(2_000), "{:?}: {first}", killed.elapsed());
    while state() == BreakerState::Closed {
        insert().await.unwrap_err();
        assert!(killed.elapsed() < ms(20_000), "it opens");
    }
    let refused = loop {
        let error = insert().await.unwrap_err();
        let open = get_resilience_health().open_breakers;
        if error.is_rejected() && open.iter().any(|name| name == db.policy().name()) {
            break error;
        }
        assert!(killed.elapsed() < ms(20_000), "an open one refuses");
    };
    assert!(refused.is_circuit_open() && refused.attempts() == 0, "{refused:?}");
    let health = db.health_check().await;
    assert_eq!(health.status, HealthStatus::Unhealthy);
    assert!(health.detail.contains("refused"), "{}", health.detail);

    server.restart();
    let back = Instant::now();
    while insert().await.is_err() {
        assert!(back.elapsed() < ms(20_000), "it recovers");
        tokio::task::yield_now().await;
    }
    assert_eq!(state(), BreakerState::Closed);
    assert_eq!(db.health_check().await.status, HealthStatus::Healthy);
}

/// The same for Redis, with the fallback answering in between.
#[tokio::test]
async fn a_killed_redis_is_bridged_by_the_fallback_and_taken_back() {
    let mut server = Redis::start();
    let cache = RedisClient::builder()
        .name("t-bundle-redis")
        .url(server.url())
        .policy(|p| p.base_delay(ms(10)).recovery_timeout(ms(200)))
        .build()
        .unwrap();
    let get = async |key: &str| cache.get::<String>(key).await.unwrap();
    let state = || cache.policy().breaker().state();
    cache.set("kept", "before").await.unwrap();

    server.kill();
    let killed = Instant::now();
    assert_eq!(get("kept").await.as_deref(), Some("before"), "memory answers");
    cache.set("kept", "during").await.unwrap();
    assert_eq!(get("kept").await.as_deref(), Some("during"));
    assert!(killed.elapsed() < ms(2_000), "{:?}", killed.elapsed());
    assert_eq!(cache.state(), RedisState::Degraded);
    // What memory does not know is asked of the server, until the breaker spares us that.
    let mut asked = 0;
    while state() == BreakerState::Closed {
        asked += 1;
        assert_eq!(get(&format!("unknown-{asked}")).await, None);
        assert!(asked < 50, "it opens");
    }
    assert_eq!(cache.health_check().await.status, HealthStatus::Degraded);

    server.restart();
    let back = Instant::now();
    while cache.state() != RedisState::Connected {
        get("poke").await;
        assert!(back.elapsed() < ms(20_000), "it recovers");
        tokio::task::yield_now().await;
    }
    assert_eq!(state(), BreakerState::Closed);
    // It was a cache: what was written meanwhile is forgotten at the server, not out of date.
    assert_eq!(get("kept").await, None);
    cache.set("kept", "after").await.unwrap();
    assert_eq!(get("kept").await.as_deref(), Some("after"));
    assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
}
