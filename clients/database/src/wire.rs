//! One connection and what was seen on it.
//!
//! sqlx may hand a connection on with a statement under way, or an open transaction of a caller who
//! has gone, and may answer Ok to the COMMIT of a transaction that has already failed. So the
//! connection is marked while a statement is under way, is given up when it was left so, and what
//! its errors mean is remembered for COMMIT and for the retry of a whole transaction.

mod record;

pub(crate) use record::{Seen, State};

use crate::{
    backend::{Backend, Begin, Call, Step},
    classify::{self, Class, DatabaseFailure, Phase},
    options::SessionOptions,
    pool::{First, Lease, Pool, Want, roll_back},
    statement::Statement,
};
use async_stream::try_stream;
use futures_core::{future::BoxFuture, stream::BoxStream};
use futures_util::StreamExt;
use mainstay_policy::{CallError, Classify, Decider, Error, Policy};
use record::{COMMIT, Record, STATEMENT, tell, told, whose};
use sqlx::{Describe, Execute, SqlStr};
use sqlx_core::transaction::TransactionManager;
use std::{
    future::Future,
    time::{Duration, Instant},
};

/// A BEGIN on a connection that was idle takes no longer, or the connection is dead.
const LONGEST_BEGIN: Duration = Duration::from_secs(1);

pub(crate) struct Wire<DB: Backend> {
    lease: Lease<DB>,
    policy: Policy,
    /// Statements on it stand for themselves: BEGIN is the caller's own.
    autocommit: bool,
    record: Record,
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
        let record = Record::new(want.read_only || pool.is_for_reading());
        Ok(Self { lease, policy: policy.clone(), autocommit: true, record })
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
            wire.record.read_only |= options.read_only;
            let used = wire.lease.link().is_some_and(|link| link.is_used());
            // Behind a pooler it waits its turn, and in a file for whoever writes.
            let at_once = used && DB::HAS_HOSTS && !pool.is_pooler();
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let limit = if at_once {
                Some(left.map_or(LONGEST_BEGIN, |l| l.min(LONGEST_BEGIN)))
            } else {
                left
            };
            // For a caller in a hurry nothing is found out.
            let enough = || policy.timeout().map_or(LONGEST_BEGIN, |t| LONGEST_BEGIN.min(t / 2));
            match wire.send_begin(limit, options).await {
                Ok(()) => return Ok(wire),
                Err(Some(error)) => {
                    if used && !classify::keeps_connection::<DB>(&error) {
                        pool.suspect();
                        continue;
                    }
                    return Err(DatabaseFailure::driver::<DB>(error, Phase::Acquire));
                }
                Err(None) if at_once && limit >= Some(enough()) => pool.evict(),
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
        self.record.phase = Phase::Transaction;
        Ok(())
    }

    /// The transaction is ours, around a statement that may as well end it: none follows.
    pub(crate) const fn of_one_statement(mut self) -> Self {
        self.autocommit = true;
        self
    }

    /// A caller holds it, after the call that got it for him has ended.
    pub(crate) const fn watched(mut self) -> Self {
        self.record.watched = true;
        self
    }

