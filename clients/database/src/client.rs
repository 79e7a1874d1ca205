//! The client: cheap to clone, and an sqlx executor that repeats what may be repeated.

use crate::{
    backend::{Backend, Call, Options, Step, Tuning},
    classify::{DatabaseFailure, Phase},
    config::DatabaseClientBuilder,
    pool::{Limits, Pool},
    session::{DatabaseConnection, Session, Wire, hand_on, into_sqlx},
    statement::Statement,
};
use async_stream::try_stream;
use futures_core::{future::BoxFuture, stream::BoxStream};
use futures_util::StreamExt;
use mainstay_policy::{Attempt, CallError, Error, Idempotency, Operation, PerRuntime, Policy};
use sqlx::{Describe, Either, Execute, Executor, SqlStr};
use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

struct Inner<DB: Backend> {
    options: Options<DB>,
    tuning: Tuning,
    limits: Limits,
    policy: Policy,
    pools: PerRuntime<Pool<DB>>,
}

/// A SQL client; clones share everything.
///
/// `&client` is an sqlx executor: `sqlx::query("select 1").fetch_one(&client)`. Each statement is
/// bounded, and repeated if it never reached the server, if the server rolled it back, or if it is
/// a SELECT on its own. Name a write that may be done twice with [`idempotent`].
///
/// As an executor it speaks [`sqlx::Error`]: what the server answered comes as sqlx gives it; what
/// a policy decided, and what nobody knows, is wrapped, and `?` into [`Error`] unwraps it.
///
/// [`idempotent`]: DatabaseClient::idempotent
pub struct DatabaseClient<DB: Backend>(Arc<Inner<DB>>);

/// A client for PostgreSQL.
#[cfg(feature = "postgres")]
pub type PgDatabase = DatabaseClient<sqlx::Postgres>;
/// A client for MariaDB and MySQL.
#[cfg(feature = "mysql")]
pub type MySqlDatabase = DatabaseClient<sqlx::MySql>;
/// A client for SQLite.
#[cfg(feature = "sqlite")]
pub type SqliteDatabase = DatabaseClient<sqlx::Sqlite>;

impl<DB: Backend> Clone for DatabaseClient<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Backend> fmt::Debug for DatabaseClient<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseClient")
            .field("policy", &self.0.policy.name())
            .finish_non_exhaustive()
    }
}

impl<DB: Backend> DatabaseClient<DB> {
    /// A builder.
    pub fn builder() -> DatabaseClientBuilder<DB> {
        DatabaseClientBuilder::new()
    }

    pub(crate) fn new(
        options: Options<DB>,
        tuning: Tuning,
        limits: Limits,
        policy: Policy,
    ) -> Self {
        Self(Arc::new(Inner { options, tuning, limits, policy, pools: PerRuntime::new() }))
    }

    /// The policy, with its breaker.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// This runtime's pool; `None` outside any runtime. What goes through it has no policy.
    #[must_use]
    pub fn pool(&self) -> Option<sqlx::Pool<DB>> {
        self.own_pool().map(|pool| pool.sqlx().clone())
    }

    /// The most connections a runtime's pool holds.
    #[must_use]
    pub fn max_connections(&self) -> u32 {
        self.0.limits.max_connections
    }

    pub(crate) fn own_pool(&self) -> Option<Pool<DB>> {
        let inner = &*self.0;
        let make = || Pool::new(inner.options.clone(), inner.tuning.clone(), inner.limits);
        inner.pools.get_or_init(make)
    }

    pub(crate) fn require_pool(&self) -> Result<Pool<DB>, DatabaseFailure> {
        self.own_pool().ok_or_else(DatabaseFailure::no_runtime)
    }

    /// A view whose statements may be repeated even when their outcome is unknown.
    ///
    /// For writes that are the same done twice, such as `insert .. on conflict do nothing`:
    /// `query.execute(db.idempotent())`.
    #[must_use]
    pub fn idempotent(&self) -> Idempotent<DB> {
        Idempotent(self.clone())
    }

    /// Begins a transaction. Waits for a connection within the policy.
    ///
    /// # Errors
    /// When there is no connection: with the server's own reason, or how many are in use.
    pub async fn session(&self) -> Result<Session<DB>, Error> {
        const BEGIN: Operation = Operation::new("begin", Idempotency::Safe);
        let policy = self.policy();
        let begun = policy.run(&BEGIN, |attempt| async move {
            let pool = self.require_pool()?;
            Session::begin(&pool, policy, shorter(attempt)).await
        });
        begun.await.map_err(|error| Error::from_call(policy.name(), "begin", error))
    }

    /// One connection, in autocommit.
    ///
    /// # Errors
    /// As [`DatabaseClient::session`].
    pub async fn acquire(&self) -> Result<DatabaseConnection<DB>, Error> {
        const ACQUIRE: Operation = Operation::new("acquire", Idempotency::Safe);
        let policy = self.policy();
        let acquired = policy.run(&ACQUIRE, |attempt| async move {
            self.wire(attempt).await.map(DatabaseConnection::new)
        });
        acquired.await.map_err(|error| Error::from_call(policy.name(), "acquire", error))
    }

    /// Closes this runtime's pool, waiting no longer than this for connections in use.
    pub async fn close(&self, within: Duration) {
        if let Some(pool) = self.own_pool() {
            let _ = tokio::time::timeout(within, pool.sqlx().close()).await;
        }
    }

