//! The one reader of time and the one sleeper.
//!
//! Tokio's clock is the runtime's, so tests may pause it; outside tests it is `Instant::now`.

use std::{future::Future, time::Duration};
pub(crate) use tokio::time::Instant;

pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// `None` when the limit passed first. The work is polled before the timer is.
pub(crate) async fn within<F: Future>(limit: Option<Duration>, work: F) -> Option<F::Output> {
    match limit {
        None => Some(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
    }
}
