//! The composition: one order for every call, and the only retry loop in the workspace.
//!
//! ```text
//! admission (breaker) > deadline > retry { budget > backoff > breaker gate > attempt timeout > driver }
//! ```

use crate::{
    attempt::Attempt,
    backoff::{Backoff, Jitter},
    breaker::{Breaker, BreakerConfig, Counters, Permit},
    budget::Budget,
    classify::{Classify, Effect, Idempotency, Operation, Outcome, Verdict},
    clock::{self, Instant},
    error::{CallError, Cause, ConfigError, Decider},
    registry,
};
use std::{
    future::Future,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What an operation talks to; each kind has its defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// SQL: 30 s, 3 attempts.
    Database,
    /// Redis: 5 s, 2 attempts.
    Cache,
    /// HTTP: 60 s, 5 attempts.
    Api,
    /// S3: 10 s for one part, 3 attempts.
    File,
    /// Models: 300 s, 2 attempts.
    Ml,
    /// Anything else: 5 s, 3 attempts.
    Default,
    /// Named by the caller; the defaults of [`Kind::Default`].
    Custom,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Database, Self::Cache, Self::Api, Self::File, Self::Ml, Self::Default, Self::Custom];

    /// The name in settings and in breakers' names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Cache => "cache",
            Self::Api => "api",
            Self::File => "file",
            Self::Ml => "ml",
            Self::Default => "default",
            Self::Custom => "custom",
        }
    }
}

#[derive(Debug)]
struct Inner {
    timeout: Option<Duration>,
    deadline: Option<Duration>,
    max_attempts: NonZeroU32,
    backoff: Backoff,
    breaker: Breaker,
    budget: Arc<Budget>,
}

/// How calls on one dependency are bounded, repeated and refused; clones share everything.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mainstay_policy::{Kind, Policy};
/// use std::time::Duration;
///
/// let policy = Policy::builder(Kind::Database, "users").base_delay(Duration::ZERO).build()?;
/// let mut tries = 0;
/// let user = policy
///     .call(|| {
///         tries += 1;
///         let now = tries;
///         async move { if now < 3 { Err("connection refused") } else { Ok("John") } }
///     })
///     .await;
/// assert_eq!(user.ok(), Some("John"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Policy(Arc<Inner>);

impl Policy {
    /// A builder with the defaults of `kind`. Policies of one name share breaker and budget.
    pub fn builder(kind: Kind, name: impl Into<Arc<str>>) -> PolicyBuilder {
        PolicyBuilder::new(kind, name.into())
    }

