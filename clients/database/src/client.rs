//! The client: cheap to clone, and an sqlx executor that repeats what may be repeated.

use crate::{
    backend::{Backend, Call, Step},
    classify::DatabaseFailure,
    config::DatabaseClientBuilder,
    hosts::Hosts,
    options::SessionOptions,
    pool::{First, Limits, Pool, PoolStatus, Want},
    session::{DatabaseConnection, Session},
    statement::Statement,
    wire::{Wire, hand_on, into_sqlx},
};
use async_stream::try_stream;
use futures_core::{future::BoxFuture, stream::BoxStream};
use futures_util::StreamExt;
use mainstay_policy::{
    Attempt, CallError, Classify, Decider, Effect, Error, Idempotency, Operation, PerRuntime,
    Policy,
};
use sqlx::{Describe, Execute, SqlStr};
use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

struct Inner<DB: Backend> {
    hosts: Arc<Hosts<DB>>,
    limits: Limits,
    policy: Policy,
    adopted: Option<sqlx::Pool<DB>>,
    pools: PerRuntime<Pool<DB>>,
}

/// A SQL client; clones share everything.
///
/// `&client` is an sqlx executor: `sqlx::query("select 1").fetch_one(&client)`. Each statement is
/// bounded, and repeated if it never reached the server, if the server rolled it back, or if it is
/// a SELECT on its own. Name a write that may be done twice with [`idempotent`], and have the server
/// refuse writes with [`read`].
///
/// As an executor it speaks [`sqlx::Error`]: what the server answered comes as sqlx gives it; what
/// a policy decided, and what nobody knows, is wrapped, and `?` into [`Error`] unwraps it.
///
/// A statement that is dropped, or whose time is up, is cancelled on the server, and its connection
/// is closed.
///
/// [`idempotent`]: DatabaseClient::idempotent
/// [`read`]: DatabaseClient::read
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

/// What it is called in errors, events and the breaker's cause.
const STATEMENT: &str = "statement";

