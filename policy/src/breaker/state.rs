//! The breaker's machine: every decision is a function of the state, the event and `now`.
//!
//! ```text
//!           threshold or rate               the break is over
//!  Closed ---------------------> Open <---------------------> HalfOpen
//!    ^                            ^      a probe failed           |
//!    |  ramp over, or not busy    |  threshold or rate            | all probes succeeded
//!    +-------------------------- Ramp <---------------------------+
//! ```

use super::{BreakerState, config::BreakerConfig};
use crate::{classify::Outcome, clock::Instant, meter::Counts};
use std::time::Duration;

/// The first break is short: a restart of two seconds must not cost thirty seconds of refusals.
const FIRST_BREAK: Duration = Duration::from_secs(1);
/// Breaks differ by up to this share, so that clients do not probe in step.
const BREAK_JITTER: f64 = 0.15;
/// A ramp is for those that would flood what has just come back.
const BUSY: u64 = 100;
/// The shares of calls let in, each for a third of the break that came before.
const RAMP: [f64; 3] = [0.10, 0.25, 0.50];

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// `breaks` counts the breaks in a row that led here; 0 once the ramp is over.
    Closed {
        failures: u32,
        ramp: Option<Ramp>,
        breaks: u32,
    },
    Open {
        until: Instant,
        breaks: u32,
        busy: bool,
    },
    HalfOpen {
        leases: Vec<Lease>,
        succeeded: u32,
        breaks: u32,
        busy: bool,
    },
    Isolated,
    ForcedClosed,
}

#[derive(Clone, Debug, PartialEq)]
struct Lease {
    id: u64,
    until: Instant,
}

/// How load comes back: in as much time as the last break took, so that a short outage does not cost
/// a long recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ramp {
    since: Instant,
    stage: Duration,
}

impl Ramp {
    /// Whether a call passes; `Err` is when the share widens.
    pub(super) fn pass(self, now: Instant, random: f64) -> Result<(), Instant> {
        let mut ends = self.since;
        for share in RAMP {
            ends = ends.once_after(self.stage);
            if now < ends {
                return if random < share { Ok(()) } else { Err(ends) };
            }
        }
        Ok(())
    }

    pub(super) fn goes_on(self, now: Instant) -> bool {
        now < RAMP.iter().fold(self.since, |end, _| end.after(self.stage))
    }
}

/// What readers without the lock need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Closed,
    /// A share of the calls passes.
    Ramp(Ramp),
    /// Nobody passes before then.
    Shut(Instant),
    Isolated,
    ForcedClosed,
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trip {
    Consecutive,
    FailureRate,
    SlowRate,
    Probe,
}

#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) config: BreakerConfig,
    phase: Phase,
    /// Counts transitions: a result from before the last one decides nothing.
    generation: u64,
    next_lease: u64,
}

/// An admitted call: its generation, and its lease if it is a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    pub(super) generation: u64,
    pub(super) lease: Option<u64>,
}

impl Machine {
    pub(super) fn new(config: BreakerConfig) -> Self {
        let phase = Phase::Closed { failures: 0, ramp: None, breaks: 0 };
        Self { config, phase, generation: 0, next_lease: 0 }
    }

