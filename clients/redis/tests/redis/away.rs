//! Nobody at the URL, or somebody who says nothing.

use crate::{client, ms, text};
use mainstay_policy::{BreakerState, HealthStatus};
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure};
use mainstay_test_support::{Port, Proxy, proxy::Accept};
use std::time::Instant;

#[tokio::test]
async fn with_nobody_at_the_url_memory_answers_and_the_breaker_opens() {
    let nowhere = Port::reserve();
    let cache = client("t-refused", nowhere.address());
    let started = Instant::now();
    cache.set("k", "1").await.unwrap();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    cache.hset("h", "f", "1").await.unwrap();
    assert!(started.elapsed() < ms(1000), "{:?}", started.elapsed());
    for n in 0..5 {
        assert_eq!(text(&cache, &format!("miss{n}")).await, None);
    }
    assert_ne!(cache.policy().breaker().state(), BreakerState::Closed);
    assert!(cache.del("k").await.unwrap());
    assert_eq!(text(&cache, "k").await, None);
    let health = cache.health_check().await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(health.detail.contains("refused"), "{}", health.detail);
    assert!(health.detail.ends_with("the fallback answers"), "{}", health.detail);
}

#[tokio::test]
async fn without_a_fallback_an_outage_is_an_error_with_its_cause_in_under_a_second() {
    let nowhere = Port::reserve();
    let url = format!("redis://user:s3cret@{}", nowhere.address());
    let client = RedisClient::builder()
        .name("t-strict")
        .url(url)
        .fallback(FallbackConfig::off())
        .build()
        .unwrap();
    let started = Instant::now();
    let error = client.get::<String>("k").await.unwrap_err();
    assert!(started.elapsed() < ms(1000), "{:?}", started.elapsed());
    let text = format!("{error:?} {}", mainstay_policy::report(&error));
    assert!(text.contains("refused"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    assert!(!error.is_outcome_unknown());
    assert_eq!(client.health_check().await.status, HealthStatus::Unhealthy);
}

#[tokio::test]
async fn a_full_fallback_refuses_what_it_cannot_keep() {
    let nowhere = Port::reserve();
    let build = |name: &str, fallback| {
        let url = format!("redis://{}", nowhere.address());
        RedisClient::builder().name(name).url(url).fallback(fallback).build().unwrap()
    };
    let cache = build("t-full", FallbackConfig::new().max_dirty_entries(2));
    cache.set("a", "1").await.unwrap();
    cache.set("b", "1").await.unwrap();
    let error = cache.set("c", "1").await.unwrap_err();
    assert!(error.downcast_ref::<RedisFailure>().unwrap().is_fallback_full());
    assert!(!error.is_outcome_unknown());
    cache.set("a", "2").await.unwrap();
    assert_eq!(text(&cache, "a").await.as_deref(), Some("2"));

    let cache = build("t-full-of-bytes", FallbackConfig::new().max_dirty_bytes(10_000));
    cache.set("a", "1").await.unwrap();
    let error = cache.set("b", vec![b'x'; 10_000]).await.unwrap_err();
    assert!(error.downcast_ref::<RedisFailure>().unwrap().is_fallback_full());
    assert_eq!(text(&cache, "b").await, None);
    cache.set("c", "1").await.unwrap();
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_nobody_up() {
    let proxy = Proxy::in_front_of(Port::reserve().address());
    proxy.set(|faults| faults.accept = Accept::Silent);
    let cache = RedisClient::builder()
        .name("t-mute")
        .url(format!("redis://{}", proxy.addr()))
        .policy(|p| p.timeout(ms(20_000)))
        .build()
        .unwrap();
    let started = Instant::now();
    cache.set("k", "1").await.unwrap();
    assert!(started.elapsed() < ms(5_000), "{:?}", started.elapsed());
    let started = Instant::now();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    assert!(started.elapsed() < ms(5_000), "{:?}", started.elapsed());
    assert_eq!(cache.health_check().await.status, HealthStatus::Degraded);
    assert!(proxy.accepted() > 0);
}
