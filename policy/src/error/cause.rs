//! What opened a breaker: told once, and looked up by whoever was refused.
//!
//! A refusal carries a number and not the cause itself: it would be counted, up and down, by all the
//! threads that are refused. The causes of the last openings are kept by number.

use crate::breaker::Trip;
use serde::Serialize;
use std::{
    collections::VecDeque,
    fmt,
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Openings that are remembered, of all breakers: half a megabyte at most.
const KEPT: usize = 4_096;

static LAST: Mutex<Openings> = Mutex::new(Openings { forgotten: 0, last: VecDeque::new() });

struct Openings {
    /// The number of the newest one that is not kept.
    forgotten: u64,
    /// By number, the oldest first.
    last: VecDeque<Opening>,
}

#[derive(Clone)]
struct Opening {
    dependency: Arc<str>,
    /// `None` when somebody isolated it by hand.
    cause: Option<Arc<Cause>>,
}

/// One opening of a breaker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct OpenedBy(NonZeroU64);

impl OpenedBy {
    /// Remembers it, before anybody is refused because of it.
    pub(crate) fn remember(dependency: Arc<str>, cause: Option<Arc<Cause>>) -> Option<Self> {
        let mut openings = openings();
        openings.last.push_back(Opening { dependency, cause });
        let gone = (openings.last.len() > KEPT).then(|| openings.last.pop_front());
        openings.forgotten += u64::from(gone.is_some());
        let number = openings.forgotten + openings.last.len() as u64;
        drop(openings);
        Self::numbered(number)
    }

    /// `None` for 0.
    pub(crate) fn numbered(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    pub(crate) const fn number(self) -> u64 {
        self.0.get()
    }

    /// What opened it; `None` once 4,096 breakers have opened since.
    #[must_use]
    pub fn cause(self) -> Option<Arc<Cause>> {
        self.opening()?.cause
    }

    /// Whose breaker it is, for as long as the cause is known.
    pub(crate) fn dependency(self) -> Option<Arc<str>> {
        Some(self.opening()?.dependency)
    }

    fn opening(self) -> Option<Opening> {
        let openings = openings();
        let place = self.number().checked_sub(openings.forgotten)?.checked_sub(1)?;
        openings.last.get(usize::try_from(place).ok()?).cloned()
    }
}

impl fmt::Debug for OpenedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.opening() {
            Some(Opening { cause: Some(cause), .. }) => fmt::Debug::fmt(&cause, f),
            Some(_) => f.write_str("OpenedBy(hand)"),
            None => f.write_str("OpenedBy(long ago)"),
        }
    }
}

fn openings() -> MutexGuard<'static, Openings> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_is_known_until_so_many_others_have_followed() {
        let cause = || Arc::new(Cause::of_a_cut(Trip::Consecutive));
        let remember = |cause| OpenedBy::remember("mine".into(), Some(cause));
        let mine = cause();
        let opened = remember(Arc::clone(&mine)).unwrap();
        // Other tests open breakers too.
        let others = KEPT / 2;
        for _ in 0..others {
            assert!(remember(cause()).is_some_and(|other| other != opened));
        }
        assert!(opened.cause().is_some_and(|seen| Arc::ptr_eq(&seen, &mine)));
        assert!(format!("{opened:?}").contains("failures in a row"));
        assert_eq!(opened.dependency().as_deref(), Some("mine"));
        for _ in 0..KEPT {
            remember(cause());
        }
        assert_eq!((opened.cause(), opened.dependency()), (None, None));
        assert_eq!(format!("{opened:?}"), "OpenedBy(long ago)");
        assert!(openings().last.len() <= KEPT);
    }
}
