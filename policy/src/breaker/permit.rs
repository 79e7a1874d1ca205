//! The right to run one operation, and what is told of it.

use super::{
    Admission, Counters, FAILING, GENERATION_SHIFT, GUARDED, Inner, NO_GENERATION, Refusal, Trip,
    state::{Admitted, Gate},
};
use crate::{
    classify::Outcome,
    clock::{self, Instant},
    deadline::{Marks, Scope},
    error::Cause,
    meter::{Noted, Timed},
};
use std::sync::atomic::Ordering::{Acquire, Relaxed};

/// The right to run one operation. Dropped in mid-attempt it tells the breaker a slow call if the
/// attempt was slow by then, else nothing; dropped in any way it frees its probe. Small, since it
/// sits in every call's future.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    breaker: &'a Inner,
    /// The breaker's word while it is plainly closed, without failures in a row, and still of the
    /// generation of this permit.
    calm: u64,
    lease: u64,
    /// "Never" between attempts.
    attempt_since: Instant,
}

/// What takes less, in nanoseconds, is quick, as long as it is far from being slow: to time it costs a
/// noticeable part of it.
const QUICK: u64 = 10_000;
/// What takes less than this part of what is slow is far from that.
const FAR_FROM_SLOW: u64 = 8;
/// The lease of a call that is no probe.
const NO_LEASE: u64 = u64::MAX;
/// The lease of a call that has told how it ended.
const TOLD: u64 = u64::MAX - 1;
/// The lease of a call inside a probe: a single attempt too, which the probe answers for.
const OF_A_PROBE: u64 = u64::MAX - 2;

impl<'a> Permit<'a> {
    #[inline]
    pub(super) const fn unasked(breaker: &'a Inner) -> Self {
        let attempt_since = Instant::NEVER;
        Self { breaker, calm: calm(NO_GENERATION), lease: TOLD, attempt_since }
    }

    #[cfg(feature = "__bench")]
    #[inline]
    pub(super) fn begun_if_closed(breaker: &'a Inner, now: Instant) -> Option<Self> {
        let calm = breaker.word.load(Acquire) & !FAILING;
        let permit = || Self { breaker, calm, lease: NO_LEASE, attempt_since: now };
        (calm & GUARDED == 0).then(permit)
    }

    /// Of an operation that was let pass at this generation, and was no probe.
    pub(super) const fn of(breaker: &'a Inner, generation: u64) -> Self {
        let attempt_since = Instant::NEVER;
        Self { breaker, calm: calm(generation), lease: NO_LEASE, attempt_since }
    }

    /// The right to pass, if the breaker is plainly closed.
    #[inline]
    pub(crate) fn if_closed(&mut self) -> bool {
        let word = self.breaker.word.load(Acquire);
        let closed = word & GUARDED == 0;
        if closed {
            (self.calm, self.lease) = (word & !FAILING, NO_LEASE);
        }
        closed
    }

    /// The right to pass, as a probe perhaps, or why not.
    pub(crate) fn ask(&mut self, now: Instant) -> Result<(), Refusal> {
        if self.if_closed() {
            return Ok(());
        }
        let breaker = self.breaker;
        let admission = breaker.admission();
        let (generation, is_part) = (admission.generation, admission.is_around());
        let pass = |lease| Some(Ok(Admitted { generation, lease }));
        // `Some` decides; `None` asks the machine.
        let decided = breaker.snapshot.read(|snapshot| match snapshot.gate {
            Gate::ForcedClosed => pass(None),
            Gate::Isolated => Some(Err(Instant::NEVER)),
            Gate::Shut(_) if is_part => pass(Some(OF_A_PROBE)),
            Gate::Shut(until) if now < until => Some(Err(until)),
            Gate::Shut(_) | Gate::Closed => None,
            Gate::Ramp(_) if is_part => pass(None),
            Gate::Ramp(ramp) => match ramp.pass(now, fastrand::f64()) {
                Ok(()) if ramp.goes_on(now) => pass(None),
                Ok(()) => None,
                Err(until) => Some(Err(until)),
            },
        });
        let decided = match decided {
            Some(decided) => decided,
            None => breaker.change(None, |machine, _| machine.admit(now, fastrand::f64())),
        };
        let admitted = decided.map_err(|until| Refusal::new(until, now, breaker.opened_by()))?;
        self.calm = calm(admitted.generation);
        self.lease = admitted.lease.unwrap_or(NO_LEASE);
        Ok(())
    }

    /// The right to pass for a call that the breaker neither guards nor learns from.
    #[inline]
    pub(crate) const fn unguarded(&mut self) -> bool {
        (self.calm, self.lease) = (calm(NO_GENERATION), NO_LEASE);
        true
    }

    /// What is to surround its attempts, if calls inside them would be asked what this one was.
    #[inline]
    pub(crate) fn admission(&self) -> Option<Admission> {
        let guarded = self.breaker.word.load(Acquire) & GUARDED != 0;
        guarded.then(|| self.guarded_admission()).flatten()
    }

