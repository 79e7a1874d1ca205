//! MariaDB and MySQL. Numbers: <https://mariadb.com/kb/en/mariadb-error-code-reference/>.

use super::*;
use sqlx::{
    MySql, Row,
    mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlRow, MySqlSslMode},
};

impl Backend for MySql {}

/// A number is given again after a restart; together with the address it came from it is not.
#[derive(Clone, Debug)]
pub struct Thread {
    id: u64,
    from: String,
}

impl Sealed for MySql {
    const LABEL: &'static str = "MariaDB or MySQL";
    const SCHEMES: &'static [&'static str] = &["mysql", "mariadb"];
    const EXAMPLE: &'static str = "mysql://user:password@host:3306/database";
    const DIALECT: Dialect = Dialect::MySql;
    const TLS_MODES: &'static str = "disabled, preferred, required, verify_ca, verify_identity";
    const PARAMETERS: &'static [&'static str] = &[
        "sslmode",
        "ssl-mode",
        "sslca",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "charset",
        "collation",
        "statement-cache-capacity",
        "socket",
        "timezone",
        "time-zone",
    ];
    type Key = Thread;

    fn options(url: &str, tuning: &Tuning) -> Result<MySqlConnectOptions, sqlx::Error> {
        let mut options: MySqlConnectOptions = url.parse()?;
        if let Some(mode) = tuning.tls {
            options = options.ssl_mode(match mode {
                TlsMode::Disable => MySqlSslMode::Disabled,
                TlsMode::Prefer => MySqlSslMode::Preferred,
                TlsMode::Require => MySqlSslMode::Required,
                TlsMode::VerifyCa => MySqlSslMode::VerifyCa,
                TlsMode::VerifyFull => MySqlSslMode::VerifyIdentity,
            });
        }
        if let Some(ca) = &tuning.tls_ca {
            options = options.ssl_ca(ca);
        }
        if let Some(statements) = tuning.statement_cache {
            options = options.statement_cache_capacity(statements);
        }
        Ok(options)
    }

    fn begin(options: &SessionOptions) -> Begin {
        let isolation = options.isolation.map(level);
        let set = |level| own(format!("set transaction isolation level {level}"));
        let read_only = || "START TRANSACTION READ ONLY".into_sql_str();
        Begin { before: isolation.map(set), statement: options.read_only.then(read_only) }
    }

    /// MariaDB limits every statement; MySQL has a limit for SELECT alone.
    fn greet<'c>(
        connection: &'c mut MySqlConnection,
        tuning: &'c Tuning,
    ) -> BoxFuture<'c, Result<Greeting<Thread>, sqlx::Error>> {
        Box::pin(async move {
            if let Some(limit) = tuning.statement_timeout().filter(|_| !tuning.pooler) {
                let seconds = limit.as_secs_f64().max(0.001);
                let mariadb = format!("set session max_statement_time = {seconds:.3}");
                match connection.execute(sqlx::raw_sql(own(mariadb))).await {
                    Err(sqlx::Error::Database(error)) if number(error.as_ref()) == Some(1193) => {
                        let ms = limit.as_millis().max(1);
                        let mysql = format!("set session max_execution_time = {ms}");
                        connection.execute(sqlx::raw_sql(own(mysql))).await?;
                    }
                    result => {
                        result?;
                    }
                }
            }
            let own = "select cast(id as unsigned), cast(host as char) \
                       from information_schema.processlist where id = connection_id()";
            let row = connection.fetch_optional(sqlx::raw_sql(own)).await?;
            let row = row.filter(|_| !tuning.pooler);
            let key = match row {
                Some(row) => Some(Thread { id: row.try_get(0)?, from: row.try_get(1)? }),
                None => None,
            };
            Ok(Greeting { key, ..Greeting::default() })
        })
    }

    /// The whole connection and not only its statement: nobody will use it again.
    fn cancel(
        side: &mut MySqlConnection,
        keys: Vec<Thread>,
    ) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let live = sqlx::query(
                "select cast(id as unsigned), cast(host as char) from information_schema.processlist",
            );
            let rows = side.fetch_all(live).await?;
            for key in keys {
                let is_it = |row: &MySqlRow| {
                    row.try_get(0).is_ok_and(|id: u64| id == key.id)
                        && row.try_get(1).is_ok_and(|from: &str| from == key.from)
                };
                if rows.iter().any(is_it) {
                    match side.execute(sqlx::raw_sql(own(format!("kill {}", key.id)))).await {
                        // It has ended by itself meanwhile.
                        Err(sqlx::Error::Database(e)) if number(e.as_ref()) == Some(1094) => {}
                        result => {
                            result?;
                        }
                    }
                }
            }
            Ok(())
        })
    }

    fn switch(read_only: bool) -> &'static str {
        if read_only {
            "set session transaction read only"
        } else {
            "set session transaction read write"
        }
    }

    fn class(error: &dyn DatabaseError) -> Class {
        match number(error).unwrap_or_default() {
            // Whichever option is in the way: only its name tells.
            1290 if !error.message().contains("read-only") => Class::Permanent,
            // Of some resource it has had enough for this hour: only that one's name tells.
            1226 if !error.message().contains("connections") => Class::Busy,
            number => class(number),
        }
    }

    /// After a packet that is too large for it, it hangs up.
    fn ends_connection(error: &dyn DatabaseError) -> bool {
        number(error) == Some(1153)
    }

    /// A deadlock and a full table of locks roll back the whole transaction.
    fn ends_transaction(error: &dyn DatabaseError) -> bool {
        matches!(number(error), Some(1213 | 1206 | 1614 | 1020 | 3058))
    }

    /// A lock that was not to be had, of which the setting below decides.
    fn leaves_doubt(error: &dyn DatabaseError) -> bool {
        number(error) == Some(1205)
    }

    /// The server was started with it: it does not change.
    fn kept_transaction(connection: &mut MySqlConnection) -> BoxFuture<'_, bool> {
        let setting = "select cast(@@innodb_rollback_on_timeout as unsigned)";
        let row = connection.fetch_one(sqlx::raw_sql(setting));
        Box::pin(async move {
            let all = row.await.and_then(|row| row.try_get::<u64, _>(0));
            all.is_ok_and(|all| all == 0)
        })
    }

    driver_calls!(MySql, first_row);
    driver_rows!();
}

