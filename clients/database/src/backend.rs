//! What differs between the three databases, and the one place that names sqlx's drivers.

#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use crate::{
    classify::Class,
    client::DatabaseClient,
    config::TlsMode,
    hosts::Target,
    options::{Isolation, SessionOptions},
    statement::{Dialect, Statement},
};
use futures_core::{future::BoxFuture, stream::BoxStream};
use futures_util::TryStreamExt;
use mainstay_policy::{Policy, Singletons};
use sqlx::{
    AssertSqlSafe, Connection, Database, Either, Executor, SqlSafeStr, SqlStr, error::DatabaseError,
};
use std::{path::PathBuf, time::Duration};

pub(crate) type Options<DB> = <<DB as Database>::Connection as Connection>::Options;
pub(crate) type Step<DB> = Either<<DB as Database>::QueryResult, <DB as Database>::Row>;

/// The first row, and whether others are still to come on this connection.
pub(crate) type First<DB> = (Option<<DB as Database>::Row>, bool);

/// One of the driver's calls below.
pub(crate) type Call<DB, T> = for<'c> fn(
    &'c mut <DB as Database>::Connection,
    Statement<DB>,
) -> BoxFuture<'c, Result<T, sqlx::Error>>;

/// What a connection is told when it is made.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))] // The others have no such thing.
    pub(crate) application_name: Option<String>,
    /// The server ends a statement itself when it takes longer than this one's timeout.
    pub(crate) policy: Option<Policy>,
    pub(crate) statement_cache: Option<usize>,
    #[cfg_attr(not(any(feature = "postgres", feature = "mysql")), allow(dead_code))]
    // SQLite is a file.
    pub(crate) tls: Option<TlsMode>,
    #[cfg_attr(not(any(feature = "postgres", feature = "mysql")), allow(dead_code))]
    pub(crate) tls_ca: Option<PathBuf>,
    /// A pooler hands each transaction to another server connection: nothing of a session lasts.
    pub(crate) pooler: bool,
    pub(crate) target: Target,
}

impl Tuning {
    /// As it is now: a reload changes it.
    pub(crate) fn statement_timeout(&self) -> Option<Duration> {
        self.policy.as_ref().and_then(Policy::timeout)
    }
}

/// What the server says of itself and of a new connection.
#[derive(Debug)]
pub struct Greeting<K> {
    /// By what the connection's statement can be cancelled.
    pub(crate) key: Option<K>,
    pub(crate) read_only: bool,
    pub(crate) standby: bool,
}

impl<K> Default for Greeting<K> {
    fn default() -> Self {
        Self { key: None, read_only: false, standby: false }
    }
}

/// How a transaction begins.
#[derive(Debug, Default)]
pub struct Begin {
    pub(crate) before: Option<SqlStr>,
    /// In place of the driver's own BEGIN.
    pub(crate) statement: Option<SqlStr>,
}

/// A database this client speaks to: [`sqlx::Postgres`], [`sqlx::MySql`] or [`sqlx::Sqlite`].
///
/// Sealed: which error means what is known for these three only.
pub trait Backend: Database<Arguments: Clone + 'static> + sealed::Sealed {}

pub(crate) mod sealed {
    use super::*;

    /// The driver's calls stand here so that no bound on its connection has to be repeated.
    pub trait Sealed: Database<Arguments: Clone + 'static> {
        const LABEL: &'static str;
        const SCHEMES: &'static [&'static str];
        const EXAMPLE: &'static str;
        /// The URL names hosts, not a file.
        const HAS_HOSTS: bool = true;
        /// A greeting tells what kind of server it is.
        const SAYS_ROLE: bool = false;
        const DIALECT: Dialect;
        /// What the driver knows after the `?` of a URL with hosts.
        const PARAMETERS: &'static [&'static str] = &[];
        const TLS_MODES: &'static str = "";
        /// By what a statement can be stopped.
        type Key: Clone + Send + Sync + 'static;
        /// The data lives in this process and dies with the last connection.
        fn in_memory(_options: &Options<Self>) -> bool {
            false
        }
        fn options(url: &str, tuning: &Tuning) -> Result<Options<Self>, sqlx::Error>;
        fn begin(options: &SessionOptions) -> Begin;
        /// COMMIT answers Ok for a transaction that an error has already ended.
        const COMMIT_HIDES_ERRORS: bool = false;
        /// The first round trip on a new connection.
        fn greet<'c>(
            connection: &'c mut Self::Connection,
            tuning: &'c Tuning,
        ) -> BoxFuture<'c, Result<Greeting<Self::Key>, sqlx::Error>>;
        /// A round trip to the server itself, for a probe.
        fn prove<'c>(
            connection: &'c mut Self::Connection,
            tuning: &'c Tuning,
        ) -> BoxFuture<'c, Result<(), sqlx::Error>> {
            if tuning.pooler {
                // A ping it may answer by itself.
                let asked = Self::execute(connection, Statement::text("select 1"));
                Box::pin(async move { asked.await.map(drop) })
            } else {
                Box::pin(connection.ping())
            }
        }
        /// Stops a statement from here; false where that takes a side connection.
        fn stop(_key: &Self::Key) -> bool {
            false
        }
        /// Ends, from a side connection, what these are doing.
        fn cancel(
            side: &mut Self::Connection,
            keys: Vec<Self::Key>,
        ) -> BoxFuture<'_, Result<(), sqlx::Error>>;
        /// Makes the server refuse writes on a connection, or take them again.
        fn switch(read_only: bool) -> &'static str;
        fn class(error: &dyn DatabaseError) -> Class;
        /// The server has closed the connection with this error.
        fn ends_connection(_error: &dyn DatabaseError) -> bool {
            false
        }
        /// After this error the transaction is gone while the connection goes on in autocommit.
        fn ends_transaction(error: &dyn DatabaseError) -> bool;
        /// After this one it may be, and the server must be asked.
        fn leaves_doubt(_error: &dyn DatabaseError) -> bool {
            false
        }
        /// Whether it is still there after such an error; false also where nobody knows.
        fn kept_transaction(_connection: &mut Self::Connection) -> BoxFuture<'_, bool> {
            Box::pin(std::future::ready(true))
        }
        fn default_client() -> &'static Singletons<DatabaseClient<Self>>
        where
            Self: Backend;
        fn named_clients() -> &'static Singletons<DatabaseClient<Self>>
        where
            Self: Backend;

        fn execute(
            connection: &mut Self::Connection,
            statement: Statement<Self>,
        ) -> BoxFuture<'_, Result<Self::QueryResult, sqlx::Error>>;
        fn fetch_many(
            connection: &mut Self::Connection,
            statement: Statement<Self>,
        ) -> BoxStream<'_, Result<Step<Self>, sqlx::Error>>;
        fn fetch_all(
            connection: &mut Self::Connection,
            statement: Statement<Self>,
        ) -> BoxFuture<'_, Result<Vec<Self::Row>, sqlx::Error>>;
        fn fetch_first(
            connection: &mut Self::Connection,
            statement: Statement<Self>,
        ) -> BoxFuture<'_, Result<First<Self>, sqlx::Error>>;
        fn prepare<'c>(
            connection: &'c mut Self::Connection,
            sql: SqlStr,
            parameters: &'c [Self::TypeInfo],
        ) -> BoxFuture<'c, Result<Self::Statement, sqlx::Error>>;
        fn describe(
            connection: &mut Self::Connection,
            sql: SqlStr,
        ) -> BoxFuture<'_, Result<sqlx::Describe<Self>, sqlx::Error>>;
    }
}
pub(crate) use sealed::Sealed;

