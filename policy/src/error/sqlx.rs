//! `?` on a query. Here and not in the database client, because of the orphan rule.

use super::{Effect, Error, ErrorKind, io::own};
use crate::classify::Verdict;
use sqlx_core::{Error as Driver, error::ErrorKind as Answer};

/// What a policy decided comes out of its wrapping whole; what the database answered keeps sqlx's
/// error as its source.
impl From<Driver> for Error {
    fn from(error: Driver) -> Self {
        let error = match error {
            Driver::Io(io) if io.get_ref().is_some_and(|inner| inner.is::<Self>()) => {
                match io.downcast::<Self>() {
                    Ok(own) => return own,
                    Err(io) => Driver::Io(io),
                }
            }
            other => other,
        };
        let mut own = Self::local(ErrorKind::Backend, format!("database: {}", words(&error)), None);
        own.0.attempts = 1;
        own.0.effect = Effect::Permanent;
        own.0.source = Some(Box::new(error));
        own
    }
}

/// What a driver's error means to a policy around the call that ended with it, where it says so whatever
/// the server is: what a policy inside decided, and answers that are no fault of the database.
pub(crate) fn verdict(error: &Driver) -> Option<Verdict> {
    match error {
        Driver::Io(io) => own(io).map(Error::verdict),
        Driver::Database(answer) => {
            (!matches!(answer.kind(), Answer::Other)).then(Verdict::permanent)
        }
        Driver::RowNotFound
        | Driver::ColumnDecode { .. }
        | Driver::Decode(_)
        | Driver::ColumnNotFound(_)
        | Driver::ColumnIndexOutOfBounds { .. }
        | Driver::TypeNotFound { .. } => Some(Verdict::permanent()),
        _ => None,
    }
}

fn words(error: &Driver) -> String {
    match error {
        Driver::Database(answer) => {
            let code = answer.code().unwrap_or_default();
            match answer.message() {
                _ if code == "25P02" => {
                    "the database answered 25P02: a statement of this transaction had failed before"
                        .to_owned()
                }
                message if holds_names_only(&code, message) => {
                    format!("the database answered {code}: {message}")
                }
                // It may quote a value.
                _ => format!("the database answered {code}; its words are in source()"),
            }
        }
        Driver::ColumnDecode { .. }
        | Driver::Decode(_)
        | Driver::ColumnNotFound(_)
        | Driver::ColumnIndexOutOfBounds { .. }
        | Driver::TypeNotFound { .. } => {
            "the row does not fit the type it is read into; source() names the column".to_owned()
        }
        Driver::RowNotFound => "no row; use fetch_optional where there may be none".to_owned(),
        _ => "the driver's error; its words are in source()".to_owned(),
    }
}

/// A table or column that is not there: the message is about names, not values.
fn holds_names_only(code: &str, message: &str) -> bool {
    match code {
        // PostgreSQL; then MariaDB and MySQL.
        "42P01" | "42703" | "42S02" | "42S22" => true,
        // SQLite: a file that cannot be opened, or is no database; then names.
        "14" | "26" => true,
        "1" => message.starts_with("no such "),
        _ => false,
    }
}
