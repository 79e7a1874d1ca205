//! What a probe is told.

use crate::{builder, client};
use mainstay_policy::{BreakerState, HealthStatus};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET},
};
use std::time::{Duration, Instant};

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
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(s3.policy().breaker().state(), BreakerState::Closed);
}
