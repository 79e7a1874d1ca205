//! A cap on attempts in flight, with a bounded wait for a place.

use crate::{
    breaker::Breaker,
    clock::{self, Instant},
};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

#[derive(Debug)]
pub(crate) struct Bulkhead {
    /// The dependency's, which has the handles of its metrics.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    breaker: Breaker,
    #[cfg_attr(not(feature = "metrics"), allow(dead_code))]
    limit: usize,
    places: Semaphore,
    max_wait: Duration,
}

/// The right to have one attempt in flight; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Place<'a>(Option<&'a Bulkhead>);

impl<'a> Place<'a> {
    pub(crate) const fn free() -> Self {
        Self(None)
    }

    /// Half the size of tokio's permit, since it sits in every call's future.
    fn of(bulkhead: &'a Bulkhead, permit: SemaphorePermit<'_>) -> Self {
        permit.forget();
        bulkhead.report();
        Self(Some(bulkhead))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(bulkhead) = self.0 {
            bulkhead.places.add_permits(1);
            bulkhead.report();
        }
    }
}

impl Bulkhead {
    pub(crate) fn new(breaker: Breaker, max_concurrent: u32, max_wait: Duration) -> Self {
        let limit = usize::try_from(max_concurrent).unwrap_or(usize::MAX);
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self { breaker, limit, places: Semaphore::new(limit), max_wait }
    }

    /// To those who count places.
    #[inline]
    fn report(&self) {
        #[cfg(feature = "metrics")]
        {
            let taken = self.limit.saturating_sub(self.places.available_permits());
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let (taken, limit) = (count(taken), count(self.limit));
            self.breaker.numbers(|numbers| numbers.places(self.breaker.name(), taken, limit));
        }
    }

    /// A place, if one is free.
    pub(crate) fn enter_now(&self) -> Option<Place<'_>> {
        let permit = self.places.try_acquire().ok()?;
        Some(Place::of(self, permit))
    }

    /// A place, or `None` when the wait or the deadline is over. Callers are served in turn.
    pub(crate) async fn enter(&self, end: Instant) -> Option<Place<'_>> {
        if let Some(place) = self.enter_now() {
            return Some(place);
        }
        let wait = self.max_wait.min(end.since(clock::now()));
        if wait.is_zero() || !clock::has_timer() {
            return None;
        }
        let place = tokio::time::timeout(wait, self.places.acquire()).await.ok()?;
        place.ok().map(|permit| Place::of(self, permit))
    }

    /// [`Self::enter`] for a thread: it looks again every millisecond.
    pub(crate) fn enter_blocking(&self, end: Instant) -> Option<Place<'_>> {
        let until = clock::now().after(self.max_wait).min(end);
        loop {
            if let Some(place) = self.enter_now() {
                return Some(place);
            }
            if clock::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn waits_no_longer_than_it_may_and_a_dropped_wait_takes_no_place() {
        let policy = crate::Policy::builder(crate::Kind::Custom, "b").build().unwrap();
        let bulkhead = Bulkhead::new(policy.breaker().clone(), 1, S);
        let held = bulkhead.enter(Instant::NEVER).await.unwrap();
        let start = clock::now();
        assert!(bulkhead.enter(Instant::NEVER).await.is_none());
        assert_eq!(clock::now().since(start), S);
        assert!(bulkhead.enter(clock::now().after(S / 2)).await.is_none());
        assert_eq!(clock::now().since(start), S + S / 2);
        let dropped = tokio::time::timeout(S / 4, bulkhead.enter(Instant::NEVER)).await;
        assert!(dropped.is_err());
        drop(held);
        assert!(bulkhead.enter(clock::now()).await.is_some());
        assert!(bulkhead.enter_blocking(clock::now()).is_some());
    }
}
