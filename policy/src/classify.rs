//! What an error says happened at the backend, and what it says about its health.

use std::time::Duration;

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
pub trait Classify {
    /// The verdict of this error.
    fn classify(&self) -> Verdict;
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

/// The name of what a call does, and whether it may be repeated.
#[derive(Clone, Debug)]
pub struct Operation {
    name: &'static str,
    idempotency: Idempotency,
}

impl Operation {
    /// An operation with a name for errors and events.
    #[must_use]
    pub const fn new(name: &'static str, idempotency: Idempotency) -> Self {
        Self { name, idempotency }
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
