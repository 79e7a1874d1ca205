//! One connection and what was seen on it.
//!
//! sqlx may hand a connection on with a statement under way, or an open transaction of a caller who
//! has gone, and may answer Ok to the COMMIT of a transaction that has already failed. So the
//! connection is marked while a statement is under way, is given up when it was left so, and what
//! its errors mean is remembered for COMMIT and for the retry of a whole transaction.

use crate::{
    backend::{Backend, Begin, Call, Step},
    classify::{self, Class, DatabaseFailure, Phase},
    options::SessionOptions,
    pool::{First, Lease, Marks, Pool, Want},
    statement::Statement,
};
use async_stream::try_stream;
use futures_core::{future::BoxFuture, stream::BoxStream};
use futures_util::StreamExt;
use mainstay_policy::{
    CallError, Classify, Decider, Effect, Error, Idempotency, Operation, Outcome, Policy, Verdict,
    Watch,
};
use sqlx::Execute;
use sqlx_core::transaction::TransactionManager;
use std::{
    future::Future,
    time::{Duration, Instant},
};

/// A BEGIN on a connection that was idle takes no longer, or the connection is dead.
const LONGEST_BEGIN: Duration = Duration::from_secs(1);

/// Of a connection that callers hold, to the breaker.
const STATEMENT: Operation = Operation::new("statement", Idempotency::Unsafe);
const COMMIT: Operation = Operation::new("commit", Idempotency::Unsafe);

/// What a statement's failure means for the rest of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Clean,
    /// A statement failed; the server decides at COMMIT whether it matters.
    Failed,
    /// The transaction is gone, or its connection: nothing more may be sent.
    Over,
}

