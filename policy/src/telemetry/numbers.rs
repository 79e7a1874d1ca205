//! What of a policy goes to the `metrics` facade (feature `metrics`).
//!
//! A call that was ready at once is recorded when it is timed: while such calls take less than 10 us that
//! is one in eight, which is recorded eight times, since to time and to record each would take as long as
//! the call. A count is then behind by at most seven calls a thread.
//!
//! A recorder may be installed at any time: the handles that calls use are asked for anew once a
//! second while the dependency answers, and at every transition; the others each time.

use crate::{breaker::BreakerState, classify::Outcome, error::Decider, event::Event};
use metrics::{Counter, Gauge, Histogram, Unit};
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

const NAME: &str = "mainstay.policy.name";
const CALL: &str = "mainstay.call.duration";
const ATTEMPT: &str = "mainstay.attempt.duration";
const DECISIONS: &str = "mainstay.policy.decisions";
/// Not `.state`, which Prometheus would write as the family that `/metrics` of the facade has of its own.
const STATE: &str = "mainstay.breaker.phase";
const USAGE: &str = "mainstay.bulkhead.permit.usage";
const LIMIT: &str = "mainstay.bulkhead.permit.limit";

/// Gives the recorder the units and descriptions of our metrics; call it once one is installed.
///
/// | name | kind | labels besides `mainstay.policy.name` |
/// |---|---|---|
/// | `mainstay.call.duration` | histogram, seconds | `outcome`: success, failure, neutral |
/// | `mainstay.attempt.duration` | histogram, seconds | `outcome`: success, failure, timeout |
/// | `mainstay.policy.decisions` | counter | `kind`: retry, hedge, stop, reject, slow down, fallback; `decider` |
/// | `mainstay.breaker.phase` | gauge | 0 closed, 1 open, 2 half-open, 3 ramping, 4 isolated, 5 forced closed |
/// | `mainstay.bulkhead.permit.usage` | gauge | places taken |
/// | `mainstay.bulkhead.permit.limit` | gauge | places there are |
///
/// The clients' own are in their documentation: pools, Redis's tiers, S3's transfers.
pub fn describe_metrics() {
    metrics::describe_histogram!(CALL, Unit::Seconds, "How long calls took, retries included.");
    metrics::describe_histogram!(ATTEMPT, Unit::Seconds, "How long single attempts took.");
    metrics::describe_counter!(DECISIONS, Unit::Count, "What policies decided.");
    metrics::describe_gauge!(STATE, "Where the breaker stands; 0 is closed.");
    metrics::describe_gauge!(USAGE, Unit::Count, "Attempts in flight behind the bulkhead.");
    metrics::describe_gauge!(LIMIT, Unit::Count, "Attempts that the bulkhead lets in at once.");
}

/// The handles of what every call may do, kept so that none of it allocates.
#[derive(Clone)]
pub(crate) struct Numbers {
    calls: [Histogram; 3],
    attempts: [Histogram; 3],
    /// By the breaker, and by those who isolated it.
    refused: [Counter; 2],
    /// Taken and there, of a dependency that has a bulkhead.
    places: OnceLock<[Gauge; 2]>,
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Numbers")
    }
}

impl Numbers {
    pub(crate) fn of(name: &Arc<str>) -> Self {
        let histogram = |metric: &'static str, outcome: &str| {
            let labels = [(NAME, name.to_string()), ("outcome", outcome.to_owned())];
            metrics::histogram!(metric, &labels)
        };
        let outcomes = ["success", "failure", "neutral"];
        Self {
            calls: outcomes.map(|outcome| histogram(CALL, outcome)),
            attempts: ["success", "failure", "timeout"].map(|outcome| histogram(ATTEMPT, outcome)),
            refused: [Decider::Breaker, Decider::Isolation]
                .map(|by| decision(name, "reject", by.name())),
            places: OnceLock::new(),
        }
    }

    /// In nanoseconds; so many of them.
    pub(crate) fn succeeded(&self, attempt: u64, call: u64, like: u32) {
        for (histogram, nanos) in [(&self.attempts[0], attempt), (&self.calls[0], call)] {
            match like {
                1 => histogram.record(seconds(nanos)),
                _ => histogram.record_many(seconds(nanos), like as usize),
            }
        }
    }

    pub(crate) fn attempt_failed(&self, took: Duration, timed_out: bool) {
        self.attempts[if timed_out { 2 } else { 1 }].record(took.as_secs_f64());
    }

    pub(crate) fn call_ended(&self, outcome: Outcome, took: Duration) {
        let place = match outcome {
            Outcome::Success => 0,
            Outcome::Failure => 1,
            Outcome::Neutral => 2,
        };
        self.calls[place].record(took.as_secs_f64());
    }

    /// After a place was taken or given back.
    pub(crate) fn places(&self, name: &str, taken: u32, limit: u32) {
        let [usage, most] = self.places.get_or_init(|| {
            let labels = [(NAME, name.to_owned())];
            [metrics::gauge!(USAGE, &labels), metrics::gauge!(LIMIT, &labels)]
        });
        usage.set(taken);
        most.set(limit);
    }

    pub(crate) fn refused(&self, by: Decider) {
        self.refused[usize::from(by == Decider::Isolation)].increment(1);
    }
}

/// A product of signed numbers is a few instructions, a quotient of unsigned ones many.
#[allow(clippy::cast_precision_loss)] // Exact for 100 days.
fn seconds(nanos: u64) -> f64 {
    nanos.cast_signed() as f64 * 1e-9
}

fn decision(name: &str, kind: &'static str, decider: &'static str) -> Counter {
    let labels =
        [(NAME, name.to_owned()), ("kind", kind.to_owned()), ("decider", decider.to_owned())];
    metrics::counter!(DECISIONS, &labels)
}

pub(crate) fn tell(event: &Event) {
    let count = |name: &str, kind, decider| decision(name, kind, decider).increment(1);
    match event {
        Event::Changed { dependency, to, .. } => {
            let labels = [(NAME, dependency.to_string())];
            metrics::gauge!(STATE, &labels).set(number(*to));
        }
        Event::Retrying { dependency, .. } => count(dependency, "retry", "retry"),
        Event::Hedged { dependency, .. } => count(dependency, "hedge", "hedge"),
        Event::Stopped { dependency, by, .. } => count(dependency, "stop", by.name()),
        // Counted where it happens, without an allocation.
        Event::Rejected { by: Decider::Breaker | Decider::Isolation, .. } => {}
        Event::Rejected { dependency, by, .. } => count(dependency, "reject", by.name()),
        Event::SlowedDown { dependency, .. } => count(dependency, "slow down", "throttle"),
        Event::AtFullSpeed { .. } => {}
        Event::FellBack { dependency } => count(dependency, "fallback", "fallback"),
    }
}

const fn number(state: BreakerState) -> f64 {
    match state {
        BreakerState::Closed => 0.0,
        BreakerState::Open => 1.0,
        BreakerState::HalfOpen => 2.0,
        BreakerState::Ramping => 3.0,
        BreakerState::Isolated => 4.0,
        BreakerState::ForcedClosed => 5.0,
    }
}
