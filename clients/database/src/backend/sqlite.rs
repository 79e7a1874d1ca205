//! SQLite. Codes: <https://www.sqlite.org/rescode.html>.

use super::*;
use async_stream::try_stream;
use sqlx::{
    Sqlite,
    sqlite::{SqliteConnectOptions, SqliteConnection, SqliteQueryResult, SqliteRow},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A worker that waits for a lock cannot be interrupted, so it waits less than an attempt may.
const LONGEST_LOCK_WAIT: Duration = Duration::from_secs(5);

impl Backend for Sqlite {}

impl Sealed for Sqlite {
    const LABEL: &'static str = "SQLite";
    const SCHEMES: &'static [&'static str] = &["sqlite"];
    const EXAMPLE: &'static str = "sqlite://path/to/file.db?mode=rwc";
    const HAS_HOSTS: bool = false;
    const DIALECT: Dialect = Dialect::Sqlite;
    /// Set, the connection's worker gives up what it is doing.
    type Key = Arc<AtomicBool>;

    fn options(url: &str, tuning: &Tuning) -> Result<SqliteConnectOptions, sqlx::Error> {
        let mut options: SqliteConnectOptions = url.parse()?;
        if let Some(statements) = tuning.statement_cache {
            options = options.statement_cache_capacity(statements);
        }
        Ok(options.busy_timeout(lock_wait(tuning)))
    }

    fn in_memory(options: &SqliteConnectOptions) -> bool {
        // What sqlx makes of `sqlite::memory:`; the option itself has no getter.
        options.get_filename().to_string_lossy().contains("sqlx-in-memory")
    }

    /// A deferred transaction that turns to writing fails at once, whatever the busy timeout.
    fn begin(options: &SessionOptions) -> Begin {
        let text = if options.read_only { "BEGIN" } else { "BEGIN IMMEDIATE" };
        Begin { before: None, statement: Some(text.into_sql_str()) }
    }

    fn greet<'c>(
        connection: &'c mut SqliteConnection,
        _: &'c Tuning,
    ) -> BoxFuture<'c, Result<Greeting<Self::Key>, sqlx::Error>> {
        /// Instructions of its machine between two looks: some ten microseconds.
        const BETWEEN_LOOKS: i32 = 1_000;
        Box::pin(async move {
            let stop = Self::Key::default();
            let seen = Arc::clone(&stop);
            let goes_on = move || !seen.load(Ordering::Relaxed);
            connection.lock_handle().await?.set_progress_handler(BETWEEN_LOOKS, goes_on);
            Ok(Greeting { key: Some(stop), ..Greeting::default() })
        })
    }

    /// A ping asks the connection's thread. A file that others have locked is there.
    fn prove<'c>(
        connection: &'c mut SqliteConnection,
        tuning: &'c Tuning,
    ) -> BoxFuture<'c, Result<(), sqlx::Error>> {
        Box::pin(async move {
            // A probe has no time to wait for its turn.
            connection.execute(sqlx::raw_sql("pragma busy_timeout = 0")).await?;
            let read = connection.execute(sqlx::raw_sql("pragma schema_version")).await;
            let wait = format!("pragma busy_timeout = {}", lock_wait(tuning).as_millis());
            connection.execute(sqlx::raw_sql(own(wait))).await?;
            match read {
                Err(sqlx::Error::Database(e)) if Self::class(e.as_ref()) == Class::Contended => {
                    Ok(())
                }
                read => read.map(drop),
            }
        })
    }

    fn stop(key: &Self::Key) -> bool {
        key.store(true, Ordering::Relaxed);
        true
    }

    fn cancel(
        _: &mut SqliteConnection,
        _: Vec<Self::Key>,
    ) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async { Ok(()) })
    }

    fn switch(read_only: bool) -> &'static str {
        if read_only { "pragma query_only = on" } else { "pragma query_only = off" }
    }

    fn class(error: &dyn DatabaseError) -> Class {
        class(code(error))
    }

    /// Where SQLite may roll back by itself: <https://www.sqlite.org/lang_transaction.html>.
    fn ends_transaction(error: &dyn DatabaseError) -> bool {
        matches!(code(error) & 0xff, 7 | 9 | 10 | 13)
    }

    /// As `insert or rollback` does, and a trigger with `raise(rollback, ..)`.
    fn leaves_doubt(_: &dyn DatabaseError) -> bool {
        true
    }

    /// Within a transaction another is refused.
    fn kept_transaction(connection: &mut SqliteConnection) -> BoxFuture<'_, bool> {
        let begun = Self::execute(connection, Statement::text("begin"));
        Box::pin(async move { begun.await.is_err() })
    }

    driver_calls!(Sqlite, first);

    fn execute(
        connection: &mut SqliteConnection,
        statement: Statement<Self>,
    ) -> BoxFuture<'_, Result<SqliteQueryResult, sqlx::Error>> {
        let mut steps = Self::fetch_many(connection, statement);
        Box::pin(async move {
            let mut done = SqliteQueryResult::default();
            while let Some(step) = steps.try_next().await? {
                done.extend(step.left());
            }
            Ok(done)
        })
    }

    /// A worker that dies of a row says nothing, and sqlx takes that for the end of the rows: after it
    /// comes the statement's result.
    fn fetch_many(
        connection: &mut SqliteConnection,
        statement: Statement<Self>,
    ) -> BoxStream<'_, Result<Step<Self>, sqlx::Error>> {
        let several = statement.is_several();
        Box::pin(try_stream! {
            let mut ended = false;
            {
                let mut steps = sqlx::Executor::fetch_many(&mut *connection, statement);
                while let Some(step) = steps.try_next().await? {
                    ended = step.is_left();
                    yield step;
                }
            }
            // Nor has a text that is empty one, and of several statements each has one of its own.
            if !ended || several {
                lives(connection).await?;
            }
        })
    }

    fn fetch_all(
        connection: &mut SqliteConnection,
        statement: Statement<Self>,
    ) -> BoxFuture<'_, Result<Vec<SqliteRow>, sqlx::Error>> {
        let mut steps = Self::fetch_many(connection, statement);
        Box::pin(async move {
            let mut rows = Vec::new();
            while let Some(step) = steps.try_next().await? {
                rows.extend(step.right());
            }
            Ok(rows)
        })
    }
}

