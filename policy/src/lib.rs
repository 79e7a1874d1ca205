//! The policy engine of Mainstay: timeouts, retries with a budget, and circuit breakers.
//!
//! It knows no driver. A client hands each operation to [`Policy::run`] with its name and whether
//! it may be repeated; the errors of its attempts say through [`Classify`] what happened.
//!
//! | module | idea |
//! |---|---|
//! | `policy` | the fixed order, and the only retry loop |
//! | `breaker` | refuses while a dependency is down, probes for its return |
//! | `backoff`, `budget` | how long to wait, and how many extra attempts there are |
//! | `classify`, `error` | what an error means, and what the caller gets |
//! | `registry`, `health`, `config`, `runtime` | names, views, settings, one pool per runtime |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod attempt;
mod backoff;
mod breaker;
mod budget;
mod classify;
mod clock;
mod config;
mod error;
mod health;
mod policy;
mod registry;
mod runtime;

pub use attempt::Attempt;
pub use backoff::Jitter;
pub use breaker::{Breaker, BreakerState};
pub use classify::{Classify, Effect, Idempotency, Operation, Outcome, Verdict};
pub use config::{Settings, settings};
pub use error::{CallError, Cause, ConfigError, Decider, Error, ErrorKind, report};
pub use health::{BreakerHealth, Health, HealthStatus, ResilienceHealth, get_resilience_health};
pub use policy::{Kind, Policy, PolicyBuilder};
pub use registry::{Singletons, reset_resilience_state};
pub use runtime::PerRuntime;