    pub(super) fn state(&self, now: Instant) -> BreakerState {
        match self.phase {
            Phase::Closed { ramp: Some(ramp), .. } if ramp.goes_on(now) => BreakerState::Ramping,
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until, .. } if now < until => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
            Phase::Isolated => BreakerState::Isolated,
            Phase::ForcedClosed => BreakerState::ForcedClosed,
        }
    }

    /// As [`Self::state`], but a break or ramp that nobody has ended is not over.
    pub(super) fn stands(&self) -> BreakerState {
        self.state(Instant::default())
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Failures in a row that a success would forget.
    pub(super) fn failures(&self) -> u32 {
        match self.phase {
            Phase::Closed { failures, .. } => failures,
            _ => 0,
        }
    }

    pub(super) fn gate(&self) -> Gate {
        match &self.phase {
            Phase::Closed { ramp: Some(ramp), .. } => Gate::Ramp(*ramp),
            Phase::Closed { .. } => Gate::Closed,
            Phase::Open { until, .. } => Gate::Shut(*until),
            // With a lease to give the gate is shut until now: the next caller asks for it.
            Phase::HalfOpen { leases, succeeded, .. } => Gate::Shut(self.free(leases, *succeeded)),
            Phase::Isolated => Gate::Isolated,
            Phase::ForcedClosed => Gate::ForcedClosed,
        }
    }

    /// When the next probe may be sent.
    fn free(&self, leases: &[Lease], succeeded: u32) -> Instant {
        let taken = u32::try_from(leases.len()).unwrap_or(u32::MAX).saturating_add(succeeded);
        if taken < self.config.probes {
            return Instant::default();
        }
        leases.iter().map(|lease| lease.until).min().unwrap_or_default()
    }

    /// Admits a call that the gate did not simply let pass.
    pub(super) fn admit(&mut self, now: Instant, random: f64) -> Result<Admitted, Instant> {
        let pass = Admitted { generation: self.generation, lease: None };
        match &mut self.phase {
            Phase::ForcedClosed => return Ok(pass),
            Phase::Isolated => return Err(Instant::NEVER),
            Phase::Closed { ramp: None, .. } => return Ok(pass),
            Phase::Closed { ramp: Some(ramp), .. } if ramp.goes_on(now) => {
                return ramp.pass(now, random).map(|()| pass);
            }
            Phase::Closed { ramp, breaks, .. } => {
                // The ramp is over; calls in flight still count.
                (*ramp, *breaks) = (None, 0);
                return Ok(pass);
            }
            Phase::Open { until, .. } if now < *until => return Err(*until),
            Phase::Open { breaks, busy, .. } => {
                let (breaks, busy) = (*breaks, *busy);
                self.enter(Phase::HalfOpen { leases: Vec::new(), succeeded: 0, breaks, busy });
            }
            // A probe that has not reported by then cannot block recovery.
            Phase::HalfOpen { leases, .. } => leases.retain(|lease| now < lease.until),
        }
        let Phase::HalfOpen { leases, succeeded, .. } = &self.phase else { return Ok(pass) };
        let free = self.free(leases, *succeeded);
        if now < free {
            return Err(free);
        }
        let (id, until) = (self.next_lease, now.once_after(self.config.probe_lease));
        self.next_lease = id.wrapping_add(1);
        if let Phase::HalfOpen { leases, .. } = &mut self.phase {
            leases.push(Lease { id, until });
        }
        Ok(Admitted { generation: self.generation, lease: Some(id) })
    }

    /// One attempt failed or was slow; `counts` holds it already.
    pub(super) fn attempt(
        &mut self,
        generation: u64,
        counts: &Counts,
        now: Instant,
        random: f64,
    ) -> Option<Trip> {
        if generation != self.generation {
            return None;
        }
        let Phase::Closed { breaks, .. } = self.phase else { return None };
        let trip = self.trip(counts)?;
        self.open(breaks.saturating_add(1), counts, now, random);
        Some(trip)
    }

    fn trip(&self, counts: &Counts) -> Option<Trip> {
        let least = u64::from(self.config.minimum_calls);
        let over = |rate: Option<f64>, calls: u64, seen: f64| {
            calls >= least && rate.is_some_and(|rate| seen >= rate)
        };
        if over(self.config.failure_rate, counts.attempts(), counts.failure_rate()) {
            return Some(Trip::FailureRate);
        }
        let all = counts.attempts() + counts.cut;
        over(self.config.slow_rate, all, counts.slow_rate()).then_some(Trip::SlowRate)
    }

    /// One operation ended, with its last attempt's outcome.
    pub(super) fn operation(
        &mut self,
        admitted: Admitted,
        outcome: Outcome,
        counts: &Counts,
        now: Instant,
        random: f64,
    ) -> Option<Trip> {
        if admitted.generation != self.generation {
            return None;
        }
        match &mut self.phase {
            Phase::Closed { failures, breaks, .. } => match outcome {
                Outcome::Neutral => None,
                Outcome::Success => {
                    *failures = 0;
                    None
                }
                Outcome::Failure => {
                    *failures = failures.saturating_add(1);
                    let breaks = breaks.saturating_add(1);
                    (*failures >= self.config.failure_threshold).then(|| {
                        self.open(breaks, counts, now, random);
                        Trip::Consecutive
                    })
                }
            },
            Phase::HalfOpen { leases, succeeded, breaks, busy } => {
                // What is inside a probe has no lease of this machine.
                if admitted.lease.is_none_or(|id| id >= self.next_lease) {
                    return None;
                }
                let held = leases.len();
                leases.retain(|lease| Some(lease.id) != admitted.lease);
                let late = leases.len() == held;
                match outcome {
                    Outcome::Neutral => None,
                    // Others try by now: a probe that hung is no reason to shut them out.
                    Outcome::Failure if late => None,
                    // Late or not, it has shown what was asked of it.
                    Outcome::Success => {
                        *succeeded = succeeded.saturating_add(1);
                        if *succeeded >= self.config.probes {
                            let (busy, breaks) = (*busy, *breaks);
                            let stage = self.length(breaks) / RAMP.len() as u32;
                            let ramp = Ramp { since: now, stage };
                            let ramp = (busy && self.config.ramp).then_some(ramp);
                            let breaks = if ramp.is_some() { breaks } else { 0 };
                            self.enter(Phase::Closed { failures: 0, ramp, breaks });
                        }
                        None
                    }
                    Outcome::Failure => {
                        let (breaks, busy) = (breaks.saturating_add(1), *busy);
                        self.open_for(breaks, busy, now, random);
                        Some(Trip::Probe)
                    }
                }
            }
            _ => None,
        }
    }

    pub(super) fn reset(&mut self) {
        self.enter(Phase::Closed { failures: 0, ramp: None, breaks: 0 });
    }

    pub(super) fn isolate(&mut self) {
        self.enter(Phase::Isolated);
    }

    pub(super) fn force_closed(&mut self) {
        self.enter(Phase::ForcedClosed);
    }

    fn open(&mut self, breaks: u32, counts: &Counts, now: Instant, random: f64) {
        self.open_for(breaks, counts.attempts() + counts.cut >= BUSY, now, random);
    }

    fn open_for(&mut self, breaks: u32, busy: bool, now: Instant, random: f64) {
        let length = self.length(breaks);
        let spread = 1.0 + BREAK_JITTER * (2.0 * random - 1.0);
        let length = Duration::try_from_secs_f64(length.as_secs_f64() * spread).unwrap_or(length);
        self.enter(Phase::Open { until: now.once_after(length), breaks, busy });
    }

    /// How long the last of so many breaks in a row is, before jitter.
    fn length(&self, breaks: u32) -> Duration {
        let recovery = self.config.recovery_timeout;
        if !self.config.grow_breaks {
            return recovery;
        }
        let doubled = 1_u32.checked_shl(breaks.saturating_sub(1)).unwrap_or(u32::MAX);
        FIRST_BREAK.saturating_mul(doubled).min(recovery)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation = self.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
