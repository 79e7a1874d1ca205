//! The life of one call, and the only retry loops in the workspace.
//!
//! [`Run`] holds the decisions; the loop for futures and the one for closures that block differ
//! only in how they wait.

mod copies;
mod drive;
mod judged;

use crate::{
    attempt::Attempt,
    breaker::{Counters, Ended, Permit, Refusal, Trip},
    budget::Paid,
    classify::{Effect, Operation, Outcome, Verdict},
    clock::{self, Instant},
    deadline::{Marks, Scope},
    error::{CallError, Cause, Decider, OpenedBy},
    event::{self, Event},
    policy::{Inner, Limits},
    timeout::End,
};
pub(crate) use drive::{TracedAttempt, drive, drive_blocking};
pub(crate) use judged::{Failed, Judge, Judged};
use std::{
    mem,
    time::{Duration, SystemTime},
};

/// What tokio counts in: by so much a wait may end late, and an attempt that has no more has no time.
const TICK: Duration = Duration::from_millis(1);

/// One call, from its admission to its end. Small, since it sits in every call's future.
pub(crate) struct Run<'p> {
    policy: &'p Inner,
    operation: &'p Operation,
    permit: Permit<'p>,
    limits: Limits,
    started: Instant,
    /// When the call ends, whatever it is doing.
    end: Instant,
    number: u32,
    /// Of the last attempt that says anything about the dependency.
    outcome: Outcome,
    /// Some attempt may have happened.
    unknown: bool,
    /// A call inside, on the same breaker, was counted as the failure that some attempt ended with.
    counted_inside: bool,
}

/// What an attempt failed with; with nothing, when its time ran out.
pub(crate) type Last<T, E> = Option<Result<T, E>>;

/// What a call gives.
type Answer<T, E> = Result<T, CallError<E>>;

/// What an attempt gives, judged.
pub(crate) type Judgement<T, E> = Result<T, (Failed, Last<T, E>)>;

/// What follows an attempt.
enum Step<'p, T, E> {
    End(Answer<T, E>),
    Again(Run<'p>, Retry<'p, T, E>),
}

/// A retry that is to come, and what to say if it does not.
struct Retry<'p, T, E> {
    delay: Duration,
    paid: Option<Paid<'p>>,
    failed: Failed,
    last: Last<T, E>,
}

enum Next<'p> {
    Wait(Duration, Option<Paid<'p>>),
    /// `None`: the backend's answer decided.
    Stop(Option<Decider>, Option<Duration>),
}

/// A call that was refused before its first attempt, or an attempt that is not made.
struct Refused {
    by: Decider,
    retry_after: Option<Duration>,
    opened_by: Option<OpenedBy>,
}

impl Inner {
    /// Refuses a call that has not begun, if the breaker is open for a while yet.
    // Not generic, so that it is compiled here, where a thread-local is one instruction away.
    #[inline(never)]
    fn refuses(&self, operation: &Operation) -> Option<Refusal> {
        let refusal = self.limits().refuses().then(|| self.breaker.refuses()).flatten()?;
        self.blocked(operation, refusal.shut.by(), false);
        Some(refusal)
    }

    /// By the breaker.
    #[inline]
    fn blocked(&self, operation: &Operation, by: Decider, observed: bool) {
        self.breaker.meter().blocked();
        #[cfg(feature = "metrics")]
        self.breaker.numbers(|numbers| numbers.refused(by));
        // Counted already: whoever listens beside.
        if event::is_heard() {
            self.tell_refusal(operation, by, observed);
        }
    }

    /// Tells metrics of a success now, and of so many that were like it.
    #[inline(always)]
    #[cfg_attr(not(feature = "metrics"), allow(unused))]
    fn count_success(&self, attempt: Instant, call: Instant, now: Instant, like: u32) {
        #[cfg(feature = "metrics")]
        self.breaker.numbers(|numbers| {
            numbers.succeeded(now.nanos_since(attempt), now.nanos_since(call), like);
        });
    }

