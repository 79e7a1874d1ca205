//! What an error says happened at the backend, and what it says about its health.

use crate::error::{Decider, Error, own};
use std::{any::Any, error::Error as StdError, io, time::Duration};

/// What an error says happened at the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// Nothing reached the backend: any operation may be repeated.
    NeverSent,
    /// The backend said that it did not happen and may work later.
    Transient,
    /// The backend asked for less load; it did not happen.
    Throttled {
        /// How long the backend asked us to wait, if it said so.
        retry_after: Option<Duration>,
    },
    /// Sent, and nobody knows whether it happened: only idempotent operations are repeated.
    Unknown,
    /// Answered; repeating it would give the same answer.
    Permanent,
}

impl Effect {
    /// A name for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NeverSent => "never sent",
            Self::Transient => "transient failure",
            Self::Throttled { .. } => "throttled",
            Self::Unknown => "no answer",
            Self::Permanent => "permanent failure",
        }
    }
}

/// What one attempt says about the dependency's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The dependency answered.
    Success,
    /// The dependency did not do its work.
    Failure,
    /// Says nothing, such as our own refusal or the server shedding load.
    Neutral,
}

/// A classifier's answer: what happened, and what it means for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What happened at the backend.
    pub effect: Effect,
    /// What it means for the breaker.
    pub outcome: Outcome,
}

impl Verdict {
    const fn new(effect: Effect, outcome: Outcome) -> Self {
        Self { effect, outcome }
    }

    /// Nothing was sent: safe to repeat, a failure for the breaker.
    #[must_use]
    pub const fn never_sent() -> Self {
        Self::new(Effect::NeverSent, Outcome::Failure)
    }

    /// It did not happen and may work later: safe to repeat, a failure for the breaker.
    #[must_use]
    pub const fn transient() -> Self {
        Self::new(Effect::Transient, Outcome::Failure)
    }

    /// Refused to shed load: repeat no sooner than the hint, neutral for the breaker.
    #[must_use]
    pub const fn throttled(retry_after: Option<Duration>) -> Self {
        Self::new(Effect::Throttled { retry_after }, Outcome::Neutral)
    }

    /// Sent, outcome unknown: repeated only if idempotent, a failure for the breaker.
    #[must_use]
    pub const fn unknown() -> Self {
        Self::new(Effect::Unknown, Outcome::Failure)
    }

    /// Answered and final: never repeated, a success for the breaker.
    #[must_use]
    pub const fn permanent() -> Self {
        Self::new(Effect::Permanent, Outcome::Success)
    }

    /// The same effect with another meaning for the breaker.
    #[must_use]
    pub const fn with_outcome(self, outcome: Outcome) -> Self {
        Self { outcome, ..self }
    }

    pub(crate) const fn may_repeat(self, idempotency: Idempotency) -> bool {
        match self.effect {
            Effect::NeverSent | Effect::Transient | Effect::Throttled { .. } => true,
            Effect::Unknown => !matches!(idempotency, Idempotency::Unsafe),
            Effect::Permanent => false,
        }
    }
}

/// An error that can say what it means for a retry and for the breaker.
///
/// [`Policy::run`](crate::Policy::run) of the clients asks it of every error; a call of one's own asks
/// where it is told to, by [`Call::by_classify`](crate::Call::by_classify) or an attribute's
/// `classify = true`.
pub trait Classify {
    /// The verdict of this error.
    fn classify(&self) -> Verdict;

    /// The backend's code for it, such as a status or an SQLSTATE; shown by a breaker that it opens.
    /// Never a value or a name of the caller's.
    fn code(&self) -> Option<String> {
        None
    }

    /// The least that is waited before a retry, where [`Self::classify`] does not say so: what the backend
    /// said of coming again beside a failure whose outcome nobody knows.
    fn retry_after(&self) -> Option<Duration> {
        None
    }

    /// Which limit of the policy ended this attempt, where the client keeps it itself and the policy saw
    /// an error: if this error ends the call, it is that limit that stopped it. After the deadline no other
    /// attempt is made.
    fn decider(&self) -> Option<Decider> {
        None
    }
}

/// Whether sending an operation twice can do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Idempotency {
    /// Sending it twice is the same as once.
    Safe,
    /// The backend recognises a repeat by a key that every attempt carries.
    Keyed,
    /// Sending it twice may do it twice.
    Unsafe,
}

