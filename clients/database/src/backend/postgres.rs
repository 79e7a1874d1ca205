//! PostgreSQL. Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.

use super::*;
use sqlx::{
    Postgres, Row,
    postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSeverity, PgSslMode},
};

impl Backend for Postgres {}

/// A process may get the number of one that has ended, or live on another host: its start tells.
#[derive(Clone, Debug)]
pub struct Process {
    id: i32,
    start: String,
}

impl Sealed for Postgres {
    const LABEL: &'static str = "PostgreSQL";
    const SCHEMES: &'static [&'static str] = &["postgres", "postgresql"];
    const EXAMPLE: &'static str = "postgres://user:password@host:5432/database";
    const SAYS_ROLE: bool = true;
    const DIALECT: Dialect = Dialect::Postgres;
    const TLS_MODES: &'static str = "disable, allow, prefer, require, verify-ca, verify-full";
    const PARAMETERS: &'static [&'static str] = &[
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
        "options",
    ];
    // COMMIT of a failed transaction is answered by ROLLBACK, and sqlx calls it done.
    const COMMIT_HIDES_ERRORS: bool = true;
    type Key = Process;

    fn options(url: &str, tuning: &Tuning) -> Result<PgConnectOptions, sqlx::Error> {
        let mut options: PgConnectOptions = url.parse()?;
        if let Some(name) = &tuning.application_name {
            options = options.application_name(name);
        }
        if let Some(mode) = tuning.tls {
            options = options.ssl_mode(match mode {
                TlsMode::Disable => PgSslMode::Disable,
                TlsMode::Prefer => PgSslMode::Prefer,
                TlsMode::Require => PgSslMode::Require,
                TlsMode::VerifyCa => PgSslMode::VerifyCa,
                TlsMode::VerifyFull => PgSslMode::VerifyFull,
            });
        }
        if let Some(ca) = &tuning.tls_ca {
            options = options.ssl_root_cert(ca);
        }
        if let Some(statements) = tuning.statement_cache {
            options = options.statement_cache_capacity(statements);
        }
        if tuning.pooler {
            // PgBouncer refuses it in the startup packet; since PostgreSQL 12 it changes nothing.
            options = options.extra_float_digits(None);
        }
        Ok(options)
    }

    fn begin(options: &SessionOptions) -> Begin {
        let mut text = "BEGIN".to_owned();
        if let Some(isolation) = options.isolation {
            text = format!("{text} isolation level {}", level(isolation));
        }
        if options.read_only {
            text.push_str(" read only");
        }
        Begin { before: None, statement: (text.len() > 5).then(|| own(text)) }
    }

    /// One round trip. The timeout is set here and not in the startup packet, which old poolers
    /// refuse; one that the role, the database or the URL has set stays.
    fn greet<'c>(
        connection: &'c mut PgConnection,
        tuning: &'c Tuning,
    ) -> BoxFuture<'c, Result<Greeting<Process>, sqlx::Error>> {
        Box::pin(async move {
            if tuning.pooler && tuning.target == Target::Any {
                return Ok(Greeting::default());
            }
            let limit = tuning.statement_timeout().filter(|_| !tuning.pooler);
            let limit = limit.map_or(0, |limit| limit.as_millis().clamp(1, i32::MAX as u128));
            let text = format!(
                "select pid, extract(epoch from backend_start)::text, pg_is_in_recovery(), \
                 current_setting('transaction_read_only') = 'on', \
                 case when {limit} > 0 and current_setting('statement_timeout') = '0' \
                 then set_config('statement_timeout', '{limit}', false) end \
                 from pg_stat_get_activity(pg_backend_pid())"
            );
            let row = match connection.fetch_optional(sqlx::raw_sql(own(text))).await {
                // It speaks the protocol and is no PostgreSQL: it does without what is not there.
                Err(sqlx::Error::Database(e)) if Self::class(e.as_ref()) == Class::Permanent => {
                    None
                }
                answer => answer?,
            };
            let Some(row) = row else { return Ok(Greeting::default()) };
            // A pooler's server connection is another one for the next statement.
            let key = if tuning.pooler {
                None
            } else {
                Some(Process { id: row.try_get(0)?, start: row.try_get(1)? })
            };
            Ok(Greeting { key, standby: row.try_get(2)?, read_only: row.try_get(3)? })
        })
    }

    fn cancel(
        side: &mut PgConnection,
        keys: Vec<Process>,
    ) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        let (ids, starts): (Vec<_>, Vec<_>) = keys.into_iter().map(|k| (k.id, k.start)).unzip();
        let cancel = sqlx::query(
            "select pg_cancel_backend(a.pid) from unnest($1::int4[], $2::text[]) k(pid, start) \
             join pg_stat_get_activity(null) a \
             on a.pid = k.pid and extract(epoch from a.backend_start)::text = k.start",
        );
        Box::pin(async move { side.execute(cancel.bind(ids).bind(starts)).await.map(drop) })
    }

    fn switch(read_only: bool) -> &'static str {
        if read_only {
            "set default_transaction_read_only = on"
        } else {
            "reset default_transaction_read_only"
        }
    }

    fn class(error: &dyn DatabaseError) -> Class {
        let code = error.code();
        match (severity(error), code.as_deref().unwrap_or_default()) {
            // All its processes die with it, whatever came of a COMMIT.
            (Some(PgSeverity::Panic), _) => Class::GoingAway,
            // What PgBouncer says when it hangs up, whyever: its server may be gone in mid-statement.
            (Some(PgSeverity::Fatal), "08P01") => Class::GoingAway,
            // What it does not support is a plan whose columns are others by now.
            (_, "0A000") if routine(error) == Some("RevalidateCachedQuery") => Class::Stale,
            (_, code) => class(code),
        }
    }

    fn ends_connection(error: &dyn DatabaseError) -> bool {
        matches!(severity(error), Some(PgSeverity::Fatal | PgSeverity::Panic))
    }

    /// It refuses whatever follows until the end of the transaction or a savepoint.
    fn ends_transaction(_: &dyn DatabaseError) -> bool {
        false
    }

    driver_calls!(Postgres, first);
    driver_rows!();
}

