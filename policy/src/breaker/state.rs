//! The breaker's machine: every decision is a function of the state, the event and `now`.

use super::{BreakerConfig, BreakerState};
use crate::{classify::Outcome, clock::Instant, error::Cause};
use std::{sync::Arc, time::Duration};

/// The first break is short: a restart of two seconds must not cost thirty seconds of refusals.
const FIRST_BREAK: Duration = Duration::from_secs(1);
/// Breaks differ by up to this share, so that clients do not probe in step.
const BREAK_JITTER: f64 = 0.15;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Closed {
        failures: u32,
    },
    /// `breaks` counts the breaks in a row, this one included.
    Open {
        until: Instant,
        breaks: u32,
    },
    /// `lease` is when the probe in flight is given up.
    HalfOpen {
        lease: Option<Instant>,
        breaks: u32,
    },
}

#[derive(Debug)]
pub(super) struct Machine {
    pub(super) config: BreakerConfig,
    pub(super) cause: Option<Arc<Cause>>,
    phase: Phase,
    /// Counts transitions and probes: a result from before the last one decides nothing.
    generation: u64,
}

#[derive(Debug, PartialEq)]
pub(super) struct Refused {
    pub(super) retry_after: Duration,
}

impl Machine {
    pub(super) fn new(config: BreakerConfig) -> Self {
        Self { config, cause: None, phase: Phase::Closed { failures: 0 }, generation: 0 }
    }

    pub(super) fn state(&self, now: Instant) -> BreakerState {
        match self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until, .. } if now < until => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    pub(super) fn reset(&mut self) {
        self.enter(Phase::Closed { failures: 0 });
        self.cause = None;
    }