    async fn wire(&self, attempt: Attempt) -> Result<Wire<DB>, DatabaseFailure> {
        let lease = self.require_pool()?.acquire(shorter(attempt)).await?;
        Ok(Wire::new(lease, self.policy().clone(), Phase::Statement))
    }

    /// One statement through the policy, on a connection of its own each time.
    async fn autocommit<T, F, Fut>(
        &self,
        idempotency: Option<Idempotency>,
        statement: Statement<DB>,
        call: F,
    ) -> Result<T, sqlx::Error>
    where
        F: Fn(Wire<DB>, Statement<DB>) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, DatabaseFailure>> + Send,
        T: Send,
    {
        let select = if statement.is_select() { Idempotency::Safe } else { Idempotency::Unsafe };
        let operation = Operation::new("statement", idempotency.unwrap_or(select));
        let call = &call;
        let result = self.policy().run(&operation, move |attempt| {
            // Bound values are Send, not Sync: cloned here, outside the attempt's future.
            let statement = statement.clone();
            async move { call(self.wire(attempt).await?, statement).await }
        });
        result.await.map_err(|error| match error {
            CallError::Backend { attempts, elapsed, effect, error } if error.is_answer() => {
                error.into_driver().unwrap_or_else(|error| {
                    self.wrap(CallError::Backend { attempts, elapsed, effect, error })
                })
            }
            error => self.wrap(error),
        })
    }

    fn statement<'e, 'q: 'e, T: Send + 'e, Q: Execute<'q, DB>>(
        &self,
        idempotency: Option<Idempotency>,
        query: Q,
        call: Call<DB, T>,
    ) -> BoxFuture<'e, Result<T, sqlx::Error>> {
        let (client, statement) = (self.clone(), Statement::take(query));
        Box::pin(async move {
            let step = |mut wire: Wire<DB>, statement| async move {
                wire.step(|connection| call(connection, statement)).await
            };
            client.autocommit(idempotency, statement?, step).await
        })
    }

    fn wrap(&self, error: CallError<DatabaseFailure>) -> sqlx::Error {
        into_sqlx(Error::from_call(self.policy().name(), "statement", error))
    }

    fn stream<'e, 'q: 'e, Q>(
        &self,
        idempotency: Option<Idempotency>,
        query: Q,
    ) -> BoxStream<'e, Result<Step<DB>, sqlx::Error>>
    where
        Q: 'q + Execute<'q, DB>,
    {
        let client = self.clone();
        let statement = Statement::take(query);
        let started = Instant::now();
        Box::pin(try_stream! {
            // Repeated until its first row is there; rows once given are not taken back.
            let open = |wire, statement| async move {
                let mut rows = rows(wire, statement);
                let first = rows.next().await.transpose()?;
                Ok((first, rows))
            };
            let (first, mut rest) = client.autocommit(idempotency, statement?, open).await?;
            if let Some(first) = first {
                yield first;
            }
            while let Some(step) = rest.next().await {
                yield step.map_err(|e| hand_on(client.policy(), "fetch", started, e))?;
            }
        })
    }
}

/// The attempt's time less a little, so that our own timer, which knows the phase, ends first.
pub(crate) fn shorter(attempt: Attempt) -> Option<Duration> {
    attempt.timeout().map(|limit| limit.saturating_sub((limit / 20).min(Duration::from_millis(5))))
}

/// All rows of one statement; the connection goes along.
fn rows<DB: Backend>(
    mut wire: Wire<DB>,
    statement: Statement<DB>,
) -> BoxStream<'static, Result<Step<DB>, DatabaseFailure>> {
    Box::pin(try_stream! {
        let mut steps = wire.stream(statement);
        while let Some(step) = steps.next().await {
            yield step?;
        }
    })
}

/// See [`DatabaseClient::idempotent`].
#[derive(Debug)]
pub struct Idempotent<DB: Backend>(DatabaseClient<DB>);

macro_rules! executor {
    ($Type:ty, $idempotency:expr, |$this:ident| $client:expr) => {
        impl<'c, DB: Backend> Executor<'c> for $Type {
            type Database = DB;

            fn fetch_many<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                let $this = self;
                $client.stream($idempotency, query)
            }

            fn execute<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<DB::QueryResult, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                let $this = self;
                $client.statement($idempotency, query, DB::execute)
            }

            fn fetch_all<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Vec<DB::Row>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                let $this = self;
                $client.statement($idempotency, query, DB::fetch_all)
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Option<DB::Row>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, DB>,
            {
                let $this = self;
                $client.statement($idempotency, query, DB::fetch_optional)
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [DB::TypeInfo],
            ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>>
            where
                'c: 'e,
            {
                let $this = self;
                let client = $client.clone();
                Box::pin(async move {
                    let mut connection = client.acquire().await.map_err(into_sqlx)?;
                    connection.prepare_with(sql, parameters).await
                })
            }

            #[doc(hidden)]
            fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, sqlx::Error>>
            where
                'c: 'e,
            {
                let $this = self;
                let client = $client.clone();
                Box::pin(async move {
                    let mut connection = client.acquire().await.map_err(into_sqlx)?;
                    connection.describe(sql).await
                })
            }
        }
    };
}

executor!(&'c DatabaseClient<DB>, None, |this| this);
executor!(Idempotent<DB>, Some(Idempotency::Safe), |this| this.0);
