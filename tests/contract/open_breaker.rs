//! An open breaker costs nothing: no connection and no byte, through any door.

use crate::subject::{Client, Mood, Remote, ms, ready};
use mainstay::{
    BreakGrowth, BreakerState, Decider, Effect, ErrorKind, HealthStatus, get_resilience_health,
};
use mainstay_test_support::{Proxy, proxy::Direction};
use std::{error::Error as _, time::Duration};

const BREAK: Duration = Duration::from_secs(60);

each!(refuses_without_io_and_says_why: database mariadb redis http s3);

async fn refuses_without_io_and_says_why<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, |policy| {
        let policy = policy.timeout(ms(700)).max_attempts(1).failure_threshold(1);
        policy.recovery_timeout(BREAK).break_growth(BreakGrowth::Fixed)
    });
    let (name, proxy) = (client.name(), server.proxy());
    ready(&client).await;
    server.set(Mood::Silent).await;
    client.call(S::Client::REPEATED).await.unwrap_err();
    assert_eq!(client.policy().breaker().state(), BreakerState::Open, "{name}");

    // The server is well, as who asks it past the breaker sees; only the breaker is in the way.
    server.set(Mood::Well).await;
    let quiet = async || {
        client.health().await;
        proxy
            .until("what was held is through", |proxy| {
                let through = |way| proxy.arrived(way) == proxy.bytes(way);
                proxy.live() <= 1 && through(Direction::Requests) && through(Direction::Replies)
            })
            .await;
        traffic(proxy)
    };
    let before = quiet().await;
    let health = client.health().await;
    assert_eq!(health.status, HealthStatus::Healthy, "{name}: {}", health.detail);
    assert_eq!(health.breaker, Some(BreakerState::Open), "{name}: the check closes no breaker");
    assert_ne!(traffic(proxy), before, "{name}: health is measured, and not what the breaker says");
    let before = quiet().await;
    let doors = S::Client::DOORS.iter().cycle().take(100);
    for door in doors {
        let error = client.call(door).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Rejected, "{name} {door}: {error:?}");
        assert_eq!(error.decider(), Some(Decider::Breaker), "{name} {door}");
        assert!(error.is_circuit_open() && error.is_rejected() && error.source().is_none());
        assert_eq!((error.attempts(), error.elapsed()), (0, Duration::ZERO), "{name} {door}");
        assert_eq!(error.effect(), Effect::NeverSent, "{name} {door}");
        let wait = error.retry_after().unwrap();
        assert!(wait > BREAK / 2 && wait < 2 * BREAK, "{name} {door}: {wait:?}");
        let told = error.to_string();
        assert!(told.contains(name) && told.contains("opened by"), "{told}");
        let cause =
            |effect: &Effect| told.contains(&format!("{}, failures in a row", effect.name()));
        assert!(S::UNANSWERED.iter().any(cause), "{told}");
    }
    assert_eq!(traffic(proxy), before, "{name}: an open breaker let something through");
    let health = &get_resilience_health().circuit_breakers[name];
    assert_eq!(health.blocked_calls, 100, "{name}");
    let effect = health.last_failure.as_ref().unwrap().effect;
    assert!(S::UNANSWERED.iter().any(|e| e.name() == effect), "{name}: {effect}");

    client.policy().breaker().reset();
    ready(&client).await;
    assert_ne!(traffic(proxy), before, "{name}: the proxy does count");
}

fn traffic(proxy: &Proxy) -> (usize, u64, u64) {
    (proxy.accepted(), proxy.arrived(Direction::Requests), proxy.arrived(Direction::Replies))
}
