//! What a policy was told, and the part of it that every call reads.

use crate::{backoff::Backoff, breaker::BreakerConfig, clock, hedge::Hedge};
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Everything a policy was told, resolved; replaced as a whole by a reload.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    /// Not all is switched off by the settings.
    pub(crate) enabled: bool,
    /// `None` when switched off.
    pub(crate) timeout: Option<Duration>,
    pub(crate) deadline: Option<Duration>,
    /// It was set, not derived from the timeout.
    pub(crate) own_deadline: bool,
    pub(crate) max_attempts: u32,
    pub(crate) enable_retry: bool,
    pub(crate) enable_circuit_breaker: bool,
    pub(crate) observe: bool,
    pub(crate) backoff: Backoff,
    pub(crate) budget: bool,
    pub(crate) hedge: Option<Hedge>,
    pub(crate) breaker: BreakerConfig,
}

/// What every call reads first, copied so that a reload does not change a running call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// In nanoseconds; the largest value stands for "none".
    pub(crate) timeout: u64,
    rest: u64,
}

/// [`Limits`] and the deadline in atomics: three plain loads for each call.
#[derive(Debug)]
pub(super) struct LimitCells {
    timeout: AtomicU64,
    deadline: AtomicU64,
    rest: AtomicU64,
}

const GUARDED: u64 = 1 << 32;
const OBSERVE: u64 = 1 << 33;
const HEDGED: u64 = 1 << 34;
const PLACED: u64 = 1 << 35;

impl LimitCells {
    pub(super) fn new(tuning: &Tuning, placed: bool) -> Self {
        let cells = Self {
            timeout: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
            rest: AtomicU64::new(0),
        };
        cells.store(tuning, placed);
        cells
    }

    pub(super) fn store(&self, tuning: &Tuning, placed: bool) {
        let nanos = |limit: Option<Duration>| match limit {
            Some(limit) if !tuning.observe => clock::nanos(limit),
            _ => u64::MAX,
        };
        let repeats = tuning.enable_retry && !tuning.observe;
        let attempts = if repeats { tuning.max_attempts } else { 1 };
        let flag = |on: bool, flag: u64| if on { flag } else { 0 };
        let flags = flag(tuning.enable_circuit_breaker, GUARDED)
            | flag(tuning.observe, OBSERVE)
            | flag(tuning.hedge.is_some() && !tuning.observe, HEDGED)
            | flag(placed && tuning.enabled && !tuning.observe, PLACED);
        self.timeout.store(nanos(tuning.timeout), Relaxed);
        self.deadline.store(nanos(tuning.deadline), Relaxed);
        self.rest.store(flags | u64::from(attempts), Relaxed);
    }

    #[inline]
    pub(super) fn deadline(&self) -> u64 {
        self.deadline.load(Relaxed)
    }

    #[inline]
    pub(super) fn load(&self) -> Limits {
        Limits { timeout: self.timeout.load(Relaxed), rest: self.rest.load(Relaxed) }
    }
}

impl Limits {
    pub(crate) const NONE: Self = Self { timeout: u64::MAX, rest: 0 };

    #[allow(clippy::cast_possible_truncation)] // The lower half.
    pub(crate) const fn attempts(self) -> u32 {
        self.rest as u32
    }

    /// More than one attempt is allowed, whatever this call's state of the breaker says.
    pub(crate) const fn owns_retries(self) -> bool {
        self.attempts() > 1
    }

    #[inline]
    pub(crate) const fn guarded(self) -> bool {
        self.rest & GUARDED != 0
    }

    #[inline]
    pub(crate) const fn observe(self) -> bool {
        self.rest & OBSERVE != 0
    }

    /// An open breaker refuses calls, and does not only count what it would have refused.
    #[inline]
    pub(crate) const fn refuses(self) -> bool {
        self.rest & (GUARDED | OBSERVE) == GUARDED
    }

    pub(crate) const fn hedged(self) -> bool {
        self.rest & HEDGED != 0
    }

    pub(crate) const fn placed(self) -> bool {
        self.rest & PLACED != 0
    }

    /// Attempts are just made: none has to wait for a place, is raced or only observed.
    #[inline]
    pub(crate) const fn is_plain(self) -> bool {
        self.rest & (PLACED | HEDGED | OBSERVE) == 0
    }
}
