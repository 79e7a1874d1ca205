//! A whole transaction as one operation: the closure runs again when the server says that another
//! transaction was in the way, or when the connection was lost before COMMIT was sent.

use crate::{
    backend::Backend,
    classify::{DatabaseFailure, Phase},
    client::{DatabaseClient, shorter},
    session::{Session, within},
};
use mainstay_policy::{CallError, Classify, Error, Idempotency, Operation, Verdict};
use std::{any::Any, error::Error as StdError, fmt, future::Future};

/// An async closure over a session. Implemented for every `async |tx| ..` and `async fn` that fits.
///
/// It exists because the compiler cannot yet say of an async closure that its futures are `Send`.
pub trait TxFn<A, T, E>: AsyncFn(A) -> Result<T, E> {
    #[doc(hidden)]
    type Fut: Future<Output = Result<T, E>> + Send;
    #[doc(hidden)]
    fn call(&self, argument: A) -> Self::Fut;
}

impl<A, T, E, F, Fut> TxFn<A, T, E> for F
where
    F: AsyncFn(A) -> Result<T, E> + Fn(A) -> Fut,
    Fut: Future<Output = Result<T, E>> + Send,
{
    type Fut = Fut;
    fn call(&self, argument: A) -> Fut {
        self(argument)
    }
}

impl<DB: Backend> DatabaseClient<DB> {
    /// Runs a closure in a transaction and commits it; the closure may run several times.
    ///
    /// It runs again after a serialization failure, a deadlock, a lock that was not to be had, or a
    /// connection lost before COMMIT was sent, so it must do nothing outside the database. An error
    /// of its own rolls back and is returned as it is.
    ///
    /// # Errors
    /// The closure's own. A COMMIT whose answer was lost is never sent again:
    /// [`Error::is_outcome_unknown`] says so.
    ///
    /// # Cancel safety
    /// Dropped before COMMIT is sent, nothing is committed; while it is under way, nobody knows.
    pub fn transaction<'s, T, E, F>(
        &'s self,
        run: F,
    ) -> impl Future<Output = Result<T, E>> + Send + use<'s, DB, T, E, F>
    where
        F: for<'t> TxFn<&'t mut Session<DB>, T, E> + Send + Sync,
        T: Send,
        E: From<Error> + Send + 'static,
    {
        // Unsafe: of what it does, COMMIT alone can be unknown.
        const TRANSACTION: Operation = Operation::new("transaction", Idempotency::Unsafe);
        async move {
            let (policy, run) = (self.policy(), &run);
            let result = policy.run(&TRANSACTION, |attempt| async move {
                let limit = shorter(attempt);
                let pool = self.require_pool().map_err(TxFailure::Own)?;
                let mut session =
                    Session::begin(&pool, policy, limit).await.map_err(TxFailure::Own)?;
                let done = within(limit, run.call(&mut session)).await;
                match done {
                    Some(Ok(value)) => {
                        session.finish(policy.time_for_attempt()).await.map_err(TxFailure::Own)?;
                        Ok(value)
                    }
                    Some(Err(error)) => Err(TxFailure::Closure(error, session.seen())),
                    None => Err(TxFailure::Own(DatabaseFailure::timed_out(
                        Phase::Transaction,
                        limit.unwrap_or_default(),
                    ))),
                }
            });
            result.await.map_err(|error| {
                let error = match error {
                    CallError::Backend { error: TxFailure::Closure(error, _), .. } => return error,
                    other => other.map(TxFailure::into_own),
                };
                Error::from_call(policy.name(), "transaction", error).into()
            })
        }
    }
}

/// How one run of the closure failed.
enum TxFailure<E> {
    Own(DatabaseFailure),
    Closure(E, Option<(&'static str, Verdict)>),
}

impl<E: 'static> TxFailure<E> {
    fn into_own(self) -> DatabaseFailure {
        match self {
            Self::Own(failure) => failure,
            Self::Closure(error, seen) => {
                let (words, verdict) = seen.unwrap_or(("the closure failed", Verdict::permanent()));
                let mut slot = Some(error);
                match (&mut slot as &mut dyn Any).downcast_mut::<Option<Error>>() {
                    Some(slot) => match slot.take() {
                        Some(error) => DatabaseFailure::closure(error, verdict),
                        None => DatabaseFailure::seen(words, verdict),
                    },
                    None => DatabaseFailure::seen(words, verdict),
                }
            }
        }
    }
}

impl<E> Classify for TxFailure<E> {
    fn classify(&self) -> Verdict {
        match self {
            Self::Own(failure) => failure.classify(),
            // What the session saw decides, not what the closure made of it.
            Self::Closure(_, seen) => seen.map_or(Verdict::permanent(), |(_, verdict)| verdict),
        }
    }
}

impl<E> fmt::Debug for TxFailure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<E> fmt::Display for TxFailure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(failure) => write!(f, "{failure}"),
            Self::Closure(_, Some((words, _))) => f.write_str(words),
            Self::Closure(_, None) => f.write_str("the closure failed"),
        }
    }
}

impl<E> StdError for TxFailure<E> {}
