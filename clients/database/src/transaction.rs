//! A whole transaction as one operation: the closure runs again when the server says that another
//! transaction was in the way, or when the connection was lost before COMMIT was sent.

use crate::{
    backend::Backend,
    classify::{DatabaseFailure, Phase},
    client::{Clock, DatabaseClient, shorter},
    options::{CommitOutcome, SessionOptions},
    session::Session,
    wire::within,
};
use mainstay_policy::{
    CallError, Classify, Decider, Effect, Error, Idempotency, Operation, Verdict,
};
#[cfg(feature = "postgres")]
use std::time::{Duration, Instant};
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
    /// It runs again after a serialization failure, a deadlock, a lock that was not to be had, a table
    /// that was changed since a statement was prepared, or a connection lost before COMMIT was sent, so
    /// it must do nothing outside the database. An error of its own rolls back and is returned as it is.
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
        self.transaction_with(SessionOptions::new(), run)
    }

    /// [`DatabaseClient::transaction`] of this isolation level, or one that only reads.
    ///
    /// # Errors
    /// As [`DatabaseClient::transaction`].
    ///
    /// # Cancel safety
    /// As [`DatabaseClient::transaction`].
    #[allow(clippy::manual_async_fn)] // An async fn would not be known to be Send.
    pub fn transaction_with<'s, T, E, F>(
        &'s self,
        options: SessionOptions,
        run: F,
    ) -> impl Future<Output = Result<T, E>> + Send + use<'s, DB, T, E, F>
    where
        F: for<'t> TxFn<&'t mut Session<DB>, T, E> + Send + Sync,
        T: Send,
        E: From<Error> + Send + 'static,
    {
        async move {
            let no_check = async |_: &Self| Ok(CommitOutcome::Unknown);
            let result = self.runs(&options, &run, &no_check).await;
            self.conclude(result)
        }
    }

    /// [`DatabaseClient::transaction_with`] that can find out how a COMMIT whose answer was lost
    /// turned out: `check` is asked, on the client, within the time that is left.
    ///
    /// [`CommitOutcome::Committed`] makes it a success, [`CommitOutcome::RolledBack`] lets the
    /// closure run again, [`CommitOutcome::Unknown`] and an error leave it unknown.
    ///
    /// The server may still be at the COMMIT: a row that is not there may come. On PostgreSQL
    /// [`DatabaseClient::commit_outcome`] waits for it, by its [`Session::transaction_id`]. Elsewhere
    /// let the closure insert a row under a key that no other run of it and nobody else uses, and the
    /// check insert the same in a session that it rolls back: the server makes it wait, and refuses
    /// it if the first was committed. A SELECT does not wait: that it finds no row means
    /// [`CommitOutcome::Unknown`].
    ///
    /// # Errors
    /// As [`DatabaseClient::transaction`].
    ///
    /// # Cancel safety
    /// As [`DatabaseClient::transaction`].
    #[allow(clippy::manual_async_fn)] // An async fn would not be known to be Send.
    pub fn transaction_checked<'s, T, E, F, C>(
        &'s self,
        options: SessionOptions,
        run: F,
        check: C,
    ) -> impl Future<Output = Result<T, E>> + Send + use<'s, DB, T, E, F, C>
    where
        F: for<'t> TxFn<&'t mut Session<DB>, T, E> + Send + Sync,
        C: for<'t> TxFn<&'t Self, CommitOutcome, Error> + Send + Sync,
        T: Send,
        E: From<Error> + Send + 'static,
    {
        async move {
            let result = self.runs(&options, &run, &check).await;
            self.conclude(result)
        }
    }

    fn runs<'a, T, E, F, C>(
        &'a self,
        options: &'a SessionOptions,
        run: &'a F,
        check: &'a C,
    ) -> impl Future<Output = Result<T, CallError<TxFailure<E>>>> + Send + 'a
    where
        F: for<'t> TxFn<&'t mut Session<DB>, T, E> + Send + Sync,
        C: for<'t> TxFn<&'t Self, CommitOutcome, Error> + Send + Sync,
        T: Send + 'a,
        E: Send + 'static,
    {
        // Unsafe: of what it does, COMMIT alone can be unknown.
        const TRANSACTION: Operation = Operation::new("transaction", Idempotency::Unsafe);
        let policy = self.policy();
        async move {
            let attempts = policy.run(&TRANSACTION, |attempt| async move {
                let (clock, limit) = (Clock::start(policy, attempt), shorter(attempt));
                let pool = self.require_pool().map_err(TxFailure::Own)?;
                let begun = Session::begin(&pool, policy, limit, options).await;
                let mut session = clock.judge(begun).await.map_err(TxFailure::Own)?;
                let value = match within(clock.left(), run.call(&mut session)).await {
                    Some(Ok(value)) => value,
                    Some(Err(error)) => return Err(TxFailure::Closure(error, session.seen())),
                    None => {
                        let limit = limit.unwrap_or_default();
                        let late = DatabaseFailure::timed_out(Phase::Transaction, limit);
                        drop(session);
                        return clock.judge(Err(late)).await.map_err(TxFailure::Own);
                    }
                };
                let Err(failure) = session.finish(policy.time_for_attempt()).await else {
                    return Ok(value);
                };
                drop(session);
                if failure.classify().effect != Effect::Unknown {
                    return Err(TxFailure::Own(failure));
                }
                match self.ask(check).await {
                    CommitOutcome::Committed => Ok(value),
                    CommitOutcome::RolledBack => Err(TxFailure::Own(failure.did_not_happen())),
                    CommitOutcome::Unknown => Err(TxFailure::Own(failure)),
                }
            });
            attempts.await
        }
    }

    async fn ask<C>(&self, check: &C) -> CommitOutcome
    where
        C: for<'t> TxFn<&'t Self, CommitOutcome, Error> + Send + Sync,
    {
        let asked = within(self.policy().time_for_attempt(), check.call(self)).await;
        asked.and_then(Result::ok).unwrap_or(CommitOutcome::Unknown)
    }

    fn conclude<T, E: From<Error> + 'static>(
        &self,
        result: Result<T, CallError<TxFailure<E>>>,
    ) -> Result<T, E> {
        result.map_err(|error| {
            let error = match error {
                CallError::Backend { error: TxFailure::Closure(error, _), .. } => return error,
                other => other.map(TxFailure::into_own),
            };
            Error::from_call(self.policy().name(), "transaction", error).into()
        })
    }
}

