//! `/metrics`: the registry in Prometheus' text format.
//!
//! Written from the registry's own counters, without an exporter: nothing has to be installed before
//! the first call, no second copy of the counts is kept, and the recorder of the `metrics` crate, of
//! which a process has one, stays the service's own. Histograms of durations need such a recorder:
//! [`Routes::and_metrics`](super::Routes::and_metrics) adds what it renders.

use super::{Shared, respond};
use crate::{BreakerHealth, BreakerState, get_resilience_health};
use axum::{extract::State, http::StatusCode, response::Response};
use std::{
    fmt::{Display, Write},
    sync::Arc,
};

const KIND: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    // For the next scrape, where no probe asks; in the background, as a check may take longer than this.
    let readiness = shared.readiness.clone();
    tokio::spawn(async move { readiness.report().await });
    let mut text = render(&shared);
    if let Some(more) = &shared.more {
        text.push_str(&more());
    }
    respond(StatusCode::OK, KIND, text)
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (n, (label, value)) in labels.iter().enumerate() {
            let before = if n == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{}\"", escaped(value));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

const STATES: [BreakerState; 6] = [
    BreakerState::Closed,
    BreakerState::Ramping,
    BreakerState::HalfOpen,
    BreakerState::Open,
    BreakerState::Isolated,
    BreakerState::ForcedClosed,
];

type Count = fn(&BreakerHealth) -> u64;

const COUNTERS: [(&str, &str, Count); 5] = [
    ("mainstay_refused_calls_total", "Operations refused by the breaker.", |b| b.blocked_calls),
    ("mainstay_retries_total", "Attempts after the first, one after the other.", |b| b.retries),
    ("mainstay_hedges_total", "Second copies of attempts that took long.", |b| b.hedges),
    ("mainstay_timeouts_total", "Attempts that ran out of time.", |b| b.timeouts),
    ("mainstay_fallbacks_total", "Operations that a fallback answered.", |b| b.fallbacks),
];

fn render(shared: &Shared) -> String {
    let health = get_resilience_health();
    let breakers = || health.circuit_breakers.iter();
    let mut text = Text(String::new());

    text.family("mainstay_breaker_state", "gauge", "1 for the state that the breaker is in.");
    for (name, breaker) in breakers() {
        for state in STATES {
            let labels = [("dependency", &**name), ("state", state.name())];
            text.sample("mainstay_breaker_state", &labels, u8::from(breaker.state == state));
        }
    }
    text.family("mainstay_calls_total", "counter", "Operations that ended, by how they ended.");
    for (name, breaker) in breakers() {
        let (good, bad) = (breaker.successful_calls, breaker.failed_calls);
        let neutral = breaker.total_calls.saturating_sub(good).saturating_sub(bad);
        for (outcome, count) in [("success", good), ("failure", bad), ("neutral", neutral)] {
            let labels = [("dependency", &**name), ("outcome", outcome)];
            text.sample("mainstay_calls_total", &labels, count);
        }
    }
    for (family, help, count) in COUNTERS {
        text.family(family, "counter", help);
        for (name, breaker) in breakers() {
            text.sample(family, &[("dependency", name)], count(breaker));
        }
    }
    let share = "mainstay_failure_ratio";
    text.family(share, "gauge", "Failed attempts over attempts in the breaker's window.");
    for (name, breaker) in breakers() {
        text.sample(share, &[("dependency", name)], breaker.failure_rate);
    }
    let share = "mainstay_slow_ratio";
    text.family(share, "gauge", "Slow attempts over attempts in the breaker's window.");
    for (name, breaker) in breakers() {
        text.sample(share, &[("dependency", name)], breaker.slow_rate);
    }
    // A gauge, and no quantile, since a summary would need a sum, which nobody keeps.
    let latency = "mainstay_answer_seconds";
    text.family(
        latency,
        "gauge",
        "How long a share of the answers of the last minutes took at most.",
    );
    for (name, breaker) in breakers() {
        let percentiles =
            [("50", breaker.latency_p50), ("95", breaker.latency_p95), ("99", breaker.latency_p99)];
        for (percentile, seconds) in percentiles {
            if let Some(seconds) = seconds {
                text.sample(latency, &[("dependency", name), ("percentile", percentile)], seconds);
            }
        }
    }
    let tokens = "mainstay_retry_budget_tokens";
    text.family(tokens, "gauge", "Extra attempts that the retry budget has left, of 50 at most.");
    for (name, breaker) in breakers() {
        text.sample(tokens, &[("dependency", name)], breaker.retries_left);
    }
    if !shared.gauges.is_empty() {
        let pool = "mainstay_client_figure";
        text.family(pool, "gauge", "A figure of the client itself, such as connections in use.");
        for (name, read) in &shared.gauges {
            for (figure, value) in read() {
                text.sample(pool, &[("dependency", name), ("figure", figure)], value);
            }
        }
    }
    readiness(&mut text, shared);
    text.0
}

/// What was seen last: a scrape waits for no dependency.
fn readiness(text: &mut Text, shared: &Shared) {
    let Some(report) = shared.readiness.last() else { return };
    text.family("mainstay_ready", "gauge", "1 if the last round of checks said to send work.");
    text.sample("mainstay_ready", &[], u8::from(report.ready));
    let check = "mainstay_check_status";
    text.family(check, "gauge", "Last check of a dependency: 0 healthy, 1 degraded, 2 unhealthy.");
    for (name, seen) in &report.checks {
        let critical = if seen.critical { "true" } else { "false" };
        let value = match seen.health.status {
            crate::HealthStatus::Healthy => 0,
            crate::HealthStatus::Degraded => 1,
            _ => 2,
        };
        text.sample(check, &[("check", name), ("critical", critical)], value);
    }
}