/// Whether its worker does.
async fn lives(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    /// One that is about to end may take the question along.
    const LONGEST: Duration = Duration::from_secs(1);
    let ping = tokio::time::timeout(LONGEST, connection.ping());
    ping.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

fn lock_wait(tuning: &Tuning) -> Duration {
    let wait = tuning.statement_timeout().map_or(LONGEST_LOCK_WAIT, |limit| limit / 2);
    wait.min(LONGEST_LOCK_WAIT)
}

/// The driver's own stops at the first row, and throws away that what it did failed to commit.
fn first(
    connection: &mut SqliteConnection,
    statement: Statement<Sqlite>,
) -> BoxFuture<'_, Result<First<Sqlite>, sqlx::Error>> {
    if statement.only_reads() {
        Box::pin(async move {
            let row = connection.fetch_optional(statement).await?;
            if row.is_none() {
                // Or a worker that died, as above.
                lives(connection).await?;
            }
            Ok((row, false))
        })
    } else {
        first_row(connection, statement)
    }
}

fn code(error: &dyn DatabaseError) -> u32 {
    error.code().and_then(|code| code.parse().ok()).unwrap_or_default()
}

/// The driver gives the extended code: the low byte is the class, some mean more.
const fn class(code: u32) -> Class {
    const BUSY_SNAPSHOT: u32 = 517;
    if code == BUSY_SNAPSHOT {
        return Class::Conflict;
    }
    match code & 0xff {
        5 | 6 | 15 => Class::Contended,
        9 => Class::Cancelled,
        10 => Class::GoingAway,
        14 | 26 => Class::File,
        23 => Class::Refused,
        7 | 13 => Class::Exhausted,
        8 => Class::WrongNode,
        11 => Class::Damaged,
        _ => Class::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_class() {
        for (code, expected) in [
            (5, Class::Contended),
            (517, Class::Conflict),
            (1555, Class::Permanent),
            (2067, Class::Permanent),
            (14, Class::File),
            (266, Class::GoingAway),
            (1, Class::Permanent),
        ] {
            assert_eq!(class(code), expected, "{code}");
        }
    }
}
