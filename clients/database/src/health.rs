//! The check of a probe: one round trip beside the busy pool, past the breaker.

use crate::{backend::Backend, classify::DatabaseFailure, client::DatabaseClient};
use mainstay_policy::{Health, HealthStatus};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(1);

impl<DB: Backend> DatabaseClient<DB> {
    /// A round trip on an idle connection, else on a new one: to the server itself, also where a
    /// pooler stands before it, and to SQLite's file. Takes at most 1 s and never feeds the breaker;
    /// degraded when the server answers while every connection is in use, or that it takes no more
    /// connections than it has, some of them ours. The detail holds the pool's
    /// [`status`](crate::PoolStatus).
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
        let probed = tokio::time::timeout(TIMEOUT, pool.probe()).await;
        let gauges = self.pool_status();
        match probed {
            // Perhaps in another runtime than the one that asks.
            Ok(Ok(())) if self.pool_statuses().any(|pool| pool.in_use >= pool.max) => {
                (HealthStatus::Degraded, format!("answered; no connection is free; {gauges}"))
            }
            Ok(Ok(())) => (HealthStatus::Healthy, format!("answered; {gauges}")),
            // Load, and not a fault: without this replica the others would have more.
            Ok(Err(failure)) if gauges.size > 0 && failure.is_full::<DB>() => {
                (HealthStatus::Degraded, format!("{failure}; those that are open go on; {gauges}"))
            }
            Ok(Err(failure)) => (HealthStatus::Unhealthy, format!("{failure}; {gauges}")),
            Err(_) => (HealthStatus::Unhealthy, format!("no answer within 1 s; {gauges}")),
        }
    }
}
