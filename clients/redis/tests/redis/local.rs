//! Without a URL: a cache of this process.

use crate::{Warnings, ms, text};
use mainstay_policy::HealthStatus;
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure, RedisState, Source};
use std::{sync::Mutex, time::Duration};

#[tokio::test]
async fn without_a_url_it_is_a_cache_of_this_process() {
    let cache = RedisClient::builder().name("t-local").without_server().build().unwrap();
    cache.set("k", "1").await.unwrap();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    assert_eq!(cache.get::<Vec<u8>>("k").await.unwrap().as_deref(), Some(&b"1"[..]));
    cache.set("short", String::from("1")).ttl(ms(20)).await.unwrap();
    tokio::time::sleep(ms(30)).await;
    assert_eq!(text(&cache, "short").await, None);
    cache.hset("user", "name", "John").await.unwrap();
    assert_eq!(cache.hget::<String>("user", "name").await.unwrap().as_deref(), Some("John"));
    assert_eq!(cache.hget::<String>("user", "age").await.unwrap(), None);
    assert!(cache.hdel("user", "name").await.unwrap());
    assert!(cache.del("k").await.unwrap());
    assert!(!cache.del("k").await.unwrap());
    assert_eq!(cache.state(), RedisState::Degraded);
    let health = cache.health_check().await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(health.detail.contains("no Redis configured"), "{}", health.detail);
}

#[tokio::test]
async fn of_a_hash_memory_has_all_there_is() {
    let cache = RedisClient::builder().name("t-local-hash").without_server().build().unwrap();
    assert!(cache.hgetall::<String>("user").await.unwrap().is_empty());
    cache.hset("user", "name", "John").await.unwrap();
    cache.hset("user", "city", "Berlin").await.unwrap();
    let all = cache.hgetall_answer::<String>("user").await.unwrap();
    assert_eq!((all.value.len(), all.source), (2, Source::Fallback));
    assert_eq!(all.value["name"], "John");
    assert!(cache.hdel("user", "name").await.unwrap());
    let all = cache.hgetall::<String>("user").await.unwrap();
    assert_eq!((all.len(), all["city"].as_str()), (1, "Berlin"));
    assert!(cache.hdel("user", "city").await.unwrap());
    assert!(cache.hgetall::<String>("user").await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_too_heavy_is_refused_and_takes_nothing_along() {
    let cache = RedisClient::builder()
        .name("t-local-heavy")
        .without_server()
        .fallback(FallbackConfig::new().max_bytes(10_000))
        .build()
        .unwrap();
    let heavy = "x".repeat(20_000);
    cache.set("k", "1").await.unwrap();
    cache.hset("h", "f", "1").await.unwrap();
    cache.hset("h", "g", "1").await.unwrap();
    for error in [
        cache.set("k", &heavy).await.unwrap_err(),
        cache.hset("h", "f", &heavy).await.unwrap_err(),
        cache.hset("h", "new", &heavy).await.unwrap_err(),
        cache.mset([("k", &heavy)]).await.unwrap_err(),
    ] {
        let failure = error.downcast_ref::<RedisFailure>().unwrap();
        assert!(failure.is_fallback_full(), "{error:?}");
        let text = failure.to_string();
        assert!(text.contains("max_bytes") && !text.contains("away"), "{text}");
    }
    assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    assert_eq!(cache.hget::<String>("h", "f").await.unwrap().as_deref(), Some("1"));
    assert_eq!(cache.hgetall::<String>("h").await.unwrap().len(), 2);
}

#[test]
fn that_no_url_is_set_is_a_warning() {
    let warnings = Warnings::default();
    let _heard = tracing::subscriber::set_default(warnings.clone());
    RedisClient::builder().name("t-local-warns").build().unwrap();
    let said = warnings.of("no URL is set (MAINSTAY_REDIS_URL or REDIS_URL)");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("redis:t-local-warns"), "{said:?}");
    RedisClient::builder().name("t-local-warns").url("redis://localhost").build().unwrap();
    assert_eq!(warnings.of("no URL").len(), 1);
}

#[tokio::test]
async fn bad_input_is_said_in_words() {
    let cache = RedisClient::builder().name("t-input").without_server().build().unwrap();
    let zero = cache.set("k", "v").ttl(Duration::ZERO).await.unwrap_err();
    assert!(zero.to_string().contains("(ttl) of 0"), "{zero}");
    let endless = cache.set("k", "v").ttl(Duration::MAX).await.unwrap_err();
    assert!(endless.to_string().contains("over 100 years"), "{endless}");
    cache.set("k", vec![0xff, 0xfe]).await.unwrap();
    let binary = cache.get::<String>("k").await.unwrap_err();
    assert!(binary.to_string().contains("not UTF-8"), "{binary}");
    let hash = cache.hset("k", "f", "v").await.unwrap_err();
    assert!(hash.downcast_ref::<RedisFailure>().unwrap().is_wrong_type());
}

/// The process has one of them.
static SINGLETON: Mutex<()> = Mutex::new(());

#[test]
fn outside_a_runtime_the_getter_works() {
    let _alone = SINGLETON.lock();
    let client = mainstay_redis::get_redis_client().unwrap();
    mainstay_redis::set_redis_client(client);
    let error = mainstay_redis::get_redis_client_named("absent").unwrap_err();
    assert!(error.to_string().contains("MAINSTAY_REDIS_ABSENT_URL"), "{error}");
}

/// Values are this process's; links are each runtime's own.
#[test]
fn the_singleton_works_from_a_second_runtime() {
    let _alone = SINGLETON.lock();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = RedisClient::builder().name("t-singleton").without_server().build().unwrap();
    mainstay_redis::set_redis_client(local);
    runtime().block_on(async {
        let cache = mainstay_redis::get_redis_client().unwrap();
        cache.set("k", "1").await.unwrap();
    });
    runtime().block_on(async {
        let cache = mainstay_redis::get_redis_client().unwrap();
        assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    });
}
