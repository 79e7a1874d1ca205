//! The check of a probe: one round trip beside the busy pool, past the breaker.

use crate::{backend::Backend, classify::DatabaseFailure, client::DatabaseClient};
use mainstay_policy::{Health, HealthStatus};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(1);

impl<DB: Backend> DatabaseClient<DB> {
    /// A round trip on an idle connection, else on a new one. Takes at most 1 s and never feeds the
    /// breaker; degraded when the server answers while every connection is in use.
    pub async fn health_check(&self) -> Health {
        let started = Instant::now();
        let (status, detail) = self.examine().await;
        Health::new(status, started.elapsed(), self.policy().breaker().state(), detail)
    }

    async fn examine(&self) -> (HealthStatus, String) {
        let Some(pool) = self.own_pool() else {
            let failure = DatabaseFailure::no_runtime();
            return (HealthStatus::Unhealthy, failure.to_string());
        };
        let max = self.max_connections();
        let gauges = || {
            let size = pool.sqlx().size();
            let idle = u32::try_from(pool.sqlx().num_idle()).unwrap_or(0).min(size);
            let in_use = pool.in_use();
            (in_use, format!("pool: {in_use} in use, {idle} idle, at most {max}"))
        };
        match tokio::time::timeout(TIMEOUT, pool.probe()).await {
            Ok(Ok(())) => match gauges() {
                (in_use, words) if in_use >= max => {
                    (HealthStatus::Degraded, format!("answered; no connection is free; {words}"))
                }
                (_, words) => (HealthStatus::Healthy, format!("answered; {words}")),
            },
            Ok(Err(failure)) => (HealthStatus::Unhealthy, format!("{failure}; {}", gauges().1)),
            Err(_) => (HealthStatus::Unhealthy, format!("no answer within 1 s; {}", gauges().1)),
        }
    }
}
