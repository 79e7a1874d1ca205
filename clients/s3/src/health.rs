//! The check of a probe: one small request under its own short timeout, past the breaker.

use crate::{S3Client, S3Failure};
use mainstay_policy::{Health, HealthStatus};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(2);

impl S3Client {
    /// Asks for the configured bucket; without one, lists the buckets.
    ///
    /// Takes at most 2 s and never feeds the breaker.
    pub async fn health_check(&self) -> Health {
        self.check(self.bucket()).await
    }

    /// Asks for this bucket: degraded if it may not be used (403), unhealthy if it is missing (404)
    /// or in another region (301).
    pub async fn health_check_at(&self, bucket: &str) -> Health {
        self.check(Some(bucket)).await
    }

    async fn check(&self, bucket: Option<&str>) -> Health {
        let started = Instant::now();
        let (status, detail) = match tokio::time::timeout(TIMEOUT, self.ask(bucket)).await {
            Ok(answer) => answer,
            Err(_) => (HealthStatus::Unhealthy, self.why_so_long().to_owned()),
        };
        Health::new(status, started.elapsed(), self.policy().breaker().state(), detail)
    }

    fn why_so_long(&self) -> &'static str {
        let credentials = self.link().ok().and_then(|link| link.credentials);
        match credentials.is_some_and(|credentials| credentials.is_searching()) {
            true => "nothing was asked within 2 s: credentials are still being looked for",
            false => "no answer within 2 s",
        }
    }

    async fn ask(&self, bucket: Option<&str>) -> (HealthStatus, String) {
        let sdk = match self.sdk() {
            Ok(sdk) => sdk,
            Err(error) => return (HealthStatus::Unhealthy, error.to_string()),
        };
        let answer = match bucket {
            Some(bucket) => match sdk.head_bucket().bucket(bucket).send().await {
                Ok(_) => Ok(format!("bucket `{bucket}` is there")),
                Err(error) => Err(S3Failure::sdk(error, 1).about(bucket, false)),
            },
            None => match sdk.list_buckets().send().await {
                Ok(_) => Ok("buckets can be listed".to_owned()),
                Err(error) => Err(S3Failure::sdk(error, 1)),
            },
        };
        match answer {
            Ok(detail) => (HealthStatus::Healthy, detail),
            Err(error) if error.is_denied() => (HealthStatus::Degraded, error.to_string()),
            Err(error) => (HealthStatus::Unhealthy, error.to_string()),
        }
    }
}
