//! The life of one call, and the only retry loops in the workspace.
//!
//! [`Run`] holds the decisions; the loop for futures and the one for closures that block differ
//! only in how they wait.

use crate::{
    attempt::Attempt,
    breaker::{Counters, Ended, Permit, Refusal, Trip},
    budget::Paid,
    bulkhead::Place,
    classify::{Effect, Operation, Outcome, Verdict},
    clock::{self, Instant},
    deadline::Scope,
    error::{CallError, Cause, Decider},
    event::{self, Event},
    hedge,
    policy::{Inner, Limits},
    timeout::Bounded,
};
use std::{
    future::Future,
    time::{Duration, SystemTime},
};

/// What the caller's judge says of an error, or of a value that is to be repeated.
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    /// The caller decided this one himself: no mark of a nested call overrules him.
    pub(crate) repeat: Option<bool>,
    pub(crate) code: Option<String>,
}

/// Says what the results of attempts mean.
pub(crate) trait Judge<T, E> {
    fn error(&self, error: &E, operation: &Operation) -> Judged;
    /// Whether this value is to be treated as a transient failure.
    fn refuses(&self, value: &T) -> bool;
}

/// One call, from its admission to its end.
pub(crate) struct Run<'p> {
    policy: &'p Inner,
    operation: Operation,
    permit: Permit<'p>,
    limits: Limits,
    started: Instant,
    /// When the call ends, whatever it is doing.
    end: Instant,
    number: u32,
    /// The deadline comes before this attempt's own limit.
    cut_short: bool,
    /// The wait before this attempt.
    waited: Duration,
    /// Of the last attempt that says anything about the dependency.
    outcome: Outcome,
    /// Some attempt may have happened.
    unknown: bool,
}

enum Next<'p> {
    Wait(Duration, Option<Paid<'p>>),
    /// `None`: the backend's answer decided.
    Stop(Option<Decider>, Option<Duration>),
}

/// How an attempt failed.
pub(crate) struct Failed {
    verdict: Verdict,
    repeat: Option<bool>,
    code: Option<String>,
    timed_out: bool,
    /// A nested call owned the retries.
    handled: bool,
}

impl<'p> Run<'p> {
    /// Admission: the deadline has not passed, and the breaker is not open.
    #[inline]
    pub(crate) fn begin<E>(policy: &'p Inner, operation: Operation) -> Result<Self, CallError<E>> {
        let started = clock::now();
        let mut limits = policy.limits();
        let around = if limits.observe { Instant::NEVER } else { Scope::current().deadline };
        let end = started.after_nanos(limits.deadline).min(around);
        if end <= started {
            return Err(refused(policy, operation, Decider::Deadline, None));
        }
        let permit = if limits.guarded {
            match policy.breaker.admit(started) {
                Ok(permit) => permit,
                Err(refusal) if limits.observe => {
                    observed(policy, operation, &refusal);
                    policy.breaker.unguarded()
                }
                Err(refusal) => return Err(refused_by_breaker(policy, operation, refusal)),
            }
        } else {
            policy.breaker.unguarded()
        };
        if permit.is_probe() {
            limits.attempts = 1;
        }
        Ok(Self {
            policy,
            operation,
            permit,
            limits,
            started,
            end,
            number: 1,
            cut_short: false,
            waited: Duration::ZERO,
            outcome: Outcome::Neutral,
            unknown: false,
        })
    }

    /// The attempt that begins now, and when its time is up.
    #[inline]
    fn next_attempt(&mut self, now: Instant) -> (Attempt, Instant) {
        self.permit.begin_attempt(now);
        let limit = now.after_nanos(self.limits.timeout);
        self.cut_short = self.end < limit;
        let limit = limit.min(self.end);
        let time = (!limit.is_never()).then(|| limit.since(now));
        (Attempt::new(self.number, time), limit)
    }

    #[inline]
    fn succeed(self, now: Instant) {
        let (operation, effect) = (self.operation, Effect::Transient);
        self.permit.succeed(now, &|trip| cause(operation, trip, effect, None));
    }

