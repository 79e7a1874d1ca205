//! SQLite. Codes: <https://www.sqlite.org/rescode.html>.

use super::*;
use sqlx::{SqlSafeStr, Sqlite, sqlite::SqliteConnectOptions};

/// A worker that waits for a lock cannot be interrupted, so it waits less than an attempt may.
const LONGEST_LOCK_WAIT: Duration = Duration::from_secs(5);

impl Backend for Sqlite {}

impl Sealed for Sqlite {
    const LABEL: &'static str = "SQLite";
    const SCHEMES: &'static [&'static str] = &["sqlite"];
    const EXAMPLE: &'static str = "sqlite://path/to/file.db?mode=rwc";

    fn options(url: &str, tuning: &Tuning) -> Result<SqliteConnectOptions, sqlx::Error> {
        let options: SqliteConnectOptions = url.parse()?;
        let wait = tuning.statement_timeout.map_or(LONGEST_LOCK_WAIT, |limit| limit / 2);
        Ok(options.busy_timeout(wait.min(LONGEST_LOCK_WAIT)))
    }

    fn in_memory(options: &SqliteConnectOptions) -> bool {
        // What sqlx makes of `sqlite::memory:`; the option itself has no getter.
        options.get_filename().to_string_lossy().contains("sqlx-in-memory")
    }

    /// A deferred transaction that turns to writing fails at once, whatever the busy timeout.
    fn begin() -> Option<SqlStr> {
        Some("BEGIN IMMEDIATE".into_sql_str())
    }

    fn class(error: &dyn DatabaseError) -> Class {
        class(error.code().and_then(|code| code.parse().ok()).unwrap_or_default())
    }

    driver_calls!(Sqlite);
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
        14 | 23 | 26 => Class::Refused,
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
            (14, Class::Refused),
            (266, Class::GoingAway),
            (1, Class::Permanent),
        ] {
            assert_eq!(class(code), expected, "{code}");
        }
    }
}
