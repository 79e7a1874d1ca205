//! The one reader of time and the one sleeper.
//!
//! Tokio's clock is the runtime's, so tests may pause it; outside tests it is `Instant::now`.

use std::{future::Future, time::Duration};
pub(crate) use tokio::time::Instant;

pub(crate) fn now() -> Instant {
    Instant::now()
}

/// No wait outside a runtime, where there is no timer.
pub(crate) async fn sleep(duration: Duration) {
    if has_timer() {
        tokio::time::sleep(duration).await;
    }
}

/// `None` when the limit passed first. The work is polled before the timer is.
pub(crate) async fn within<F: Future>(limit: Option<Duration>, work: F) -> Option<F::Output> {
    match limit {
        Some(limit) if has_timer() => tokio::time::timeout(limit, work).await.ok(),
        _ => Some(work.await),
    }
}

/// Tokio panics without a runtime; a driver says what is wrong in its own error.
fn has_timer() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}
