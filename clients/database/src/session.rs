//! What callers hold: a connection, a transaction, a savepoint in it. Each is an sqlx executor.

use crate::{
    backend::Backend,
    classify::DatabaseFailure,
    options::SessionOptions,
    pool::Pool,
    wire::{Seen, State, Wire, ended},
};
use mainstay_policy::{Error, Policy};
use sqlx_core::transaction::TransactionManager;
use std::time::{Duration, Instant};

/// One connection outside any transaction: every statement stands for itself.
///
/// An sqlx executor, as `&mut connection`. Statements are not repeated; each is bounded by the
/// policy's timeout, and cancelled on the server when it is dropped or its time is up. A connection
/// on which a statement changed the session, as `set`, `listen` or a BEGIN of the caller's own do,
/// is closed when it is dropped: the next caller gets another one. That is known by a statement's
/// words. What a function does is not: what `pg_advisory_lock` or `get_lock` holds, or
/// `set_config` has set, the next caller meets, unless it is given back before the drop;
/// `pg_advisory_xact_lock` in a session gives itself back.
pub struct DatabaseConnection<DB: Backend>(Wire<DB>);

/// A transaction: [`commit`](Session::commit) it, or it is rolled back when dropped.
///
/// An sqlx executor, as `&mut session`. Statements are not repeated; each is bounded by the policy's
/// timeout and the deadline around it, and cancelled on the server when it is dropped or its time
/// is up. After a statement that did not end, the session refuses further ones.
///
/// A statement that would end the transaction is refused: COMMIT, ROLLBACK and BEGIN in text, and on
/// MariaDB and MySQL what they commit before, as `alter`, `create`, `drop` and `truncate`, and
/// `execute`, whose text may be one of these. Take [`acquire`](crate::DatabaseClient::acquire) for
/// those. What procedures do is not looked into.
pub struct Session<DB: Backend>(Wire<DB>);

/// A part of a transaction that can be undone on its own: [`release`](Savepoint::release) it, or it
/// is rolled back when dropped, together with any error in it.
///
/// An sqlx executor, as `&mut savepoint`.
#[must_use = "dropped, its work is undone"]
pub struct Savepoint<'s, DB: Backend> {
    wire: &'s mut Wire<DB>,
    open: bool,
    /// Of the transaction when it began.
    before: State,
}

impl<DB: Backend> DatabaseConnection<DB> {
    pub(crate) const fn new(wire: Wire<DB>) -> Self {
        Self(wire)
    }

    pub(crate) const fn wire(&mut self) -> &mut Wire<DB> {
        &mut self.0
    }
}

impl<DB: Backend> Session<DB> {
    pub(crate) async fn begin(
        pool: &Pool<DB>,
        policy: &Policy,
        limit: Option<Duration>,
        options: &SessionOptions,
    ) -> Result<Self, DatabaseFailure> {
        Wire::begin(pool, policy, limit, options).await.map(Self)
    }

    /// The breaker learns from each of its statements.
    pub(crate) fn watched(self) -> Self {
        Self(self.0.watched())
    }

    pub(crate) const fn wire(&mut self) -> &mut Wire<DB> {
        &mut self.0
    }

    /// Begins a part that can be undone on its own.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mainstay_database::Error> {
    /// use mainstay_database::{SqliteDatabase, sqlx};
    ///
    /// let db = SqliteDatabase::builder().name("savepoint-example").url("sqlite::memory:").build()?;
    /// sqlx::query("create table t (id integer primary key)").execute(&db).await?;
    /// let mut session = db.session().await?;
    /// sqlx::query("insert into t values (1)").execute(&mut session).await?;
    /// let mut part = session.savepoint().await?;
    /// match sqlx::query("insert into t values (1)").execute(&mut part).await {
    ///     Ok(_) => part.release().await?,
    ///     Err(_) => part.rollback().await?, // the first row stays
    /// }
    /// session.commit().await?;
    /// let rows: i64 = sqlx::query_scalar("select count(*) from t").fetch_one(&db).await?;
    /// assert_eq!(rows, 1);
    /// # Ok(()) }
    /// # #[cfg(not(feature = "sqlite"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When the transaction is over, or its connection was lost.
    ///
    /// # Cancel safety
    /// Dropped before it ends, the session refuses everything after it.
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_, DB>, Error> {
        Savepoint::begin(&mut self.0).await
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
        let limit = self.0.policy().time_for_attempt();
        let result = self.0.commit(limit).await;
        result.map_err(|failure| ended(self.0.policy(), "commit", started, failure))
    }