// The SQLSTATE does not tell: a lock wait has HY000.
fn number(error: &dyn DatabaseError) -> Option<u16> {
    error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

const fn class(number: u16) -> Class {
    match number {
        1129 | 1047 => Class::Busy,
        1040 | 1203 | 1226 => Class::Full,
        3572 => Class::Contended,
        1213 | 1205 | 1020 | 1614 | 3058 => Class::Conflict,
        1053 | 1927 | 4031 | 1158..=1161 => Class::GoingAway,
        1317 | 3024 | 1969 => Class::Cancelled,
        // 3 and 20 are those of writing a file; 1114, a table that cannot grow.
        3 | 20 | 1021 | 1026 | 1037 | 1038 | 1041 | 1114 => Class::Exhausted,
        1290 | 1792 | 1836 => Class::WrongNode,
        1044 | 1045 | 1698 => Class::Refused,
        1049 => Class::NoDatabase,
        1194 => Class::Damaged,
        _ => Class::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_class() {
        for (number, expected) in [
            (1213, Class::Conflict),
            (1205, Class::Conflict),
            (1040, Class::Full),
            (1053, Class::GoingAway),
            (1927, Class::GoingAway),
            (1226, Class::Full),
            (1114, Class::Exhausted),
            (1317, Class::Cancelled),
            (1045, Class::Refused),
            (1062, Class::Permanent),
            (0, Class::Permanent),
        ] {
            assert_eq!(class(number), expected, "{number}");
        }
    }
}
