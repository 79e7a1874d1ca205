//! What the end of an attempt means.

use crate::{
    classify::{Classify, Effect, Operation, Verdict},
    deadline::Marks,
    error::Decider,
};
use std::time::Duration;

/// What the caller's judge says of an error, or of a value that is to be repeated.
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    /// The caller decided this one himself: no mark of a nested call overrules him.
    pub(crate) repeat: Option<bool>,
    pub(crate) code: Option<String>,
    /// Whose limit it was, if the error says so.
    pub(crate) by: Option<Decider>,
    /// How long the backend asked to wait, where the verdict does not say so.
    pub(crate) hint: Option<Duration>,
}

impl Judged {
    pub(crate) fn of<E: Classify>(error: &E) -> Self {
        let (verdict, code, by) = (error.classify(), error.code(), error.decider());
        Self { verdict, repeat: None, code, by, hint: error.retry_after() }
    }
}

/// Says what the results of attempts mean.
pub(crate) trait Judge<T, E> {
    fn error(&self, error: &E, operation: &Operation) -> Judged;
    /// Whether this value is to be treated as a transient failure.
    fn refuses(&self, value: &T) -> bool;
    /// How long a retry has to wait still, after its backoff and after each such wait; it cannot wait
    /// for longer than `left`.
    fn hold(&self, _left: Duration) -> Option<Duration> {
        None
    }
}

/// How an attempt failed.
pub(crate) struct Failed {
    pub(super) verdict: Verdict,
    pub(super) repeat: Option<bool>,
    pub(super) code: Option<String>,
    /// The limit that ended it, which ends the call if nothing follows.
    pub(super) by: Option<Decider>,
    pub(super) timed_out: bool,
    /// And that by the call's deadline, before the attempt's own limit.
    pub(super) cut_short: bool,
    /// A nested call owned the retries.
    pub(super) handled: bool,
    /// A nested call on the same breaker was counted as this failure already.
    pub(super) counted_inside: bool,
    /// How long the backend asked to wait beside the verdict, or the other one of two copies.
    pub(super) beside: Option<Duration>,
}

impl Failed {
    pub(super) fn by(judged: Judged, marks: Marks) -> Self {
        let Judged { mut verdict, repeat, code, by, hint } = judged;
        if marks.is_unknown() && repeat.is_none() {
            verdict.effect = Effect::Unknown;
        }
        let handled = marks.is_handled() || marks.is_unknown();
        Self { repeat, code, by, handled, beside: hint, ..Self::by_fault(verdict) }
    }

    /// By a fault on purpose, or by a value that is to be repeated.
    pub(super) const fn by_fault(verdict: Verdict) -> Self {
        Self {
            verdict,
            repeat: None,
            code: None,
            by: None,
            timed_out: false,
            cut_short: false,
            handled: false,
            counted_inside: false,
            beside: None,
        }
    }

    pub(super) fn by_timeout(marks: Marks, cut_short: bool) -> Self {
        let handled = marks.is_handled() || marks.is_unknown();
        let by = Some(if cut_short { Decider::Deadline } else { Decider::Timeout });
        Self { by, timed_out: true, cut_short, handled, ..Self::by_fault(Verdict::unknown()) }
    }

    /// How long the backend asked to wait. An answer that decides asks nothing.
    pub(super) fn asked_to_wait(&self) -> Option<Duration> {
        match self.verdict.effect {
            Effect::Permanent => None,
            Effect::Throttled { retry_after } => retry_after.max(self.beside),
            _ => self.beside,
        }
    }
}
