//! Errors, shaped by what the caller may do next.
//!
//! [`CallError`] carries the operation's own error type; [`Error`] is the one type of all clients.
//! Neither prints its source: a driver's error may hold what must not be logged.

#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "sqlx")]
mod sqlx;

use crate::{
    breaker::Trip,
    classify::{Effect, Outcome, Verdict},
};
use serde::Serialize;
use std::{
    any::Any,
    error::Error as StdError,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Which policy decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decider {
    /// The circuit breaker.
    Breaker,
    /// Somebody who isolated the dependency by hand.
    Isolation,
    /// The attempt timeout.
    Timeout,
    /// The deadline of the whole call, or the one around it.
    Deadline,
    /// The number of attempts ran out.
    Retry,
    /// The dependency's retry budget is spent.
    Budget,
    /// The bulkhead: too many attempts were in flight.
    Bulkhead,
    /// The rate limit.
    RateLimit,
    /// A server that asked for less load a moment ago.
    Throttle,
}

impl Decider {
    /// A name for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Breaker => "breaker",
            Self::Isolation => "isolation",
            Self::Timeout => "timeout",
            Self::Deadline => "deadline",
            Self::Retry => "retry",
            Self::Budget => "budget",
            Self::Bulkhead => "bulkhead",
            Self::RateLimit => "rate_limit",
            Self::Throttle => "throttle",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Breaker => "circuit breaker open",
            Self::Isolation => "isolated by hand, until reset() or force_closed()",
            Self::Timeout => "attempt timeout",
            Self::Deadline => "deadline",
            Self::Retry => "no attempts left",
            Self::Budget => "retry budget spent",
            Self::Bulkhead => "too many calls in flight (max_concurrent)",
            Self::RateLimit => "over the rate limit",
            Self::Throttle => "held back, since the server asked for less load",
        }
    }
}

/// What opened a breaker, without anything secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cause {
    /// What was too much: `failures in a row`, `failure rate`, `slow calls` or `failed probe`.
    pub reason: &'static str,
    /// The operation whose failure opened it.
    pub operation: &'static str,
    /// What the error said happened.
    pub effect: &'static str,
    /// The backend's code, such as a status or an SQLSTATE.
    pub code: Option<String>,
    /// When it opened.
    pub at: SystemTime,
}

impl Cause {
    /// Of an attempt that was given up before it said anything.
    pub(crate) fn of_a_cut(trip: Trip) -> Self {
        let (operation, effect) = ("a call", "given up by its caller");
        Self { reason: trip.words(), operation, effect, code: None, at: SystemTime::now() }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}", self.operation, self.effect, self.reason)?;
        if let Some(code) = &self.code {
            write!(f, ", code {code}")?;
        }
        f.write_str(")")
    }
}

/// The end of a call that did not succeed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError<E> {
    /// No attempt was made, so it is safe to try elsewhere.
    Rejected {
        /// Who refused.
        by: Decider,
        /// When it may be worth trying again.
        retry_after: Option<Duration>,
        /// What opened the breaker.
        cause: Option<Arc<Cause>>,
    },
    /// Attempts were made, then a policy stopped them.
    Stopped {
        /// Who stopped them.
        by: Decider,
        /// Attempts made.
        attempts: u32,
        /// Time since the call began.
        elapsed: Duration,
        /// Whether it may have happened.
        effect: Effect,
        /// When it may be worth trying again.
        retry_after: Option<Duration>,
        /// The backend's last error; `None` if it never answered.
        last: Option<E>,
    },
    /// Answered, and not worth or not safe to repeat.
    Backend {
        /// Attempts made.
        attempts: u32,
        /// Time since the call began.
        elapsed: Duration,
        /// Whether it may have happened.
        effect: Effect,
        /// The backend's own error.
        error: E,
    },
}

