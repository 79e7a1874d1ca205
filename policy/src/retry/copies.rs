//! What a race of two copies tells of its call.

use super::{Run, cause};
use crate::{
    attempt::Attempt,
    breaker::{Counters, Ended},
    classify::{Effect, Operation, Outcome, Verdict},
    clock::Instant,
    error::Cause,
    event::{self, Event},
};
use std::time::Duration;

impl Run<'_> {
    /// Pays for a second copy; `None` when it must not be sent.
    pub(crate) fn hedge(&mut self, now: Instant, after: Duration) -> Option<(Attempt, Instant)> {
        if self.permit.gate(now).is_err() {
            return None;
        }
        self.pay(false, now)?.spend();
        Counters::add(&self.policy.breaker.counters().hedges);
        event::emit(|| Event::Hedged {
            dependency: self.policy.breaker.shared_name(),
            operation: self.operation.name(),
            after,
        });
        self.number = self.number.saturating_add(1);
        let limit = now.after_nanos(self.limits.timeout).min(self.end);
        let left = if limit.is_never() { u64::MAX } else { limit.nanos_since(now) };
        Some((Attempt::new(self.number, left), limit))
    }

    /// One copy failed while the other is still under way.
    pub(crate) fn copy_failed(&mut self, began: Instant, verdict: Verdict, now: Instant) {
        let operation = self.operation;
        self.unknown |= verdict.effect == Effect::Unknown;
        self.permit.begin_attempt(began);
        if verdict.outcome == Outcome::Failure {
            self.outcome = Outcome::Failure;
            let cause = |trip| cause(operation, trip, verdict.effect, None);
            self.permit.end_attempt(Ended::Failed, now, &cause);
        }
    }

    /// One copy is dropped, since the other has won.
    pub(crate) fn copy_cut(&mut self, began: Instant, now: Instant) {
        self.permit.begin_attempt(began);
        self.permit.end_attempt(Ended::Cut, now, &Cause::of_a_cut);
    }

    /// The copy that counts from now on.
    pub(crate) fn copy_remains(&mut self, began: Instant) {
        self.permit.begin_attempt(began);
    }

    pub(crate) const fn operation(&self) -> &Operation {
        self.operation
    }
}
