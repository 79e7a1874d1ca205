//! What a probe is told.

use crate::{builder, client};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, future},
};
use mainstay_policy::{BreakerState, HealthStatus};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, KEY, SECRET},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

#[tokio::test]
async fn health_tells_missing_from_forbidden_and_feeds_no_breaker() {
    let store = S3::start().await;
    let s3 = builder(store.endpoint()).bucket(BUCKET).build().unwrap();
    assert_eq!(s3.health_check().await.status, HealthStatus::Healthy);
    assert_eq!(client(&store).health_check().await.status, HealthStatus::Healthy);
    let missing = s3.health_check_at("none").await;
    assert_eq!(missing.status, HealthStatus::Unhealthy);
    assert!(missing.detail.contains("bucket `none`"), "{}", missing.detail);
    for (status, health) in [
        (301, HealthStatus::Unhealthy),
        (403, HealthStatus::Degraded),
        (500, HealthStatus::Unhealthy),
    ] {
        store.front(move |_| Answer::Status(status, ""));
        for _ in 0..4 {
            let seen = s3.health_check().await;
            assert_eq!(seen.status, health, "{status}: {}", seen.detail);
        }
    }
    store.front(|_| Answer::Hang);
    let started = Instant::now();
    assert_eq!(s3.health_check().await.status, HealthStatus::Unhealthy);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(s3.policy().breaker().state(), BreakerState::Closed);
}

/// Gives credentials when it is let; counts how often it was asked.
#[derive(Debug, Clone)]
struct Slow(Arc<(Semaphore, AtomicU32)>);

impl ProvideCredentials for Slow {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.0.1.fetch_add(1, Relaxed);
            let _let = self.0.0.acquire().await;
            Ok(Credentials::new(KEY, SECRET, None, None, "test"))
        })
    }
}

#[tokio::test]
async fn a_probe_that_ends_before_credentials_are_found_does_not_end_the_search() {
    let store = S3::start().await;
    let slow = Slow(Arc::new((Semaphore::new(0), AtomicU32::new(0))));
    let s3 = builder(store.endpoint()).bucket(BUCKET).credentials_provider(slow.clone());
    let s3 = s3.build().unwrap();
    let early = s3.health_check().await;
    assert_eq!(early.status, HealthStatus::Unhealthy);
    assert!(early.detail.contains("credentials are still being looked for"), "{}", early.detail);
    assert_eq!(store.seen(|_| true), 0);
    slow.0.0.add_permits(1);
    let then = s3.health_check().await;
    assert_eq!(then.status, HealthStatus::Healthy, "{}", then.detail);
    assert_eq!(slow.0.1.load(Relaxed), 1);
}