/// What may be done with a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// A SELECT on its own may be repeated, anything else may not.
    ByItsText,
    /// It may be repeated.
    Idempotent,
    /// It may be repeated, and the server refuses it if it writes.
    Read,
}

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

    /// A client over a pool that exists, with the policy that the settings give; the builder's
    /// [`pool`](DatabaseClientBuilder::pool) allows more.
    ///
    /// The pool's own settings stay, its ping at every acquire too. Each acquire costs one more round
    /// trip than with a URL: it asks the server which connection this is, so that what is given up on
    /// it can be cancelled there. On SQLite the connection's progress handler becomes ours. When a table
    /// was changed since a connection prepared a statement, only that connection is given up: a pool
    /// that holds many may fail as many attempts.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn from_pool(pool: sqlx::Pool<DB>) -> Result<Self, Error> {
        Self::builder().pool(pool).build()
    }

    pub(crate) fn new(
        hosts: Hosts<DB>,
        limits: Limits,
        policy: Policy,
        adopted: Option<sqlx::Pool<DB>>,
    ) -> Self {
        let hosts = Arc::new(hosts);
        Self(Arc::new(Inner { hosts, limits, policy, adopted, pools: PerRuntime::new() }))
    }

    /// The policy, with its breaker.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// An sqlx pool for code that wants one; `None` outside any runtime.
    ///
    /// The one this client was made from; else one of sqlx's own to the same server with the same
    /// limits, made at the first call, whose connections come on top of this client's. What goes
    /// through it has no policy.
    #[must_use]
    pub fn pool(&self) -> Option<sqlx::Pool<DB>> {
        self.own_pool().and_then(|pool| pool.sqlx())
    }

    /// How many connections there are. Each runtime has a pool of its own; this is all of them
    /// together, from whichever runtime it is asked.
    #[must_use]
    pub fn pool_status(&self) -> PoolStatus {
        let together = |all: PoolStatus, mut one: PoolStatus| {
            if self.0.adopted.is_some() {
                // It is the same one in all of them.
                (one.size, one.idle, one.max) = (0, 0, 0);
            }
            all.and(one)
        };
        let none = PoolStatus { max: self.max_connections(), ..PoolStatus::NONE };
        self.pool_statuses().reduce(together).unwrap_or(none)
    }

    /// Of each runtime's pool.
    pub(crate) fn pool_statuses(&self) -> impl Iterator<Item = PoolStatus> {
        self.0.pools.all().into_iter().map(|pool| pool.status())
    }

    /// The most connections a runtime's pool holds.
    #[must_use]
    pub fn max_connections(&self) -> u32 {
        self.0.limits.max_connections
    }

    pub(crate) fn own_pool(&self) -> Option<Pool<DB>> {
        let inner = &*self.0;
        let make = || {
            let (name, hosts) = (inner.policy.name(), Arc::clone(&inner.hosts));
            Pool::new(name, hosts, inner.limits, inner.adopted.clone())
        };
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
    pub fn idempotent(&self) -> View<DB> {
        self.meant(Intent::Idempotent)
    }

    /// A view whose statements may be repeated, and which the server refuses if they write:
    /// `query.fetch_one(db.read())`.
    ///
    /// It keeps connections apart on which the server was told so once; in an adopted pool and
    /// behind a pooler each statement is a read-only transaction.
    #[must_use]
    pub fn read(&self) -> View<DB> {
        self.meant(Intent::Read)
    }

    pub(crate) fn meant(&self, intent: Intent) -> View<DB> {
        View { client: self.clone(), intent }
    }

    /// Begins a transaction. Waits for a connection within the policy.
    ///
    /// # Errors
    /// When there is no connection: with the server's own reason, or how many are in use.
    ///
    /// # Cancel safety
    /// Dropped, a connection that may have begun is closed: nobody gets it.
    pub async fn session(&self) -> Result<Session<DB>, Error> {
        self.session_with(SessionOptions::new()).await
    }

    /// Begins a transaction of this isolation level, or one that only reads.
    ///
    /// # Errors
    /// As [`DatabaseClient::session`].
    ///
    /// # Cancel safety
    /// As [`DatabaseClient::session`].
    pub async fn session_with(&self, options: SessionOptions) -> Result<Session<DB>, Error> {
        const BEGIN: Operation = Operation::new("begin", Idempotency::Safe);
        let (policy, options) = (self.policy(), &options);
        let begun = policy.run(&BEGIN, |attempt| async move {
            let (clock, pool) = (Clock::start(policy, attempt), self.require_pool()?);
            let begun = Session::begin(&pool, policy, shorter(attempt), options).await;
            clock.judge(begun.map(Session::watched)).await
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
            let (clock, pool) = (Clock::start(policy, attempt), self.require_pool()?);
            let want = Want { read_only: false, first: First::Once };
            let wire = Wire::acquire(&pool, policy, shorter(attempt), want).await;
            clock.judge(wire.map(|wire| DatabaseConnection::new(wire.watched()))).await
        });
        acquired.await.map_err(|error| Error::from_call(policy.name(), "acquire", error))
    }

    /// Closes this runtime's pool: no new connections, idle ones closed, and those in use waited for
    /// no longer than this. What comes after is refused.
    pub async fn close(&self, within: Duration) {
        if let Some(pool) = self.own_pool() {
            pool.close(within).await;
        }
    }

    /// A connection for one statement.
    async fn wire(
        &self,
        attempt: Attempt,
        intent: Intent,
        first: First,
        statement: &Prepared,
    ) -> Result<Wire<DB>, DatabaseFailure> {
        if statement.only_begins {
            return Err(DatabaseFailure::begins_nothing());
        }
        let pool = self.require_pool()?;
        let limit = shorter(attempt);
        let read_only = intent == Intent::Read;
        // Behind a pooler, what prepares a statement and what executes it may meet two connections
        // of the server, unless they are in one transaction.
        let split = pool.is_pooler() && statement.is_prepared;
        if split || (read_only && pool.reads_in_transaction()) {
            let options = SessionOptions { isolation: None, read_only };
            let wire = Wire::begin(&pool, self.policy(), limit, &options).await?;
            return Ok(if read_only { wire } else { wire.of_one_statement() });
        }
        Wire::acquire(&pool, self.policy(), limit, Want { read_only, first }).await
    }

    /// One statement through the policy, on a connection of its own each time.
    async fn autocommit<T, F, Fut>(
        &self,
        intent: Intent,
        statement: Statement<DB>,
        call: F,
    ) -> Result<T, sqlx::Error>
    where
        F: Fn(Wire<DB>, Statement<DB>) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T, DatabaseFailure>> + Send,
        T: Send,
    {
        let select = statement.is_select();
        let (operation, first) = match intent {
            Intent::Read => (Operation::read(STATEMENT), First::Repeatable),
            // Even a `select` may call what writes.
            _ if select || intent != Intent::ByItsText => {
                (Operation::new(STATEMENT, Idempotency::Safe), First::Repeatable)
            }
            _ => (Operation::new(STATEMENT, Idempotency::Unsafe), First::Once),
        };
        let halfway = !select && statement.may_stop_halfway();
        let call = &call;
        let prepared = &Prepared {
            is_prepared: statement.is_prepared(),
            only_begins: !select && statement.only_begins(),
        };
        let result = self.policy().run(&operation, move |attempt| {
            // Bound values are Send, not Sync: cloned here, outside the attempt's future.
            let statement = statement.clone();
            async move {
                let clock = Clock::start(self.policy(), attempt);
                let work = async {
                    let wire = self.wire(attempt, intent, first, prepared).await?;
                    let done = call(wire, statement).await;
                    done.map_err(|e| if halfway { e.perhaps_halfway() } else { e })
                };
                clock.judge(work.await).await
            }
        });
        result.await.map_err(|error| match error {
            // Of an attempt before it more may be unknown than it says.
            CallError::Backend { attempts, elapsed, effect, error }
                if effect != Effect::Unknown && error.is_answer() =>
            {
                error.into_driver().unwrap_or_else(|error| {
                    self.wrap(CallError::Backend { attempts, elapsed, effect, error })
                })
            }
            error => self.wrap(error),
        })
    }

    fn wrap(&self, error: CallError<DatabaseFailure>) -> sqlx::Error {
        into_sqlx(Error::from_call(self.policy().name(), STATEMENT, error))
    }
}

