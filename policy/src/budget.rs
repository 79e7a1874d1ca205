//! A cap on extra attempts, shared by every operation on one dependency.
//!
//! A token bucket: a retry costs 1 token (2 after a timeout), a successful operation refills 0.5,
//! and 1 token per 10 s keeps quiet clients able to retry. A total outage refills almost nothing,
//! so retries stop where they cannot help.

use crate::clock::Instant;
use std::sync::{Mutex, PoisonError};

const CAPACITY: f64 = 50.0;
const REFILL_PER_SUCCESS: f64 = 0.5;
const REFILL_PER_SECOND: f64 = 0.1;

#[derive(Debug)]
pub(crate) struct Budget {
    // Tokens and when they were last counted: always changed together.
    bucket: Mutex<(f64, Option<Instant>)>,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { bucket: Mutex::new((CAPACITY, None)) }
    }

    pub(crate) fn success(&self) {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.0 = (bucket.0 + REFILL_PER_SUCCESS).min(CAPACITY);
    }

    /// Takes the price of one retry, or says that there is none left.
    pub(crate) fn try_take(&self, after_timeout: bool, now: Instant) -> bool {
        let cost = if after_timeout { 2.0 } else { 1.0 };
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let since = bucket.1.map_or(0.0, |then| now.saturating_duration_since(then).as_secs_f64());
        let tokens = (bucket.0 + since * REFILL_PER_SECOND).min(CAPACITY);
        let enough = tokens >= cost;
        *bucket = (if enough { tokens - cost } else { tokens }, Some(now));
        enough
    }

    pub(crate) fn refill(&self) {
        *self.bucket.lock().unwrap_or_else(PoisonError::into_inner) = (CAPACITY, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_total_outage_spends_it_once() {
        let (budget, now) = (Budget::new(), crate::clock::now());
        let taken = (0..1000).filter(|_| budget.try_take(false, now)).count();
        assert_eq!(taken, 50);
        assert!(!budget.try_take(true, now + Duration::from_secs(10)));
        assert!(budget.try_take(true, now + Duration::from_secs(20)));
    }

    #[test]
    fn two_successes_pay_for_a_retry() {
        let (budget, now) = (Budget::new(), crate::clock::now());
        while budget.try_take(false, now) {}
        budget.success();
        assert!(!budget.try_take(false, now));
        budget.success();
        assert!(budget.try_take(false, now));
    }
}