    /// Undoes the transaction's work; dropping the session does the same without waiting.
    ///
    /// # Errors
    /// When the connection was lost; nothing is committed then either.
    ///
    /// # Cancel safety
    /// Dropped, the connection is closed, which undoes the work too.
    pub async fn rollback(mut self) -> Result<(), Error> {
        let started = Instant::now();
        let result = self.0.rollback().await;
        result.map_err(|failure| ended(self.0.policy(), "rollback", started, failure))
    }

    pub(crate) async fn finish(&mut self, limit: Option<Duration>) -> Result<(), DatabaseFailure> {
        self.0.commit(limit).await
    }

    /// What it met that another run of the whole transaction may not meet.
    pub(crate) const fn seen(&self) -> Seen {
        self.0.seen()
    }
}

#[cfg(feature = "postgres")]
impl Session<sqlx::Postgres> {
    /// The number that PostgreSQL gave this transaction, for
    /// [`commit_outcome`](crate::DatabaseClient::commit_outcome) after a COMMIT whose answer was
    /// lost. One round trip.
    ///
    /// # Errors
    /// As a statement in this session.
    pub async fn transaction_id(&mut self) -> Result<String, Error> {
        let id = sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(self).await?;
        Ok(id)
    }
}

impl<'s, DB: Backend> Savepoint<'s, DB> {
    async fn begin(wire: &'s mut Wire<DB>) -> Result<Self, Error> {
        let (before, started) = (wire.state(), Instant::now());
        let begun = wire.step(|connection| DB::TransactionManager::begin(connection, None)).await;
        begun.map_err(|failure| ended(wire.policy(), "savepoint", started, failure))?;
        Ok(Self { wire, open: true, before })
    }

    pub(crate) const fn wire(&mut self) -> &mut Wire<DB> {
        self.wire
    }

    /// Begins a part of this part.
    ///
    /// # Errors
    /// As [`Session::savepoint`].
    pub async fn savepoint(&mut self) -> Result<Savepoint<'_, DB>, Error> {
        Savepoint::begin(self.wire).await
    }

    /// Makes its work part of the transaction.
    ///
    /// # Errors
    /// When a statement in it failed, or the connection was lost.
    ///
    /// # Cancel safety
    /// Dropped before it ends, the session refuses everything after it.
    pub async fn release(mut self) -> Result<(), Error> {
        let started = Instant::now();
        let released = self.wire.step(DB::TransactionManager::commit).await;
        // After an error it is still there, and is rolled back.
        self.open = released.is_err();
        released.map_err(|failure| ended(self.wire.policy(), "release", started, failure))
    }

    /// Undoes its work and forgets its errors; dropping it does the same at the next statement.
    ///
    /// # Errors
    /// When the connection was lost.
    ///
    /// # Cancel safety
    /// Dropped before it ends, the session refuses everything after it.
    pub async fn rollback(mut self) -> Result<(), Error> {
        let started = Instant::now();
        self.open = false;
        let result = self.wire.step(DB::TransactionManager::rollback).await;
        result.map_err(|failure| ended(self.wire.policy(), "rollback", started, failure))?;
        self.wire.restore(self.before);
        Ok(())
    }
}

impl<DB: Backend> Drop for Savepoint<'_, DB> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if let Some(connection) = self.wire.idle_connection() {
            // Sent before whatever comes next on this connection.
            DB::TransactionManager::start_rollback(connection);
            self.wire.restore(self.before);
        }
    }
}
