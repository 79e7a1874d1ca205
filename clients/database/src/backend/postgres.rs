//! PostgreSQL. Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.

use super::*;
use sqlx::{Postgres, postgres::PgConnectOptions};

impl Backend for Postgres {}

impl Sealed for Postgres {
    const LABEL: &'static str = "PostgreSQL";
    const SCHEMES: &'static [&'static str] = &["postgres", "postgresql"];
    const EXAMPLE: &'static str = "postgres://user:password@host:5432/database";
    // COMMIT of a failed transaction is answered by ROLLBACK, and sqlx calls it done.
    const COMMIT_HIDES_ERRORS: bool = true;

    fn options(url: &str, tuning: &Tuning) -> Result<PgConnectOptions, sqlx::Error> {
        let mut options: PgConnectOptions = url.parse()?;
        if let Some(name) = &tuning.application_name {
            options = options.application_name(name);
        }
        if let Some(limit) = tuning.statement_timeout {
            let ms = limit.as_millis().clamp(1, i32::MAX as u128);
            options = options.options([("statement_timeout", ms.to_string())]);
        }
        Ok(options)
    }

    fn class(error: &dyn DatabaseError) -> Class {
        class(error.code().as_deref().unwrap_or_default())
    }

    driver_calls!(Postgres);
}

fn class(code: &str) -> Class {
    match code {
        "53300" | "57P03" => Class::Busy,
        "55P03" => Class::Contended,
        "40001" | "40P01" | "25P03" => Class::Conflict,
        "57P01" | "57P02" | "57P05" => Class::GoingAway,
        "57014" => Class::Cancelled,
        "53100" | "53200" | "53400" => Class::Exhausted,
        "25006" => Class::WrongNode,
        "25P01" | "25P02" => Class::Aborted,
        "3D000" => Class::Refused,
        "XX001" | "XX002" => Class::Damaged,
        code if code.starts_with("08") || code.starts_with("58") => Class::GoingAway,
        code if code.starts_with("28") => Class::Refused,
        _ => Class::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_class() {
        for (code, expected) in [
            ("40001", Class::Conflict),
            ("40P01", Class::Conflict),
            ("53300", Class::Busy),
            ("57P01", Class::GoingAway),
            ("08006", Class::GoingAway),
            ("28P01", Class::Refused),
            ("23505", Class::Permanent),
            ("42P01", Class::Permanent),
            ("54000", Class::Permanent),
            ("25006", Class::WrongNode),
            ("", Class::Permanent),
        ] {
            assert_eq!(class(code), expected, "{code}");
        }
    }
}