    pub(crate) const fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) const fn seen(&self) -> Seen {
        self.record.seen
    }

    pub(crate) const fn state(&self) -> State {
        self.record.state
    }

    /// As it was before a savepoint that was rolled back; what is over stays so.
    pub(crate) fn restore(&mut self, state: State) {
        if self.record.state == State::Failed {
            self.record.state = state;
            self.record.seen = None;
        }
    }

    /// Nothing is under way on it, and something may be sent.
    fn is_usable(&self) -> bool {
        self.record.state != State::Over && !self.lease.marks.unfinished
    }

    /// The connection, if it is in order, with no statement under way.
    pub(crate) fn idle_connection(&mut self) -> Option<&mut DB::Connection> {
        if self.is_usable() { self.lease.connection() } else { None }
    }

    /// The connection itself, for code that bypasses us.
    pub(crate) fn take_bare(&mut self) -> Option<DB::Connection> {
        if self.is_usable() { self.lease.take() } else { None }
    }

    /// Whether an error before has ended the transaction, where that is in doubt: what is sent then
    /// would stand for itself.
    async fn look_before_step(&mut self) {
        if !std::mem::take(&mut self.record.in_doubt) || !self.is_usable() {
            return;
        }
        let limit = self.policy.time_for_attempt();
        let (connection, marks, _) = self.lease.parts();
        let Some(connection) = connection else { return };
        marks.unfinished = true;
        let kept = within(limit, DB::kept_transaction(connection)).await;
        marks.unfinished = kept.is_none();
        if kept != Some(true) {
            self.record.state = State::Over;
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
        self.look_before_step().await;
        let limit = self.policy().time_for_attempt();
        let usable = self.is_usable();
        let Self { lease, policy, record, .. } = self;
        let (connection, marks, pool) = lease.parts();
        let connection = connection.filter(|_| usable).ok_or_else(DatabaseFailure::unusable)?;
        marks.unfinished = true;
        let watch = record.watch(policy, STATEMENT);
        let failure = match within(limit, call(connection)).await {
            Some(Ok(value)) => {
                marks.at_rest();
                record.succeeded();
                told(watch);
                return Ok(value);
            }
            Some(Err(error)) => record.failed(error, marks, pool),
            None => record.late(policy, limit),
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

    /// A statement, and COMMIT where we have wrapped it in a transaction. `split` tells the value,
    /// and whether rows are still to come.
    pub(crate) async fn whole<T, U>(
        &mut self,
        statement: Statement<DB>,
        call: Call<DB, T>,
        split: fn(T) -> (U, bool),
    ) -> Result<U, DatabaseFailure> {
        let statement = self.prepared(statement)?;
        let (value, rest) = split(self.step(|connection| call(connection, statement)).await?);
        self.lease.marks.rest = rest;
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

    /// What the text of a statement means for what follows it, and for those who have this connection
    /// next.
    fn prepared(&mut self, statement: Statement<DB>) -> Result<Statement<DB>, DatabaseFailure> {
        if statement.ends_transaction() {
            if !self.autocommit {
                return Err(DatabaseFailure::ends_transaction());
            }
            // No transaction of ours around it would undo it.
            self.record.phase = Phase::Statement;
        }
        if statement.changes_session(self.autocommit) {
            self.lease.marks.changed = true;
        }
        Ok(if self.lease.pool().is_pooler() { statement.unnamed() } else { statement })
    }

    /// As an sqlx executor: one statement.
    pub(crate) fn statement<'e, 'q: 'e, 'c: 'e, T: Send + 'e, U: Send + 'e, Q>(
        &'c mut self,
        query: Q,
        call: Call<DB, T>,
        split: fn(T) -> (U, bool),
    ) -> BoxFuture<'e, Result<U, sqlx::Error>>
    where
        Q: 'q + Execute<'q, DB>,
    {
        let statement = Statement::take(query, DB::DIALECT);
        Box::pin(async move {
            let started = Instant::now();
            let done = match self.prepared(statement?) {
                Ok(statement) => self.step(|connection| call(connection, statement)).await,
                Err(refused) => Err(refused),
            };
            match done {
                Ok(value) => {
                    let (value, rest) = split(value);
                    self.lease.marks.rest = rest;
                    Ok(value)
                }
                Err(failure) => {
                    self.let_go();
                    Err(hand_on(&self.policy, started, failure))
                }
            }
        })
    }

    /// As an sqlx executor: all of a statement's rows.
    pub(crate) fn stream<'e, 'q: 'e, 'c: 'e, Q: 'q + Execute<'q, DB>>(
        &'c mut self,
        query: Q,
    ) -> BoxStream<'e, Result<Step<DB>, sqlx::Error>> {
        let (statement, policy) = (Statement::take(query, DB::DIALECT), self.policy.clone());
        Box::pin(try_stream! {
            let started = Instant::now();
            let mut steps = self.steps(statement?);
            while let Some(step) = steps.next().await {
                yield step.map_err(|failure| hand_on(&policy, started, failure))?;
            }
        })
    }

    /// As an sqlx executor.
    pub(crate) fn prepare<'e, 'c: 'e>(
        &'c mut self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>> {
        Box::pin(async move {
            let (policy, started) = (self.policy.clone(), Instant::now());
            let prepared = match self.may_name() {
                Ok(()) => self.step(|c| DB::prepare(c, sql, parameters)).await,
                Err(refused) => Err(refused),
            };
            prepared.map_err(|failure| hand_on(&policy, started, failure))
        })
    }

    /// As an sqlx executor.
    pub(crate) fn describe<'e, 'c: 'e>(
        &'c mut self,
        sql: SqlStr,
    ) -> BoxFuture<'e, Result<Describe<DB>, sqlx::Error>> {
        Box::pin(async move {
            let (policy, started) = (self.policy.clone(), Instant::now());
            let described = match self.may_name() {
                Ok(()) => self.step(|c| DB::describe(c, sql)).await,
                Err(refused) => Err(refused),
            };
            described.map_err(|failure| hand_on(&policy, started, failure))
        })
    }

    /// A statement with a name stays on a connection of the server's, which behind a pooler is
    /// everybody's.
    fn may_name(&self) -> Result<(), DatabaseFailure> {
        if self.lease.pool().is_pooler() { Err(DatabaseFailure::names_nothing()) } else { Ok(()) }
    }

    /// All of a statement's rows.
    pub(crate) fn steps(
        &mut self,
        statement: Statement<DB>,
    ) -> BoxStream<'_, Result<Step<DB>, DatabaseFailure>> {
        Box::pin(try_stream! {
            let statement = self.prepared(statement)?;
            self.look_before_step().await;
            let usable = self.is_usable();
            let ended = {
                let Self { lease, policy, record, .. } = &mut *self;
                let (connection, marks, pool) = lease.parts();
                let connection =
                    connection.filter(|_| usable).ok_or_else(DatabaseFailure::unusable)?;
                let mut steps = DB::fetch_many(connection, statement);
                // Its first row is its answer.
                let mut watch = record.watch(policy, STATEMENT);
                let failure = loop {
                    marks.unfinished = true;
                    // Of a deadline around it less is left with each row.
                    let limit = policy.time_for_attempt();
                    match within(limit, steps.next()).await {
                        Some(Some(Ok(step))) => {
                            // Dropped here, the driver reads the rest away before a session's next
                            // statement.
                            (marks.unfinished, marks.streaming) = (false, true);
                            told(watch.take());
                            yield step;
                        }
                        Some(Some(Err(error))) => break record.failed(error, marks, pool),
                        Some(None) => {
                            marks.at_rest();
                            record.succeeded();
                            told(watch.take());
                            return;
                        }
                        None => break record.late(policy, limit),
                    }
                };
                // That of a later row is news again.
                tell(watch.take().or_else(|| record.watch(policy, STATEMENT)), &failure);
                failure
            };
            self.let_go();
            Err(ended)?;
        })
    }

    /// COMMIT, once. Refused when it would lie.
    pub(crate) async fn commit(&mut self, limit: Option<Duration>) -> Result<(), DatabaseFailure> {
        if !self.is_usable() {
            return Err(self.over());
        }
        let limit = self.look_before_commit(limit).await?;
        if limit.is_some_and(|limit| limit.is_zero()) {
            // Sent now, nobody would wait for its answer; not sent, it is known not to have happened.
            let late = DatabaseFailure::timed_out(Phase::Transaction, Duration::ZERO);
            return Err(late.out_of_time(whose(&self.policy, Duration::ZERO)));
        }
        let Self { lease, policy, record, .. } = self;
        let (connection, marks, pool) = lease.parts();
        let Some(connection) = connection else { return Err(DatabaseFailure::unusable()) };
        (marks.open, marks.unfinished, marks.quiet) = (false, true, true);
        let watch = record.watch(policy, COMMIT);
        let commit = async {
            // The driver would release a savepoint that was forgotten, and call that done.
            while DB::TransactionManager::get_transaction_depth(connection) > 1 {
                DB::TransactionManager::commit(connection).await?;
            }
            DB::TransactionManager::commit(connection).await
        };
        let failure = match within(limit, commit).await {
            Some(Ok(())) => {
                marks.at_rest();
                marks.quiet = false;
                told(watch);
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
                if record.watched { late.out_of_time(whose(policy, limit)) } else { late }
            }
        };
        tell(watch, &failure);
        Err(failure)
    }

    fn over(&self) -> DatabaseFailure {
        match self.record.seen {
            Some((words, verdict)) => DatabaseFailure::seen(words, verdict),
            None => DatabaseFailure::unusable(),
        }
    }

    /// Whether a statement's error has ended the transaction, where COMMIT would not say so. Rows
    /// that are still to come are read away here: COMMIT would wait for them, and if that took too
    /// long, nobody would know whether it was sent. Returns the time that is left.
    async fn look_before_commit(
        &mut self,
        limit: Option<Duration>,
    ) -> Result<Option<Duration>, DatabaseFailure> {
        let hidden = self.record.state == State::Failed && DB::COMMIT_HIDES_ERRORS;
        let marks = self.lease.marks;
        let ask = hidden || marks.rest || marks.streaming;
        if !ask && !self.record.in_doubt {
            return Ok(limit);
        }
        let began = Instant::now();
        self.look_before_step().await;
        if !self.is_usable() {
            return Err(self.over());
        }
        let left = || limit.map(|limit| limit.saturating_sub(began.elapsed()));
        if !ask {
            return Ok(left());
        }
        let (connection, marks, _) = self.lease.parts();
        let Some(connection) = connection else { return Err(DatabaseFailure::unusable()) };
        marks.unfinished = true;
        match within(left(), DB::execute(connection, Statement::text("select 1"))).await {
            Some(Ok(_)) => {
                marks.at_rest();
                Ok(left())
            }
            Some(Err(error)) => {
                marks.unfinished = !classify::keeps_connection::<DB>(&error);
                Err(match (classify::class::<DB>(&error), self.record.seen) {
                    (Some(Class::Aborted), Some((words, verdict))) => {
                        DatabaseFailure::seen(words, verdict)
                    }
                    (Some(Class::Aborted), None) => DatabaseFailure::aborted(),
                    _ => DatabaseFailure::driver::<DB>(error, Phase::Transaction),
                })
            }
            None => {
                let limit = limit.unwrap_or_default();
                Err(DatabaseFailure::timed_out(Phase::Transaction, limit))
            }
        }
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), DatabaseFailure> {
        self.look_before_step().await;
        if self.record.state == State::Over {
            self.lease.discard();
            return Ok(());
        }
        self.step(roll_back::<DB>).await?;
        self.lease.marks.open = false;
        Ok(())
    }
}

impl<DB: Backend> Drop for Wire<DB> {
    fn drop(&mut self) {
        if self.record.state == State::Over {
            // What is under way is cancelled, what is not has nothing to be rolled back.
            self.lease.marks.changed = true;
        }
    }
}

pub(crate) async fn within<F: Future>(limit: Option<Duration>, work: F) -> Option<F::Output> {
    match limit {
        None => Some(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.ok(),
    }
}

/// What the server answered goes on as it is; what we know better goes on in our own error.
pub(crate) fn hand_on(policy: &Policy, started: Instant, failure: DatabaseFailure) -> sqlx::Error {
    let ours = |failure| into_sqlx(ended(policy, "statement", started, failure));
    if failure.is_answer() { failure.into_driver().unwrap_or_else(ours) } else { ours(failure) }
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
