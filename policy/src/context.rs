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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, error::Decider};

    const S: Duration = Duration::from_secs(1);

    fn context(name: &str) -> ContextBuilder {
        ResilientContext::custom(name).timeout(20 * S).max_attempts(1)
    }

    async fn took(seconds: u32) -> Result<u32, &'static str> {
        tokio::time::sleep(seconds * S).await;
        Ok(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn its_calls_have_one_deadline_together_from_the_start() {
        let ctx = context("t-ctx").deadline(10 * S).build().unwrap();
        assert_eq!((ctx.policy().name(), ctx.left()), ("custom:t-ctx", Some(10 * S)));
        let start = clock::now();
        assert_eq!(ctx.call(|| took(6)).await.unwrap(), 6);
        assert_eq!(ctx.left(), Some(4 * S));
        let cut = ctx.call(|| took(6)).await.unwrap_err();
        assert_eq!((cut.decider(), cut.attempts()), (Some(Decider::Deadline), 1));
        assert_eq!(clock::now().since(start), 10 * S);
        assert_eq!(ctx.left(), Some(Duration::ZERO));
        // Over: nothing is tried any more, by a clone neither.
        let mut tried = 0;
        let late = ctx.clone().call_blocking(|| {
            tried += 1;
            Ok::<_, &str>(())
        });
        assert_eq!((late.unwrap_err().decider(), tried), (Some(Decider::Deadline), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_deadline_around_it_holds_and_a_longer_one_does_not() {
        for (around, ends_after) in [(2 * S, 2 * S), (20 * S, 5 * S)] {
            let ctx = context("t-ctx-around").deadline(5 * S).build().unwrap();
            let start = clock::now();
            let cut = Deadline::within(around).scope(ctx.call(|| took(9))).await.unwrap_err();
            assert_eq!(cut.decider(), Some(Decider::Deadline));
            assert_eq!(clock::now().since(start), ends_after);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_each_call_has_its_own_time_and_the_breaker_is_shared() {
        let ctx = context("t-ctx-shared").policy(|p| p.failure_threshold(2)).build().unwrap();
        assert_eq!(ctx.left(), None);
        assert_eq!(ctx.call(|| took(15)).await.unwrap(), 15);
        assert_eq!(ctx.call(|| took(15)).await.unwrap(), 15);
        assert!(ctx.call(|| async { Err::<(), _>("down") }).await.is_err());
        assert!(ctx.call_blocking(|| Err::<(), _>("down")).is_err());
        assert!(ctx.call(|| took(1)).await.unwrap_err().is_rejected());
    }

    #[test]
    fn each_kind_has_its_name_and_bad_settings_are_refused() {
        for (ctx, name) in [
            (ResilientContext::database("x"), "database:x"),
            (ResilientContext::cache("x"), "cache:x"),
            (ResilientContext::api("x"), "api:x"),
            (ResilientContext::file("x"), "file:x"),
            (ResilientContext::ml("x"), "ml:x"),
            (ResilientContext::custom("x"), "custom:x"),
        ] {
            assert_eq!(ctx.build().unwrap().policy().name(), name);
        }
        let error = ResilientContext::api("x").max_attempts(0).build().unwrap_err();
        assert!(error.to_string().contains("max_attempts"), "{error}");
    }
}