/// Our own text, put together here and never from a caller's.
fn own(sql: String) -> SqlStr {
    AssertSqlSafe(sql).into_sql_str()
}

#[cfg_attr(not(any(feature = "postgres", feature = "mysql")), allow(dead_code))]
const fn level(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadCommitted => "read committed",
        Isolation::RepeatableRead => "repeatable read",
        Isolation::Serializable => "serializable",
    }
}

/// For drivers that stop at the first row. Of a read one more step tells whether that was all; what
/// may write is read to its end, where it may yet fail, and before which it is not done.
#[cfg_attr(not(any(feature = "mysql", feature = "sqlite")), allow(dead_code))]
fn first_row<DB: Sealed>(
    connection: &mut DB::Connection,
    statement: Statement<DB>,
) -> BoxFuture<'_, Result<First<DB>, sqlx::Error>> {
    let reads = statement.only_reads();
    let mut steps = DB::fetch_many(connection, statement);
    Box::pin(async move {
        let mut first = None;
        while let Some(step) = steps.try_next().await? {
            match step {
                Either::Right(_) if reads && first.is_some() => return Ok((first, true)),
                Either::Right(row) if first.is_none() => first = Some(row),
                _ => {}
            }
        }
        Ok((first, false))
    })
}

/// The part of [`Sealed`] that reads the same for every driver, but for how it fetches one row.
macro_rules! driver_calls {
    ($DB:ty, $first:path) => {
        fn default_client() -> &'static Singletons<DatabaseClient<Self>> {
            static CLIENT: Singletons<DatabaseClient<$DB>> = Singletons::new();
            &CLIENT
        }
        fn named_clients() -> &'static Singletons<DatabaseClient<Self>> {
            static CLIENTS: Singletons<DatabaseClient<$DB>> = Singletons::new();
            &CLIENTS
        }
        fn fetch_first(
            connection: &mut Self::Connection,
            statement: Statement<Self>,
        ) -> BoxFuture<'_, Result<First<Self>, sqlx::Error>> {
            $first(connection, statement)
        }
        fn prepare<'c>(
            connection: &'c mut Self::Connection,
            sql: SqlStr,
            parameters: &'c [Self::TypeInfo],
        ) -> BoxFuture<'c, Result<Self::Statement, sqlx::Error>> {
            sqlx::Executor::prepare_with(connection, sql, parameters)
        }
        fn describe(
            connection: &mut Self::Connection,
            sql: SqlStr,
        ) -> BoxFuture<'_, Result<sqlx::Describe<Self>, sqlx::Error>> {
            sqlx::Executor::describe(connection, sql)
        }
    };
}
pub(crate) use driver_calls;

/// And this, for drivers whose rows end by a word or an error.
#[cfg_attr(not(any(feature = "postgres", feature = "mysql")), allow(unused_macros))]
macro_rules! driver_rows {
    () => {
        fn execute(
            connection: &mut Self::Connection,
            statement: Statement<Self>,
        ) -> BoxFuture<'_, Result<Self::QueryResult, sqlx::Error>> {
            sqlx::Executor::execute(connection, statement)
        }
        fn fetch_many(
            connection: &mut Self::Connection,
            statement: Statement<Self>,
        ) -> BoxStream<'_, Result<Step<Self>, sqlx::Error>> {
            sqlx::Executor::fetch_many(connection, statement)
        }
        fn fetch_all(
            connection: &mut Self::Connection,
            statement: Statement<Self>,
        ) -> BoxFuture<'_, Result<Vec<Self::Row>, sqlx::Error>> {
            sqlx::Executor::fetch_all(connection, statement)
        }
    };
}
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use driver_rows;
