//! Who answers, and the check of a probe: PING and ROLE under their own short timeout, past the
//! breaker.

use crate::{
    client::RedisClient,
    command::{Command, IfAway, Raw},
    link::{Gate, Line},
    value::Value,
};
use bytes::Bytes;
use mainstay_policy::{Breaker, BreakerState, Health, HealthStatus};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(1);

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisState {
    /// The server.
    Connected,
    /// The fallback: the server is away, a breaker refuses every call, or there is no URL. In a
    /// cluster: for one master at least.
    Degraded,
    /// The server is back, and not everything is its own yet: keys written meanwhile are being
    /// deleted there, or the breaker lets a growing share of the calls through.
    Recovering,
}

fn ramps(breaker: &Breaker) -> bool {
    breaker.state() == BreakerState::Ramping
}

impl RedisClient {
    /// Who answers now, in this runtime.
    #[must_use]
    pub fn state(&self) -> RedisState {
        match self.line() {
            Some(line) if matches!(line.gate(), Gate::Open) => {
                if self.breaker_that(&line, Breaker::is_shut).is_some() {
                    RedisState::Degraded
                } else if self.dirty_keys() > 0 || self.breaker_that(&line, ramps).is_some() {
                    RedisState::Recovering
                } else {
                    RedisState::Connected
                }
            }
            _ => RedisState::Degraded,
        }
    }

    /// Nobody can tell the server of this key now, or without one of some. A half-open breaker is another
    /// matter: the recovery may be its probe.
    pub(crate) fn is_hopeless(&self, key: Option<&Bytes>) -> bool {
        let refuses = |breaker: &Breaker| {
            matches!(breaker.state(), BreakerState::Open | BreakerState::Isolated)
        };
        let Some(line) = self.line() else { return true };
        let Some(key) = key else {
            return !matches!(line.gate(), Gate::Open)
                || self.breaker_that(&line, refuses).is_some();
        };
        // Any command will do that names it.
        let own = line.policy(&Command::Expire(key, None), self.policy());
        let policy = own.as_ref().unwrap_or(self.policy());
        !line.serves(key) || policy.refuses() && refuses(policy.breaker())
    }

    /// The first that is so of the client's breaker and, in a cluster, those of the masters. In observe
    /// mode, or switched off, they are in nobody's way.
    fn breaker_that(&self, line: &Line, is: impl Fn(&Breaker) -> bool) -> Option<Breaker> {
        let own = self.policy().refuses().then(|| self.policy().breaker().clone())?;
        std::iter::once(own).chain(line.breakers()).find(is)
    }

    /// Sends a PING and asks for the server's role, whatever the breaker says. Degraded when the
    /// fallback answers for the server, or part of the calls, or when it is a replica. The detail says
    /// which tier answers. Unhealthy without a fallback, or when the credentials are refused, for which
    /// none answers. Takes at most 1 s and never feeds the breaker.
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
            // No fallback answers for that.
            Gate::Closed(why) if line.refuses_credentials(&Command::Raw(&Raw::ping())) => {
                return (HealthStatus::Unhealthy, why);
            }
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
            Ok((Err(error), _)) if error.is_auth() => {
                return (HealthStatus::Unhealthy, error.to_string());
            }
            // A user may not be allowed that either; who is told so was answered.
            Ok((Err(error), _)) if !error.is_final() => return away(error.to_string()),
            Ok((_, role)) => role,
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
        if let Some(breaker) = self.breaker_that(&line, |b| b.is_shut() || ramps(b)) {
            let barred = format!("the breaker {} is {}", breaker.name(), breaker.state().name());
            return if self.has_fallback() {
                let detail = format!("{role}, but {barred}; the fallback answers what it refuses");
                (HealthStatus::Degraded, detail)
            } else {
                (HealthStatus::Healthy, format!("{role}; {barred}"))
            };
        }
        let dirty = self.dirty_keys();
        if dirty == 0 {
            return (HealthStatus::Healthy, format!("{role}; Redis answers"));
        }
        let mut detail = format!("{role}; {dirty} keys are still served from memory");
        if let Some(code) = self.fallback().and_then(|fallback| fallback.refused()) {
            detail += &format!(
                ", as the server refuses to delete them ({code}); allow this user DEL and HDEL"
            );
        }
        (HealthStatus::Degraded, detail)
    }
}
