//! Sessions: one connection, used as an sqlx executor.
//!
//! sqlx may hand a connection on with a statement under way, or an open transaction of a caller who
//! has gone, and may answer Ok to the COMMIT of a transaction that has already failed. So a session
//! marks its connection while a statement is under way, gives up a connection that was left so, and
//! remembers what it saw for COMMIT and for the retry of a whole transaction.

use crate::{
    backend::{Backend, Call, Step},
    classify::{self, Class, DatabaseFailure, Phase},
    pool::{Lease, Pool},
    statement::Statement,
};
use async_stream::try_stream;
use futures_core::{future::BoxFuture, stream::BoxStream};
use futures_util::StreamExt;
use mainstay_policy::{CallError, Classify, Decider, Error, Policy, Verdict};
use sqlx::{Describe, Either, Execute, Executor, SqlStr};
use sqlx_core::transaction::TransactionManager;
use std::{
    fmt,
    future::Future,
    time::{Duration, Instant},
};

/// One connection outside any transaction: every statement stands for itself.
///
/// An sqlx executor, as `&mut connection`. Statements are not repeated; each is bounded by the
/// policy's timeout. Dropped in the middle of a statement, its connection is closed.
pub struct DatabaseConnection<DB: Backend>(Wire<DB>);

/// A transaction: [`commit`](Session::commit) it, or it is rolled back when dropped.
///
/// An sqlx executor, as `&mut session`.
pub struct Session<DB: Backend> {
    wire: Wire<DB>,
    open: bool,
}

impl<DB: Backend> fmt::Debug for DatabaseConnection<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseConnection").finish_non_exhaustive()
    }
}

impl<DB: Backend> fmt::Debug for Session<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

/// What a statement's failure means for the rest of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Clean,
    /// A statement failed; the server decides at COMMIT whether it matters.
    Failed,
    /// The transaction is gone, or its connection: nothing more may be sent.
    Over,
}

pub(crate) struct Wire<DB: Backend> {
    lease: Lease<DB>,
    policy: Policy,
    phase: Phase,
    state: State,
    /// The last error that a new transaction may not meet again, or that cost the connection.
    seen: Option<(&'static str, Verdict)>,
}

impl<DB: Backend> Wire<DB> {
    pub(crate) fn new(lease: Lease<DB>, policy: Policy, phase: Phase) -> Self {
        Self { lease, policy, phase, state: State::Clean, seen: None }
    }

    /// Runs one step of the driver with the connection marked as unfinished.
    pub(crate) async fn step<'c, T, F>(
        &'c mut self,
        call: impl FnOnce(&'c mut DB::Connection) -> F,
    ) -> Result<T, DatabaseFailure>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let limit = self.policy.time_for_attempt();
        let Self { lease, phase, state, seen, .. } = self;
        let (connection, unfinished) = lease.parts();
        let usable = *state != State::Over && !*unfinished;
        let connection = connection.filter(|_| usable).ok_or_else(DatabaseFailure::unusable)?;
        *unfinished = true;
        match within(limit, call(connection)).await {
            Some(Ok(value)) => {
                *unfinished = false;
                Ok(value)
            }
            Some(Err(error)) => Err(note::<DB>(error, *phase, unfinished, state, seen)),
            None => Err(late(limit, *phase, state, seen)),
        }
    }

    async fn run<'c, T, F>(
        &'c mut self,
        operation: &'static str,
        call: impl FnOnce(&'c mut DB::Connection) -> F,
    ) -> Result<T, sqlx::Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let (policy, started) = (self.policy.clone(), Instant::now());
        self.step(call).await.map_err(|e| hand_on(&policy, operation, started, e))
    }

    fn statement<'e, 'q: 'e, 'c: 'e, T: Send + 'e, Q: 'q + Execute<'q, DB>>(
        &'c mut self,
        operation: &'static str,
        query: Q,
        call: Call<DB, T>,
    ) -> BoxFuture<'e, Result<T, sqlx::Error>> {
        let statement = Statement::take(query);
        Box::pin(async move {
            let statement = statement?;
            self.run(operation, |connection| call(connection, statement)).await
        })
    }

    pub(crate) fn stream(
        &mut self,
        statement: Statement<DB>,
    ) -> BoxStream<'_, Result<Step<DB>, DatabaseFailure>> {
        Box::pin(try_stream! {
            let limit = self.policy.time_for_attempt();
            let Self { lease, phase, state, seen, .. } = self;
            let (connection, unfinished) = lease.parts();
            let usable = *state != State::Over && !*unfinished;
            let connection = connection.filter(|_| usable).ok_or_else(DatabaseFailure::unusable)?;
            let mut steps = DB::fetch_many(connection, statement);
            loop {
                *unfinished = true;
                match within(limit, steps.next()).await {
                    Some(Some(Ok(step))) => {
                        // Dropped here, the driver reads the rest away before the next statement.
                        *unfinished = false;
                        yield step;
                    }
                    Some(Some(Err(error))) => {
                        Err(note::<DB>(error, *phase, unfinished, state, seen))?;
                    }
                    Some(None) => {
                        *unfinished = false;
                        break;
                    }
                    None => Err(late(limit, *phase, state, seen))?,
                }
            }
        })
    }
}

