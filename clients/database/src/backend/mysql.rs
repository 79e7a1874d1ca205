//! MariaDB and MySQL. Numbers: <https://mariadb.com/kb/en/mariadb-error-code-reference/>.

use super::*;
use sqlx::{
    Executor, MySql,
    mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError},
};

impl Backend for MySql {}

impl Sealed for MySql {
    const LABEL: &'static str = "MariaDB or MySQL";
    const SCHEMES: &'static [&'static str] = &["mysql", "mariadb"];
    const EXAMPLE: &'static str = "mysql://user:password@host:3306/database";

    fn options(url: &str, _: &Tuning) -> Result<MySqlConnectOptions, sqlx::Error> {
        url.parse()
    }

    /// MariaDB limits every statement; MySQL has a limit for SELECT alone.
    fn greet<'c>(
        connection: &'c mut MySqlConnection,
        tuning: &'c Tuning,
    ) -> BoxFuture<'c, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let Some(limit) = tuning.statement_timeout else { return Ok(()) };
            let seconds = limit.as_secs_f64().max(0.001);
            let mariadb = format!("set session max_statement_time = {seconds:.3}");
            let unknown_variable = |e: &sqlx::Error| matches!(e, sqlx::Error::Database(e) if number(e.as_ref()) == Some(1193));
            match connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(mariadb))).await {
                Err(error) if unknown_variable(&error) => {}
                result => return result.map(drop),
            }
            let mysql = format!("set session max_execution_time = {}", limit.as_millis().max(1));
            connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(mysql))).await.map(drop)
        })
    }

    fn class(error: &dyn DatabaseError) -> Class {
        class(number(error).unwrap_or_default())
    }

    driver_calls!(MySql);
}

// The SQLSTATE does not tell: a lock wait has HY000.
fn number(error: &dyn DatabaseError) -> Option<u16> {
    error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

const fn class(number: u16) -> Class {
    match number {
        1040 | 1203 | 1129 | 1047 => Class::Busy,
        3572 => Class::Contended,
        1213 | 1205 | 1020 | 1614 | 3058 => Class::Conflict,
        1053 | 1927 | 4031 | 1158..=1161 => Class::GoingAway,
        1317 | 3024 | 1969 => Class::Cancelled,
        1021 | 1037 | 1038 | 1041 => Class::Exhausted,
        1290 | 1792 | 1836 => Class::WrongNode,
        1044 | 1045 | 1049 | 1698 => Class::Refused,
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
            (1040, Class::Busy),
            (1053, Class::GoingAway),
            (1045, Class::Refused),
            (1062, Class::Permanent),
            (0, Class::Permanent),
        ] {
            assert_eq!(class(number), expected, "{number}");
        }
    }
}
