//! Errors, shaped by what the caller may do next.
//!
//! [`CallError`] carries the operation's own error type; [`Error`] is the one type of all clients.
//! Neither prints its source: a driver's error may hold what must not be logged.

#[cfg(feature = "axum")]
mod axum;
mod call;
mod cause;
mod io;
#[cfg(feature = "sqlx")]
pub(crate) mod sqlx;

pub use call::{CallError, Decider};
pub use cause::{Cause, OpenedBy};
pub(crate) use io::own;

use crate::classify::{Effect, Outcome, Verdict};
use std::{
    any::{Any, TypeId},
    error::Error as StdError,
    fmt,
    sync::Arc,
    time::Duration,
};

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
    /// The length of what stands at the beginning of the context until somebody says what was called.
    unnamed: usize,
    kind: ErrorKind,
    decider: Option<Decider>,
    attempts: u32,
    elapsed: Duration,
    effect: Effect,
    retry_after: Option<Duration>,
    cause: Option<Arc<Cause>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    /// The context says what may be said; the source adds nothing, or what must not be logged.
    says_all: bool,
}

/// Stands where a client's error names the operation.
const UNNAMED: &str = "call";

impl Error {
    /// The end of one call on `dependency`.
    pub fn from_call<E>(dependency: &str, operation: &'static str, error: CallError<E>) -> Self
    where
        E: StdError + Send + Sync + 'static,
    {
        Self::named(format!("{dependency}: {operation} {}", error.words()), error)
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
            unnamed: 0,
            kind,
            decider: error.decider(),
            attempts: error.attempts(),
            elapsed: error.elapsed(),
            effect: error.effect(),
            retry_after: error.retry_after(),
            cause: error.cause(),
            source: error.into_last().map(|e| Box::new(e) as _),
            says_all: false,
        }))
    }

    /// Says what was called, where that is not known yet.
    #[cfg(feature = "macros")]
    pub(crate) fn name(&mut self, dependency: &str, operation: &str) {
        let unnamed = std::mem::take(&mut self.0.unnamed);
        if unnamed > 0 {
            self.0.context.replace_range(..unnamed, &format!("{dependency}: {operation}"));
        }
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

    /// The backend answered, and the answer is no use: the message says why, in words that may be logged.
    /// The request was sent and is not to be repeated.
    pub fn unusable(
        message: impl Into<String>,
        source: Option<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        let mut error = Self::local(ErrorKind::Backend, message.into(), source);
        (error.0.attempts, error.0.effect) = (1, Effect::Permanent);
        error
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
            unnamed: 0,
            kind,
            decider: None,
            attempts: 0,
            elapsed: Duration::ZERO,
            effect: Effect::NeverSent,
            retry_after: None,
            cause: None,
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

    /// What opened the breaker that refused the call.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        self.0.cause.as_deref()
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

    /// The first error of type `T` below this one, in what an [`io::Error`](std::io::Error) wraps too.
    #[must_use]
    pub fn downcast_ref<T: StdError + 'static>(&self) -> Option<&T> {
        self.source().and_then(Self::find_in)
    }

    /// The first error of type `T` from this one down; at an `io::Error` what it wraps is next, which its
    /// `source()` skips. For clients.
    #[doc(hidden)]
    #[must_use]
    pub fn find_in<'a, T: StdError + 'static>(
        error: &'a (dyn StdError + 'static),
    ) -> Option<&'a T> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            next = match error.downcast_ref().and_then(std::io::Error::get_ref) {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
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
        let answer = answer.map(|Self(answer)| {
            (answer.kind, answer.decider, answer.retry_after, answer.cause.clone())
        });
        let called = match error.dependency() {
            Some(dependency) => format!("{dependency}: {UNNAMED}"),
            None => UNNAMED.to_owned(),
        };
        let mut own = Self::named(format!("{called} {}", error.words()), error);
        own.0.unnamed = called.len();
        // A user's error may be a driver's, or hold one's words.
        own.0.says_all = TypeId::of::<E>() != TypeId::of::<Self>();
        if let Some((kind, decider, retry_after, cause)) = answer {
            (own.0.kind, own.0.decider, own.0.cause) = (kind, decider, cause);
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