    #[cold]
    fn tell_refusal(&self, operation: &Operation, by: Decider, observed: bool) {
        let (dependency, operation) = (&self.breaker, operation.name());
        event::emit(|| {
            let dependency = dependency.shared_name();
            Event::Rejected { dependency, operation, by, observed }
        });
    }
}

impl<'p> Run<'p> {
    /// A call that has not begun.
    #[inline]
    fn new(policy: &'p Inner, operation: &'p Operation) -> Self {
        Self {
            policy,
            operation,
            permit: policy.breaker.unasked(),
            limits: Limits::NONE,
            started: Instant::NEVER,
            end: Instant::NEVER,
            number: 1,
            outcome: Outcome::Neutral,
            unknown: false,
            counted_inside: false,
        }
    }

    /// The run, where another takes its place that will do nothing.
    fn take(&mut self) -> Self {
        mem::replace(self, Self::new(self.policy, self.operation))
    }

    /// The first question: whether it takes more than a look at the breaker's word to say whether the
    /// call may go on.
    #[inline(always)]
    fn is_barred(&mut self) -> bool {
        self.limits = self.policy.limits();
        self.limits.guarded() && self.policy.breaker.is_guarded()
    }

    /// Begins; false if it takes [`Self::admit`] after all, or the first attempt is not just made.
    #[inline(always)]
    fn begin(&mut self) -> bool {
        self.start();
        if self.end <= self.started || !self.limits.is_plain() {
            return false;
        }
        if self.limits.guarded() { self.permit.if_closed() } else { self.permit.unguarded() }
    }

    #[inline(always)]
    fn start(&mut self) {
        self.started = clock::now();
        let around = Scope::current().deadline;
        self.end = self.started.after_nanos(self.policy.deadline()).min(around);
    }

    /// All of the questions.
    fn ask<E>(&mut self) -> Result<(), CallError<E>> {
        if self.is_barred()
            && let Some(refusal) = self.policy.refuses(self.operation)
        {
            return Err(refusal.into());
        }
        if !self.begin() {
            self.admit()?;
        }
        Ok(())
    }

    /// Admission, where a look at the word did not do: the breaker is not open, and the deadline has
    /// not passed.
    fn admit(&mut self) -> Result<(), Refused> {
        let policy = self.policy;
        if self.limits.observe() {
            self.end = self.started.after_nanos(policy.deadline());
        }
        if self.end <= self.started {
            policy.tell_refusal(self.operation, Decider::Deadline, false);
            return Err((Decider::Deadline, None).into());
        }
        if !self.limits.guarded() {
            self.permit.unguarded();
            return Ok(());
        }
        let Err(refusal) = self.permit.ask(self.started) else { return Ok(()) };
        policy.blocked(self.operation, refusal.shut.by(), self.limits.observe());
        if self.limits.observe() {
            self.permit.unguarded();
            return Ok(());
        }
        Err(refusal.into())
    }

    /// The attempt that begins now, and when its time is up.
    #[inline]
    fn next_attempt(&mut self, now: Instant) -> (Attempt, Instant) {
        self.permit.begin_attempt(now);
        let limit = now.after_nanos(self.limits.timeout).min(self.end);
        let left = if limit.is_never() { u64::MAX } else { limit.nanos_since(now) };
        (Attempt::new(self.number, left), limit)
    }

    #[inline(always)]
    fn succeed(&mut self, now: Instant) {
        let operation = self.operation;
        self.policy.count_success(self.permit.attempt_since(), self.started, now, 1);
        let cause = |trip| cause(operation, trip, Effect::Transient, None);
        if operation.is_streamed() {
            self.permit.begun(now, cause);
        } else {
            self.permit.succeed(now, cause);
        }
    }

    /// As [`Self::succeed`], for work that did not have to wait.
    #[inline(always)]
    fn succeed_at_once(&mut self) {
        // What is streamed has only begun.
        if self.operation.is_streamed() {
            return self.succeed(clock::now());
        }
        let Self { policy, operation, started, .. } = *self;
        let began = self.permit.attempt_since();
        let timed = |answers| {
            let now = clock::now();
            policy.count_success(began, started, now, answers);
            now
        };
        let cause = |trip| cause(operation, trip, Effect::Transient, None);
        self.permit.succeed_at_once(timed, cause);
    }