/// What of a statement decides how it is sent.
struct Prepared {
    is_prepared: bool,
    only_begins: bool,
}

/// The attempt's time less a little, so that our own timer, which knows the phase, ends first.
pub(crate) fn shorter(attempt: Attempt) -> Option<Duration> {
    attempt.timeout().map(|limit| limit.saturating_sub((limit / 20).min(Duration::from_millis(5))))
}

/// Tells whose time was up when a timer of our own ends an attempt a moment before the policy's.
pub(crate) struct Clock<'p> {
    policy: &'p Policy,
    attempt: Attempt,
    began: Instant,
}

impl<'p> Clock<'p> {
    pub(crate) fn start(policy: &'p Policy, attempt: Attempt) -> Self {
        Self { policy, attempt, began: Instant::now() }
    }

    /// Of the attempt's time, for what comes after something else.
    pub(crate) fn left(&self) -> Option<Duration> {
        shorter(self.attempt).map(|limit| limit.saturating_sub(self.began.elapsed()))
    }

    /// Where nothing more is known than that time is up, the policy says so itself.
    pub(crate) async fn judge<T>(
        &self,
        end: Result<T, DatabaseFailure>,
    ) -> Result<T, DatabaseFailure> {
        let failure = match end {
            Err(failure) if failure.is_out_of_time() && self.is_over() => failure,
            end => return end,
        };
        if failure.classify().effect == Effect::Unknown {
            std::future::pending::<()>().await;
        }
        let cut_short = match (self.attempt.timeout(), self.policy.timeout()) {
            (Some(left), Some(whole)) => left < whole,
            (left, _) => left.is_some(),
        };
        let whose = if cut_short { Decider::Deadline } else { Decider::Timeout };
        Err(failure.out_of_time(whose))
    }

    fn is_over(&self) -> bool {
        shorter(self.attempt).is_some_and(|limit| self.began.elapsed() >= limit)
    }
}

/// All rows of one statement; the connection goes along.
fn rows<DB: Backend>(
    mut wire: Wire<DB>,
    statement: Statement<DB>,
) -> BoxStream<'static, Result<Step<DB>, DatabaseFailure>> {
    Box::pin(try_stream! {
        {
            let mut steps = wire.steps(statement);
            while let Some(step) = steps.next().await {
                yield step?;
            }
        }
        wire.end().await?;
    })
}

/// The client with an intent for its statements: see [`DatabaseClient::idempotent`] and
/// [`DatabaseClient::read`]. An sqlx executor.
pub struct View<DB: Backend> {
    client: DatabaseClient<DB>,
    intent: Intent,
}

/// What an sqlx executor does.
impl<DB: Backend> View<DB> {
    pub(crate) fn statement<'e, 'q: 'e, T: Send + 'e, U: Send + 'e, Q: Execute<'q, DB>>(
        self,
        query: Q,
        call: Call<DB, T>,
        split: fn(T) -> (U, bool),
    ) -> BoxFuture<'e, Result<U, sqlx::Error>> {
        let statement = Statement::take(query, DB::DIALECT);
        Box::pin(async move {
            let step = |mut wire: Wire<DB>, statement| async move {
                wire.whole(statement, call, split).await
            };
            self.client.autocommit(self.intent, statement?, step).await
        })
    }

    pub(crate) fn stream<'e, 'q: 'e, Q: Execute<'q, DB>>(
        self,
        query: Q,
    ) -> BoxStream<'e, Result<Step<DB>, sqlx::Error>> {
        let (statement, started) = (Statement::take(query, DB::DIALECT), Instant::now());
        Box::pin(try_stream! {
            // Repeated until its first row is there; rows once given are not taken back.
            let open = |wire, statement| async move {
                let mut rows = rows(wire, statement);
                let first = rows.next().await.transpose()?;
                Ok((first, rows))
            };
            let Self { client, intent } = self;
            let (first, mut rest) = client.autocommit(intent, statement?, open).await?;
            if let Some(first) = first {
                yield first;
            }
            while let Some(step) = rest.next().await {
                yield step.map_err(|e| hand_on(client.policy(), started, e))?;
            }
        })
    }

    pub(crate) fn prepare<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, sqlx::Error>> {
        Box::pin(async move {
            let mut connection = self.client.acquire().await.map_err(into_sqlx)?;
            connection.wire().prepare(sql, parameters).await
        })
    }

    pub(crate) fn describe<'e>(
        self,
        sql: SqlStr,
    ) -> BoxFuture<'e, Result<Describe<DB>, sqlx::Error>> {
        Box::pin(async move {
            let mut connection = self.client.acquire().await.map_err(into_sqlx)?;
            connection.wire().describe(sql).await
        })
    }
}

impl<DB: Backend> fmt::Debug for View<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("intent", &self.intent).finish_non_exhaustive()
    }
}