    /// Admits a call: its generation, and whether it is a probe.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(u64, bool), Refused> {
        if !self.config.enabled {
            return Ok((self.generation, false));
        }
        let breaks = match self.phase {
            Phase::Closed { .. } => return Ok((self.generation, false)),
            Phase::Open { until, .. } if now < until => {
                return Err(Refused { retry_after: until - now });
            }
            Phase::HalfOpen { lease: Some(lease), .. } if now < lease => {
                return Err(Refused { retry_after: lease - now });
            }
            Phase::Open { breaks, .. } | Phase::HalfOpen { breaks, .. } => breaks,
        };
        let lease = now.checked_add(self.config.probe_lease).unwrap_or(now);
        // A new generation for each probe: one whose lease ended can no longer decide.
        self.enter(Phase::HalfOpen { lease: Some(lease), breaks });
        Ok((self.generation, true))
    }

    /// The time to the next probe, if a call admitted in `generation` should stop now.
    pub(super) fn refuses(&self, generation: u64, now: Instant) -> Option<Duration> {
        if generation == self.generation || !self.config.enabled {
            return None;
        }
        self.next_attempt_in(now)
    }

    pub(super) fn next_attempt_in(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Closed { .. } => None,
            Phase::Open { until, .. } => Some(until.saturating_duration_since(now)),
            Phase::HalfOpen { lease, .. } => {
                Some(lease.map_or(Duration::ZERO, |l| l.saturating_duration_since(now)))
            }
        }
    }

    pub(super) fn record(
        &mut self,
        generation: u64,
        probe: bool,
        outcome: Outcome,
        now: Instant,
        random: f64,
    ) {
        if generation != self.generation || !self.config.enabled {
            return;
        }
        match (self.phase, outcome) {
            (Phase::Closed { .. }, Outcome::Success) => self.phase = Phase::Closed { failures: 0 },
            (Phase::Closed { failures }, Outcome::Failure) => {
                let failures = failures.saturating_add(1);
                if failures >= self.config.failure_threshold {
                    self.open(1, now, random);
                } else {
                    self.phase = Phase::Closed { failures };
                }
            }
            (Phase::HalfOpen { .. }, Outcome::Success) if probe => self.reset(),
            (Phase::HalfOpen { breaks, .. }, Outcome::Failure) if probe => {
                self.open(breaks.saturating_add(1), now, random);
            }
            (Phase::HalfOpen { breaks, .. }, Outcome::Neutral) if probe => {
                self.enter(Phase::HalfOpen { lease: None, breaks });
            }
            _ => {}
        }
    }

    fn open(&mut self, breaks: u32, now: Instant, random: f64) {
        let recovery = self.config.recovery_timeout;
        let doubled = FIRST_BREAK.saturating_mul(1_u32.checked_shl(breaks - 1).unwrap_or(u32::MAX));
        let spread = 1.0 + BREAK_JITTER * (2.0 * random - 1.0);
        let length = doubled.min(recovery).as_secs_f64() * spread;
        let length = Duration::try_from_secs_f64(length).unwrap_or(recovery);
        // A break too long for the clock ends at the clock's own reach, about 30 years.
        let until = now.checked_add(length).unwrap_or(now + Duration::from_secs(1_000_000_000));
        self.enter(Phase::Open { until, breaks });
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation = self.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn machine(threshold: u32) -> (Machine, Instant) {
        let config = BreakerConfig {
            enabled: true,
            failure_threshold: threshold,
            recovery_timeout: 30 * S,
            probe_lease: 10 * S,
        };
        (Machine::new(config), crate::clock::now())
    }

    fn fail(m: &mut Machine, now: Instant) {
        let (generation, probe) = m.admit(now).unwrap();
        m.record(generation, probe, Outcome::Failure, now, 0.5);
    }

    #[test]
    fn opens_after_the_threshold_in_a_row_and_not_before() {
        let (mut m, t) = machine(3);
        fail(&mut m, t);
        fail(&mut m, t);
        let (g, p) = m.admit(t).unwrap();
        m.record(g, p, Outcome::Success, t, 0.5);
        fail(&mut m, t);
        fail(&mut m, t);
        assert_eq!(m.state(t), BreakerState::Closed);
        fail(&mut m, t);
        assert_eq!(m.state(t), BreakerState::Open);
        assert_eq!(m.admit(t), Err(Refused { retry_after: S }));
    }

    #[test]
    fn breaks_double_until_the_recovery_timeout() {
        let (mut m, mut t) = machine(1);
        let mut breaks = Vec::new();
        for _ in 0..7 {
            fail(&mut m, t);
            let wait = m.next_attempt_in(t).unwrap();
            breaks.push(wait.as_secs());
            t += wait;
        }
        assert_eq!(breaks, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn one_probe_at_a_time_and_success_closes() {
        let (mut m, t) = machine(1);
        fail(&mut m, t);
        let t = t + S;
        let (g, probe) = m.admit(t).unwrap();
        assert!(probe);
        assert_eq!(m.admit(t), Err(Refused { retry_after: 10 * S }));
        m.record(g, probe, Outcome::Success, t, 0.5);
        assert_eq!(m.state(t), BreakerState::Closed);
    }

    #[test]
    fn a_dropped_probe_frees_its_place_and_a_hung_one_loses_it() {
        let (mut m, t) = machine(1);
        fail(&mut m, t);
        let t = t + S;
        let (g, p) = m.admit(t).unwrap();
        m.record(g, p, Outcome::Neutral, t, 0.5);
        let (hung, p) = m.admit(t).unwrap();
        let later = t + 10 * S;
        let (live, probe) = m.admit(later).unwrap();
        m.record(hung, p, Outcome::Failure, later, 0.5);
        assert_eq!(m.state(later), BreakerState::HalfOpen);
        m.record(live, probe, Outcome::Success, later, 0.5);
        assert_eq!(m.state(later), BreakerState::Closed);
    }

    #[test]
    fn late_results_from_before_a_transition_decide_nothing() {
        let (mut m, t) = machine(1);
        let (old, p) = m.admit(t).unwrap();
        fail(&mut m, t);
        m.record(old, p, Outcome::Success, t, 0.5);
        assert_eq!(m.state(t), BreakerState::Open);
        m.reset();
        m.record(old, p, Outcome::Failure, t, 0.5);
        assert_eq!(m.state(t), BreakerState::Closed);
    }

    #[test]
    fn jitter_is_within_fifteen_percent_and_extremes_do_not_panic() {
        for (random, ms) in [(0.0, 850), (1.0, 1150)] {
            let (mut m, t) = machine(1);
            let (g, p) = m.admit(t).unwrap();
            m.record(g, p, Outcome::Failure, t, random);
            assert_eq!(m.next_attempt_in(t).unwrap().as_millis(), ms);
        }
        let (mut m, t) = machine(1);
        m.config.recovery_timeout = Duration::MAX;
        m.config.probe_lease = Duration::MAX;
        m.open(u32::MAX, t, 1.0);
        assert_eq!(m.state(t), BreakerState::Open);
    }
}