    #[cold]
    fn guarded_admission(&self) -> Option<Admission> {
        let asks = |gate| matches!(gate, Gate::Shut(_) | Gate::Ramp(_));
        let admission = self.breaker.admission();
        let noted = admission.generation == self.generation()
            && self.breaker.snapshot.read(|snapshot| asks(snapshot.gate));
        noted.then_some(admission)
    }

    /// Half-open: one attempt only, so that a sick dependency sees no burst.
    #[inline]
    pub(crate) const fn is_probe(&self) -> bool {
        self.lease != NO_LEASE
    }

    /// Whether calls in flight should stop: the breaker has opened since this permit was given.
    pub(crate) fn gate(&self, now: Instant) -> Result<(), Refusal> {
        let word = self.breaker.word.load(Acquire);
        if word >> GENERATION_SHIFT == self.generation() || self.generation() == NO_GENERATION {
            return Ok(());
        }
        self.breaker.snapshot.read(|snapshot| {
            let until = match snapshot.gate {
                Gate::Closed | Gate::Ramp(_) | Gate::ForcedClosed => return Ok(()),
                Gate::Shut(until) => until,
                Gate::Isolated => Instant::NEVER,
            };
            Err(Refusal::new(until, now, self.breaker.opened_by()))
        })
    }

    /// What an attempt says that a drop or the caller's deadline cuts short: a probe that hung until
    /// then has shown what there was to see.
    pub(crate) fn cut(&self, now: Instant) -> Outcome {
        let took = now.nanos_since(self.attempt_since);
        let slow = took >= self.breaker.slow_after.load(Relaxed);
        if slow && self.is_probe() { Outcome::Failure } else { Outcome::Neutral }
    }

    const fn generation(&self) -> u64 {
        self.calm >> GENERATION_SHIFT
    }

    pub(crate) const fn attempt_since(&self) -> Instant {
        self.attempt_since
    }

    #[inline]
    pub(crate) fn begin_attempt(&mut self, now: Instant) {
        self.attempt_since = now;
    }

    /// The attempt has told how it ended, as far as it does, and another follows after a wait.
    pub(crate) const fn between_attempts(&mut self) {
        self.attempt_since = Instant::NEVER;
    }

    /// Tells the attempt around it that this operation fails, if the breaker counts that: what is inside a
    /// probe it does not, nor what is late.
    pub(crate) fn mark_failure(&self) {
        if self.lease == NO_LEASE && self.is_current() {
            self.mark_counted();
        }
    }

    /// Tells the attempt around it that its failure is counted.
    pub(crate) fn mark_counted(&self) {
        Scope::mark(Marks::NONE.counted_by(self.breaker.address()));
    }

    /// Whether a call inside has told so of this breaker.
    pub(crate) fn is_counted(&self, inside: Marks) -> bool {
        inside.is_counted_by(self.breaker.address())
    }

    /// The operation is not made after all.
    pub(crate) fn give_back(&mut self, now: Instant) {
        if self.is_probe() {
            self.report(Outcome::Neutral, now, &Cause::of_a_cut);
        }
        self.lease = TOLD;
    }

    /// The attempt ended: feeds the windows. A cut attempt is one that a drop or the caller's
    /// deadline ended.
    pub(crate) fn end_attempt(
        &mut self,
        ended: Ended,
        now: Instant,
        cause: &dyn Fn(Trip) -> Cause,
    ) {
        let inner = self.breaker;
        let took = now.nanos_since(self.attempt_since);
        self.attempt_since = Instant::NEVER;
        if !self.is_current() {
            return;
        }
        let slow = took >= inner.slow_after.load(Relaxed);
        match (ended, slow) {
            (Ended::Failed, _) => {
                inner.meter.failed(now);
                if slow {
                    inner.meter.slow(now);
                }
            }
            (Ended::Cut, true) => inner.meter.cut(now),
            (Ended::Neutral | Ended::Cut, _) => return,
        }
        self.weigh(now, cause);
    }

    /// Whether nothing has happened to the breaker since this permit was given.
    fn is_current(&self) -> bool {
        self.breaker.word.load(Relaxed) >> GENERATION_SHIFT == self.generation()
    }

    /// Asks the machine whether the windows are over a rate.
    fn weigh(&self, now: Instant, cause: &dyn Fn(Trip) -> Cause) {
        let generation = self.generation();
        let counts = self.breaker.counts(now);
        self.breaker.change(Some(cause), |machine, trip| {
            *trip = machine.attempt(generation, &counts, now, fastrand::f64());
        });
    }

    /// The operation succeeded with the attempt in flight.
    #[inline(always)]
    pub(crate) fn succeed(&mut self, now: Instant, cause: impl Fn(Trip) -> Cause) {
        self.succeed_for(1, now, cause);
    }