/// The driver sees to the other rows itself.
fn first(
    connection: &mut PgConnection,
    statement: Statement<Postgres>,
) -> BoxFuture<'_, Result<First<Postgres>, sqlx::Error>> {
    let first = connection.fetch_optional(statement);
    Box::pin(async move { Ok((first.await?, false)) })
}

fn severity(error: &dyn DatabaseError) -> Option<PgSeverity> {
    error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity)
}

fn routine(error: &dyn DatabaseError) -> Option<&str> {
    error.try_downcast_ref::<PgDatabaseError>()?.routine()
}

fn class(code: &str) -> Class {
    match code {
        "57P03" => Class::Busy,
        "53300" => Class::Full,
        "55P03" => Class::Contended,
        "40001" | "40P01" | "25P03" => Class::Conflict,
        "57P01" | "57P02" | "57P05" => Class::GoingAway,
        // The other is of a transaction that took too long; it ends the connection too.
        "57014" | "25P04" => Class::Cancelled,
        "53100" | "53200" | "53400" => Class::Exhausted,
        "25006" => Class::WrongNode,
        "25P01" | "25P02" => Class::Aborted,
        "3D000" => Class::NoDatabase,
        "XX001" | "XX002" => Class::Damaged,
        // A message that makes no sense, as one with too few values.
        "08P01" => Class::Permanent,
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
            ("53300", Class::Full),
            ("57014", Class::Cancelled),
            ("25P04", Class::Cancelled),
            ("57P01", Class::GoingAway),
            ("08006", Class::GoingAway),
            ("08P01", Class::Permanent),
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
