//! The client, its views and what callers hold as sqlx executors, and what sqlx's migrations ask for.

use crate::{
    backend::Backend,
    client::{DatabaseClient, Intent, View},
    session::{DatabaseConnection, Savepoint, Session},
    wire::into_sqlx,
};
use futures_core::{future::BoxFuture, stream::BoxStream};
use sqlx::{Acquire, Describe, Either, Execute, Executor, SqlStr, Transaction};
use std::{
    fmt,
    ops::{Deref, DerefMut},
};

/// No row of it is still to come.
fn all_read<T>(value: T) -> (T, bool) {
    (value, false)
}

/// They differ in what runs a statement for them.
macro_rules! executor {
    ([$($life:lifetime)?] $Type:ty, |$this:ident| $runner:expr) => {
        impl<'c, $($life,)? DB: Backend> Executor<'c> for $Type {
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
                $runner.stream(query)
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
                $runner.statement(query, DB::execute, all_read)
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
                $runner.statement(query, DB::fetch_all, all_read)
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
                $runner.statement(query, DB::fetch_first, |first| first)
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
                $runner.prepare(sql, parameters)
            }

            #[doc(hidden)]
            fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, sqlx::Error>>
            where
                'c: 'e,
            {
                let $this = self;
                $runner.describe(sql)
            }
        }
    };
}

executor!([] &'c DatabaseClient<DB>, |this| this.meant(Intent::ByItsText));
executor!([] View<DB>, |this| this);
executor!([] &'c mut DatabaseConnection<DB>, |this| this.wire());
executor!([] &'c mut Session<DB>, |this| this.wire());
executor!(['s] &'c mut Savepoint<'s, DB>, |this| this.wire());

macro_rules! opaque {
    ($($name:literal $Type:ty),*) => {$(
        impl<DB: Backend> fmt::Debug for $Type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name).finish_non_exhaustive()
            }
        }
    )*};
}

opaque!(
    "DatabaseConnection" DatabaseConnection<DB>,
    "Session" Session<DB>,
    "Savepoint" Savepoint<'_, DB>,
    "BareConnection" BareConnection<DB>
);

/// sqlx's own connection, for code such as `sqlx::migrate!` that asks for one. Nothing bounds what
/// goes through it; it is closed afterwards, since nobody knows what was done with it.
pub struct BareConnection<DB: Backend>(DatabaseConnection<DB>, DB::Connection);

impl<DB: Backend> Deref for BareConnection<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        &self.1
    }
}

impl<DB: Backend> DerefMut for BareConnection<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        &mut self.1
    }
}

/// `sqlx::migrate!().run(&db)`. Take [`session`](DatabaseClient::session) for a transaction: the one
/// that sqlx begins here is sqlx's own, on a connection of its own.
impl<'c, DB: Backend> Acquire<'c> for &'c DatabaseClient<DB> {
    type Database = DB;
    type Connection = BareConnection<DB>;

    fn acquire(self) -> BoxFuture<'c, Result<BareConnection<DB>, sqlx::Error>> {
        Box::pin(async move {
            let mut connection = DatabaseClient::acquire(self).await.map_err(into_sqlx)?;
            let bare = connection.wire().take_bare();
            match bare {
                Some(bare) => Ok(BareConnection(connection, bare)),
                None => Err(sqlx::Error::PoolClosed),
            }
        })
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, DB>, sqlx::Error>> {
        Box::pin(async move {
            // For its error: sqlx's pool would not say why there is no connection.
            DatabaseClient::acquire(self).await.map_err(into_sqlx)?;
            let pool = self.pool().ok_or(sqlx::Error::PoolClosed)?;
            pool.begin().await
        })
    }
}