impl<E> CallError<E> {
    /// Attempts made; 0 when refused.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        match self {
            Self::Rejected { .. } => 0,
            Self::Stopped { attempts, .. } | Self::Backend { attempts, .. } => *attempts,
        }
    }

    /// Time since the call began; zero when refused.
    #[must_use]
    pub const fn elapsed(&self) -> Duration {
        match self {
            Self::Rejected { .. } => Duration::ZERO,
            Self::Stopped { elapsed, .. } | Self::Backend { elapsed, .. } => *elapsed,
        }
    }

    /// What is known to have happened at the backend.
    #[must_use]
    pub const fn effect(&self) -> Effect {
        match self {
            Self::Rejected { .. } => Effect::NeverSent,
            Self::Stopped { effect, .. } | Self::Backend { effect, .. } => *effect,
        }
    }

    /// Which policy decided; `None` when the backend's answer did.
    #[must_use]
    pub const fn decider(&self) -> Option<Decider> {
        match self {
            Self::Rejected { by, .. } | Self::Stopped { by, .. } => Some(*by),
            Self::Backend { .. } => None,
        }
    }

    /// Refused or stopped by an open breaker.
    #[must_use]
    pub const fn is_circuit_open(&self) -> bool {
        matches!(self.decider(), Some(Decider::Breaker | Decider::Isolation))
    }

    /// Ended by the attempt timeout or the deadline.
    #[must_use]
    pub const fn is_timeout(&self) -> bool {
        matches!(self.decider(), Some(Decider::Timeout | Decider::Deadline))
    }

    /// No attempt was made.
    #[must_use]
    pub const fn is_rejected(&self) -> bool {
        matches!(self, Self::Rejected { .. })
    }

    /// Repeating was allowed, and attempts or budget ran out.
    #[must_use]
    pub const fn is_exhausted(&self) -> bool {
        matches!(self.decider(), Some(Decider::Retry | Decider::Budget))
    }

    /// It may or may not have happened: look before repeating it.
    #[must_use]
    pub const fn is_outcome_unknown(&self) -> bool {
        matches!(self.effect(), Effect::Unknown)
    }

    /// When it may be worth trying again, if anybody said so.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Rejected { retry_after, .. } | Self::Stopped { retry_after, .. } => *retry_after,
            Self::Backend { effect: Effect::Throttled { retry_after }, .. } => *retry_after,
            _ => None,
        }
    }

    /// The backend's last error.
    #[must_use]
    pub const fn last(&self) -> Option<&E> {
        match self {
            Self::Rejected { .. } => None,
            Self::Stopped { last, .. } => last.as_ref(),
            Self::Backend { error, .. } => Some(error),
        }
    }

    /// The same end with another error type.
    #[must_use]
    pub fn map<O>(self, change: impl FnOnce(E) -> O) -> CallError<O> {
        match self {
            Self::Rejected { by, retry_after, cause } => {
                CallError::Rejected { by, retry_after, cause }
            }
            Self::Stopped { by, attempts, elapsed, effect, retry_after, last } => {
                let last = last.map(change);
                CallError::Stopped { by, attempts, elapsed, effect, retry_after, last }
            }
            Self::Backend { attempts, elapsed, effect, error } => {
                CallError::Backend { attempts, elapsed, effect, error: change(error) }
            }
        }
    }

    /// The backend's last error, by value.
    #[must_use]
    pub fn into_last(self) -> Option<E> {
        match self {
            Self::Rejected { .. } => None,
            Self::Stopped { last, .. } => last,
            Self::Backend { error, .. } => Some(error),
        }
    }
}

impl<E> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected { by, cause, .. } => {
                write!(f, "refused without an attempt: {}", by.words())?;
                if let Some(cause) = cause {
                    write!(f, ", opened by {cause}")?;
                }
            }
            Self::Stopped { by, .. } => write!(
                f,
                "stopped after {} and {:.3?}: {}",
                Attempts(self.attempts()),
                self.elapsed(),
                by.words()
            )?,
            Self::Backend { .. } => {
                write!(f, "failed after {} and {:.3?}", Attempts(self.attempts()), self.elapsed())?
            }
        }
        if self.is_outcome_unknown() {
            f.write_str("; it may have happened, so look before repeating it")?;
        }
        if let Some(wait) = self.retry_after() {
            write!(f, "; try again in {wait:.1?}")?;
        }
        Ok(())
    }
}

struct Attempts(u32);

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} attempt{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

impl<E: StdError + 'static> StdError for CallError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.last().map(|e| e as _)
    }
}

/// A setting that cannot be used; every problem found, one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// An error of these problems.
    #[must_use]
    pub fn new(problems: Vec<String>) -> Self {
        Self { problems }
    }

    /// Each problem: the setting, what is wrong, and what is allowed.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "settings cannot be used: {}", self.problems.join("; "))
    }
}

impl StdError for ConfigError {}

/// What kind of end a client's call had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Refused by a policy; no attempt was made.
    Rejected,
    /// Attempts were made, then a policy stopped them.
    Stopped,
    /// The backend's answer, or an unknown outcome that must not be repeated.
    Backend,
    /// The caller's input cannot work; nothing was sent.
    InvalidInput,
    /// Settings cannot be used.
    Config,
}

/// The one error of all clients.
///
/// `Display` is one line of our own words. The driver's error is the `source()`, reachable with
/// [`Error::downcast_ref`]; printing the whole chain prints what the driver says.
pub struct Error(Box<Inner>);

struct Inner {
    context: String,
    kind: ErrorKind,
    decider: Option<Decider>,
    attempts: u32,
    elapsed: Duration,
    effect: Effect,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    /// The context says what may be said; the source adds nothing, or what must not be logged.
    says_all: bool,
}

