//! A query taken apart, so that it can be sent again, and what its words say.

mod words;

use sqlx::{Database, Execute, SqlSafeStr, SqlStr, error::BoxDynError};
use std::fmt;
pub(crate) use words::Dialect;
use words::Meaning;

/// SQL text and bound values, owned. Values are never printed.
pub struct Statement<DB: Database> {
    sql: SqlStr,
    arguments: Option<DB::Arguments>,
    persistent: bool,
    /// Of a text of ours nothing: nobody asks.
    meaning: Meaning,
}

impl<DB: Database> Statement<DB> {
    pub(crate) fn text(sql: &'static str) -> Self {
        let meaning = Meaning::default();
        Self { sql: sql.into_sql_str(), arguments: None, persistent: true, meaning }
    }

    /// # Errors
    /// When a bound value could not be encoded.
    pub(crate) fn take<'q, Q: Execute<'q, DB>>(
        mut query: Q,
        dialect: Dialect,
    ) -> Result<Self, sqlx::Error> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        let (persistent, sql) = (query.persistent(), query.sql());
        let meaning = Meaning::of(sql.as_str(), dialect);
        Ok(Self { sql, arguments, persistent, meaning })
    }

    pub(crate) fn own(sql: SqlStr) -> Self {
        Self { sql, arguments: None, persistent: false, meaning: Meaning::default() }
    }

    /// Without a name on the server, where the next statement may meet another connection.
    pub(crate) fn unnamed(self) -> Self {
        Self { persistent: false, ..self }
    }

    /// It is prepared first, in a message of its own: all but `raw_sql`, also without a bound value.
    pub(crate) const fn is_prepared(&self) -> bool {
        self.arguments.is_some()
    }

    /// It leaves something behind in the session that the next caller does not expect: a setting, a
    /// subscription, a temporary table, or (in autocommit) an open transaction.
    pub(crate) const fn changes_session(&self, autocommit: bool) -> bool {
        self.meaning.changes || (autocommit && self.meaning.begins)
    }

    /// A SELECT on its own, into nothing, may be repeated.
    pub(crate) const fn is_select(&self) -> bool {
        self.meaning.selects
    }

    /// It gives rows and writes nothing, but for what it calls: those that nobody asks for need not be
    /// read. No reason to repeat it.
    pub(crate) const fn only_reads(&self) -> bool {
        self.meaning.reads
    }

    /// More than one in a text.
    #[cfg(feature = "sqlite")]
    pub(crate) const fn is_several(&self) -> bool {
        self.meaning.several
    }

    /// When it fails, a part of it may have been done and stay so: something follows a write in the
    /// same text, which only some servers make one transaction, or it commits as it goes along, as a
    /// procedure may.
    pub(crate) const fn may_stop_halfway(&self) -> bool {
        self.meaning.halfway
    }

    /// It begins a transaction and does nothing else: of no use where the next statement may be sent
    /// on another connection.
    pub(crate) const fn only_begins(&self) -> bool {
        self.meaning.only_begins
    }

    /// It ends the transaction that it is in, or the server does before it: what follows would stand
    /// for itself.
    pub(crate) const fn ends_transaction(&self) -> bool {
        self.meaning.ends
    }
}

impl<DB: Database> fmt::Debug for Statement<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statement").finish_non_exhaustive()
    }
}

impl<DB: Database<Arguments: Clone>> Clone for Statement<DB> {
    fn clone(&self) -> Self {
        let Self { sql, arguments, persistent, meaning } = self;
        let (sql, arguments) = (sql.clone(), arguments.clone());
        Self { sql, arguments, persistent: *persistent, meaning: *meaning }
    }
}

impl<DB: Database> Execute<'_, DB> for Statement<DB> {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&DB::Statement> {
        None
    }

    fn take_arguments(&mut self) -> Result<Option<DB::Arguments>, BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}