    /// What the end of the attempt in flight means.
    pub(crate) fn judge<T, E, J: Judge<T, E>>(
        &self,
        End { output, marks, struck }: End<Result<T, E>>,
        judge: &J,
    ) -> Judgement<T, E> {
        let failed = match output {
            Some(Ok(value)) if !judge.refuses(&value) => return Ok(value),
            Some(Ok(_)) => Failed::by_fault(Verdict::transient()),
            Some(Err(ref error)) => {
                let counted_inside = self.permit.is_counted(marks);
                let failed = Failed::by(judge.error(error, self.operation), marks);
                Failed { counted_inside, ..failed }
            }
            None => match struck.verdict() {
                Some(verdict) => Failed::by_fault(verdict),
                None => {
                    let own_limit = self.permit.attempt_since().after_nanos(self.limits.timeout);
                    Failed::by_timeout(marks, self.end < own_limit)
                }
            },
        };
        Err((failed, output))
    }

    /// Takes in how an attempt ended; `last` and `waited` are of the one before it.
    fn take_in<T, E>(
        mut self,
        judgement: Judgement<T, E>,
        (last, waited): (Last<T, E>, Duration),
        now: Instant,
    ) -> Step<'p, T, E> {
        let (failed, own) = match judgement {
            Ok(value) => {
                self.succeed(now);
                return Step::End(Ok(value));
            }
            Err(failed) => failed,
        };
        let last = own.or(last.filter(Result::is_err));
        self.failed(&failed, now);
        match self.decide(&failed, waited, now) {
            Next::Wait(delay, paid) => {
                self.permit.between_attempts();
                self.retrying(delay, failed.verdict.effect);
                Step::Again(self, Retry { delay, paid, failed, last })
            }
            Next::Stop(by, wait) => Step::End(self.end(by, wait, failed, last, now)),
        }
    }

    /// Tells breaker and metrics of a failed attempt.
    fn failed(&mut self, failed: &Failed, now: Instant) {
        let Failed { verdict, code, by, timed_out, cut_short, counted_inside, .. } = failed;
        let counters = self.policy.breaker.counters();
        let (operation, effect) = (self.operation, verdict.effect);
        let cause = |trip| cause(operation, trip, effect, code.clone());
        // By the attempt's limit, which a client may keep itself, as it may the deadline below.
        let late = *timed_out || *by == Some(Decider::Timeout);
        if late {
            Counters::add(&counters.timeouts);
        }
        // By the call's own deadline.
        let cut =
            *cut_short || *by == Some(Decider::Deadline) && verdict.outcome == Outcome::Neutral;
        let outcome = match verdict.outcome {
            _ if cut => self.permit.cut(now),
            Outcome::Failure if *counted_inside => {
                self.counted_inside = true;
                // What an attempt before this one said is not the last word any more.
                self.outcome = Outcome::Neutral;
                Outcome::Neutral
            }
            outcome => outcome,
        };
        #[cfg(feature = "metrics")]
        if outcome == Outcome::Failure {
            let took = now.since(self.permit.attempt_since());
            self.policy.breaker.numbers(|numbers| numbers.attempt_failed(took, late));
        }
        match outcome {
            Outcome::Failure => self.permit.end_attempt(Ended::Failed, now, &cause),
            Outcome::Neutral if cut => self.permit.end_attempt(Ended::Cut, now, &cause),
            Outcome::Neutral => self.permit.end_attempt(Ended::Neutral, now, &cause),
            // Told with the end of the operation, which this is unless a retry follows.
            Outcome::Success => {}
        }
        if outcome != Outcome::Neutral {
            self.outcome = outcome;
        }
        self.unknown |= effect == Effect::Unknown;
    }

    /// What follows a failed attempt, which came after a wait of `waited`.
    fn decide(&self, failed: &Failed, waited: Duration, now: Instant) -> Next<'p> {
        let Failed { verdict, repeat, by, timed_out, cut_short, handled, .. } = failed;
        let repeatable = match repeat {
            Some(repeat) => *repeat,
            None => verdict.may_repeat(self.operation.idempotency()) && !handled,
        };
        if !repeatable {
            return Next::Stop(*by, None);
        }
        // A client's own timer ends a moment before the deadline, which leaves no time for another attempt.
        let cut = *cut_short || repeat.is_none() && *by == Some(Decider::Deadline);
        if cut || now >= self.end {
            return Next::Stop(Some(Decider::Deadline), None);
        }
        // A sick dependency sees no burst of a probe.
        let attempts = if self.permit.is_probe() { 1 } else { self.limits.attempts() };
        if self.number >= attempts {
            return Next::Stop(Some(by.unwrap_or(Decider::Retry)), None);
        }
        if let Err(refusal) = self.permit.gate(now) {
            return Next::Stop(Some(refusal.shut.by()), refusal.shut.retry_after());
        }
        let tuning = self.policy.tuning();
        let random = self.policy.random();
        let mut delay = tuning.backoff.delay(self.number, waited, random);
        if let Some(floor) = failed.asked_to_wait() {
            // Those that were told to wait alike should not come back alike.
            let spread = tuning.backoff.base_delay.min(floor / 8).mul_f64(random);
            delay = delay.max(floor.saturating_add(spread));
        }
        // A wait that would not fit is not slept, nor one that leaves no time that a timer can measure: an
        // attempt would take a connection with it, and end before anything came of it.
        if !self.has_time(now.after(delay).after(TICK)) {
            return Next::Stop(Some(Decider::Deadline), None);
        }
        let paid = self.pay(*timed_out, now);
        if tuning.budget && paid.is_none() {
            return Next::Stop(Some(Decider::Budget), None);
        }
        Next::Wait(delay, paid)
    }

    fn pay(&self, timed_out: bool, now: Instant) -> Option<Paid<'p>> {
        let answers = self.policy.breaker.meter().answers();
        self.policy.budget.try_take(timed_out, answers, now)
    }

    /// Before the wait: a retry follows.
    fn retrying(&self, delay: Duration, effect: Effect) {
        event::emit(|| Event::Retrying {
            dependency: self.policy.breaker.shared_name(),
            operation: self.operation.name(),
            attempt: self.number,
            delay,
            effect,
        });
    }

    /// Whether a timer could measure what is left at this moment.
    fn has_time(&self, at: Instant) -> bool {
        at.after(TICK) < self.end
    }

    /// A wait that would not fit is not slept, as in [`Self::decide`].
    fn fits(&self, wait: Duration) -> Result<(), Refused> {
        let fits = self.has_time(clock::now().after(wait).after(TICK));
        if fits { Ok(()) } else { Err((Decider::Deadline, Some(wait)).into()) }
    }

    /// After a wait: others may have found the dependency dead meanwhile. A first attempt has its chance,
    /// however little time there is.
    fn waited(&self, now: Instant, retry: bool) -> Result<(), Refused> {
        self.permit.gate(now)?;
        if now >= self.end || retry && !self.has_time(now) {
            return Err((Decider::Deadline, None).into());
        }
        Ok(())
    }

    /// The attempt is made: a retry is paid for and counted. What the one before it failed with, and
    /// the wait since.
    fn make<T, E>(&mut self, retry: Option<Retry<'p, T, E>>) -> (Last<T, E>, Duration) {
        let Some(Retry { delay, paid, last, .. }) = retry else { return (None, Duration::ZERO) };
        if let Some(paid) = paid {
            paid.spend();
        }
        Counters::add(&self.policy.breaker.counters().retries);
        self.number = self.number.saturating_add(1);
        (last, delay)
    }

    /// The effect of the whole call: what may have happened in one attempt may have happened,
    /// whatever the next one says, unless that is the backend's answer. A failure of the backend, such
    /// as that it lets nobody in, is none, nor is a refusal of a client's own.
    fn effect(&self, last: Verdict) -> Effect {
        match last.effect {
            Effect::Permanent if last.outcome == Outcome::Success => Effect::Permanent,
            _ if self.unknown => Effect::Unknown,
            effect => effect,
        }
    }

    /// Closes the books of a call that did not succeed.
    fn close(mut self, effect: Effect, code: Option<String>, now: Instant) -> (u32, Duration) {
        let operation = self.operation;
        let unknown = effect == Effect::Unknown && !operation.is_told_by_client();
        Scope::mark(Marks::new(self.limits.owns_retries(), unknown));
        match self.outcome {
            Outcome::Failure => self.permit.mark_failure(),
            Outcome::Neutral if self.counted_inside => self.permit.mark_counted(),
            _ => {}
        }
        self.permit.finish(self.outcome, now, &|trip| cause(operation, trip, effect, code.clone()));
        let elapsed = now.since(self.started);
        #[cfg(feature = "metrics")]
        self.policy.breaker.numbers(|numbers| numbers.call_ended(self.outcome, elapsed));
        (self.number, elapsed)
    }

    /// The last value that the caller wanted repeated is still his result when there is no other.
    fn end<T, E>(
        self,
        by: Option<Decider>,
        wait: Option<Duration>,
        failed: Failed,
        last: Last<T, E>,
        now: Instant,
    ) -> Answer<T, E> {
        match last {
            Some(Ok(value)) => {
                self.close(failed.verdict.effect, failed.code, now);
                Ok(value)
            }
            last => Err(self.stop(by, wait, failed, last.and_then(Result::err), now)),
        }
    }

    fn stop<E>(
        self,
        by: Option<Decider>,
        wait: Option<Duration>,
        failed: Failed,
        last: Option<E>,
        now: Instant,
    ) -> CallError<E> {
        let effect = self.effect(failed.verdict);
        let retry_after = wait.or(failed.asked_to_wait());
        let (breaker, operation) = (&self.policy.breaker, self.operation.name());
        let (attempts, elapsed) = self.close(effect, failed.code, now);
        match (by, last) {
            (None, Some(error)) => CallError::Backend { attempts, elapsed, effect, error },
            (by, last) => {
                let by = by.unwrap_or(Decider::Retry);
                event::emit(|| Event::Stopped {
                    dependency: breaker.shared_name(),
                    operation,
                    by,
                    attempts,
                    elapsed,
                    effect,
                });
                CallError::Stopped { by, attempts, elapsed, effect, retry_after, last }
            }
        }
    }

    /// Ends a call whose next attempt is not made.
    fn refuse<T, E>(
        mut self,
        refused: Refused,
        retry: Option<Retry<'p, T, E>>,
        now: Instant,
    ) -> Answer<T, E> {
        let by = refused.by;
        if let Some(Retry { failed, last, .. }) = retry {
            return self.end(Some(by), refused.retry_after, failed, last, now);
        }
        self.permit.give_back(now);
        if matches!(by, Decider::Breaker | Decider::Isolation) {
            self.policy.blocked(self.operation, by, false);
        } else {
            self.policy.tell_refusal(self.operation, by, false);
        }
        Err(refused.into())
    }
}

pub(crate) fn cause(
    operation: &Operation,
    trip: Trip,
    effect: Effect,
    code: Option<String>,
) -> Cause {
    Cause {
        reason: trip.words(),
        operation: operation.name(),
        effect: effect.name(),
        code,
        at: SystemTime::now(),
    }
}

impl<E> From<Refusal> for CallError<E> {
    #[inline(always)]
    fn from(Refusal { shut, opened_by }: Refusal) -> Self {
        Self::Rejected { by: shut.by(), retry_after: shut.retry_after(), opened_by }
    }
}

impl From<Refusal> for Refused {
    fn from(Refusal { shut, opened_by }: Refusal) -> Self {
        Self { by: shut.by(), retry_after: shut.retry_after(), opened_by }
    }
}

/// By a limit of our own.
impl From<(Decider, Option<Duration>)> for Refused {
    fn from((by, retry_after): (Decider, Option<Duration>)) -> Self {
        Self { by, retry_after, opened_by: None }
    }
}

impl<E> From<Refused> for CallError<E> {
    #[inline]
    fn from(Refused { by, retry_after, opened_by }: Refused) -> Self {
        Self::Rejected { by, retry_after, opened_by }
    }
}
