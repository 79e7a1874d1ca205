//! The circuit breaker: after `failure_threshold` failed operations in a row it refuses calls,
//! then lets one probe at a time through until one succeeds.
//!
//! The decisions are in [`state`], functions of state, event and time. This file holds the lock,
//! the counters and the permit that tells the machine how a call ended, whatever way it ended.

mod state;

use crate::{classify::Outcome, clock, error::Cause};
use serde::Serialize;
use state::{Machine, Refused};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// Calls are refused without I/O.
    Open,
    /// One probe at a time passes, the rest is refused.
    HalfOpen,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BreakerConfig {
    pub(crate) enabled: bool,
    pub(crate) failure_threshold: u32,
    pub(crate) recovery_timeout: Duration,
    /// A probe that has not reported by then is given up, so that it cannot block recovery.
    pub(crate) probe_lease: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) calls: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) blocked: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) timeouts: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}

struct Inner {
    name: Arc<str>,
    machine: Mutex<Machine>,
    counters: Counters,
}

/// A shared circuit breaker; clones are the same breaker.
#[derive(Clone)]
pub struct Breaker(Arc<Inner>);

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("name", &self.0.name).field("state", &self.state()).finish()
    }
}

/// A refusal: how long until the next probe, and what opened the breaker.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) retry_after: Duration,
    pub(crate) cause: Option<Arc<Cause>>,
}

impl Breaker {
    pub(crate) fn new(name: Arc<str>, config: BreakerConfig) -> Self {
        let machine = Mutex::new(Machine::new(config));
        Self(Arc::new(Inner { name, machine, counters: Counters::default() }))
    }

    /// The dependency's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Where it stands now.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.machine().state(clock::now())
    }

    /// Closes it and forgets its failures; calls in flight no longer count.
    pub fn reset(&self) {
        self.machine().reset();
    }

    pub(crate) fn configure(&self, config: BreakerConfig) {
        self.machine().config = config;
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn next_attempt_in(&self) -> Option<Duration> {
        self.machine().next_attempt_in(clock::now())
    }

    pub(crate) fn cause(&self) -> Option<Arc<Cause>> {
        self.machine().cause.clone()
    }

    pub(crate) fn admit(&self) -> Result<Permit, Refusal> {
        let now = clock::now();
        let mut machine = self.machine();
        match machine.admit(now) {
            Ok((generation, probe)) => {
                Ok(Permit { breaker: self.clone(), generation, probe, told: false })
            }
            Err(Refused { retry_after }) => {
                let cause = machine.cause.clone();
                drop(machine);
                Counters::add(&self.0.counters.blocked);
                Err(Refusal { retry_after, cause })
            }
        }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        // No user code runs under this lock, so a poisoned one still holds a whole state.
        self.0.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to run one operation. Dropped without a word, it is neutral and frees its probe.
#[derive(Debug)]
pub(crate) struct Permit {
    breaker: Breaker,
    generation: u64,
    probe: bool,
    told: bool,
}

impl Permit {
    /// Half-open: one attempt only, so that a sick dependency sees no burst.
    pub(crate) fn is_probe(&self) -> bool {
        self.probe
    }

    /// Whether calls in flight should stop: the breaker has opened since this permit was given.
    pub(crate) fn gate(&self) -> Result<(), Refusal> {
        let machine = self.breaker.machine();
        match machine.refuses(self.generation, clock::now()) {
            None => Ok(()),
            Some(retry_after) => Err(Refusal { retry_after, cause: machine.cause.clone() }),
        }
    }

    /// Tells the breaker how the operation ended.
    pub(crate) fn record(mut self, outcome: Outcome, cause: impl FnOnce() -> Cause) {
        self.told = true;
        let now = clock::now();
        let cause = (outcome == Outcome::Failure).then(|| Arc::new(cause()));
        let mut machine = self.breaker.machine();
        let before = machine.state(now);
        machine.record(self.generation, self.probe, outcome, now, fastrand::f64());
        let after = machine.state(now);
        if before != after && after == BreakerState::Open {
            machine.cause = cause;
        }
        let retry_after = machine.next_attempt_in(now);
        drop(machine);
        if before != after {
            let name = self.breaker.name();
            match after {
                BreakerState::Open => tracing::warn!(
                    mainstay.policy.name = name,
                    ?retry_after,
                    "circuit breaker opened"
                ),
                _ => tracing::info!(mainstay.policy.name = name, "circuit breaker closed"),
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.told {
            let mut machine = self.breaker.machine();
            machine.record(self.generation, self.probe, Outcome::Neutral, clock::now(), 0.5);
        }
    }
}
