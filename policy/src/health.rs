//! What a probe and a person on call read.

use crate::{breaker::BreakerState, error::Cause, registry};
use serde::{Serialize, Serializer};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

/// How a dependency, or all of them, are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HealthStatus {
    /// It answers.
    Healthy,
    /// It answers in part, or something answers for it.
    Degraded,
    /// It does not answer.
    Unhealthy,
}

/// What one `health_check()` measured.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// How the dependency is.
    pub status: HealthStatus,
    /// How long the check took; `latency_ms` in JSON.
    #[serde(rename = "latency_ms", serialize_with = "milliseconds")]
    pub latency: Duration,
    /// Where its breaker stood.
    pub breaker: BreakerState,
    /// What was seen, in words, without secrets.
    pub detail: String,
    /// When; seconds since 1970 in JSON.
    #[serde(serialize_with = "unix_seconds")]
    pub checked_at: SystemTime,
}

impl Health {
    /// The result of a check that ended now.
    pub fn new(
        status: HealthStatus,
        latency: Duration,
        breaker: BreakerState,
        detail: impl Into<String>,
    ) -> Self {
        Self { status, latency, breaker, detail: detail.into(), checked_at: SystemTime::now() }
    }
}

/// The state of every breaker.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ResilienceHealth {
    /// Unhealthy: any open. Degraded: any half-open.
    pub overall_health: HealthStatus,
    /// Names of open breakers.
    pub open_breakers: Vec<String>,
    /// Names of half-open breakers.
    pub degraded_breakers: Vec<String>,
    /// Failed operations over all operations since the start, in `0.0..=1.0`.
    pub overall_failure_rate: f64,
    /// Each breaker by name.
    pub circuit_breakers: BTreeMap<String, BreakerHealth>,
}

/// One breaker's state and counts.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BreakerHealth {
    /// Where it stands.
    pub state: BreakerState,
    /// Failed operations over operations since the start, in `0.0..=1.0`.
    pub failure_rate: f64,
    /// Operations since the start, refused ones apart.
    pub total_calls: u64,
    /// Operations that failed.
    pub failed_calls: u64,
    /// Operations that did not fail, those in flight included.
    pub successful_calls: u64,
    /// Operations refused by the breaker.
    pub blocked_calls: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Attempts that ran out of time.
    pub timeouts: u64,
    /// What opened it last.
    pub last_failure: Option<Arc<Cause>>,
    /// Seconds until the next probe.
    pub next_attempt_in: Option<f64>,
}

/// The state of every breaker of this process.
#[must_use]
pub fn get_resilience_health() -> ResilienceHealth {
    let mut health = ResilienceHealth {
        overall_health: HealthStatus::Healthy,
        open_breakers: Vec::new(),
        degraded_breakers: Vec::new(),
        overall_failure_rate: 0.0,
        circuit_breakers: BTreeMap::new(),
    };
    let (mut calls, mut failures) = (0, 0);
    for breaker in registry::breakers() {
        let (state, counters) = (breaker.state(), breaker.counters());
        let (total, failed) = (counters.calls.load(Relaxed), counters.failed.load(Relaxed));
        calls += total;
        failures += failed;
        match state {
            BreakerState::Open => health.open_breakers.push(breaker.name().to_owned()),
            BreakerState::HalfOpen => health.degraded_breakers.push(breaker.name().to_owned()),
            BreakerState::Closed => {}
        }
        let entry = BreakerHealth {
            state,
            failure_rate: share(failed, total),
            total_calls: total,
            failed_calls: failed,
            successful_calls: total.saturating_sub(failed),
            blocked_calls: counters.blocked.load(Relaxed),
            retries: counters.retries.load(Relaxed),
            timeouts: counters.timeouts.load(Relaxed),
            last_failure: breaker.cause(),
            next_attempt_in: breaker.next_attempt_in().map(|d| d.as_secs_f64()),
        };
        health.circuit_breakers.insert(breaker.name().to_owned(), entry);
    }
    health.overall_failure_rate = share(failures, calls);
    if !health.open_breakers.is_empty() {
        health.overall_health = HealthStatus::Unhealthy;
    } else if !health.degraded_breakers.is_empty() {
        health.overall_health = HealthStatus::Degraded;
    }
    health
}

#[allow(clippy::cast_precision_loss)] // A rate for people; exact below 2^53 calls.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64() * 1000.0)
}

fn unix_seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(since.as_secs())
}