/// The last error that another run of the transaction may not meet, in words.
pub(crate) type Seen = Option<(&'static str, Verdict)>;

pub(crate) struct Wire<DB: Backend> {
    lease: Lease<DB>,
    policy: Policy,
    phase: Phase,
    /// The server was asked to refuse writes, so that doing so says nothing about it.
    read_only: bool,
    /// Statements on it stand for themselves: BEGIN is the caller's own.
    autocommit: bool,
    /// The breaker learns from each statement; elsewhere the whole call tells it.
    watched: bool,
    state: State,
    seen: Seen,
}

impl<DB: Backend> Wire<DB> {
    /// A connection in autocommit.
    pub(crate) async fn acquire(
        pool: &Pool<DB>,
        policy: &Policy,
        limit: Option<Duration>,
        want: Want,
    ) -> Result<Self, DatabaseFailure> {
        let lease = pool.acquire(limit, want).await?;
        Ok(Self {
            lease,
            policy: policy.clone(),
            phase: Phase::Statement,
            read_only: want.read_only,
            autocommit: true,
            watched: false,
            state: State::Clean,
            seen: None,
        })
    }

    /// A connection in a transaction. A connection that proves dead at BEGIN is left for another:
    /// nothing was done on it.
    pub(crate) async fn begin(
        pool: &Pool<DB>,
        policy: &Policy,
        limit: Option<Duration>,
        options: &SessionOptions,
    ) -> Result<Self, DatabaseFailure> {
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            // In a pool of the caller's own, or behind a pooler, only the transaction says so.
            let switched = options.read_only && !pool.reads_in_transaction();
            let want = Want { read_only: switched, first: First::Begin };
            let mut wire = Self::acquire(pool, policy, left, want).await?;
            wire.autocommit = false;
            wire.read_only = options.read_only;
            let used = wire.lease.link().is_some_and(|link| link.is_used());
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let limit = if used {
                Some(left.map_or(LONGEST_BEGIN, |l| l.min(LONGEST_BEGIN)))
            } else {
                left
            };
            match wire.send_begin(limit, options).await {
                Ok(()) => return Ok(wire),
                Err(Some(error)) => {
                    if used && !classify::keeps_connection::<DB>(&error) {
                        pool.suspect();
                        continue;
                    }
                    return Err(DatabaseFailure::driver::<DB>(error, Phase::Acquire));
                }
                Err(None) if used => pool.evict(),
                Err(None) => {
                    let limit = limit.unwrap_or_default();
                    return Err(DatabaseFailure::timed_out(Phase::Acquire, limit));
                }
            }
        }
    }

    /// `Err(None)`: no answer in time.
    async fn send_begin(
        &mut self,
        limit: Option<Duration>,
        options: &SessionOptions,
    ) -> Result<(), Option<sqlx::Error>> {
        let Begin { before, statement } = DB::begin(options);
        // Dropped or failed here, the connection goes: it may have begun. Nothing runs there that
        // would have to be cancelled.
        self.lease.marks.unfinished = true;
        self.lease.marks.quiet = true;
        let Some(connection) = self.lease.connection() else { return Err(None) };
        let begin = async {
            if let Some(before) = before {
                DB::execute(connection, Statement::own(before)).await?;
            }
            DB::TransactionManager::begin(connection, statement).await
        };
        within(limit, begin).await.ok_or(None)?.map_err(Some)?;
        self.lease.marks.unfinished = false;
        self.lease.marks.quiet = false;
        self.lease.marks.open = true;
        self.phase = Phase::Transaction;
        Ok(())
    }

    /// A caller holds it, after the call that got it for him has ended.
    pub(crate) const fn watched(mut self) -> Self {
        self.watched = true;
        self
    }

    pub(crate) const fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) const fn seen(&self) -> Seen {
        self.seen
    }

    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// As it was before a savepoint that was rolled back; what is over stays so.
    pub(crate) fn restore(&mut self, state: State) {
        if self.state == State::Failed {
            self.state = state;
            self.seen = None;
        }
    }

    /// The connection, if it is in order, with no statement under way.
    pub(crate) fn idle_connection(&mut self) -> Option<&mut DB::Connection> {
        let usable = self.state != State::Over && !self.lease.marks.unfinished;
        self.lease.connection().filter(|_| usable)
    }

    /// The connection itself, for code that bypasses us.
    pub(crate) fn take_bare(&mut self) -> Option<DB::Connection> {
        if self.state == State::Over || self.lease.marks.unfinished {
            None
        } else {
            self.lease.take()
        }
    }

    /// What the text of a statement means for those who have this connection next.
    fn look_at(&mut self, statement: &Statement<DB>) {
        if statement.changes_session(self.autocommit) {
            self.lease.marks.changed = true;
        }
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
        let (phase, read_only) = (self.phase, self.read_only);
        let Self { lease, policy, watched, state, seen, .. } = self;
        let (connection, marks, pool) = lease.parts();
        let usable = *state != State::Over && !marks.unfinished;
        let connection = connection.filter(|_| usable).ok_or_else(DatabaseFailure::unusable)?;
        marks.unfinished = true;
        let watch = watched.then(|| policy.watch(STATEMENT));
        let failure = match within(limit, call(connection)).await {
            Some(Ok(value)) => {
                marks.unfinished = false;
                // What was seen before did not matter to the caller.
                *seen = None;
                if let Some(watch) = watch {
                    watch.succeeded();
                }
                return Ok(value);
            }
            Some(Err(error)) => note::<DB>(error, phase, read_only, marks, state, seen, pool),
            None => late(policy, limit, phase, state, seen),
        };
        tell(watch, &failure);
        Err(failure)
    }

    /// After a failure: what the server may still be at is cancelled now, not when its owner lets go.
    fn let_go(&mut self) {
        if self.lease.marks.unfinished {
            self.lease.abandon();
        }
    }

    pub(crate) async fn run<'c, T, F>(
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

    /// A statement, and COMMIT where we have wrapped it in a transaction.
    pub(crate) async fn whole<T>(
        &mut self,
        statement: Statement<DB>,
        call: Call<DB, T>,
    ) -> Result<T, DatabaseFailure> {
        let statement = self.prepare(statement);
        let value = self.step(|connection| call(connection, statement)).await?;
        self.end().await?;
        Ok(value)
    }

    /// COMMIT, if this one statement was wrapped in a transaction.
    pub(crate) async fn end(&mut self) -> Result<(), DatabaseFailure> {
        if self.lease.marks.open {
            self.commit(self.policy.time_for_attempt()).await
        } else {
            Ok(())
        }
    }

    fn prepare(&mut self, statement: Statement<DB>) -> Statement<DB> {
        self.look_at(&statement);
        if self.lease.pool().is_pooler() { statement.unnamed() } else { statement }
    }

    pub(crate) fn statement<'e, 'q: 'e, 'c: 'e, T: Send + 'e, Q: 'q + Execute<'q, DB>>(
        &'c mut self,
        operation: &'static str,
        query: Q,
        call: Call<DB, T>,
    ) -> BoxFuture<'e, Result<T, sqlx::Error>> {
        let statement = Statement::take(query);
        Box::pin(async move {
            let statement = self.prepare(statement?);
            let started = Instant::now();
            self.step(|connection| call(connection, statement)).await.map_err(|failure| {
                self.let_go();
                hand_on(&self.policy, operation, started, failure)
            })
        })
    }

    pub(crate) fn stream(
        &mut self,
        statement: Statement<DB>,
    ) -> BoxStream<'_, Result<Step<DB>, DatabaseFailure>> {
        Box::pin(try_stream! {
            let statement = self.prepare(statement);
            let limit = self.policy.time_for_attempt();
            let phase = self.phase;
            let ended = {
                let Self { lease, policy, watched, state, seen, read_only, .. } = &mut *self;
                let (connection, marks, pool) = lease.parts();
                let usable = *state != State::Over && !marks.unfinished;
                let connection =
                    connection.filter(|_| usable).ok_or_else(DatabaseFailure::unusable)?;
                let mut steps = DB::fetch_many(connection, statement);
                // Its first row is its answer.
                let mut watch = watched.then(|| policy.watch(STATEMENT));
                let failure = loop {
                    marks.unfinished = true;
                    match within(limit, steps.next()).await {
                        Some(Some(Ok(step))) => {
                            // Dropped here, the driver reads the rest away before the next statement.
                            marks.unfinished = false;
                            if let Some(watch) = watch.take() {
                                watch.succeeded();
                            }
                            yield step;
                        }
                        Some(Some(Err(error))) => {
                            break Some(note::<DB>(
                                error, phase, *read_only, marks, state, seen, pool,
                            ));
                        }
                        Some(None) => {
                            marks.unfinished = false;
                            *seen = None;
                            if let Some(watch) = watch.take() {
                                watch.succeeded();
                            }
                            break None;
                        }
                        None => break Some(late(policy, limit, phase, state, seen)),
                    }
                };
                if let Some(failure) = &failure {
                    let of_a_later_row = || watched.then(|| policy.watch(STATEMENT));
                    tell(watch.take().or_else(of_a_later_row), failure);
                }
                failure
            };
            if let Some(failure) = ended {
                self.let_go();
                Err(failure)?;
            }
        })
    }

    /// COMMIT, once. Refused when it would lie.
    pub(crate) async fn commit(&mut self, limit: Option<Duration>) -> Result<(), DatabaseFailure> {
        let (connection, marks, _) = self.lease.parts();
        if self.state == State::Over || marks.unfinished {
            return Err(match self.seen {
                Some((words, verdict)) => DatabaseFailure::seen(words, verdict),
                None => DatabaseFailure::unusable(),
            });
        }
        let Some(connection) = connection else { return Err(DatabaseFailure::unusable()) };
        if self.state == State::Failed && DB::COMMIT_HIDES_ERRORS {
            marks.unfinished = true;
            let probe = Statement::text("select 1");
            match within(limit, DB::execute(connection, probe)).await {
                Some(Ok(_)) => marks.unfinished = false,
                Some(Err(error)) => {
                    marks.unfinished = !classify::keeps_connection::<DB>(&error);
                    return Err(match (classify::class::<DB>(&error), self.seen) {
                        (Some(Class::Aborted), Some((words, verdict))) => {
                            DatabaseFailure::seen(words, verdict)
                        }
                        (Some(Class::Aborted), None) => DatabaseFailure::aborted(),
                        _ => DatabaseFailure::driver::<DB>(error, Phase::Transaction),
                    });
                }
                None => {
                    let limit = limit.unwrap_or_default();
                    return Err(DatabaseFailure::timed_out(Phase::Transaction, limit));
                }
            }
        }
        self.lease.marks.open = false;
        self.lease.marks.unfinished = true;
        self.lease.marks.quiet = true;
        let Self { lease, policy, watched, .. } = self;
        let (connection, marks, pool) = lease.parts();
        let Some(connection) = connection else { return Err(DatabaseFailure::unusable()) };
        let watch = watched.then(|| policy.watch(COMMIT));
        let commit = async {
            // The driver would release a savepoint that was forgotten, and call that done.
            while DB::TransactionManager::get_transaction_depth(connection) > 1 {
                DB::TransactionManager::commit(connection).await?;
            }
            DB::TransactionManager::commit(connection).await
        };
        let failure = match within(limit, commit).await {
            Some(Ok(())) => {
                marks.unfinished = false;
                marks.quiet = false;
                if let Some(watch) = watch {
                    watch.succeeded();
                }
                return Ok(());
            }
            // Whatever it was, this connection's transaction is not as sqlx believes.
            Some(Err(error)) => {
                if !classify::keeps_connection::<DB>(&error) {
                    pool.suspect();
                }
                DatabaseFailure::driver::<DB>(error, Phase::Commit)
            }
            None => {
                let limit = limit.unwrap_or_default();
                let late = DatabaseFailure::timed_out(Phase::Commit, limit);
                if *watched { late.out_of_time(whose(policy, limit)) } else { late }
            }
        };
        tell(watch, &failure);
        Err(failure)
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), DatabaseFailure> {
        if self.state == State::Over {
            self.lease.discard();
            return Ok(());
        }
        self.step(DB::TransactionManager::rollback).await?;
        self.lease.marks.open = false;
        Ok(())
    }
}

