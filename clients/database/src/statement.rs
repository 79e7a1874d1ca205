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

    pub(crate) const fn own(sql: SqlStr) -> Self {
        Self { sql, arguments: None, persistent: false }
    }

    /// Without a name on the server, where the next statement may meet another connection.
    pub(crate) fn unnamed(self) -> Self {
        Self { persistent: false, ..self }
    }

    /// It is prepared first, in a message of its own.
    pub(crate) const fn has_arguments(&self) -> bool {
        self.arguments.is_some()
    }

    /// It leaves something behind in the session that the next caller does not expect: a setting, a
    /// subscription, a temporary table, or (in autocommit) an open transaction. By its first words:
    /// what functions and procedures do is not looked into.
    pub(crate) fn changes_session(&self, autocommit: bool) -> bool {
        self.sql.as_str().split(';').any(|part| {
            let mut words = Words(part);
            let (first, second) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            let is = |word: &str, all: &[&str]| all.iter().any(|w| word.eq_ignore_ascii_case(w));
            if is(first, &["set"]) {
                return !is(second, &["local", "constraints", "transaction"]);
            }
            is(first, &["listen", "use", "attach", "prepare", "lock", "pragma"])
                || (is(first, &["create"]) && is(second, &["temp", "temporary"]))
                || (autocommit && is(first, &["begin", "start", "savepoint", "xa"]))
        })
    }

    /// A SELECT on its own may be repeated. What its functions do is not looked into.
    pub(crate) fn is_select(&self) -> bool {
        let text = self.sql.as_str().trim_end();
        let one = text.find(';').is_none_or(|place| place + 1 == text.len());
        one && Words(text).next().is_some_and(|word| word.eq_ignore_ascii_case("select"))
    }
}

/// The words of a statement, comments left out.
struct Words<'s>(&'s str);

impl<'s> Iterator for Words<'s> {
    type Item = &'s str;

    fn next(&mut self) -> Option<&'s str> {
        loop {
            self.0 = self.0.trim_start();
            let comment = match self.0.get(..2) {
                Some("--") => self.0.find('\n').map(|end| end + 1),
                Some("/*") => self.0.find("*/").map(|end| end + 2),
                _ => break,
            };
            self.0 = comment.and_then(|end| self.0.get(end..)).unwrap_or("");
        }
        let end = self.0.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
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
            ("/* hint */ -- why\n select 1", true),
            ("/* select", false),
            ("", false),
        ] {
            assert_eq!(Statement::<sqlx::Sqlite>::text(sql).is_select(), expected, "{sql}");
        }
    }

    #[test]
    fn what_changes_the_session_is_known_by_its_first_words() {
        for (sql, alone, inside) in [
            ("select 1", false, false),
            ("set search_path = x", true, true),
            ("SET LOCAL x = 1", false, false),
            ("set transaction read only", false, false),
            ("insert into t values ('set x')", false, false),
            ("select 1; set x = 1", true, true),
            ("create temporary table t (n int)", true, true),
            ("create table t (n int)", false, false),
            ("BEGIN", true, false),
            ("/* x */ start transaction", true, false),
            ("update t set begin = 1", false, false),
            ("listen channel", true, true),
        ] {
            let statement = Statement::<sqlx::Sqlite>::text(sql);
            assert_eq!(statement.changes_session(true), alone, "{sql}");
            assert_eq!(statement.changes_session(false), inside, "{sql}");
        }
    }
}