/// The verdict of an error whose type this crate knows: its own, [`std::io::Error`], and sqlx's where it
/// says what happened, bare or in a box.
pub(crate) fn verdict_of<E: 'static>(error: &E) -> Option<Verdict> {
    let error: &dyn Any = error;
    if let Some(own) = look_for::<Error>(error) {
        return Some(own.verdict());
    }
    #[cfg(feature = "sqlx")]
    if let Some(driver) = look_for(error) {
        return crate::error::sqlx::verdict(driver);
    }
    look_for(error).map(verdict_of_io)
}

fn look_for<T: StdError + 'static>(error: &dyn Any) -> Option<&T> {
    let boxed = || error.downcast_ref::<Box<dyn StdError + Send + Sync>>()?.downcast_ref();
    error.downcast_ref().or_else(boxed)
}

fn verdict_of_io(error: &io::Error) -> Verdict {
    if let Some(own) = own(error) {
        return own.verdict();
    }
    use io::ErrorKind as K;
    match error.kind() {
        K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => {
            Verdict::never_sent()
        }
        K::NotFound
        | K::PermissionDenied
        | K::AlreadyExists
        | K::InvalidInput
        | K::InvalidData
        | K::Unsupported
        | K::IsADirectory
        | K::NotADirectory => Verdict::permanent(),
        _ => Verdict::unknown(),
    }
}

/// The name of what a call does, and whether it may be repeated.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    name: &'static str,
    idempotency: Idempotency,
    reads: bool,
    own: bool,
    streamed: bool,
    timed: bool,
    told: bool,
}

impl Operation {
    /// An operation with a name for errors and events.
    #[must_use]
    pub const fn new(name: &'static str, idempotency: Idempotency) -> Self {
        let (reads, own, streamed, timed, told) = (false, false, false, false, false);
        Self { name, idempotency, reads, own, streamed, timed, told }
    }

    /// An operation that changes nothing: it may be repeated, and while it takes long a second copy of
    /// it may be [sent beside it](crate::PolicyBuilder::hedge). Of a write that would do harm even if it
    /// is idempotent: the copy that lost the race may arrive after the next write, and undo it.
    #[must_use]
    pub const fn read(name: &'static str) -> Self {
        Self { reads: true, ..Self::new(name, Idempotency::Safe) }
    }

    /// Whether it changes nothing, so that a second copy of it may be sent.
    #[must_use]
    pub const fn is_read(&self) -> bool {
        self.reads
    }

    /// A user's own, that may be repeated: whether it is a read is for him to say.
    pub(crate) const fn own(name: &'static str) -> Self {
        Self { own: true, ..Self::new(name, Idempotency::Safe) }
    }

    pub(crate) const fn is_own(&self) -> bool {
        self.own
    }

    /// Its success is only a beginning, such as the head of an answer whose body is still coming: it
    /// forgets no failures in a row, until [`Policy::stream_ended`](crate::Policy::stream_ended).
    #[must_use]
    pub const fn streamed(mut self) -> Self {
        self.streamed = true;
        self
    }

    #[inline]
    pub(crate) const fn is_streamed(&self) -> bool {
        self.streamed
    }

    /// The driver has a timer of its own that wakes an attempt before
    /// [`Attempt::timeout`](crate::Attempt::timeout) has passed, whatever becomes of the connection. The policy then arms its
    /// timer only for what goes on to wait after that, so that most calls pay for one timer, not two.
    /// An attempt that is not woken in time has no end.
    #[must_use]
    pub const fn timed_by_driver(mut self) -> Self {
        self.timed = true;
        self
    }

    #[inline]
    pub(crate) const fn is_timed_by_driver(&self) -> bool {
        self.timed
    }

    /// Its client looks afterwards at what came of an unknown outcome, and only then
    /// [tells](crate::Policy::tell_unknown) the policy around it.
    #[doc(hidden)]
    #[must_use]
    pub const fn told_by_client(mut self) -> Self {
        self.told = true;
        self
    }

    pub(crate) const fn is_told_by_client(&self) -> bool {
        self.told
    }

    /// The name in errors and events.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it may be repeated after an unknown outcome.
    #[must_use]
    pub const fn idempotency(&self) -> Idempotency {
        self.idempotency
    }
}