impl<DB: Backend> Drop for Wire<DB> {
    fn drop(&mut self) {
        if self.state == State::Over {
            // What is under way is cancelled, what is not has nothing to be rolled back.
            self.lease.marks.changed = true;
        }
    }
}

/// What a failure means for the breaker.
fn tell(watch: Option<Watch<'_>>, failure: &DatabaseFailure) {
    let Some(watch) = watch else { return };
    let verdict = failure.classify();
    if verdict.outcome == Outcome::Neutral && failure.is_timed_out() {
        // The caller gave it up: slow perhaps, and nothing more.
        drop(watch);
    } else {
        watch.failed(verdict, failure.code());
    }
}

/// The connection stays marked: the server may still be at it.
fn late(
    policy: &Policy,
    limit: Option<Duration>,
    phase: Phase,
    state: &mut State,
    seen: &mut Seen,
) -> DatabaseFailure {
    *state = State::Over;
    let limit = limit.unwrap_or_default();
    let failure = DatabaseFailure::timed_out(phase, limit).out_of_time(whose(policy, limit));
    *seen = Some(("a statement took too long", failure.classify()));
    failure
}

/// Remembers what an error means for the rest of the transaction.
fn note<DB: Backend>(
    error: sqlx::Error,
    phase: Phase,
    read_only: bool,
    marks: &mut Marks,
    state: &mut State,
    seen: &mut Seen,
    pool: &Pool<DB>,
) -> DatabaseFailure {
    let class = classify::class::<DB>(&error);
    if read_only && class == Some(Class::WrongNode) {
        // As the caller asked.
        marks.unfinished = false;
        *state = State::Failed;
        *seen = None;
        return DatabaseFailure::read_only(error);
    }
    marks.unfinished = !classify::keeps_connection::<DB>(&error);
    // What has answered, or is lost, is not cancelled.
    marks.quiet = marks.unfinished;
    let ended = match &error {
        sqlx::Error::Database(e) => DB::ends_transaction(e.as_ref()),
        _ => false,
    };
    let over = marks.unfinished || (ended && phase == Phase::Transaction);
    *state = if over { State::Over } else { State::Failed };
    match class {
        // The server has changed its part: no connection to it is of use.
        Some(Class::WrongNode) => pool.evict(),
        // Those that are idle may be gone as well.
        _ if marks.unfinished => pool.suspect(),
        _ => {}
    }
    let failure = DatabaseFailure::driver::<DB>(error, phase);
    let verdict = failure.classify();
    match (class, verdict.effect) {
        // It says that something failed before, not what.
        (Some(Class::Aborted), _) => {}
        (_, Effect::Permanent) => *seen = None,
        _ => *seen = Some((class.map_or("the connection was lost", classify::words), verdict)),
    }
    failure
}

/// Whether such a limit is the policy's own, or what was left of the deadline around it.
fn whose(policy: &Policy, limit: Duration) -> Decider {
    let own = policy.timeout().is_some_and(|timeout| limit >= timeout);
    if own { Decider::Timeout } else { Decider::Deadline }
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

pub(crate) fn ended(
    policy: &Policy,
    operation: &'static str,
    started: Instant,
    failure: DatabaseFailure,
) -> Error {
    let effect = failure.classify().effect;
    let elapsed = started.elapsed();
    let call = if failure.is_timed_out() {
        let by = failure.decider().unwrap_or(Decider::Timeout);
        let last = Some(failure);
        CallError::Stopped { by, attempts: 1, elapsed, effect, retry_after: None, last }
    } else {
        CallError::Backend { attempts: 1, elapsed, effect, error: failure }
    };
    Error::from_call(policy.name(), operation, call)
}