    /// The dependency's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.breaker.name()
    }

    /// The attempt timeout; `None` when switched off.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.0.timeout
    }

    /// The dependency's breaker.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.0.breaker
    }

    /// Runs a client's operation: the closure once per attempt.
    ///
    /// # Errors
    /// [`CallError`] says who decided, after how many attempts, and whether it may have happened.
    ///
    /// # Cancel safety
    /// Dropping the future drops the attempt in flight and gives a probe back.
    pub async fn run<T, E, F, Fut>(
        &self,
        operation: &Operation,
        attempt: F,
    ) -> Result<T, CallError<E>>
    where
        E: Classify + std::error::Error,
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.drive(operation, attempt, |error| {
            let verdict = error.classify();
            tracing::debug!(
                mainstay.policy.name = self.name(),
                operation = operation.name(),
                effect = effect_name(verdict.effect),
                error = %error,
                "attempt failed"
            );
            verdict
        })
        .await
    }

    /// Runs a user's own operation, which may be repeated: any error counts as transient.
    ///
    /// Outside a tokio runtime there is no timer: attempts are neither bounded nor spaced. A runtime
    /// built without its time driver makes tokio panic.
    ///
    /// # Errors
    /// [`CallError`] with the operation's own last error.
    ///
    /// # Cancel safety
    /// As [`Policy::run`].
    pub async fn call<T, E, F, Fut>(&self, mut operation: F) -> Result<T, CallError<E>>
    where
        E: 'static,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        const CALL: Operation = Operation::new("call", Idempotency::Safe);
        self.drive(&CALL, |_| operation(), |_| Verdict::transient()).await
    }

    async fn drive<T, E, F, Fut>(
        &self,
        operation: &Operation,
        mut attempt: F,
        mut classify: impl FnMut(&E) -> Verdict,
    ) -> Result<T, CallError<E>>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let policy = &*self.0;
        let counters = policy.breaker.counters();
        let started = clock::now();
        let permit = policy.breaker.admit().map_err(|refusal| CallError::Rejected {
            by: Decider::Breaker,
            retry_after: Some(refusal.retry_after),
            cause: refusal.cause,
        })?;
        Counters::add(&counters.calls);
        let end = policy.deadline.and_then(|d| started.checked_add(d));
        let limit = if permit.is_probe() { 1 } else { policy.max_attempts.get() };
        let mut last = None;
        let mut failed_before = false;
        let mut number = 1;
        loop {
            let left = end.map(|end| end.saturating_duration_since(clock::now()));
            let time = shorter(policy.timeout, left);
            let result = clock::within(time, attempt(Attempt::new(number, time))).await;
            let timed_out = result.is_none();
            let verdict = match result {
                Some(Ok(value)) => {
                    policy.budget.success();
                    permit.record(Outcome::Success, || cause(operation, Effect::Transient));
                    return Ok(value);
                }
                Some(Err(error)) => {
                    let verdict = classify(&error);
                    last = Some(error);
                    verdict
                }
                None => {
                    Counters::add(&counters.timeouts);
                    // An attempt cut short by the deadline alone says nothing about the backend,
                    // unless one before it had failed already.
                    let full = policy.timeout.is_some() && time == policy.timeout;
                    let outcome =
                        if full || failed_before { Outcome::Failure } else { Outcome::Neutral };
                    Verdict::unknown().with_outcome(outcome)
                }
            };
            failed_before |= verdict.outcome == Outcome::Failure;
            let next = self.next(&permit, operation, verdict, number, limit, timed_out, end);
            let by = match next {
                Next::Wait(delay) => {
                    Counters::add(&counters.retries);
                    clock::sleep(delay).await;
                    // Others may have found the dependency dead while we slept.
                    match permit.gate() {
                        Ok(()) => {
                            number += 1;
                            continue;
                        }
                        Err(_) => Some(Decider::Breaker),
                    }
                }
                Next::Stop(by) => by,
            };
            if verdict.outcome == Outcome::Failure {
                Counters::add(&counters.failed);
            }
            permit.record(verdict.outcome, || cause(operation, verdict.effect));
            let (attempts, elapsed, effect) = (number, clock::now() - started, verdict.effect);
            return Err(match (by, last) {
                (None, Some(error)) if !timed_out => {
                    CallError::Backend { attempts, elapsed, effect, error }
                }
                (by, last) => {
                    let by = by.unwrap_or(Decider::Timeout);
                    CallError::Stopped { by, attempts, elapsed, effect, last }
                }
            });
        }
    }

    #[allow(clippy::too_many_arguments)] // One decision, taken from everything a call knows.
    fn next(
        &self,
        permit: &Permit,
        operation: &Operation,
        verdict: Verdict,
        number: u32,
        limit: u32,
        timed_out: bool,
        end: Option<Instant>,
    ) -> Next {
        let policy = &*self.0;
        let now = clock::now();
        if !verdict.may_repeat(operation.idempotency()) {
            let cut_by_deadline = timed_out && end.is_some_and(|end| now >= end);
            return Next::Stop(cut_by_deadline.then_some(Decider::Deadline));
        }
        if number >= limit {
            return Next::Stop(Some(if timed_out { Decider::Timeout } else { Decider::Retry }));
        }
        if permit.gate().is_err() {
            return Next::Stop(Some(Decider::Breaker));
        }
        let mut delay = policy.backoff.delay(number, fastrand::f64());
        if let Effect::Throttled { retry_after: Some(floor) } = verdict.effect {
            delay = delay.max(floor);
        }
        // A wait that would not fit is not slept.
        if end.is_some_and(|end| now.checked_add(delay).is_none_or(|then| then >= end)) {
            return Next::Stop(Some(Decider::Deadline));
        }
        if !policy.budget.try_take(timed_out, now) {
            return Next::Stop(Some(Decider::Budget));
        }
        Next::Wait(delay)
    }
}

enum Next {
    Wait(Duration),
    /// `None`: the backend's answer decided.
    Stop(Option<Decider>),
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

const fn effect_name(effect: Effect) -> &'static str {
    match effect {
        Effect::NeverSent => "never sent",
        Effect::Transient => "transient failure",
        Effect::Throttled { .. } => "throttled",
        Effect::Unknown => "no answer",
        Effect::Permanent => "permanent failure",
    }
}

fn cause(operation: &Operation, effect: Effect) -> Cause {
    Cause { operation: operation.name(), effect: effect_name(effect), at: SystemTime::now() }
}

/// Builds a [`Policy`]; every setter replaces the default of the kind.
#[derive(Clone, Debug)]
#[must_use]
pub struct PolicyBuilder {
    name: Arc<str>,
    timeout: Duration,
    deadline: Option<Duration>,
    max_attempts: u32,
    backoff: Backoff,
    failure_threshold: u32,
    recovery_timeout: Duration,
    enable_timeout: bool,
    enable_retry: bool,
    enable_circuit_breaker: bool,
}