impl Error {
    /// The end of one call on `dependency`.
    pub fn from_call<E>(dependency: &str, operation: &'static str, error: CallError<E>) -> Self
    where
        E: StdError + Send + Sync + 'static,
    {
        Self::named(format!("{dependency}: {operation} {error}"), error)
    }

    fn named<E>(context: String, error: CallError<E>) -> Self
    where
        E: StdError + Send + Sync + 'static,
    {
        let kind = match &error {
            CallError::Rejected { .. } => ErrorKind::Rejected,
            CallError::Stopped { .. } => ErrorKind::Stopped,
            CallError::Backend { .. } => ErrorKind::Backend,
        };
        Self(Box::new(Inner {
            context,
            kind,
            decider: error.decider(),
            attempts: error.attempts(),
            elapsed: error.elapsed(),
            effect: error.effect(),
            retry_after: error.retry_after(),
            source: error.into_last().map(|e| Box::new(e) as _),
            says_all: false,
        }))
    }

    /// The same error with this hint, if it has none: what the backend said of coming again, where
    /// nothing could be done about it.
    #[must_use]
    pub fn or_retry_after(mut self, hint: Option<Duration>) -> Self {
        if let (None, Some(wait)) = (self.0.retry_after, hint) {
            self.0.retry_after = Some(wait);
            self.0.context.push_str(&format!("; try again in {wait:.1?}"));
        }
        self
    }

    /// The caller's input cannot work: the message names the thing and says what to do.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::local(ErrorKind::InvalidInput, message.into(), None)
    }

    /// Settings cannot be used.
    #[must_use]
    pub fn config(error: ConfigError) -> Self {
        Self::local(ErrorKind::Config, error.to_string(), Some(Box::new(error)))
    }

    fn local(
        kind: ErrorKind,
        context: String,
        source: Option<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self(Box::new(Inner {
            context,
            kind,
            decider: None,
            attempts: 0,
            elapsed: Duration::ZERO,
            effect: Effect::NeverSent,
            retry_after: None,
            source,
            says_all: true,
        }))
    }

    /// What kind of end the call had.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Which policy decided; `None` when the backend's answer did.
    #[must_use]
    pub fn decider(&self) -> Option<Decider> {
        self.0.decider
    }

    /// Attempts made.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Time since the call began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed
    }

    /// What is known to have happened at the backend.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// When it may be worth trying again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Refused or stopped by an open breaker.
    #[must_use]
    pub fn is_circuit_open(&self) -> bool {
        matches!(self.0.decider, Some(Decider::Breaker | Decider::Isolation))
    }

    /// Ended by the attempt timeout or the deadline.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.0.decider, Some(Decider::Timeout | Decider::Deadline))
    }

    /// No attempt was made.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.0.kind == ErrorKind::Rejected
    }

    /// Repeating was allowed, and attempts or budget ran out.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        matches!(self.0.decider, Some(Decider::Retry | Decider::Budget))
    }

    /// It may or may not have happened: look before repeating it.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        self.0.effect == Effect::Unknown
    }

    /// What this error means to a policy around the call that ended with it.
    pub(crate) fn verdict(&self) -> Verdict {
        match (self.0.kind, self.0.effect) {
            (ErrorKind::Rejected, _) => Verdict::never_sent().with_outcome(Outcome::Neutral),
            (ErrorKind::InvalidInput | ErrorKind::Config, _) => {
                Verdict::permanent().with_outcome(Outcome::Neutral)
            }
            (_, Effect::NeverSent) => Verdict::never_sent(),
            (_, Effect::Transient) => Verdict::transient(),
            (_, Effect::Throttled { retry_after }) => Verdict::throttled(retry_after),
            (_, Effect::Unknown) => Verdict::unknown(),
            (_, Effect::Permanent) => Verdict::permanent(),
        }
    }

    /// The first error of type `T` below this one.
    #[must_use]
    pub fn downcast_ref<T: StdError + 'static>(&self) -> Option<&T> {
        let mut next = self.source();
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

/// What the policy decided, with the operation's error as its source. Where the operation's own
/// answer decided, and that is an [`Error`] of a client called in it, what that one says stands.
impl<E> From<CallError<E>> for Error
where
    E: StdError + Send + Sync + 'static,
{
    fn from(error: CallError<E>) -> Self {
        let answer: Option<&Self> = match &error {
            CallError::Backend { error, .. } => (error as &dyn Any).downcast_ref(),
            _ => None,
        };
        let answer = answer.map(|answer| (answer.kind(), answer.decider(), answer.retry_after()));
        let mut own = Self::named(format!("call {error}"), error);
        if let Some((kind, decider, retry_after)) = answer {
            own.0.kind = kind;
            own.0.decider = decider;
            own.0.retry_after = own.0.retry_after.or(retry_after);
        }
        own
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::config(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)
    }
}

impl fmt::Debug for Error {
    /// Our own words and figures only: the driver's error is in `source()`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("message", &self.0.context)
            .field("kind", &self.0.kind)
            .field("decider", &self.0.decider)
            .field("attempts", &self.0.attempts)
            .field("elapsed", &self.0.elapsed)
            .field("effect", &self.0.effect)
            .finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// Prints an error and the first cause below it, if that is in our own words and not a driver's.
pub fn report(error: &Error) -> impl fmt::Display + '_ {
    struct Report<'a>(&'a Error);
    impl fmt::Display for Report<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}", self.0)?;
            match self.0.source() {
                Some(cause) if !self.0.0.says_all => write!(f, ": {cause}"),
                _ => Ok(()),
            }
        }
    }
    Report(error)
}

#[cfg(test)]
mod tests;