    /// Takes in a failed attempt and decides what follows.
    fn failed(&mut self, failed: &Failed, now: Instant) -> Next<'p> {
        let Failed { verdict, code, timed_out, .. } = failed;
        let counters = self.policy.breaker.counters();
        let (operation, effect) = (self.operation, verdict.effect);
        let cause = |trip| cause(operation, trip, effect, code.clone());
        let outcome = if *timed_out {
            Counters::add(&counters.timeouts);
            // Cut by the call's own deadline: it says nothing but that it was slow.
            if self.cut_short { Outcome::Neutral } else { Outcome::Failure }
        } else {
            verdict.outcome
        };
        match outcome {
            Outcome::Failure => self.permit.end_attempt(Ended::Failed, now, &cause),
            Outcome::Neutral if *timed_out => self.permit.end_attempt(Ended::Cut, now, &cause),
            Outcome::Neutral => self.permit.end_attempt(Ended::Neutral, now, &cause),
            // Told with the end of the operation, which this is.
            Outcome::Success => {}
        }
        if outcome != Outcome::Neutral {
            self.outcome = outcome;
        }
        self.unknown |= effect == Effect::Unknown;
        self.decide(failed, now)
    }

    fn decide(&mut self, failed: &Failed, now: Instant) -> Next<'p> {
        let Failed { verdict, repeat, timed_out, handled, .. } = failed;
        let repeatable = match repeat {
            Some(repeat) => *repeat,
            None => verdict.may_repeat(self.operation.idempotency()) && !handled,
        };
        let out_of_time = *timed_out && self.cut_short;
        if !repeatable {
            let by = if out_of_time { Decider::Deadline } else { Decider::Timeout };
            return Next::Stop(timed_out.then_some(by), None);
        }
        if out_of_time || now >= self.end {
            return Next::Stop(Some(Decider::Deadline), None);
        }
        if self.number >= self.limits.attempts {
            let by = if *timed_out { Decider::Timeout } else { Decider::Retry };
            return Next::Stop(Some(by), None);
        }
        if let Err(refusal) = self.permit.gate(now) {
            return Next::Stop(Some(decider(&refusal)), refusal.retry_after);
        }
        let tuning = self.policy.tuning();
        let random = self.policy.random();
        let mut delay = tuning.backoff.delay(self.number, self.waited, random);
        if let Effect::Throttled { retry_after: Some(floor) } = verdict.effect {
            // Those that were told to wait alike should not come back alike.
            let spread = tuning.backoff.base_delay.min(floor / 8).mul_f64(random);
            delay = delay.max(floor.saturating_add(spread));
        }
        // A wait that would not fit is not slept.
        if now.after(delay) >= self.end {
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
        Counters::add(&self.policy.breaker.counters().retries);
        event::emit(|| Event::Retrying {
            dependency: self.policy.breaker.shared_name(),
            operation: self.operation.name(),
            attempt: self.number,
            delay,
            effect,
        });
    }

    /// After the wait: others may have found the dependency dead meanwhile.
    fn waited(&mut self, delay: Duration, paid: Option<Paid<'p>>, now: Instant) -> Next<'p> {
        self.waited = delay;
        match self.permit.gate(now) {
            Err(refusal) => Next::Stop(Some(decider(&refusal)), refusal.retry_after),
            Ok(()) if now >= self.end => Next::Stop(Some(Decider::Deadline), None),
            Ok(()) => {
                if let Some(paid) = paid {
                    paid.spend();
                }
                self.number = self.number.saturating_add(1);
                Next::Wait(Duration::ZERO, None)
            }
        }
    }

    /// The effect of the whole call: what may have happened in one attempt may have happened,
    /// whatever the next one says, unless that is the backend's answer.
    fn effect(&self, last: Effect) -> Effect {
        match last {
            Effect::Permanent => last,
            _ if self.unknown => Effect::Unknown,
            _ => last,
        }
    }

    /// Closes the books of a call that did not succeed.
    fn close(self, effect: Effect, code: Option<String>, now: Instant) -> (u32, Duration) {
        let operation = self.operation;
        Scope::mark(self.limits.owns_retries, effect == Effect::Unknown);
        self.permit.finish(self.outcome, now, &|trip| cause(operation, trip, effect, code.clone()));
        (self.number, now.since(self.started))
    }

    fn stop<E>(
        self,
        by: Option<Decider>,
        wait: Option<Duration>,
        failed: Failed,
        last: Option<E>,
        now: Instant,
    ) -> CallError<E> {
        let effect = self.effect(failed.verdict.effect);
        let retry_after = wait.or(match failed.verdict.effect {
            Effect::Throttled { retry_after } => retry_after,
            _ => None,
        });
        let (breaker, operation) = (&self.policy.breaker, self.operation.name());
        let (attempts, elapsed) = self.close(effect, failed.code, now);
        match (by, last) {
            (None, Some(error)) => CallError::Backend { attempts, elapsed, effect, error },
            (by, last) => {
                let by = by.unwrap_or(Decider::Timeout);
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

    /// Our own refusal of an attempt, by the rate limit or the bulkhead.
    fn refuse<E>(
        self,
        by: Decider,
        retry_after: Option<Duration>,
        last: Option<E>,
        now: Instant,
    ) -> CallError<E> {
        if self.number == 1 {
            let (policy, operation) = (self.policy, self.operation);
            self.permit.finish(Outcome::Neutral, now, &Cause::of_a_cut);
            return refused(policy, operation, by, retry_after);
        }
        let effect = self.effect(Effect::NeverSent);
        let (mut attempts, elapsed) = self.close(effect, None, now);
        // The one that was refused was not made.
        attempts -= 1;
        CallError::Stopped { by, attempts, elapsed, effect, retry_after, last }
    }
}

/// Runs futures.
pub(crate) async fn drive<T, E, F, Fut, J>(
    policy: &Inner,
    operation: Operation,
    mut attempt: F,
    judge: &J,
) -> Result<T, CallError<E>>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    J: Judge<T, E>,
{
    let mut run = Run::begin(policy, operation)?;
    let mut now = run.started;
    let mut last = None;
    loop {
        let place = if run.limits.placed() {
            match policy.place(run.end).await {
                Ok(place) => {
                    now = clock::now();
                    place
                }
                Err((by, wait)) => {
                    let last = last.and_then(Result::err);
                    return Err(run.refuse(by, wait, last, clock::now()));
                }
            }
        } else {
            Place::free()
        };
        let (this, limit) = run.next_attempt(now);
        let first = Bounded::new(attempt(this), limit, now);
        let end = match policy.hedge_after(&run.limits, &run.operation, run.permit.is_probe()) {
            None => first.await,
            // A race is rare: its state lives on the heap, so that other calls stay small.
            Some(delay) => {
                Box::pin(hedge::race(&mut run, first, now, &mut attempt, delay, judge)).await
            }
        };
        drop(place);
        now = clock::now();
        let failed = match end.output {
            Some(Ok(value)) if !judge.refuses(&value) => {
                run.succeed(now);
                return Ok(value);
            }
            Some(Ok(value)) => {
                last = Some(Ok(value));
                Failed::by_value()
            }
            Some(Err(error)) => {
                let failed = Failed::by(judge.error(&error, &run.operation), end.scope);
                last = Some(Err(error));
                failed
            }
            None => {
                last = last.filter(Result::is_err);
                Failed::by_timeout(end.scope)
            }
        };
        let mut next = run.failed(&failed, now);
        if let Next::Wait(delay, paid) = next {
            run.retrying(delay, failed.verdict.effect);
            clock::sleep(delay).await;
            now = clock::now();
            next = run.waited(delay, paid, now);
        }
        if let Next::Stop(by, wait) = next {
            return end_of(run, by, wait, failed, last, now);
        }
    }
}

/// Runs closures that block, on the caller's thread: time is checked between attempts.
pub(crate) fn drive_blocking<T, E, J>(
    policy: &Inner,
    operation: Operation,
    mut attempt: impl FnMut(Attempt, Instant) -> Option<Result<T, E>>,
    judge: &J,
) -> Result<T, CallError<E>>
where
    J: Judge<T, E>,
{
    let mut run = Run::begin(policy, operation)?;
    let mut now = run.started;
    let mut last = None;
    loop {
        let place = if run.limits.placed() {
            match policy.place_blocking(run.end) {
                Ok(place) => {
                    now = clock::now();
                    place
                }
                Err((by, wait)) => {
                    let last = last.and_then(Result::err);
                    return Err(run.refuse(by, wait, last, clock::now()));
                }
            }
        } else {
            Place::free()
        };
        let (this, limit) = run.next_attempt(now);
        let scope = Scope { deadline: limit, ..Scope::NONE };
        let (result, scope) = scope.enter(|| attempt(this, limit));
        drop(place);
        now = clock::now();
        let failed = match result {
            Some(Ok(value)) if !judge.refuses(&value) => {
                run.succeed(now);
                return Ok(value);
            }
            Some(Ok(value)) => {
                last = Some(Ok(value));
                Failed::by_value()
            }
            Some(Err(error)) => {
                let failed = Failed::by(judge.error(&error, &run.operation), scope);
                last = Some(Err(error));
                failed
            }
            None => {
                last = last.filter(Result::is_err);
                Failed::by_timeout(scope)
            }
        };
        let mut next = run.failed(&failed, now);
        if let Next::Wait(delay, paid) = next {
            run.retrying(delay, failed.verdict.effect);
            std::thread::sleep(delay);
            now = clock::now();
            next = run.waited(delay, paid, now);
        }
        if let Next::Stop(by, wait) = next {
            return end_of(run, by, wait, failed, last, now);
        }
    }
}

/// The last value that the caller wanted repeated is still his result when there is no other.
fn end_of<T, E>(
    run: Run<'_>,
    by: Option<Decider>,
    wait: Option<Duration>,
    failed: Failed,
    last: Option<Result<T, E>>,
    now: Instant,
) -> Result<T, CallError<E>> {
    match last {
        Some(Ok(value)) => {
            run.close(failed.verdict.effect, failed.code, now);
            Ok(value)
        }
        last => Err(run.stop(by, wait, failed, last.and_then(Result::err), now)),
    }
}

impl Failed {
    fn by(judged: Judged, scope: Scope) -> Self {
        let Judged { mut verdict, repeat, code } = judged;
        if scope.unknown && repeat.is_none() {
            verdict.effect = Effect::Unknown;
        }
        let handled = scope.handled || scope.unknown;
        Self { verdict, repeat, code, timed_out: false, handled }
    }

    fn by_value() -> Self {
        let (verdict, repeat) = (Verdict::transient(), Some(true));
        Self { verdict, repeat, code: None, timed_out: false, handled: false }
    }

    fn by_timeout(scope: Scope) -> Self {
        let handled = scope.handled || scope.unknown;
        let verdict = Verdict::unknown();
        Self { verdict, repeat: None, code: None, timed_out: true, handled }
    }
}

fn decider(refusal: &Refusal) -> Decider {
    if refusal.isolated { Decider::Isolation } else { Decider::Breaker }
}

fn cause(operation: Operation, trip: Trip, effect: Effect, code: Option<String>) -> Cause {
    Cause {
        reason: trip.words(),
        operation: operation.name(),
        effect: effect.name(),
        code,
        at: SystemTime::now(),
    }
}

#[cold]
fn refused<E>(
    policy: &Inner,
    operation: Operation,
    by: Decider,
    retry_after: Option<Duration>,
) -> CallError<E> {
    event::emit(|| Event::Rejected {
        dependency: policy.breaker.shared_name(),
        operation: operation.name(),
        by,
        observed: false,
    });
    CallError::Rejected { by, retry_after, cause: None }
}

fn refused_by_breaker<E>(policy: &Inner, operation: Operation, refusal: Refusal) -> CallError<E> {
    policy.breaker.meter().blocked();
    let by = decider(&refusal);
    let error = refused(policy, operation, by, refusal.retry_after);
    match error {
        CallError::Rejected { by, retry_after, .. } => {
            CallError::Rejected { by, retry_after, cause: refusal.cause }
        }
        other => other,
    }
}

#[cold]
fn observed(policy: &Inner, operation: Operation, refusal: &Refusal) {
    policy.breaker.meter().blocked();
    event::emit(|| Event::Rejected {
        dependency: policy.breaker.shared_name(),
        operation: operation.name(),
        by: decider(refusal),
        observed: true,
    });
}

/// What a race of two copies needs to tell.
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
        let time = (!limit.is_never()).then(|| limit.since(now));
        Some((Attempt::new(self.number, time), limit))
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
        &self.operation
    }
}
