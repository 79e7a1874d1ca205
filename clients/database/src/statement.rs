//! A query taken apart, so that it can be sent again.

use sqlx::{Database, Execute, SqlSafeStr, SqlStr, error::BoxDynError};
use std::fmt;

/// SQL text and bound values, owned. Values are never printed.
pub struct Statement<DB: Database> {
    sql: SqlStr,
    arguments: Option<DB::Arguments>,
    persistent: bool,
}

impl<DB: Database> Statement<DB> {
    pub(crate) fn text(sql: &'static str) -> Self {
        Self { sql: sql.into_sql_str(), arguments: None, persistent: true }
    }

    /// # Errors
    /// When a bound value could not be encoded.
    pub(crate) fn take<'q, Q: Execute<'q, DB>>(mut query: Q) -> Result<Self, sqlx::Error> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        let persistent = query.persistent();
        Ok(Self { sql: query.sql(), arguments, persistent })
    }

    /// A SELECT on its own may be repeated. What its functions do is not looked into.
    pub(crate) fn is_select(&self) -> bool {
        let text = self.sql.as_str().trim().trim_end_matches(';');
        let word = text.get(..6).unwrap_or_default();
        let rest = text.get(6..).unwrap_or_default();
        word.eq_ignore_ascii_case("select")
            && !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
            && !text.contains(';')
    }
}

impl<DB: Database> fmt::Debug for Statement<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statement").finish_non_exhaustive()
    }
}

impl<DB: Database<Arguments: Clone>> Clone for Statement<DB> {
    fn clone(&self) -> Self {
        let Self { sql, arguments, persistent } = self;
        Self { sql: sql.clone(), arguments: arguments.clone(), persistent: *persistent }
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

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;

    #[test]
    fn only_a_select_on_its_own_may_be_repeated() {
        for (sql, expected) in [
            ("select 1", true),
            ("  SELECT * from t;", true),
            ("select(1)", true),
            ("selection", false),
            ("select 1; delete from t", false),
            ("insert into t select 1", false),
            ("with x as (delete from t returning 1) select * from x", false),
            ("", false),
        ] {
            assert_eq!(Statement::<sqlx::Sqlite>::text(sql).is_select(), expected, "{sql}");
        }
    }
}