/// The connection stays marked: the server may still be at it.
fn late(
    limit: Option<Duration>,
    phase: Phase,
    state: &mut State,
    seen: &mut Option<(&'static str, Verdict)>,
) -> DatabaseFailure {
    *state = State::Over;
    let failure = DatabaseFailure::timed_out(phase, limit.unwrap_or_default());
    *seen = Some(("a statement took too long", failure.classify()));
    failure
}

/// Remembers what an error means for the rest of the transaction.
fn note<DB: Backend>(
    error: sqlx::Error,
    phase: Phase,
    unfinished: &mut bool,
    state: &mut State,
    seen: &mut Option<(&'static str, Verdict)>,
) -> DatabaseFailure {
    *unfinished = !classify::keeps_connection::<DB>(&error);
    let class = classify::class::<DB>(&error);
    // A deadlock, and a full disk under SQLite, end the transaction at the server, which then goes
    // on in autocommit: what follows would not be part of it.
    let ended = matches!(class, Some(Class::Conflict | Class::Exhausted | Class::Cancelled));
    let over = *unfinished || (ended && phase == Phase::Transaction);
    *state = if over { State::Over } else { State::Failed };
    let failure = DatabaseFailure::driver::<DB>(error, phase);
    let verdict = failure.classify();
    if verdict.effect != Verdict::permanent().effect {
        *seen = Some((class.map_or("the connection was lost", classify::words), verdict));
    }
    failure
}

pub(crate) async fn within<F: Future>(limit: Option<Duration>, work: F) -> Option<F::Output> {
    match limit {
        None => Some(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
    }
}

/// What the server answered goes on as it is; what we know better goes on in our own error.
pub(crate) fn hand_on(
    policy: &Policy,
    operation: &'static str,
    started: Instant,
    failure: DatabaseFailure,
) -> sqlx::Error {
    if !failure.is_answer() {
        return into_sqlx(ended(policy, operation, started, failure));
    }
    match failure.into_driver() {
        Ok(error) => error,
        Err(failure) => into_sqlx(ended(policy, operation, started, failure)),
    }
}

pub(crate) fn into_sqlx(error: Error) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(error))
}

fn ended(
    policy: &Policy,
    operation: &'static str,
    started: Instant,
    failure: DatabaseFailure,
) -> Error {
    let effect = failure.classify().effect;
    let elapsed = started.elapsed();
    let call = if failure.is_timed_out() {
        let (by, last) = (Decider::Timeout, Some(failure));
        CallError::Stopped { by, attempts: 1, elapsed, effect, retry_after: None, last }
    } else {
        CallError::Backend { attempts: 1, elapsed, effect, error: failure }
    };
    Error::from_call(policy.name(), operation, call)
}

impl<DB: Backend> DatabaseConnection<DB> {
    pub(crate) const fn new(wire: Wire<DB>) -> Self {
        Self(wire)
    }
}

impl<DB: Backend> Session<DB> {
    pub(crate) async fn begin(
        pool: &Pool<DB>,
        policy: &Policy,
        limit: Option<Duration>,
    ) -> Result<Self, DatabaseFailure> {
        let lease = pool.acquire(limit).await?;
        let mut session =
            Self { wire: Wire::new(lease, policy.clone(), Phase::Transaction), open: false };
        let (connection, unfinished) = session.wire.lease.parts();
        let Some(connection) = connection else { return Err(DatabaseFailure::unusable()) };
        // Dropped or failed here, the connection goes: it may have begun.
        *unfinished = true;
        DB::TransactionManager::begin(connection, DB::begin())
            .await
            .map_err(|error| DatabaseFailure::driver::<DB>(error, Phase::Acquire))?;
        *unfinished = false;
        session.open = true;
        Ok(session)
    }

    /// Makes the transaction's work last.
    ///
    /// # Errors
    /// When it was not committed, and when nobody knows whether it was
    /// ([`Error::is_outcome_unknown`]): then look before doing it again.
    ///
    /// # Cancel safety
    /// Dropped before it ends, the transaction may or may not be committed.
    pub async fn commit(mut self) -> Result<(), Error> {
        let started = Instant::now();
        let policy = self.wire.policy.clone();
        let result = self.finish(policy.time_for_attempt()).await;
        result.map_err(|failure| ended(&policy, "commit", started, failure))
    }

    /// Undoes the transaction's work; dropping the session does the same without waiting.
    ///
    /// # Errors
    /// When the connection was lost; nothing is committed then either.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.open = false;
        if self.wire.state == State::Over {
            self.wire.lease.discard();
            return Ok(());
        }
        let started = Instant::now();
        let result = self.wire.step(DB::TransactionManager::rollback).await;
        result.map_err(|failure| ended(&self.wire.policy, "rollback", started, failure))
    }

    pub(crate) async fn finish(&mut self, limit: Option<Duration>) -> Result<(), DatabaseFailure> {
        let wire = &mut self.wire;
        let (connection, unfinished) = wire.lease.parts();
        if wire.state == State::Over || *unfinished {
            return Err(match wire.seen {
                Some((words, verdict)) => DatabaseFailure::seen(words, verdict),
                None => DatabaseFailure::unusable(),
            });
        }
        let Some(connection) = connection else { return Err(DatabaseFailure::unusable()) };
        if wire.state == State::Failed && DB::COMMIT_HIDES_ERRORS {
            *unfinished = true;
            let probe = Statement::text("select 1");
            match within(limit, DB::execute(connection, probe)).await {
                Some(Ok(_)) => *unfinished = false,
                Some(Err(error)) => {
                    *unfinished = !classify::keeps_connection::<DB>(&error);
                    return Err(match classify::class::<DB>(&error) {
                        Some(Class::Aborted) => DatabaseFailure::aborted(),
                        _ => DatabaseFailure::driver::<DB>(error, Phase::Transaction),
                    });
                }
                None => {
                    let limit = limit.unwrap_or_default();
                    return Err(DatabaseFailure::timed_out(Phase::Transaction, limit));
                }
            }
        }
        self.open = false;
        *unfinished = true;
        match within(limit, DB::TransactionManager::commit(connection)).await {
            Some(Ok(())) => {
                *unfinished = false;
                Ok(())
            }
            // Whatever it was, this connection's transaction is not as sqlx believes.
            Some(Err(error)) => Err(DatabaseFailure::driver::<DB>(error, Phase::Commit)),
            None => Err(DatabaseFailure::timed_out(Phase::Commit, limit.unwrap_or_default())),
        }
    }

    /// What it met that another run of the whole transaction may not meet.
    pub(crate) const fn seen(&self) -> Option<(&'static str, Verdict)> {
        self.wire.seen
    }
}

