//! What a probe and a person on call read.

use crate::{
    breaker::{Breaker, BreakerState},
    clock,
    error::Cause,
    meter::{Counts, share},
    registry,
};
use serde::{Serialize, Serializer};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

/// How a dependency, or all of them, are; the worst is the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

impl HealthStatus {
    /// A name for logs, metrics and headers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
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
    /// Where its breaker stood; `None` where whoever tells this does not know.
    pub breaker: Option<BreakerState>,
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
        breaker: impl Into<Option<BreakerState>>,
        detail: impl Into<String>,
    ) -> Self {
        let (breaker, detail) = (breaker.into(), detail.into());
        Self { status, latency, breaker, detail, checked_at: SystemTime::now() }
    }
}

/// The state of every breaker.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ResilienceHealth {
    /// Unhealthy: any open. Degraded: any in `degraded_breakers`.
    pub overall_health: HealthStatus,
    /// Names of open breakers.
    pub open_breakers: Vec<String>,
    /// Names of breakers that are half-open, ramping, isolated, or closed but at half of what would
    /// open them.
    pub degraded_breakers: Vec<String>,
    /// Failed attempts over attempts in the windows of all breakers, in `0.0..=1.0`.
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
    /// Failed attempts over attempts in the window, in `0.0..=1.0`.
    pub failure_rate: f64,
    /// Slow attempts over attempts in the window, in `0.0..=1.0`.
    pub slow_rate: f64,
    /// Operations that ended since the start, refused ones apart, whoever refused them.
    pub total_calls: u64,
    /// Operations that failed.
    pub failed_calls: u64,
    /// Operations that the dependency answered.
    pub successful_calls: u64,
    /// Operations refused by the breaker.
    pub blocked_calls: u64,
    /// Attempts after the first, one after the other.
    pub retries: u64,
    /// Second copies of attempts that took long.
    pub hedges: u64,
    /// Attempts that ran out of time.
    pub timeouts: u64,
    /// Operations that a fallback answered.
    pub fallbacks: u64,
    /// How long half of the answers of the last minutes took at most, in seconds.
    pub latency_p50: Option<f64>,
    /// How long 95 % of the answers of the last minutes took at most, in seconds.
    pub latency_p95: Option<f64>,
    /// How long 99 % of the answers of the last minutes took at most, in seconds.
    pub latency_p99: Option<f64>,
    /// Whole tokens left for retries and hedges: 10 are given, up to 40 more earned.
    pub retries_left: u64,
    /// What opened it last, until it closes.
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
    let now = clock::now();
    let (mut attempts, mut failed) = (0, 0);
    for (breaker, budget) in registry::all() {
        let name = breaker.name().to_owned();
        let state = breaker.state();
        let counts = breaker.counts(now);
        attempts += counts.attempts();
        failed += counts.failed;
        match state {
            BreakerState::Open => health.open_breakers.push(name.clone()),
            BreakerState::Closed if !breaker.is_near_its_trip(now) => {}
            BreakerState::ForcedClosed => {}
            _ => health.degraded_breakers.push(name.clone()),
        }
        health.circuit_breakers.insert(
            name,
            BreakerHealth::of(
                &breaker,
                state,
                &counts,
                budget.left(breaker.meter().answers(), now),
            ),
        );
    }
    health.overall_failure_rate = share(failed, attempts);
    if !health.open_breakers.is_empty() {
        health.overall_health = HealthStatus::Unhealthy;
    } else if !health.degraded_breakers.is_empty() {
        health.overall_health = HealthStatus::Degraded;
    }
    health
}

impl BreakerHealth {
    fn of(breaker: &Breaker, state: BreakerState, counts: &Counts, retries_left: u64) -> Self {
        let (counters, meter) = (breaker.counters(), breaker.meter());
        let failed_calls = counters.failed.load(Relaxed);
        let successful_calls = meter.answers();
        let neutral = counters.neutral.load(Relaxed);
        Self {
            state,
            failure_rate: counts.failure_rate(),
            slow_rate: counts.slow_rate(),
            total_calls: successful_calls + failed_calls + neutral,
            failed_calls,
            successful_calls,
            blocked_calls: meter.blocked_total(),
            retries: counters.retries.load(Relaxed),
            hedges: counters.hedges.load(Relaxed),
            timeouts: counters.timeouts.load(Relaxed),
            fallbacks: counters.fallbacks.load(Relaxed),
            latency_p50: meter.quantile(0.5).map(|d| d.as_secs_f64()),
            latency_p95: meter.quantile(0.95).map(|d| d.as_secs_f64()),
            latency_p99: meter.quantile(0.99).map(|d| d.as_secs_f64()),
            retries_left,
            last_failure: breaker.cause(),
            next_attempt_in: breaker.next_attempt_in().map(|d| d.as_secs_f64()),
        }
    }
}

fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64() * 1000.0)
}

fn unix_seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BreakGrowth, Kind, Policy};
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    proptest! {
        #[test]
        fn any_name_and_any_words_are_json_that_reads_back(name in any::<String>(), detail in any::<String>()) {
            // Each its own: the same name would be the same breaker.
            static NUMBER: AtomicU64 = AtomicU64::new(0);
            let name = format!("t-json {} {name}", NUMBER.fetch_add(1, Relaxed));
            // Open for a minute, however long all the others of this process take to tell.
            let policy = Policy::builder(Kind::Custom, &*name).break_growth(BreakGrowth::Fixed);
            let Ok(policy) = policy.failure_threshold(1).build() else {
                return Ok(());
            };
            let secret = || Err::<(), _>(std::io::Error::other(format!("s3cret {detail}")));
            policy.operation("fails").idempotent(false).call_blocking(secret).unwrap_err();
            let json = serde_json::to_string(&get_resilience_health()).unwrap();
            prop_assert!(!json.contains("s3cret"), "{}", json);
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            let own = &read["circuit_breakers"][policy.name()];
            prop_assert_eq!(&own["state"], "open", "{}", own);
            prop_assert_eq!(&own["failed_calls"], 1);
            policy.breaker().reset();

            let latency = Duration::from_millis(detail.len() as u64);
            let health = Health::new(HealthStatus::Degraded, latency, BreakerState::Open, &*detail);
            let json = serde_json::to_string(&health).unwrap();
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&read["latency_ms"], detail.len() as f64);
            prop_assert_eq!(&read["detail"], &*detail);
            prop_assert_eq!(&read["status"], "degraded");
        }
    }
}
