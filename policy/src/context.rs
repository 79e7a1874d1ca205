//! Several operations under one policy and one deadline.

use crate::{
    deadline::Deadline,
    error::{CallError, ConfigError},
    policy::{Kind, Policy, PolicyBuilder},
};
use std::{future::Future, time::Duration};

/// Calls that share breaker, budget and, if it has one, a deadline that began when it was built.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mainstay_policy::ResilientContext;
/// use std::time::Duration;
///
/// let ctx = ResilientContext::database("bulk_operations")
///     .timeout(Duration::from_secs(30))
///     .max_attempts(2)
///     .deadline(Duration::from_secs(45))
///     .build()?;
/// let users = ctx.call(|| async { Ok::<_, std::io::Error>(vec!["John"]) }).await?;
/// let count = ctx.call_blocking(|| Ok::<_, std::io::Error>(users.len()))?;
/// assert_eq!(count, 1);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct ResilientContext {
    policy: Policy,
    deadline: Option<Deadline>,
}

/// Builds a [`ResilientContext`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ContextBuilder {
    policy: PolicyBuilder,
    deadline: Option<Duration>,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $kind:ident;)*) => {
        impl ResilientContext {
            $(
                $(#[$doc])*
                pub fn $name(name: &str) -> ContextBuilder {
                    Self::builder(Kind::$kind, &format!("{}:{name}", Kind::$kind.name()))
                }
            )*
        }
    };
}

kinds! {
    /// For SQL.
    database: Database;
    /// For a cache.
    cache: Cache;
    /// For HTTP services.
    api: Api;
    /// For files and object stores.
    file: File;
    /// For models.
    ml: Ml;
    /// For anything else.
    custom: Custom;
}

impl ResilientContext {
    /// With the defaults of `kind`, for the dependency of this name.
    pub fn builder(kind: Kind, dependency: &str) -> ContextBuilder {
        ContextBuilder { policy: Policy::builder(kind, dependency), deadline: None }
    }

    /// The policy of its calls.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Time left for its calls; `None` without a deadline.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.deadline.map(Deadline::left)
    }

    /// As [`Policy::call`].
    ///
    /// # Errors
    /// As [`Policy::call`]; once the deadline has passed, calls are refused.
    ///
    /// # Cancel safety
    /// As [`Policy::run`].
    pub async fn call<T, E, F, Fut>(&self, operation: F) -> Result<T, CallError<E>>
    where
        E: 'static,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let call = self.policy.call(operation);
        match self.deadline {
            Some(deadline) => deadline.scope(call).await,
            None => call.await,
        }
    }

    /// As [`Policy::call_blocking`].
    ///
    /// # Errors
    /// As [`ResilientContext::call`].
    pub fn call_blocking<T, E: 'static>(
        &self,
        operation: impl FnMut() -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        let call = || self.policy.call_blocking(operation);
        match self.deadline {
            Some(deadline) => deadline.scope_blocking(call),
            None => call(),
        }
    }
}

impl ContextBuilder {
    /// The limit of one attempt.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.policy(|policy| policy.timeout(timeout))
    }

    /// Attempts of one call in all, the first included.
    pub fn max_attempts(self, attempts: u32) -> Self {
        self.policy(|policy| policy.max_attempts(attempts))
    }

    /// The time that all its calls have together, from [`ContextBuilder::build`] on. Default: none.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Anything else of the policy, as in `.policy(|p| p.failure_threshold(2))`.
    pub fn policy(mut self, change: impl FnOnce(PolicyBuilder) -> PolicyBuilder) -> Self {
        self.policy = change(self.policy);
        self
    }

    /// Checks everything; the deadline begins now.
    ///
    /// # Errors
    /// As [`PolicyBuilder::build`].
    pub fn build(self) -> Result<ResilientContext, ConfigError> {
        let policy = self.policy.build()?;
        Ok(ResilientContext { policy, deadline: self.deadline.map(Deadline::within) })
    }
}