impl<DB: Backend> Drop for Session<DB> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if self.wire.state == State::Over {
            self.wire.lease.discard();
        }
        let (connection, unfinished) = self.wire.lease.parts();
        if let Some(connection) = connection
            && !*unfinished
        {
            // Sent before the pool's next use of the connection.
            DB::TransactionManager::start_rollback(connection);
        }
    }
}

/// The same executor for both: all that differs is which field holds the wire.
macro_rules! executor {
    ($Type:ident, $wire:tt) => {
        impl<'c, DB: Backend> Executor<'c> for &'c mut $Type<DB> {
            type Database = DB;

            fn fetch_many<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                let wire = &mut self.$wire;
                Box::pin(try_stream! {
                    let statement = Statement::take(query)?;
                    let (policy, started) = (wire.policy.clone(), Instant::now());
                    let mut steps = wire.stream(statement);
                    while let Some(step) = steps.next().await {
                        yield step.map_err(|e| hand_on(&policy, "fetch", started, e))?;
                    }
                })
            }

            fn execute<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<DB::QueryResult, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                self.$wire.statement("execute", query, DB::execute)
            }

            fn fetch_all<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Vec<DB::Row>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                self.$wire.statement("fetch", query, DB::fetch_all)
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                self.$wire.statement("fetch", query, DB::fetch_optional)
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [DB::TypeInfo],
            ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
            where
                'c: 'e,
            {
                Box::pin(async move {
                    self.$wire.run("prepare", |c| DB::prepare(c, sql, parameters)).await
                })
            }

            #[doc(hidden)]
            fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, sqlx::Error>>
            where
                'c: 'e,
            {
                Box::pin(async move { self.$wire.run("describe", |c| DB::describe(c, sql)).await })
            }
        }
    };
}

executor!(DatabaseConnection, 0);
executor!(Session, wire);
