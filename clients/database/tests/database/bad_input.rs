//! What a caller or a setting gets wrong: the error says what, and nothing hangs.

use mainstay_database::{Error, SqliteDatabase, get_database_client_named};
use mainstay_policy::{BreakerState, report};
use std::time::{Duration, Instant};

fn memory(name: &str) -> SqliteDatabase {
    SqliteDatabase::builder().name(name).url("sqlite::memory:").build().unwrap()
}

/// Runs again in a process of its own, whose environment it gives: settings are the process's.
#[test]
fn settings_are_read_checked_and_named_for_each_client() {
    let Some(file) = std::env::var_os("MAINSTAY_CONFIG").map(std::path::PathBuf::from) else {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mainstay.toml");
        std::fs::write(&file, "").unwrap();
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "bad_input::settings_are_read_checked_and_named_for_each_client"]);
        again.env("MAINSTAY_CONFIG", &file);
        again.env("MAINSTAY_DATABASE_REPORTING_URL", "sqlite::memory:");
        again.env("MAINSTAY_DATABASE_REPORTING_MAX_CONNECTIONS", "3");
        again.env("MAINSTAY_DATABASE_READ_REPLICA_URL", "sqlite::memory:");
        again.env("MAINSTAY_DATABASE_READ_REPLICA_MAX_CONNECTIONS", "4");
        assert!(again.status().unwrap().success());
        return;
    };
    let write = |text: &str| {
        std::fs::write(&file, text).unwrap();
        mainstay_policy::reset_resilience_state();
    };
    let fails =
        || SqliteDatabase::builder().url("sqlite::memory:").build().unwrap_err().to_string();
    write("[database]\nmax_connections = 7\nacquire_timeout = \"250ms\"\n");
    assert_eq!(memory("s-file").max_connections(), 7);
    assert!(mainstay_policy::settings().unwrap().warnings().is_empty());
    let reporting: SqliteDatabase = get_database_client_named("reporting").unwrap();
    assert_eq!(reporting.max_connections(), 3);
    // What the name of a variable cannot hold is an underscore there.
    let replica: SqliteDatabase = get_database_client_named("Read-Replica").unwrap();
    assert_eq!(replica.max_connections(), 4);
    let replica = SqliteDatabase::builder().name("Read-Replica").build().unwrap();
    assert_eq!(replica.max_connections(), 4);
    let error = get_database_client_named::<sqlx::Sqlite>("a b").unwrap_err().to_string();
    assert!(error.contains("MAINSTAY_DATABASE_A_B_URL is not set"), "{error}");

    write("[database]\nmax_connections = 0\nidle_timeout = \"soon\"\npooler = \"session\"\n");
    let error = fails();
    for part in ["max_connections", "is 0", "from 1", "idle_timeout", "\"soon\"", "pooler", "none"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    write("[database]\nmin_connections = 0\nstatement_cache = 0\n");
    memory("s-none");
    write("[database]\nmin_connections = 20\n");
    assert!(fails().contains("up to max_connections, which is 10"), "{}", fails());
}

#[tokio::test]
async fn an_error_in_sql_and_a_type_that_does_not_fit_come_as_sqlx_gives_them() {
    let db = memory("bad-sql");
    let error = sqlx::query("selec 1").execute(&db).await.unwrap_err();
    assert!(error.as_database_error().unwrap().message().contains("near \"selec\""));
    let error = Error::from(error);
    assert!(error.downcast_ref::<sqlx::Error>().unwrap().as_database_error().is_some());
    let error = sqlx::query_scalar::<_, i64>("select 'text'").fetch_one(&db).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::ColumnDecode { .. }));
    let error = Error::from(error);
    assert!(report(&error).to_string().contains("does not fit the type"), "{error}");
    assert_eq!(db.policy().breaker().state(), BreakerState::Closed);
}

/// The statement is never sent, and the transaction is whole all the same.
#[tokio::test]
async fn a_closure_that_forgets_to_await_does_nothing_and_hangs_nowhere() {
    let db = memory("forgets");
    sqlx::query("create table t (n integer)").execute(&db).await.unwrap();
    let started = Instant::now();
    db.transaction(async |tx| {
        let forgotten = sqlx::query("insert into t values (1)").execute(&mut *tx);
        drop(forgotten);
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    let n: i64 = sqlx::query_scalar("select count(*) from t").fetch_one(&db).await.unwrap();
    assert_eq!(n, 0);
}

#[tokio::test]
async fn after_close_it_says_so() {
    let db = memory("closed");
    sqlx::query("select 1").execute(&db).await.unwrap();
    db.close(Duration::from_secs(1)).await;
    let error = Error::from(sqlx::query("select 1").execute(&db).await.unwrap_err());
    let text = report(&error).to_string();
    assert!(text.contains("the client is closed; build a new one"), "{text}");
}

/// What is in memory outlives the connections to it, and a runtime.
#[test]
fn data_in_memory_live_as_long_as_the_client() {
    let db = memory("lives");
    for n in 0..2_i64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            if n == 0 {
                sqlx::query("create table t (n integer)").execute(&db).await.unwrap();
            }
            // Dropped in mid-statement, its connection is closed: the only one.
            let endless = "with recursive n(i) as (select 1 union all select i + 1 from n) \
                           select count(*) from n where i < 0";
            let endless = sqlx::query(endless).execute(&db);
            tokio::time::timeout(Duration::from_millis(50), endless).await.unwrap_err();
            sqlx::query("insert into t values (1)").execute(&db).await.unwrap();
            let rows: i64 =
                sqlx::query_scalar("select count(*) from t").fetch_one(&db).await.unwrap();
            assert_eq!(rows, n + 1);
        });
    }
}

/// A BEGIN that answers Ok, and whose next statement is on its own after all, loses what is rolled
/// back later.
#[tokio::test]
async fn a_begin_through_the_client_is_refused() {
    let db = memory("begins");
    for begin in ["begin", "BEGIN IMMEDIATE;", "savepoint here"] {
        let error = Error::from(sqlx::query(begin).execute(&db).await.unwrap_err());
        let text = report(&error).to_string();
        assert!(text.contains("take session() or transaction()"), "{text}");
        assert!(!error.is_outcome_unknown() && error.attempts() == 1, "{text}");
    }
    let whole = "begin; create table t (n integer); insert into t values (1); commit";
    sqlx::raw_sql(whole).execute(&db).await.unwrap();
    let mut own = db.acquire().await.unwrap();
    sqlx::query("begin").execute(&mut own).await.unwrap();
    sqlx::query("insert into t values (2)").execute(&mut own).await.unwrap();
    sqlx::query("rollback").execute(&mut own).await.unwrap();
    drop(own);
    let n: i64 = sqlx::query_scalar("select count(*) from t").fetch_one(&db).await.unwrap();
    assert_eq!(n, 1);
}

#[tokio::test]
async fn a_statement_that_the_driver_refuses_is_not_repeated_and_no_fault_of_the_database() {
    let db = memory("refused-by-driver");
    for sql in ["select :name", "select @name"] {
        let error = Error::from(sqlx::query(sql).bind(1).execute(&db).await.unwrap_err());
        let text = report(&error).to_string();
        assert!(text.contains("write ?1"), "{text}");
        assert!(!error.is_outcome_unknown() && error.attempts() == 1, "{text}");
    }
    assert_eq!(db.policy().breaker().state(), BreakerState::Closed);
}
