//! The check of a probe: one GET under its own short timeout, past the breaker.

use crate::{client::HttpClient, send};
use mainstay_policy::{Health, HealthStatus};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(2);

impl HttpClient {
    /// Asks the base URL: 2xx is healthy. Takes at most 2 s and never feeds the breaker.
    pub async fn health_check(&self) -> Health {
        self.health_check_at("").await
    }

    /// Asks a path below the base URL, such as `/health`: 2xx is healthy, after redirects that a
    /// GET would follow.
    pub async fn health_check_at(&self, path: &str) -> Health {
        let started = Instant::now();
        let (status, detail) = match self.ask(path).await {
            Ok(status) if (200..300).contains(&status) => {
                (HealthStatus::Healthy, format!("status {status}"))
            }
            Ok(status) => (HealthStatus::Unhealthy, format!("status {status}")),
            Err(detail) => (HealthStatus::Unhealthy, detail),
        };
        Health::new(status, started.elapsed(), self.policy().breaker().state(), detail)
    }

    async fn ask(&self, path: &str) -> Result<u16, String> {
        let call = self.get(path).into_call().map_err(|e| e.to_string())?;
        let driver = self.driver().map_err(|e| e.to_string())?;
        match tokio::time::timeout(TIMEOUT, send::ask(&call, &driver)).await {
            Ok(Ok(status)) => Ok(status.as_u16()),
            Ok(Err(failure)) => Err(failure.to_string()),
            Err(_) => Err("no answer within 2 s".to_owned()),
        }
    }
}