    /// As [`Self::succeed`], for an attempt that was ready at once: while such attempts are quick, most
    /// are counted without a look at the clock, and one speaks for them all. `timed` reads it, and hears
    /// for how many.
    #[inline(always)]
    pub(crate) fn succeed_at_once(
        &mut self,
        timed: impl FnOnce(u32) -> Instant,
        cause: impl Fn(Trip) -> Cause,
    ) {
        let inner = self.breaker;
        let is_unguarded = self.calm == calm(NO_GENERATION);
        let calm = is_unguarded || inner.word.load(Relaxed) == self.calm;
        let began = self.attempt_since;
        match inner.meter.answered_at_once(began, calm, !is_unguarded) {
            Timed::No => self.lease = TOLD,
            Timed::OneOf(answers) => {
                let now = timed(answers);
                self.succeed_for(answers, now, cause);
                let far = inner.slow_after.load(Relaxed) / FAR_FROM_SLOW;
                inner.meter.tell_quick(now.nanos_since(began) < far.min(QUICK));
            }
        }
    }

    #[inline(always)]
    fn succeed_for(&mut self, answers: u32, now: Instant, cause: impl Fn(Trip) -> Cause) {
        let inner = self.breaker;
        // Where another processor's counter is behind this is very long: not in passing, then.
        let took = now.as_nanos().wrapping_sub(self.attempt_since.as_nanos());
        let calm = inner.word.load(Relaxed) == self.calm && took < inner.slow_after.load(Relaxed);
        if !(calm && inner.meter.answered_in_passing(now, took, answers)) {
            self.succeed_with_news(true, answers, now, &cause);
        }
        self.lease = TOLD;
    }

    /// A streamed operation has begun to be answered: as [`Self::succeed`], but failures in a row
    /// stay, since its end is still to come. A probe has shown what was asked of it.
    pub(crate) fn begun(&mut self, now: Instant, cause: impl Fn(Trip) -> Cause) {
        let word = self.breaker.word.load(Relaxed);
        if self.is_probe() || word & FAILING == 0 || word & GUARDED != 0 {
            return self.succeed(now, cause);
        }
        self.succeed_with_news(false, 1, now, &cause);
        self.lease = TOLD;
    }

    /// A success that may tell the breaker something. `ended`: there is no more to come of it.
    #[inline(never)]
    fn succeed_with_news(
        &self,
        ended: bool,
        answers: u32,
        now: Instant,
        cause: &dyn Fn(Trip) -> Cause,
    ) {
        let inner = self.breaker;
        let word = inner.word.load(Relaxed);
        let current = word >> GENERATION_SHIFT == self.generation();
        let took = now.nanos_since(self.attempt_since);
        // By the median of those before it.
        let slow = took >= inner.slow_after.load(Relaxed);
        if inner.meter.answered(now, took, answers, current) == Noted::Median {
            self.breaker.follow_median(now);
        }
        if current && slow {
            inner.meter.slow(now);
            self.weigh(now, cause);
        }
        if current && ended && word & (FAILING | GUARDED) != 0 {
            self.report(Outcome::Success, now, cause);
        }
    }

    /// An operation that was counted when it began has ended well.
    pub(super) fn forget_failures(&mut self, now: Instant) {
        self.report(Outcome::Success, now, &Cause::of_a_cut);
        self.lease = TOLD;
    }

    /// The operation ended without success, or with an answer that is an error; attempts that failed have
    /// been told already.
    pub(crate) fn finish(&mut self, outcome: Outcome, now: Instant, cause: &dyn Fn(Trip) -> Cause) {
        let counters = &self.breaker.counters;
        match outcome {
            Outcome::Success => {
                // Another attempt came after the one that was answered, or was to come: its time is gone.
                if self.attempt_since.is_never() {
                    self.attempt_since = now;
                }
                return self.succeed(now, cause);
            }
            Outcome::Failure => Counters::add(&counters.failed),
            Outcome::Neutral => Counters::add(&counters.neutral),
        }
        self.report(outcome, now, cause);
        self.lease = TOLD;
    }

    fn report(&self, outcome: Outcome, now: Instant, cause: &dyn Fn(Trip) -> Cause) {
        let (generation, lease) = (self.generation(), self.is_probe().then_some(self.lease));
        let admitted = Admitted { generation, lease };
        if generation == NO_GENERATION {
            return;
        }
        let counts = self.breaker.counts(now);
        self.breaker.change(Some(cause), |machine, trip| {
            *trip = machine.operation(admitted, outcome, &counts, now, fastrand::f64());
        });
    }
}

/// The word of a breaker that is plainly closed, without failures in a row.
const fn calm(generation: u64) -> u64 {
    generation << GENERATION_SHIFT
}

/// How one attempt ended, where it was no success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Failed,
    Neutral,
    Cut,
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.lease != TOLD {
            self.drop_untold();
        }
    }
}

impl Permit<'_> {
    #[cold]
    fn drop_untold(&mut self) {
        let now = clock::now();
        let cause = Cause::of_a_cut;
        let mut outcome = Outcome::Neutral;
        if !self.attempt_since.is_never() {
            outcome = self.cut(now);
            self.end_attempt(Ended::Cut, now, &cause);
        }
        Counters::add(&self.breaker.counters.neutral);
        if self.is_probe() {
            self.report(outcome, now, &cause);
        }
    }
}

#[cfg(all(test, not(mainstay_loom)))]
mod tests;
