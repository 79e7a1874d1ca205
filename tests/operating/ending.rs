//! The end of a process: what the getters gave is closed, and nobody is waited for beyond the time.

use mainstay::{
    PgDatabase, RedisClient, RedisState, get_database_client, get_redis_client,
    set_database_client, set_redis_client, shutdown,
};
use mainstay_test_support::{Postgres, Redis};
use std::time::{Duration, Instant};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[tokio::test]
async fn shutdown_closes_the_singletons_in_bounded_time() {
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let db = PgDatabase::builder().name("t-end").url(postgres.url()).build().unwrap();
    let cache = RedisClient::builder().name("t-end").url(redis.url()).build().unwrap();
    set_database_client(db);
    set_redis_client(cache);
    let db: PgDatabase = get_database_client().unwrap();
    let cache = get_redis_client().unwrap();
    cache.set("k", "v").await.unwrap();
    // Somebody who does not come to an end.
    let held = db.session().await.unwrap();

    let began = Instant::now();
    shutdown(ms(300)).await;
    let took = began.elapsed();
    assert!((ms(300)..ms(5_000)).contains(&took), "{took:?}");
    let refused = db.session().await.unwrap_err();
    assert!(began.elapsed() < ms(8_000), "at once: {refused}");
    assert_eq!(cache.state(), RedisState::Degraded);
    let clients = redis.say("INFO clients");
    assert!(clients.contains("connected_clients:1\r"), "but the one that asks: {clients}");

    drop(held);
    let began = Instant::now();
    shutdown(ms(60_000)).await;
    assert!(began.elapsed() < ms(20_000), "nobody is left to be waited for");
}
