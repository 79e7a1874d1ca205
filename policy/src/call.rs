//! One call of a user's own operation: its name, whether it may be repeated, and what it makes of
//! errors, values and failure.

use crate::{
    breaker::Admission,
    classify::{Classify, Effect, Idempotency, Operation, Verdict, verdict_of},
    clock::{self, Instant},
    deadline::Scope,
    error::CallError,
    event::{self, Event},
    policy::Policy,
    retry::{self, Judge, Judged},
};
use std::{
    fmt,
    future::Future,
    panic::resume_unwind,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, channel},
    },
    time::Duration,
};

type If<'p, V> = Box<dyn Fn(&V) -> bool + Send + Sync + 'p>;

/// One call through a policy; [`Policy::operation`] makes it.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mainstay_policy::{Kind, Policy};
/// use std::time::Duration;
///
/// let policy = Policy::builder(Kind::Api, "jobs").base_delay(Duration::ZERO).build()?;
/// let mut polls = 0;
/// let state = policy
///     .operation("poll_job")
///     .retry_if(|error: &&str| *error != "no such job")
///     .retry_if_value(|state| *state == "running")
///     .call(|| {
///         polls += 1;
///         let state = if polls < 3 { "running" } else { "done" };
///         async move { Ok(state) }
///     })
///     .await;
/// assert_eq!(state.ok(), Some("done"));
/// # Ok(()) }
/// ```
#[must_use = "nothing happens until it is called"]
pub struct Call<'p, T, E> {
    policy: &'p Policy,
    operation: Operation,
    retry_if: Option<If<'p, E>>,
    retry_if_value: Option<If<'p, T>>,
    classify: Option<fn(&E) -> Judged>,
}

impl<T, E> fmt::Debug for Call<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("policy", &self.policy.name())
            .field("name", &self.operation.name())
            .field("idempotency", &self.operation.idempotency())
            .finish_non_exhaustive()
    }
}

impl<'p, T, E> Call<'p, T, E> {
    pub(crate) const fn new(policy: &'p Policy, name: &'static str) -> Self {
        let operation = Self::operation(name, true);
        Self { policy, operation, retry_if: None, retry_if_value: None, classify: None }
    }

    /// Whether doing it twice is the same as once. Default: yes, or nobody would hand it to a
    /// policy that repeats. `false`: only what was never sent, or was throttled, is repeated; after any
    /// other error but a permanent one the outcome is unknown.
    pub const fn idempotent(mut self, idempotent: bool) -> Self {
        self.operation = Self::operation(self.operation.name(), idempotent);
        self
    }

    const fn operation(name: &'static str, idempotent: bool) -> Operation {
        if idempotent { Operation::own(name) } else { Operation::new(name, Idempotency::Unsafe) }
    }

    /// Decides for each error whether it is worth repeating, before anything else does. An error
    /// that is not counts as an answer: it leaves the breaker closed.
    pub fn retry_if(mut self, retry: impl Fn(&E) -> bool + Send + Sync + 'p) -> Self {
        self.retry_if = Some(Box::new(retry));
        self
    }

    /// What the error's own [`Classify`] says decides: whether it is worth repeating, and what it means
    /// for the breaker. Not before [`retry_if`](Self::retry_if), and not of what a client inside has
    /// repeated already. Where the call is not [`idempotent`](Self::idempotent), [`Verdict::transient`]
    /// leaves the outcome unknown: an operation may be several steps, and the error tells of one. Without
    /// this every error of a type that this crate does not know may pass, and is a failure.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use mainstay_policy::{BreakerState, Classify, Policy, Verdict};
    ///
    /// #[derive(Debug)]
    /// enum BankError {
    ///     Declined,
    ///     Maintenance,
    /// }
    ///
    /// impl Classify for BankError {
    ///     fn classify(&self) -> Verdict {
    ///         match self {
    ///             Self::Declined => Verdict::permanent(), // an answer: not repeated, no failure
    ///             Self::Maintenance => Verdict::transient(),
    ///         }
    ///     }
    /// }
    ///
    /// let bank = Policy::api("bank");
    /// for _ in 0..9 {
    ///     let charge = bank.operation("charge").by_classify();
    ///     let error = charge.call(|| async { Err::<(), _>(BankError::Declined) }).await.unwrap_err();
    ///     assert_eq!(error.attempts(), 1);
    /// }
    /// assert_eq!(bank.breaker().state(), BreakerState::Closed);
    /// # }
    /// ```
    pub fn by_classify(mut self) -> Self
    where
        E: Classify,
    {
        self.classify = Some(Judged::of);
        self
    }

    /// Values to treat as failures that may pass. When attempts run out, the last such value is
    /// the result.
    pub fn retry_if_value(mut self, retry: impl Fn(&T) -> bool + Send + Sync + 'p) -> Self {
        self.retry_if_value = Some(Box::new(retry));
        self
    }
}

