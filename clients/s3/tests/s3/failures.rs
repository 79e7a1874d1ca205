//! A store that is down or failing.

use crate::{builder, client, quick};
use mainstay_policy::{BreakerState, Effect, HealthStatus, report};
use mainstay_s3::S3Client;
use mainstay_test_support::{
    Port, S3,
    s3::{Answer, BUCKET, KEY, SECRET},
};
use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

#[tokio::test]
async fn an_unreachable_server_is_known_in_under_a_second_with_its_cause() {
    // The defaults' own delays, on purpose.
    let closed = Port::reserve();
    let endpoint = format!("http://{}", closed.address());
    let s3 = S3Client::builder().endpoint_url(&endpoint).credentials(KEY, SECRET).build().unwrap();
    let started = Instant::now();
    let error = s3.get(BUCKET, "k").await.unwrap_err();
    let mut shortest = started.elapsed();
    // The machine may be busy in some of them.
    for n in 0..4 {
        let one = S3Client::builder().endpoint_url(&endpoint).credentials(KEY, SECRET);
        let one = one.name(format!("t-unreachable-{n}")).build().unwrap();
        let started = Instant::now();
        one.get(BUCKET, "k").await.unwrap_err();
        shortest = shortest.min(started.elapsed());
    }
    assert!(shortest < Duration::from_secs(1), "{shortest:?}");
    let told = report(&error).to_string();
    assert!(told.contains(&endpoint), "{told}");
    assert!(told.contains("could not be reached") && told.contains("connection refused"), "{told}");
    assert!(error.is_exhausted() && !error.is_outcome_unknown(), "{error:?}");
    assert_eq!(error.attempts(), 3);
    assert_eq!(s3.health_check().await.status, HealthStatus::Unhealthy);
    // A server that does not speak TLS: what was found in its place is said.
    let store = S3::start().await;
    let tls = store.endpoint().replace("http:", "https:");
    let s3 = S3Client::builder().endpoint_url(&tls).credentials(KEY, SECRET).build().unwrap();
    let told = report(&s3.get(BUCKET, "k").await.unwrap_err()).to_string();
    assert!(told.contains("could not be reached") && told.contains("corrupt message"), "{told}");
}

/// However short an attempt may be.
#[tokio::test]
async fn what_never_connected_was_never_sent() {
    // The kernel connects; nobody answers TLS's greeting.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", silent.local_addr().unwrap());
    let short = |policy| quick(policy).timeout(Duration::from_secs(3)).max_attempts(1);
    let s3 = builder(&endpoint).policy(short).build().unwrap();
    let error = s3.put(BUCKET, "k", "v").await.unwrap_err();
    assert_eq!(error.effect(), Effect::NeverSent, "{error:?}");
    assert!(report(&error).to_string().contains("could not be reached"), "{}", report(&error));
}

#[tokio::test]
async fn a_server_that_fails_is_sent_each_attempt_once() {
    let store = S3::start().await;
    let s3 = client(&store);
    store.front(|_| Answer::Status(503, "ServiceUnavailable"));
    for calls in 1..=3 {
        let error = s3.put(BUCKET, "k", "v").await.unwrap_err();
        assert_eq!(error.attempts(), 3, "{error:?}");
        assert_eq!(store.seen(|_| true), 3 * calls);
    }
    let refused = s3.put(BUCKET, "k", "v").await.unwrap_err();
    assert!(refused.is_circuit_open() && refused.is_rejected(), "{refused:?}");
    assert_eq!(store.seen(|_| true), 9);
    // A health check asks all the same, and says nothing to the breaker.
    store.front(|_| Answer::Pass);
    assert_eq!(s3.health_check_at(BUCKET).await.status, HealthStatus::Healthy);
    assert_eq!(s3.policy().breaker().state(), BreakerState::Open);
}
