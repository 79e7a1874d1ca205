//! The policy engine of Mainstay: timeouts, retries with a budget, and circuit breakers.
//!
//! It knows no driver. A client hands each operation to [`Policy::run`] with its name and whether
//! it may be repeated; the errors of its attempts say through [`Classify`] what happened.
//!
//! | module | idea |
//! |---|---|
//! | `policy`, `retry` | the fixed order, and the only retry loops |
//! | `breaker` | refuses while a dependency is down, probes for its return |
//! | `meter` | counts of the last seconds, and how long answers take |
//! | `backoff`, `budget` | how long to wait, and how many extra attempts there are |
//! | `deadline`, `timeout`, `hedge`, `bulkhead`, `rate_limit` | one limit each |
//! | `classify`, `error`, `event` | what an error means, what the caller gets, what observers see |
//! | `call`, `context` | one call of a user's own operation; several under one deadline |
//! | `watch` | work that the breaker learns from and does not gate |
//! | `registry`, `health`, `config`, `runtime` | names, views, settings, one pool per runtime |
//! | `readiness` | whether to be sent work, without a storm of checks |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(feature = "__bench")]
#[doc(hidden)]
pub mod __bench;
#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod __private;
mod attempt;
mod backoff;
mod breaker;
mod budget;
mod bulkhead;
mod call;
#[cfg(feature = "chaos")]
mod chaos;
#[cfg(not(feature = "chaos"))]
#[path = "chaos/off.rs"]
mod chaos;
mod classify;
mod clock;
mod config;
mod context;
mod deadline;
mod error;
mod event;
mod health;
mod hedge;
mod meter;
mod policy;
mod rate_limit;
mod readiness;
mod registry;
mod retry;
mod runtime;
mod sync;
mod telemetry;
mod timeout;
mod watch;

pub use attempt::Attempt;
pub use backoff::Jitter;
pub use breaker::{Breaker, BreakerState, Generation};
pub use call::Call;
#[cfg(feature = "chaos")]
pub use chaos::{Chaos, Storm};
pub use classify::{Classify, Effect, Idempotency, Operation, Outcome, Verdict};
pub use config::{SettingOrigin, Settings, masked_url, reload, set_settings_prefix, settings};
pub use context::{ContextBuilder, ResilientContext};
pub use deadline::Deadline;
pub use error::{CallError, Cause, ConfigError, Decider, Error, ErrorKind, OpenedBy, report};
pub use event::{Event, Observer, Subscription, observe};
pub use health::{BreakerHealth, Health, HealthStatus, ResilienceHealth, get_resilience_health};
pub use hedge::Hedge;
#[cfg(feature = "macros")]
#[doc(inline)]
pub use mainstay_macros::{
    policy_api_resilient as api_resilient, policy_cache_resilient as cache_resilient,
    policy_database_resilient as database_resilient, policy_file_resilient as file_resilient,
    policy_ml_resilient as ml_resilient, policy_resilient as resilient,
};
pub use policy::{BreakGrowth, Kind, Mode, Policy, PolicyBuilder};
pub use readiness::{CheckReport, Phase, Readiness, ReadinessBuilder, ReadinessReport};
pub use registry::{Singletons, breaker, on_reset, reset_resilience_state};
pub use runtime::PerRuntime;
#[cfg(feature = "metrics")]
pub use telemetry::numbers::describe_metrics;
pub use watch::Watch;