#[cfg(feature = "postgres")]
impl DatabaseClient<sqlx::Postgres> {
    /// How the transaction of this number turned out; it asks again while the server is still at
    /// it, for as long as an attempt may take.
    ///
    /// PostgreSQL forgets after some millions of transactions: then it is
    /// [`CommitOutcome::Unknown`]. The number must come from the same server.
    ///
    /// # Errors
    /// As a statement on the client.
    pub async fn commit_outcome(&self, transaction_id: &str) -> Result<CommitOutcome, Error> {
        const BETWEEN: Duration = Duration::from_millis(20);
        let left = self.policy().time_for_attempt();
        let end = left.and_then(|left| Instant::now().checked_add(left));
        loop {
            let status: Option<String> =
                sqlx::query_scalar("select pg_xact_status($1::text::xid8)")
                    .bind(transaction_id)
                    .fetch_one(self.read())
                    .await?;
            match status.as_deref() {
                Some("committed") => return Ok(CommitOutcome::Committed),
                Some("aborted") => return Ok(CommitOutcome::RolledBack),
                Some("in progress") if end.is_none_or(|end| Instant::now() + BETWEEN < end) => {
                    tokio::time::sleep(BETWEEN).await;
                }
                _ => return Ok(CommitOutcome::Unknown),
            }
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

    fn decider(&self) -> Option<Decider> {
        match self {
            Self::Own(failure) => failure.decider(),
            Self::Closure(..) => None,
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
