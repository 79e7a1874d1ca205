//! The check of a probe: one PING under its own short timeout, past the breaker.

use crate::{
    client::{RedisClient, RedisState},
    command::{Command, IfAway, Raw},
    link::Gate,
};
use mainstay_policy::{Health, HealthStatus};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(1);

impl RedisClient {
    /// Sends a PING; degraded when the fallback answers for the server. Takes at most 1 s and never
    /// feeds the breaker.
    pub async fn health_check(&self) -> Health {
        let started = Instant::now();
        let (status, detail) = self.examine().await;
        Health::new(status, started.elapsed(), self.policy().breaker().state(), detail)
    }

    async fn examine(&self) -> (HealthStatus, String) {
        if !self.is_configured() {
            let detail = "no Redis configured; values are kept in this process's memory";
            return (HealthStatus::Degraded, detail.to_owned());
        }
        let away = |why: String| {
            if self.has_fallback() {
                (HealthStatus::Degraded, format!("{why}; the fallback answers"))
            } else {
                (HealthStatus::Unhealthy, why)
            }
        };
        if tokio::runtime::Handle::try_current().is_err() {
            return away("not asked, as there is no tokio runtime".to_owned());
        }
        let Some(line) = self.line() else {
            return away("the driver cannot use this Redis URL".to_owned());
        };
        let deadline = Instant::now() + TIMEOUT;
        if matches!(line.gate(), Gate::Connecting) {
            line.until_tried(TIMEOUT).await;
        }
        match line.gate() {
            Gate::Connecting => return away("not connected within 1 s".to_owned()),
            Gate::Closed(why) => return away(why),
            Gate::Partly(why) => return (HealthStatus::Degraded, why),
            Gate::Open => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let ping = Command::Raw(Raw::ping());
        match tokio::time::timeout(left, line.send(&ping, IfAway::Fail, Some(left))).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return away(error.to_string()),
            Err(_) => return away("no answer to PING within 1 s".to_owned()),
        }
        match self.state() {
            RedisState::Connected => (HealthStatus::Healthy, "PING answered".to_owned()),
            RedisState::Degraded => away("PING answered, but the breaker is open".to_owned()),
            RedisState::Recovering => (
                HealthStatus::Degraded,
                format!("PING answered; {} keys are still served from memory", self.dirty_keys()),
            ),
        }
    }
}
