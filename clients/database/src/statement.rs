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
        self.parts().any(|mut words| {
            let Some(first) = words.next() else { return false };
            if is(first, &["set"]) {
                let for_this_one = |w| is(w, &["local", "constraints", "transaction"]);
                return !words.next().is_some_and(for_this_one);
            }
            if is(first, &["create"]) {
                // Perhaps after `or replace`, `local` or `global`.
                return words.take(4).any(|word| is(word, &["temp", "temporary"]));
            }
            is(first, SESSION) || (autocommit && is(first, &["begin", "start", "savepoint", "xa"]))
        })
    }

    /// A SELECT on its own, into nothing, may be repeated. What its functions do is not looked into.
    pub(crate) fn is_select(&self) -> bool {
        let words = || self.sql.as_str().split(|c: char| !c.is_alphanumeric() && c != '_');
        self.is_one()
            && self
                .parts()
                .next()
                .and_then(|mut words| words.next())
                .is_some_and(|w| is(w, &["select"]))
            && !words().any(|word| is(word, &["into"]))
    }

    /// When it fails, a part of it may have been done and stay so: something follows a write in the
    /// same text, which only some servers make one transaction, or it commits as it goes along, as a
    /// procedure may.
    pub(crate) fn may_stop_halfway(&self, one_text_is_one_transaction: bool) -> bool {
        let mut wrote = false;
        for first in self.parts().filter_map(|mut words| words.next()) {
            if is(first, COMMITTING) || (wrote && !one_text_is_one_transaction) {
                return true;
            }
            wrote = !is(first, &["select", "set", "pragma", "use"]);
        }
        false
    }

    /// It begins a transaction and does nothing else: of no use where the next statement may be sent
    /// on another connection.
    pub(crate) fn only_begins(&self) -> bool {
        let mut parts = self.parts().filter_map(|mut words| Some((words.next()?, words.next())));
        let Some((first, second)) = parts.next() else { return false };
        let begins = is(first, &["begin", "savepoint", "xa"])
            || (is(first, &["start"]) && second.is_some_and(|word| is(word, &["transaction"])));
        begins && parts.next().is_none()
    }

    fn is_one(&self) -> bool {
        let text = self.sql.as_str().trim_end();
        text.find(';').is_none_or(|place| place + 1 == text.len())
    }

    fn parts(&self) -> impl Iterator<Item = Words<'_>> {
        self.sql.as_str().split(';').map(Words)
    }
}

/// First words of what lasts as long as the connection does, its prepared statements too.
const SESSION: &[&str] = &[
    "attach",
    "deallocate",
    "detach",
    "discard",
    "listen",
    "lock",
    "pragma",
    "prepare",
    "reset",
    "use",
];

/// First words of what may commit by itself.
const COMMITTING: &[&str] = &["begin", "call", "commit", "do", "end", "execute", "start"];

fn is(word: &str, any: &[&str]) -> bool {
    any.iter().any(|known| word.eq_ignore_ascii_case(known))
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
            ("select * into copy from t", false),
            ("select 'x into y'", false),
            ("select into_ from t", true),
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
            ("create or replace local temp view v as select 1", true, true),
            ("create index temp on t (n)", true, true),
            ("discard all", true, true),
            ("reset statement_timeout", true, true),
            ("reset_all()", false, false),
        ] {
            let statement = Statement::<sqlx::Sqlite>::text(sql);
            assert_eq!(statement.changes_session(true), alone, "{sql}");
            assert_eq!(statement.changes_session(false), inside, "{sql}");
        }
    }

    #[test]
    fn a_begin_on_its_own_is_told_from_one_that_goes_on() {
        for (sql, expected) in [
            ("begin", true),
            ("BEGIN IMMEDIATE;", true),
            ("/* why */ start transaction read only", true),
            ("savepoint here", true),
            ("start slave", false),
            ("begin; insert into t values (1); commit", false),
            ("begin not atomic insert into t values (1); end", false),
            ("select 1", false),
            ("", false),
        ] {
            assert_eq!(Statement::<sqlx::Sqlite>::text(sql).only_begins(), expected, "{sql}");
        }
    }

    #[test]
    fn what_may_stop_halfway_is_known_by_its_parts() {
        for (sql, by_parts, as_one) in [
            ("insert into t values (1)", false, false),
            ("insert into t values (1);", false, false),
            ("pragma max_page_count = 1; insert into t values (1)", false, false),
            ("insert into t values (1); select 1", true, false),
            ("insert into t values (1); insert into u values (1)", true, false),
            ("insert into t values (1); commit; insert into u values (1)", true, true),
            ("insert into t values (1); set x = 1; update t set n = 1", true, false),
            ("call move_money(1)", true, true),
            ("/* nightly */ DO $$ begin end $$", true, true),
        ] {
            let statement = Statement::<sqlx::Sqlite>::text(sql);
            assert_eq!(statement.may_stop_halfway(false), by_parts, "{sql}");
            assert_eq!(statement.may_stop_halfway(true), as_one, "{sql}");
        }
    }
}
