//! What is sent, how often, and what a refused password is.

use crate::{ms, strict, until, until_true};
use mainstay_policy::{BreakerState, HealthStatus};
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure, RedisState};
use mainstay_test_support::Redis;
use std::time::Instant;

#[tokio::test]
async fn a_timeout_is_unknown_and_is_sent_no_more_often_than_allowed() {
    let mut redis = Redis::start();
    let client = RedisClient::builder()
        .name("t-wire")
        .url(redis.url())
        .policy(|p| p.timeout(ms(400)).deadline(ms(10_000)).max_attempts(2).base_delay(ms(10)))
        .fallback(FallbackConfig::off())
        .build()
        .unwrap();
    until(&client, RedisState::Connected).await;
    until_true("deleted", ms(30_000), async || client.del("k").await.is_ok()).await;
    redis.hang();
    let error = client.set("k", "1").await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error:?}");
    assert_eq!(error.attempts(), 2, "{error:?}");
    redis.resume();
    // On the connection that they were sent on, or one that came after it.
    until_true("well", ms(30_000), async || client.get::<String>("k").await.is_ok()).await;
    let stats = redis.say("INFO commandstats");
    let calls = stats.split("cmdstat_set:calls=").nth(1).and_then(|s| s.split(',').next());
    let calls: u32 = calls.unwrap_or("0").parse().unwrap();
    assert!(calls <= 2, "{stats}");
}

#[tokio::test]
async fn refused_credentials_are_an_error_not_an_outage() {
    let redis = Redis::start_with(&["--requirepass", "right"]);
    for (name, user) in [("t-wrongpass", ":s3cret@"), ("t-nopass", "")] {
        let cache = RedisClient::builder()
            .name(name)
            .url(format!("redis://{user}{}", redis.address()))
            .build()
            .unwrap();
        let started = Instant::now();
        let error = cache.set("k", "1").await.unwrap_err();
        assert!(started.elapsed() < ms(1000), "{:?}", started.elapsed());
        assert_eq!(error.attempts(), 1, "not retried");
        assert!(error.downcast_ref::<RedisFailure>().unwrap().is_auth(), "{error:?}");
        let text = format!("{error:?} {}", mainstay_policy::report(&error));
        assert!(text.contains("credentials") && !text.contains("s3cret"), "{text}");
        // Nor is it one for who comes when the breaker is open.
        for _ in 0..5 {
            cache.set("k", "1").await.unwrap_err();
            cache.mset([("k", "1")]).await.unwrap_err();
            cache.get::<String>("k").await.unwrap_err();
            cache.mget::<String>(["k"]).await.unwrap_err();
        }
        assert_eq!(cache.policy().breaker().state(), BreakerState::Open);
        assert_eq!(cache.dirty_keys(), 0);
        let health = cache.health_check().await;
        assert_eq!(health.status, HealthStatus::Unhealthy, "{}", health.detail);
    }
    let cache = RedisClient::builder()
        .name("t-rightpass")
        .url(format!("redis://:right@{}", redis.address()))
        .build()
        .unwrap();
    cache.set("k", "1").await.unwrap();
    assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
}

/// An answer for each of several commands is no success when it is that.
#[tokio::test]
async fn refused_credentials_open_the_breaker_whatever_is_asked() {
    let redis = Redis::start_with(&["--requirepass", "right"]);
    let url = format!("redis://:wrong@{}", redis.address());
    for what in ["run", "pipeline", "mget", "mset", "set_if_absent", "get_set", "get_del"] {
        let client = strict(&format!("t-refused-{what}"), &url);
        // Which tells no breaker.
        let refused = async || client.health_check().await.detail.contains("credentials");
        until_true("refused", ms(30_000), refused).await;
        for _ in 0..3 {
            let error = match what {
                "run" => client.run("GET").key("k").await.unwrap_err(),
                "pipeline" => client.pipeline([client.run("GET").key("k")]).await.unwrap_err(),
                "mget" => client.mget::<String>(["k"]).await.unwrap_err(),
                "mset" => client.mset([("k", "1")]).await.unwrap_err(),
                "set_if_absent" => client.set_if_absent("k", "1").await.unwrap_err(),
                "get_set" => client.get_set::<String>("k", "1").await.unwrap_err(),
                _ => client.get_del::<String>("k").await.unwrap_err(),
            };
            assert!(error.downcast_ref::<RedisFailure>().unwrap().is_auth(), "{what}: {error:?}");
            assert_eq!(error.attempts(), 1, "{what}");
        }
        assert_eq!(client.policy().breaker().state(), BreakerState::Open, "{what}");
    }
}
