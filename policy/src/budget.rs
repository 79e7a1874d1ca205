//! A cap on extra attempts, shared by every operation on one dependency.
//!
//! A token bucket: a retry costs 1 token (2 after a timeout), a successful operation refills 0.5,
//! and 1 token per 10 s keeps quiet clients able to retry. A total outage refills almost nothing,
//! so retries stop where they cannot help. The idea is Finagle's retry budget; the figures come
//! from simulation: a refill of 0.5 covers 30 % of errors and 20 % of timeouts, where 0.2 would
//! fail 4.9 % of operations at 20 % of errors.
//!
//! A success pays nothing for this: the refill is worked out from the count of answers that the
//! meter keeps anyway, by whoever next asks for a token.

use crate::clock::Instant;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// In thousandths of a token.
const CAPACITY: u64 = 50_000;
const RETRY: u64 = 1_000;
const REFILL_PER_SUCCESS: u64 = 500;
/// One token per 10 s.
const NANOS_PER_THOUSANDTH: u64 = 10_000_000;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u64,
    /// When, and after how many answers, `tokens` was right.
    since: Option<Instant>,
    answers: u64,
}

#[derive(Debug)]
pub(crate) struct Budget {
    bucket: Mutex<Bucket>,
}

impl Budget {
    pub(crate) const fn new() -> Self {
        let bucket = Bucket { tokens: CAPACITY, since: None, answers: 0 };
        Self { bucket: Mutex::new(bucket) }
    }

    /// Takes the price of one retry or hedge, or says that there is none left.
    pub(crate) fn try_take(
        &self,
        after_timeout: bool,
        answers: u64,
        now: Instant,
    ) -> Option<Paid<'_>> {
        let cost = if after_timeout { 2 * RETRY } else { RETRY };
        let mut bucket = self.bucket();
        bucket.fill(answers, now);
        bucket.tokens = bucket.tokens.checked_sub(cost)?;
        drop(bucket);
        Some(Paid { budget: self, cost })
    }

    /// Whole tokens left.
    pub(crate) fn left(&self, answers: u64, now: Instant) -> u64 {
        let mut bucket = *self.bucket();
        bucket.fill(answers, now);
        bucket.tokens / 1_000
    }

    pub(crate) fn refill(&self) {
        self.bucket().tokens = CAPACITY;
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The price of one extra attempt; given back if the attempt is never made.
#[derive(Debug)]
pub(crate) struct Paid<'a> {
    budget: &'a Budget,
    cost: u64,
}

impl Paid<'_> {
    /// The attempt is made.
    pub(crate) fn spend(mut self) {
        self.cost = 0;
    }
}

impl Drop for Paid<'_> {
    fn drop(&mut self) {
        if self.cost > 0 {
            let mut bucket = self.budget.bucket();
            bucket.tokens = bucket.tokens.saturating_add(self.cost).min(CAPACITY);
        }
    }
}

impl Bucket {
    fn fill(&mut self, answers: u64, now: Instant) {
        let waited = self.since.map_or(0, |since| now.nanos_since(since));
        let by_time = waited / NANOS_PER_THOUSANDTH;
        let by_answers = answers.saturating_sub(self.answers).saturating_mul(REFILL_PER_SUCCESS);
        self.tokens = self.tokens.saturating_add(by_time).saturating_add(by_answers).min(CAPACITY);
        // What is left of a thousandth is kept, or callers that ask often would never refill.
        let kept = std::time::Duration::from_nanos(by_time.saturating_mul(NANOS_PER_THOUSANDTH));
        self.since = Some(self.since.map_or(now, |since| since.after(kept)));
        self.answers = answers.max(self.answers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const S: Duration = Duration::from_secs(1);

    fn take(budget: &Budget, timed_out: bool, answers: u64, now: Instant) -> bool {
        budget.try_take(timed_out, answers, now).map(Paid::spend).is_some()
    }

    #[test]
    fn a_total_outage_spends_it_once() {
        let (budget, now) = (Budget::new(), crate::clock::now());
        let taken = (0..1000).filter(|_| take(&budget, false, 0, now)).count();
        assert_eq!(taken, 50);
        assert!(!take(&budget, true, 0, now.after(10 * S)));
        assert!(take(&budget, true, 0, now.after(20 * S)));
    }

    #[test]
    fn two_successes_pay_for_a_retry_and_a_timeout_costs_two() {
        let (budget, now) = (Budget::new(), crate::clock::now());
        while take(&budget, false, 0, now) {}
        assert!(!take(&budget, false, 1, now));
        assert!(take(&budget, false, 2, now));
        assert!(!take(&budget, true, 5, now));
        assert!(take(&budget, true, 6, now));
    }

    #[test]
    fn what_was_paid_for_nothing_comes_back() {
        let (budget, now) = (Budget::new(), crate::clock::now());
        drop(budget.try_take(true, 0, now));
        assert_eq!(budget.left(0, now), 50);
        assert!(take(&budget, true, 0, now));
        assert_eq!(budget.left(0, now), 48);
    }

    #[test]
    fn who_asks_often_is_refilled_by_time_all_the_same() {
        let (budget, mut now) = (Budget::new(), crate::clock::now());
        while take(&budget, false, 0, now) {}
        let mut taken = 0;
        for _ in 0..20_000 {
            now = now.after(Duration::from_micros(999));
            taken += u32::from(take(&budget, false, 0, now));
        }
        assert_eq!(taken, 1, "in 19.98 s");
    }

    proptest! {
        #[test]
        fn it_never_gives_more_than_it_was_given(
            steps in prop::collection::vec((0_u64..30, 0_u64..20, any::<bool>()), 1..200),
        ) {
            let (budget, mut now, mut answers) = (Budget::new(), Instant::default(), 0);
            let (mut spent, mut seconds) = (0, 0);
            for (wait, more, timed_out) in steps {
                now = now.after(u32::try_from(wait).unwrap() * S);
                (seconds, answers) = (seconds + wait, answers + more);
                if take(&budget, timed_out, answers, now) {
                    spent += if timed_out { 2_000 } else { 1_000 };
                }
                prop_assert!(spent <= CAPACITY + answers * 500 + seconds * 100);
                prop_assert!(budget.left(answers, now) <= 50);
            }
        }
    }
}
