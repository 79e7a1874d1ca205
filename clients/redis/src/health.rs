//! The check of a probe: PING and ROLE under their own short timeout, past the breaker.

use crate::{
    client::{RedisClient, RedisState},
    command::{Command, IfAway, Raw},
    link::Gate,
    value::Value,
};
use mainstay_policy::{Health, HealthStatus};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(1);

impl RedisClient {
    /// Sends a PING and asks for the server's role; degraded when the fallback answers for the server,
    /// or when it is a replica. The detail says which tier answers. Takes at most 1 s and never
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
        // Sent together. The client's user may not be allowed to ask for the role.
        let (ping, ask) = (Raw::ping(), Raw::role());
        let (ping, ask) = (Command::Raw(&ping), Command::Raw(&ask));
        let both = async {
            let send = |command| line.send(command, IfAway::Fail, Some(left));
            tokio::join!(send(&ping), send(&ask))
        };
        let role = match tokio::time::timeout(left, both).await {
            Ok((Ok(_), role)) => role,
            Ok((Err(error), _)) => return away(error.to_string()),
            Err(_) => return away("no answer to PING within 1 s".to_owned()),
        };
        let role = match role {
            Ok(Value::Array(parts)) => parts.into_iter().next().and_then(Value::into_bytes),
            _ => None,
        };
        let role = match role.as_deref() {
            Some(b"master") => "PING answered by a master",
            Some(b"slave") => {
                let detail =
                    "PING answered by a replica, which takes no writes; Redis answers reads";
                return (HealthStatus::Degraded, detail.to_owned());
            }
            _ => "PING answered",
        };
        match self.state() {
            RedisState::Connected => (HealthStatus::Healthy, format!("{role}; Redis answers")),
            RedisState::Degraded => away(format!("{role}, but the breaker is open")),
            RedisState::Recovering => {
                let mut detail =
                    format!("{role}; {} keys are still served from memory", self.dirty_keys());
                if let Some(code) = self.fallback().and_then(|fallback| fallback.refused()) {
                    detail += &format!(
                        ", as the server refuses to delete them ({code}); allow this user DEL and \
                         HDEL"
                    );
                }
                (HealthStatus::Degraded, detail)
            }
        }
    }
}
