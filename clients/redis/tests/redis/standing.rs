//! What `state()` and `health_check()` say while a breaker stands between the client and a server that
//! is well.

use crate::{degraded::Place, ms, text, until, until_true};
use mainstay_policy::{BreakGrowth, BreakerState, Decider, HealthStatus, Mode, PolicyBuilder};
use mainstay_redis::{FallbackConfig, RedisClient, RedisState, Source};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn build(place: &Place, name: &str, fallback: FallbackConfig, growth: BreakGrowth) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(format!("redis://{}", place.proxy.addr()))
        .policy(move |p| {
            // Less than a second: one call that is not answered does not close the link too.
            let p = p.timeout(ms(900)).max_attempts(1).failure_threshold(1);
            p.recovery_timeout(LONG).break_growth(growth)
        })
        .fallback(fallback)
        .build()
        .unwrap()
}

/// One call that is not answered, and then a server that is well.
async fn trip(place: &Place, client: &RedisClient) {
    place.proxy.set(|faults| faults.replies.hold = true);
    let _ = client.get::<String>("k").await;
    place.proxy.heal();
    assert_eq!(client.policy().breaker().state(), BreakerState::Open);
    // It may have been silent for long enough to close the link.
    until_true("linked", ms(30_000), async || {
        !client.health_check().await.detail.contains("silent")
    })
    .await;
}

#[tokio::test]
async fn with_a_breaker_open_or_isolated_the_fallback_answers_for_a_server_that_is_well() {
    let place = Place::new();
    let cache = build(&place, "t-shut", FallbackConfig::new(), BreakGrowth::Fixed);
    until(&cache, RedisState::Connected).await;
    cache.set("k", "1").await.unwrap();
    assert_eq!(cache.state(), RedisState::Connected);
    let breaker = cache.policy().breaker();
    trip(&place, &cache).await;
    for state in [BreakerState::Open, BreakerState::Isolated] {
        if state == BreakerState::Isolated {
            breaker.isolate();
        }
        assert_eq!(cache.state(), RedisState::Degraded, "{state:?}");
        let health = cache.health_check().await;
        assert_eq!((health.status, health.breaker), (HealthStatus::Degraded, Some(state)));
        let said =
            format!("PING answered by a master, but the breaker redis:t-shut is {}", state.name());
        assert!(health.detail.starts_with(&said), "{}", health.detail);
        assert!(health.detail.contains("the fallback answers"), "{}", health.detail);
    }
    breaker.reset();
    assert_eq!(cache.state(), RedisState::Connected);
    assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
    breaker.force_closed();
    assert_eq!(cache.state(), RedisState::Connected);
    assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
}

#[tokio::test]
async fn without_a_fallback_health_is_the_server_s_whatever_the_breaker_says() {
    let place = Place::new();
    let client = build(&place, "t-shut-off", FallbackConfig::off(), BreakGrowth::Fixed);
    until(&client, RedisState::Connected).await;
    client.set("k", "1").await.unwrap();
    let breaker = client.policy().breaker();
    trip(&place, &client).await;
    for state in [BreakerState::Open, BreakerState::Isolated] {
        if state == BreakerState::Isolated {
            breaker.isolate();
        }
        assert_eq!(client.state(), RedisState::Degraded, "{state:?}: every call is refused");
        let health = client.health_check().await;
        assert_eq!((health.status, health.breaker), (HealthStatus::Healthy, Some(state)));
        assert!(health.detail.contains(state.name()), "{}", health.detail);
    }
}

#[tokio::test]
async fn half_open_the_next_call_is_the_server_s_and_in_the_ramp_a_share_of_them() {
    let place = Place::new();
    let cache = build(&place, "t-ramp", FallbackConfig::new(), BreakGrowth::Exponential);
    until(&cache, RedisState::Connected).await;
    cache.set("k", "1").await.unwrap();
    for _ in 0..200 {
        assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    }
    let breaker = cache.policy().breaker();
    trip(&place, &cache).await;
    until_true("half-open", ms(30_000), async || breaker.state() == BreakerState::HalfOpen).await;
    assert_eq!(cache.state(), RedisState::Connected);
    // While the probe is under way all others are refused.
    place.proxy.set(|faults| faults.replies.hold = true);
    let probe = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_answer::<String>("k").await }
    });
    until_true("refused", ms(800), async || cache.state() == RedisState::Degraded).await;
    place.proxy.heal();
    let answer = probe.await.unwrap().unwrap();
    assert_eq!(answer.source, Source::Redis);
    assert_eq!(breaker.state(), BreakerState::Ramping);
    assert_eq!(cache.state(), RedisState::Recovering);
    let health = cache.health_check().await;
    assert_eq!(health.status, HealthStatus::Degraded, "{}", health.detail);
    assert!(health.detail.contains("ramping"), "{}", health.detail);
}

#[tokio::test]
async fn in_observe_mode_a_breaker_is_in_nobody_s_way() {
    let place = Place::new();
    let cache = RedisClient::builder()
        .name("t-observing")
        .url(format!("redis://{}", place.proxy.addr()))
        .policy(|p| p.mode(Mode::Observe))
        .build()
        .unwrap();
    cache.policy().breaker().isolate();
    cache.set("k", "1").await.unwrap();
    assert_eq!(cache.get_answer::<String>("k").await.unwrap().source, Source::Redis);
    assert_eq!(cache.state(), RedisState::Connected);
    let health = cache.health_check().await;
    assert_eq!(
        (health.status, health.breaker),
        (HealthStatus::Healthy, Some(BreakerState::Isolated))
    );
}

#[tokio::test]
async fn a_write_over_a_limit_of_our_own_is_an_error_and_a_read_is_answered_here() {
    let place = Place::new();
    let build = |name: &str, limit: fn(PolicyBuilder) -> PolicyBuilder| {
        RedisClient::builder()
            .name(name)
            .url(format!("redis://{}", place.proxy.addr()))
            .policy(move |p| limit(p.timeout(ms(1_500)).max_attempts(1)))
            .build()
            .unwrap()
    };
    let cache = build("t-rate", |p| p.rate_limit(1));
    until(&cache, RedisState::Connected).await;
    let mut written = 0;
    let refused = loop {
        match cache.set("k", written + 1).await {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100 && cache.dirty_keys() == 0, "nothing is refused");
    };
    assert_eq!(refused.decider(), Some(Decider::RateLimit), "{refused:?}");
    assert_eq!(cache.get::<i32>("k").await.unwrap(), Some(written));
    let refused = loop {
        if let Err(error) = cache.mset([("k", written)]).await {
            break error;
        }
        assert_eq!(cache.dirty_keys(), 0);
    };
    assert_eq!(refused.decider(), Some(Decider::RateLimit), "{refused:?}");

    let cache = build("t-bulkhead", |p| p.max_concurrent(1));
    until(&cache, RedisState::Connected).await;
    cache.set("k", "1").await.unwrap();
    place.proxy.set(|faults| faults.replies.hold = true);
    let (_, write, read) = tokio::join!(
        cache.get::<String>("other"),
        async { cache.set("k", "2").await },
        cache.get_answer::<String>("k"),
    );
    let refused = write.unwrap_err();
    assert_eq!(refused.decider(), Some(Decider::Bulkhead), "{refused:?}");
    let read = read.unwrap();
    assert_eq!((read.value.as_deref(), read.source), (Some("1"), Source::Fallback));
    assert_eq!(cache.dirty_keys(), 0);
}
