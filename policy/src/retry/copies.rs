//! What a race of two copies tells of its call.

use super::{Failed, Judge, Judgement, Last, Run};
use crate::{
    attempt::Attempt,
    breaker::{Counters, Ended},
    bulkhead::Place,
    classify::Effect,
    clock::Instant,
    error::Cause,
    event::{self, Event},
    timeout::End,
};
use std::time::Duration;

impl<'p> Run<'p> {
    /// Pays for a second copy and has a place for it; `None` when it must not be sent, or as a retry would not
    /// be, has no time.
    pub(crate) fn hedge(
        &mut self,
        now: Instant,
        after: Duration,
    ) -> Option<(Attempt, Instant, Place<'p>)> {
        if self.permit.gate(now).is_err() || !self.has_time(now) {
            return None;
        }
        let paid = self.pay(false, now);
        if paid.is_none() && self.policy.tuning().budget {
            return None;
        }
        let place = self.policy.place_of_copy()?;
        if let Some(paid) = paid {
            paid.spend();
        }
        Counters::add(&self.policy.breaker.counters().hedges);
        event::emit(|| Event::Hedged {
            dependency: self.policy.breaker.shared_name(),
            operation: self.operation.name(),
            after,
        });
        self.number = self.number.saturating_add(1);
        let limit = now.after_nanos(self.limits.timeout).min(self.end);
        let left = if limit.is_never() { u64::MAX } else { limit.nanos_since(now) };
        Some((Attempt::new(self.number, left), limit, place))
    }

    /// How the copy that ended first ended, if that is an answer. `Err`: the other one goes on.
    pub(crate) fn first_copy<T, E, J: Judge<T, E>>(
        &mut self,
        began: Instant,
        end: End<Result<T, E>>,
        judge: &J,
        now: Instant,
    ) -> Result<Judgement<T, E>, (Failed, Last<T, E>)> {
        self.permit.begin_attempt(began);
        match self.judge(end, judge) {
            Err((failed, last)) if failed.verdict.effect != Effect::Permanent => {
                self.failed(&failed, now);
                Err((failed, last))
            }
            judgement => Ok(judgement),
        }
    }

    /// How the other one ended. The first one's error is the last when this one has none, what calls in
    /// that one could not do stays so, and if it was asked to wait, that holds for what follows both.
    pub(crate) fn second_copy<T, E, J: Judge<T, E>>(
        &self,
        end: End<Result<T, E>>,
        judge: &J,
        (first, last): (Failed, Last<T, E>),
    ) -> Judgement<T, E> {
        self.judge(end, judge).map_err(|(mut failed, own)| {
            failed.handled |= first.handled;
            failed.beside = failed.beside.max(first.asked_to_wait());
            (failed, own.or(last.filter(Result::is_err)))
        })
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
}
