//! The end of one call, with the operation's own error, and who decided it.

use super::{Cause, OpenedBy};
use crate::classify::Effect;
use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

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
        /// What opened the breaker; [`CallError::cause`] looks it up.
        opened_by: Option<OpenedBy>,
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

    /// What opened the breaker that refused the call.
    #[must_use]
    pub fn cause(&self) -> Option<Arc<Cause>> {
        match self {
            Self::Rejected { opened_by, .. } => opened_by.as_ref()?.cause(),
            _ => None,
        }
    }

    /// The dependency whose breaker refused the call.
    pub(super) fn dependency(&self) -> Option<Arc<str>> {
        match self {
            Self::Rejected { opened_by, .. } => opened_by.as_ref()?.dependency(),
            _ => None,
        }
    }

    pub(super) const fn words(&self) -> Words<'_, E> {
        Words(self)
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
            Self::Rejected { by, retry_after, opened_by } => {
                CallError::Rejected { by, retry_after, opened_by }
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
        if let Some(dependency) = self.dependency() {
            write!(f, "{dependency}: ")?;
        }
        write!(f, "{}", self.words())
    }
}

/// How a call ended, without the name of what was called.
pub(super) struct Words<'e, E>(&'e CallError<E>);

impl<E> fmt::Display for Words<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(error) = *self;
        match error {
            CallError::Rejected { by, .. } => {
                write!(f, "refused without an attempt: {}", by.words())?;
                if let Some(cause) = error.cause() {
                    write!(f, ", opened by {cause}")?;
                }
            }
            CallError::Stopped { by, .. } => write!(
                f,
                "stopped after {} and {:.3?}: {}",
                Attempts(error.attempts()),
                error.elapsed(),
                by.words()
            )?,
            // A client's own refusal, whose reason is the source.
            CallError::Backend { attempts: 0, .. } => f.write_str("was not sent")?,
            CallError::Backend { .. } => write!(
                f,
                "failed after {} and {:.3?}",
                Attempts(error.attempts()),
                error.elapsed()
            )?,
        }
        if error.is_outcome_unknown() {
            f.write_str("; it may have happened, so look before repeating it")?;
        }
        if let Some(wait) = error.retry_after() {
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