impl<T, E: 'static> Call<'_, T, E> {
    /// Runs it; as [`Policy::call`].
    ///
    /// # Errors
    /// [`CallError`] with the operation's own last error.
    ///
    /// # Cancel safety
    /// As [`Policy::run`].
    pub async fn call<F, Fut>(self, mut operation: F) -> Result<T, CallError<E>>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        retry::drive(&self.policy.0, &self.operation, |_| operation(), &self).await
    }

    /// Runs it, and answers a failure with what `fallback` makes of it.
    ///
    /// # Errors
    /// What `fallback` returns.
    ///
    /// # Cancel safety
    /// As [`Policy::run`].
    pub async fn call_or<F, Fut, G, Other>(
        self,
        operation: F,
        fallback: G,
    ) -> Result<T, CallError<E>>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        G: FnOnce(CallError<E>) -> Other,
        Other: Future<Output = Result<T, CallError<E>>>,
    {
        let policy = self.policy;
        match self.call(operation).await {
            Ok(value) => Ok(value),
            Err(error) => {
                let answer = fallback(error).await;
                if answer.is_ok() {
                    policy.fell_back();
                    event::emit(|| Event::FellBack { dependency: policy.breaker().shared_name() });
                }
                answer
            }
        }
    }

    /// Runs a closure that blocks, on this thread; as [`Policy::call_blocking`].
    ///
    /// # Errors
    /// [`CallError`] with the operation's own last error.
    pub fn call_blocking(
        self,
        mut operation: impl FnMut() -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        retry::drive_blocking(&self.policy.0, &self.operation, |_, _| Some(operation()), &self)
    }

    /// Runs a closure that blocks, on threads of its own; as [`Policy::call_blocking_detached`].
    ///
    /// # Errors
    /// [`CallError`] with the operation's own last error.
    pub fn call_blocking_detached<F>(self, operation: F) -> Result<T, CallError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: Fn() -> Result<T, E> + Send + Sync + 'static,
    {
        let operation = Arc::new(operation);
        let attempt = |_, limit: Instant| {
            let (done, result) = channel();
            let work = Arc::clone(&operation);
            let scope = Scope::until(limit);
            let admissions = Admission::all();
            let worker = move || {
                let _around: Vec<_> = admissions.into_iter().map(Admission::enter).collect();
                let inside = scope.enter();
                let _ = done.send((work(), inside.leave()));
            };
            let thread = std::thread::Builder::new().name("mainstay-blocking".to_owned());
            // No thread to be had: better late on this one than not at all.
            let Ok(thread) = thread.spawn(worker) else { return Some(operation()) };
            let left = limit.since(clock::now());
            match if limit.is_never() {
                result.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                result.recv_timeout(left)
            } {
                Ok((result, marks)) => {
                    Scope::mark(marks);
                    Some(result)
                }
                Err(RecvTimeoutError::Timeout) => None,
                // It panicked, which goes on where it would have without a thread between.
                Err(RecvTimeoutError::Disconnected) => match thread.join() {
                    Err(panic) => resume_unwind(panic),
                    Ok(()) => None,
                },
            }
        };
        retry::drive_blocking(&self.policy.0, &self.operation, attempt, &self)
    }
}

/// A user's error: he decides first, then what this crate knows of its type.
impl<T, E: 'static> Judge<T, E> for &Call<'_, T, E> {
    fn error(&self, error: &E, operation: &Operation) -> Judged {
        let repeat = self.retry_if.as_ref().map(|retry| retry(error));
        let judged = |verdict| Judged { verdict, repeat, code: None, by: None, hint: None };
        match (repeat, self.classify) {
            (Some(true), _) => return judged(Verdict::transient()),
            (Some(false), _) => return judged(Verdict::permanent()),
            _ => {}
        }
        let mut known = match self.classify {
            Some(classify) => classify(error),
            None => judged(verdict_of(error).unwrap_or(Verdict::transient())),
        };
        let unsafe_ = matches!(operation.idempotency(), Idempotency::Unsafe);
        if unsafe_ && matches!(known.verdict.effect, Effect::Transient) {
            // Of its last step perhaps: nobody has said that none of it happened.
            known.verdict = Verdict::unknown().with_outcome(known.verdict.outcome);
        }
        known
    }

    fn refuses(&self, value: &T) -> bool {
        self.retry_if_value.as_ref().is_some_and(|retry| retry(value))
    }
}

/// A client's error, which says itself what it means.
pub(crate) struct ByClassify;

impl<T, E: Classify + std::error::Error> Judge<T, E> for ByClassify {
    fn error(&self, error: &E, operation: &Operation) -> Judged {
        let judged = Judged::of(error);
        tracing::debug!(
            operation = operation.name(),
            effect = judged.verdict.effect.name(),
            error = %error,
            "attempt failed"
        );
        judged
    }

    #[inline]
    fn refuses(&self, _: &T) -> bool {
        false
    }
}

/// The same, of a client that holds retries back while the server asks for less load.
pub(crate) struct InTurn<H>(pub(crate) H);

impl<T, E, H> Judge<T, E> for InTurn<H>
where
    E: Classify + std::error::Error,
    H: Fn(Duration) -> Option<Duration>,
{
    fn error(&self, error: &E, operation: &Operation) -> Judged {
        Judge::<T, E>::error(&ByClassify, error, operation)
    }

    #[inline]
    fn refuses(&self, _: &T) -> bool {
        false
    }

    fn hold(&self, left: Duration) -> Option<Duration> {
        (self.0)(left)
    }
}
