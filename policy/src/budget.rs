//! A cap on extra attempts, shared by every operation on one dependency.
//!
//! A retry costs 1 token, after a timeout 2; a successful operation earns 0.5. What was earned, up to
//! 40 tokens, fades within seconds: it is worth what the dependency does now. Beside it stand 10
//! tokens that come back at 1 in 10 s, so that quiet clients can retry. A total outage earns nothing,
//! and after its first ten seconds retries stop at any rate of calls.
//!
//! The idea is Finagle's retry budget; the figures come from simulation (`examples/storm.rs`). A
//! refill of 0.5 covers 30 % of errors, where 0.2 would fail 4.9 % of operations at 20 %. A bucket of
//! 50 that does not fade lasts a client of 1 call/s for half a minute of an outage: 1.7 attempts a
//! call.
//!
//! A success pays nothing for this: what it earns is worked out from the count of answers that the
//! meter keeps anyway, by whoever next asks for a token.

use crate::clock::Instant;
use std::sync::{Mutex, MutexGuard, PoisonError};

const RETRY: f64 = 1.0;
const EARNED_BY_SUCCESS: f64 = 0.5;
const MOST_EARNED: f64 = 40.0;
/// What was earned falls to a third in this time.
const FADES_IN_SECONDS: f64 = 10.0;
const MOST_GIVEN: f64 = 10.0;
const GIVEN_PER_SECOND: f64 = 0.1;
/// Sums of halves and tenths are right to less than this.
const ROUNDING: f64 = 1e-6;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    given: f64,
    earned: f64,
    /// When, and after how many answers, the two were right.
    since: Option<Instant>,
    answers: u64,
}

impl Bucket {
    const FULL: Self = Self { given: MOST_GIVEN, earned: 0.0, since: None, answers: 0 };

    /// Brings both up to date.
    #[allow(clippy::cast_precision_loss)] // Exact below 2^53 answers.
    fn fill(&mut self, answers: u64, now: Instant) {
        let waited = self.since.map_or(0.0, |since| now.since(since).as_secs_f64());
        self.given = (self.given + waited * GIVEN_PER_SECOND).min(MOST_GIVEN);
        let more = answers.saturating_sub(self.answers) as f64 * EARNED_BY_SUCCESS;
        let lives = waited / FADES_IN_SECONDS;
        let kept = (-lives).exp();
        // As if the answers had come evenly: the first have faded, the last have not.
        let fresh = if lives > 0.0 { (1.0 - kept) / lives } else { 1.0 };
        self.earned = (self.earned * kept + more * fresh).min(MOST_EARNED);
        self.since = Some(self.since.map_or(now, |since| since.max(now)));
        self.answers = answers.max(self.answers);
    }

    /// Takes what fades first.
    fn take(&mut self, cost: f64) -> bool {
        if self.given + self.earned + ROUNDING < cost {
            return false;
        }
        let of_earned = cost.min(self.earned);
        self.earned -= of_earned;
        self.given = (self.given - (cost - of_earned)).max(0.0);
        true
    }
}

#[derive(Debug)]
pub(crate) struct Budget {
    bucket: Mutex<Bucket>,
}

impl Budget {
    pub(crate) const fn new() -> Self {
        Self { bucket: Mutex::new(Bucket::FULL) }
    }

    /// Takes the price of one retry or hedge, or says that there is none left. `answers` is how many
    /// operations have succeeded since the start.
    pub(crate) fn try_take(
        &self,
        after_timeout: bool,
        answers: u64,
        now: Instant,
    ) -> Option<Paid<'_>> {
        let cost = if after_timeout { 2.0 * RETRY } else { RETRY };
        let mut bucket = self.bucket();
        bucket.fill(answers, now);
        bucket.take(cost).then(|| Paid { budget: self, cost })
    }

    /// Whole tokens left.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // From 0 to 50.
    pub(crate) fn left(&self, answers: u64, now: Instant) -> u64 {
        let mut bucket = *self.bucket();
        bucket.fill(answers, now);
        (bucket.given + bucket.earned + ROUNDING) as u64
    }

    /// For tests: what it had at the start.
    pub(crate) fn refill(&self, answers: u64) {
        *self.bucket() = Bucket { answers, ..Bucket::FULL };
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The price of one extra attempt; given back if the attempt is never made.
#[derive(Debug)]
pub(crate) struct Paid<'a> {
    budget: &'a Budget,
    cost: f64,
}