impl PolicyBuilder {
    fn new(kind: Kind, name: Arc<str>) -> Self {
        // timeout, attempts, base delay, max delay, threshold, recovery: seconds and counts.
        let (timeout, max_attempts, base, max, failure_threshold, recovery) = match kind {
            Kind::Database => (30.0, 3, 0.5, 10.0, 3, 30.0),
            Kind::Cache => (5.0, 2, 0.1, 1.0, 3, 15.0),
            Kind::Api => (60.0, 5, 1.0, 30.0, 5, 60.0),
            Kind::File => (10.0, 3, 0.2, 5.0, 3, 30.0),
            Kind::Ml => (300.0, 2, 5.0, 30.0, 2, 120.0),
            Kind::Default | Kind::Custom => (5.0, 3, 1.0, 30.0, 5, 60.0),
        };
        Self {
            name,
            timeout: Duration::from_secs_f64(timeout),
            deadline: None,
            max_attempts,
            backoff: Backoff {
                base_delay: Duration::from_secs_f64(base),
                max_delay: Duration::from_secs_f64(max),
                exponential_base: 2.0,
                jitter: Jitter::Full,
            },
            failure_threshold,
            recovery_timeout: Duration::from_secs_f64(recovery),
            enable_timeout: true,
            enable_retry: true,
            enable_circuit_breaker: true,
        }
    }

    /// The dependency's name: policies of one name share breaker and budget.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// The limit of one attempt.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The limit of the whole call, waits included. Default: twice the timeout.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Attempts in all, the first included.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// The wait before the first retry, before jitter.
    pub fn base_delay(mut self, delay: Duration) -> Self {
        self.backoff.base_delay = delay;
        self
    }

    /// The longest wait, jitter included.
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.backoff.max_delay = delay;
        self
    }

    /// What each wait is multiplied by for the next; at least 1. Default: 2.
    pub fn exponential_base(mut self, base: f64) -> Self {
        self.backoff.exponential_base = base;
        self
    }

    /// How waits are spread. Default: [`Jitter::Full`].
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.backoff.jitter = jitter;
        self
    }

    /// Failed operations in a row that open the breaker.
    pub fn failure_threshold(mut self, failures: u32) -> Self {
        self.failure_threshold = failures;
        self
    }

    /// The longest break; the first is 1 s, or this if it is shorter.
    pub fn recovery_timeout(mut self, timeout: Duration) -> Self {
        self.recovery_timeout = timeout;
        self
    }

    /// Switches attempt timeout and deadline on or off.
    pub fn enable_timeout(mut self, on: bool) -> Self {
        self.enable_timeout = on;
        self
    }

    /// Switches retries on or off.
    pub fn enable_retry(mut self, on: bool) -> Self {
        self.enable_retry = on;
        self
    }

    /// Switches the breaker on or off.
    pub fn enable_circuit_breaker(mut self, on: bool) -> Self {
        self.enable_circuit_breaker = on;
        self
    }

    /// Checks everything and builds the policy.
    ///
    /// # Errors
    /// [`ConfigError`] with every contradiction at once.
    pub fn build(self) -> Result<Policy, ConfigError> {
        let mut problems = Vec::new();
        let mut refuse = |bad: bool, what: &str| {
            if bad {
                problems.push(format!("policy `{}`: {what}", self.name));
            }
        };
        refuse(self.timeout.is_zero(), "timeout is 0; give it more, or enable_timeout(false)");
        refuse(
            self.deadline.is_some_and(|d| d < self.timeout),
            "deadline is shorter than the timeout of one attempt; raise it or lower timeout",
        );
        refuse(self.backoff.base_delay > self.backoff.max_delay, "base_delay is over max_delay");
        let base = self.backoff.exponential_base;
        refuse(!base.is_finite() || base < 1.0, "exponential_base must be 1 or more");
        refuse(self.failure_threshold == 0, "failure_threshold is 0; use 1 or more");
        let attempts = NonZeroU32::new(self.max_attempts);
        refuse(attempts.is_none(), "max_attempts is 0; 1 means no retries");
        let Some(attempts) = attempts.filter(|_| problems.is_empty()) else {
            return Err(ConfigError::new(problems));
        };
        let on = registry::enabled();
        let timeout = (on && self.enable_timeout).then_some(self.timeout);
        let deadline = timeout.map(|t| self.deadline.unwrap_or(t.saturating_mul(2)));
        let (breaker, budget) = registry::dependency(
            &self.name,
            BreakerConfig {
                enabled: on && self.enable_circuit_breaker,
                failure_threshold: self.failure_threshold,
                recovery_timeout: self.recovery_timeout,
                probe_lease: self.timeout.saturating_mul(2),
            },
        );
        Ok(Policy(Arc::new(Inner {
            timeout,
            deadline,
            max_attempts: if on && self.enable_retry { attempts } else { NonZeroU32::MIN },
            backoff: self.backoff,
            breaker,
            budget,
        })))
    }
}

#[cfg(test)]
mod tests;