impl Paid<'_> {
    /// The attempt is made.
    pub(crate) fn spend(mut self) {
        self.cost = 0.0;
    }
}

impl Drop for Paid<'_> {
    fn drop(&mut self) {
        let mut bucket = self.budget.bucket();
        bucket.given += self.cost;
        let over = (bucket.given - MOST_GIVEN).max(0.0);
        bucket.given -= over;
        bucket.earned = (bucket.earned + over).min(MOST_EARNED);
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

    /// Takes all there is.
    fn empty(budget: &Budget, answers: u64, now: Instant) -> u64 {
        let left = budget.left(answers, now);
        let taken = (0..100).filter(|_| take(budget, false, answers, now)).count() as u64;
        assert_eq!(taken, left);
        taken
    }

    #[test]
    fn a_new_one_has_ten_which_come_back_in_a_hundred_seconds() {
        let (budget, now) = (Budget::new(), crate::clock::now());
        assert_eq!(empty(&budget, 0, now), 10);
        assert!(!take(&budget, true, 0, now.after(10 * S)));
        assert!(take(&budget, true, 0, now.after(20 * S)));
        assert_eq!(empty(&budget, 0, now.after(120 * S)), 10);
        assert_eq!(empty(&budget, 0, now.after(9_999 * S)), 10);
    }

    #[test]
    fn two_successes_pay_for_a_retry_and_a_timeout_costs_two() {
        let (budget, now) = (Budget::new(), crate::clock::now());
        empty(&budget, 0, now);
        assert!(!take(&budget, false, 1, now));
        assert!(take(&budget, false, 2, now));
        assert!(!take(&budget, true, 5, now));
        assert!(take(&budget, true, 6, now));
        assert_eq!(empty(&budget, 1_000, now), 40, "no more than forty are kept");
    }

    #[test]
    fn what_was_earned_fades_and_counts_for_the_present_rate() {
        let (budget, now) = (Budget::new(), crate::clock::now());
        empty(&budget, 0, now);
        // 10 a second for a minute: 5 tokens a second, of which those of 10 s are worth having.
        let later = now.after(60 * S);
        assert_eq!(budget.left(600, later), 40 + 6);
        // 1 a second: half a token a second.
        assert_eq!(budget.left(60, later), 4 + 6);
        assert_eq!(empty(&budget, 600, later), 46);
        assert!(take(&budget, true, 604, later));
        // Nothing in ten seconds: a third of it is left, and one token came with the time.
        let (budget, now) = (Budget::new(), crate::clock::now());
        empty(&budget, 0, now);
        assert_eq!(budget.left(80, now), 40);
        assert!(take(&budget, false, 80, now));
        assert_eq!(budget.left(80, now.after(10 * S)), 39 * 100 / 272 + 1);
    }

    #[test]
    fn what_was_paid_for_nothing_comes_back() {
        let (budget, now) = (Budget::new(), crate::clock::now());
        drop(budget.try_take(true, 0, now));
        assert_eq!(budget.left(0, now), 10);
        drop(budget.try_take(true, 80, now));
        assert_eq!(budget.left(80, now), 50);
        assert!(take(&budget, true, 80, now));
        assert_eq!(budget.left(80, now), 48);
        budget.refill(80);
        assert_eq!(budget.left(80, now), 10);
    }

    #[test]
    fn who_asks_often_is_refilled_by_time_all_the_same() {
        let (budget, mut now) = (Budget::new(), crate::clock::now());
        empty(&budget, 0, now);
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
            let (mut spent, mut seconds) = (0.0, 0);
            for (wait, more, timed_out) in steps {
                now = now.after(u32::try_from(wait).unwrap() * S);
                (seconds, answers) = (seconds + wait, answers + more);
                if take(&budget, timed_out, answers, now) {
                    spent += if timed_out { 2.0 } else { 1.0 };
                }
                let given = 10.0 + answers as f64 * 0.5 + seconds as f64 * 0.1;
                prop_assert!(spent <= given + 0.001);
                prop_assert!(budget.left(answers, now) <= 50);
            }
        }
    }
}
