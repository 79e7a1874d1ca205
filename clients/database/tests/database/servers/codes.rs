//! Rows of the error table, each by an error that a real server gives: what the caller may do next,
//! and what the breaker makes of it.

use super::*;
use mainstay_database::{SqliteDatabase, sqlx::AssertSqlSafe};
use mainstay_policy::{Effect, ErrorKind, get_resilience_health};

/// What the breaker counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    Success,
    Failure,
    Neutral,
}

fn counts(name: &str) -> (u64, u64, u64) {
    let health = get_resilience_health();
    let one = &health.circuit_breakers[&format!("database:{name}")];
    let (ok, failed) = (one.successful_calls, one.failed_calls);
    (ok, failed, one.total_calls - ok - failed)
}

/// A client that tries once, with a breaker of its own that only counts.
fn once<DB: Backend>(name: &str, url: &str) -> DatabaseClient<DB> {
    DatabaseClient::builder()
        .name(name)
        .url(url)
        .policy(|p| p.max_attempts(1).timeout(ms(10_000)).failure_threshold(1_000))
        .build()
        .unwrap()
}

/// The effect of a statement's error; an answer that is not repeated comes plain, and is permanent.
async fn judge<DB: Backend>(
    name: &str,
    code: &str,
    call: impl Future<Output = Result<(), Error>>,
    expected: (Effect, Breaker),
) {
    let before = counts(name);
    let error = call.await.unwrap_err();
    let after = counts(name);
    let breaker = match (after.0 - before.0, after.1 - before.1, after.2 - before.2) {
        (1, 0, 0) => Breaker::Success,
        (0, 1, 0) => Breaker::Failure,
        (0, 0, 1) => Breaker::Neutral,
        other => panic!("{name} {code}: {other:?}"),
    };
    let driver = error.downcast_ref::<sqlx::Error>().and_then(|e| e.as_database_error());
    let seen = driver.and_then(|e| e.code()).unwrap_or_default().into_owned();
    println!("{} {code}: {:?}, breaker {breaker:?}: {}", DB::NAME, error.effect(), text(&error));
    assert_eq!(seen, code, "{}", text(&error));
    assert_eq!((error.effect(), breaker), expected, "{code}");
}

/// A statement on the client.
async fn run<DB: Backend>(db: &DatabaseClient<DB>, sql: &str) -> Result<(), Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await?;
    Ok(())
}

const CONFLICT: (Effect, Breaker) = (Effect::Transient, Breaker::Neutral);
const ILL: (Effect, Breaker) = (Effect::Transient, Breaker::Failure);
const OWN_FAULT: (Effect, Breaker) = (Effect::Permanent, Breaker::Success);
const REFUSED: (Effect, Breaker) = (Effect::Permanent, Breaker::Failure);
const LOST: (Effect, Breaker) = (Effect::Unknown, Breaker::Failure);

#[tokio::test]
async fn postgres_answers() {
    type Pg = sqlx::Postgres;
    let server = Postgres::start_with(&["--max_connections=10"]);
    let name = "codes-pg";
    let db: PgDatabase = once(name, &server.url());
    let referee: PgDatabase = client("codes-pg-referee", server.url());
    run(&db, "create table t (id int primary key, n int); insert into t values (1, 0), (2, 0)")
        .await
        .unwrap();
    let judge = |code, call, expected| judge::<Pg>(name, code, call, expected);
    type Call<'c> = std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + 'c>>;
    let sql = |text: &'static str| -> Call<'_> { Box::pin(run(&db, text)) };

    judge("23505", sql("insert into t values (1, 1)"), OWN_FAULT).await;
    judge("42P01", sql("select * from nowhere"), OWN_FAULT).await;
    judge("42601", sql("selec 1"), OWN_FAULT).await;
    let missing = Box::pin(async {
        sqlx::query("select $1::int").execute(&db).await?;
        Ok(())
    });
    judge("08P01", missing, OWN_FAULT).await;
    judge("22012", sql("select 1 / 0"), OWN_FAULT).await;
    judge("P0001", sql("do $$ begin raise 'mine'; end $$"), OWN_FAULT).await;
    judge("57014", sql("set local statement_timeout = 20; select pg_sleep(9)"), ILL).await;
    judge("25006", sql("set transaction read only; insert into t values (3, 3)"), ILL).await;
    judge("57P01", sql("select pg_terminate_backend(pg_backend_pid())"), LOST).await;

    // 55P03 and 40001, in the way of another transaction.
    let mut other = referee.session().await.unwrap();
    sqlx::query("update t set n = 1 where id = 1").execute(&mut other).await.unwrap();
    judge("55P03", sql("set local lock_timeout = 20; update t set n = 2 where id = 1"), CONFLICT)
        .await;
    judge("55P03", sql("select * from t where id = 1 for update nowait"), CONFLICT).await;
    other.rollback().await.unwrap();
    let serializable: Call<'_> = Box::pin(db.transaction(async |tx| {
        sqlx::query("set transaction isolation level repeatable read").execute(&mut *tx).await?;
        sqlx::query("select * from t").execute(&mut *tx).await?;
        sqlx::query("update t set n = n + 1").execute(&referee).await?;
        sqlx::query("update t set n = n + 1").execute(&mut *tx).await?;
        Ok::<_, Error>(())
    }));
    judge("40001", serializable, CONFLICT).await;

    // A database and a role that are not there.
    let name = "codes-pg-nodb";
    let missing: PgDatabase =
        once(name, &format!("postgres://postgres@{}/nowhere", server.address()));
    super::codes::judge::<Pg>(name, "3D000", run(&missing, "select 1"), REFUSED).await;
    let name = "codes-pg-norole";
    let stranger: PgDatabase = once(name, &server.url().replace("postgres@", "stranger@"));
    super::codes::judge::<Pg>(name, "28000", run(&stranger, "select 1"), REFUSED).await;

    // A file that cannot grow: the table's is a device that is always full.
    run(&db, "create table full_disk (n int)").await.unwrap();
    let path =
        "select current_setting('data_directory') || '/' || pg_relation_filepath('full_disk')";
    let path: String = sqlx::query_scalar(path).fetch_one(&referee).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let fresh: PgDatabase = once(name, &server.url());
    super::codes::judge::<Pg>(name, "53100", run(&fresh, "insert into full_disk values (1)"), ILL)
        .await;

    // No connection is left: seven for all, three for the superuser, which we are.
    let name = "codes-pg-many";
    let hog: PgDatabase = client("codes-pg-hog", server.url());
    let mut held = Vec::new();
    while let Ok(connection) = hog.acquire().await {
        held.push(connection);
    }
    let late: PgDatabase = once(name, &server.url());
    let started = Instant::now();
    super::codes::judge::<Pg>(name, "53300", run(&late, "select 1"), ILL).await;
    assert!(started.elapsed() < ms(1_000));
    drop(held);
    hog.close(ms(10_000)).await;
    until("there is a connection again", || async { run(&late, "select 1").await.is_ok() }).await;
}

/// The server's processes end because one of them was killed.
#[tokio::test]
async fn postgres_that_lost_a_process_is_back_at_once() {
    let server = Postgres::start();
    let db: PgDatabase = client("codes-crash", server.url());
    run(&db, "create table t (n int)").await.unwrap();
    let process: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&db).await.unwrap();
    let killed = std::process::Command::new("kill").args(["-9", &process.to_string()]).status();
    assert!(killed.unwrap().success());
    let started = Instant::now();
    until("it writes again", || async {
        sqlx::query("insert into t values (1)").execute(db.idempotent()).await.is_ok()
    })
    .await;
    println!("writes again {:?} after one process was killed", started.elapsed());
}

#[tokio::test]
async fn mariadb_answers() {
    type My = sqlx::MySql;
    let server = Mariadb::start_with(&["--max-connections=10"]);
    let name = "codes-maria";
    let db: MySqlDatabase = once(name, &server.url());
    let referee: MySqlDatabase = client("codes-maria-referee", server.url());
    run(&db, "create table t (id int primary key, n int) engine=innodb").await.unwrap();
    run(&db, "insert into t values (1, 0), (2, 0)").await.unwrap();
    judge::<My>(name, "23000", run(&db, "insert into t values (1, 1)"), OWN_FAULT).await;
    judge::<My>(name, "42S02", run(&db, "select * from nowhere"), OWN_FAULT).await;
    judge::<My>(name, "42000", run(&db, "selec 1"), OWN_FAULT).await;
    let slow = "set statement max_statement_time = 0.02 for select sleep(9) from t";
    judge::<My>(name, "70100", run(&db, slow), ILL).await;
    // 1205, whose SQLSTATE says nothing.
    let mut other = referee.session().await.unwrap();
    sqlx::query("update t set n = 1 where id = 1").execute(&mut other).await.unwrap();
    let wait = "set statement innodb_lock_wait_timeout = 1 for update t set n = 2 where id = 1";
    judge::<My>(name, "HY000", run(&db, wait), CONFLICT).await;
    other.rollback().await.unwrap();

    let url = server.url().replace("root@", "stranger@");
    let name = "codes-maria-stranger";
    judge::<My>(name, "28000", run(&once::<My>(name, &url), "select 1"), REFUSED).await;
    let url = server.url().replace("/mysql?", "/nowhere?");
    let name = "codes-maria-nodb";
    judge::<My>(name, "42000", run(&once::<My>(name, &url), "select 1"), REFUSED).await;

    // A server that takes no writes, for those who are no administrators.
    run(&referee, "create user writer identified by ''").await.unwrap();
    run(&referee, "grant all on mysql.* to writer").await.unwrap();
    run(&referee, "set global read_only = 1").await.unwrap();
    let url = server.url().replace("root@", "writer@");
    let name = "codes-maria-readonly";
    let writer: MySqlDatabase = once(name, &url);
    judge::<My>(name, "HY000", run(&writer, "insert into t values (5, 5)"), ILL).await;
    run(&referee, "set global read_only = 0").await.unwrap();
    run(&writer, "insert into t values (5, 5)").await.unwrap();

    // No connection is left.
    let hog: MySqlDatabase = DatabaseClient::builder()
        .name("codes-maria-hog")
        .url(&url)
        .max_connections(20)
        .policy(|p| p.max_attempts(1))
        .build()
        .unwrap();
    let mut held = Vec::new();
    while let Ok(connection) = hog.acquire().await {
        held.push(connection);
    }
    let name = "codes-maria-many";
    let late: MySqlDatabase = once(name, &url);
    let started = Instant::now();
    judge::<My>(name, "08004", run(&late, "select 1"), ILL).await;
    assert!(started.elapsed() < ms(1_000));
    drop(held);
    hog.close(ms(10_000)).await;
    until("there is a connection again", || async { run(&late, "select 1").await.is_ok() }).await;
}

#[tokio::test]
async fn sqlite_answers() {
    type Lite = sqlx::Sqlite;
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("a.db").display());
    let name = "codes-sqlite";
    let db: SqliteDatabase = DatabaseClient::builder()
        .name(name)
        .url(&url)
        .policy(|p| p.max_attempts(1).timeout(ms(200)).failure_threshold(1_000))
        .build()
        .unwrap();
    run(&db, "create table t (id integer primary key, n text)").await.unwrap();
    run(&db, "insert into t values (1, '')").await.unwrap();
    judge::<Lite>(name, "1555", run(&db, "insert into t values (1, '')"), OWN_FAULT).await;
    judge::<Lite>(name, "1", run(&db, "selec 1"), OWN_FAULT).await;
    let full = "pragma max_page_count = 1; insert into t values (2, zeroblob(100000))";
    judge::<Lite>(name, "13", run(&db, full), ILL).await;
    judge::<Lite>(name, "8", run(&db, "pragma query_only = on; delete from t"), ILL).await;
    let held = db.session().await.unwrap();
    judge::<Lite>(name, "5", run(&db, "delete from t"), CONFLICT).await;
    drop(held);

    let junk = dir.path().join("junk.db");
    std::fs::write(&junk, vec![7; 4096]).unwrap();
    let name = "codes-sqlite-junk";
    let db: SqliteDatabase = once(name, &format!("sqlite://{}", junk.display()));
    let error = run(&db, "select * from t").await.unwrap_err();
    assert!(text(&error).contains("file is not a database"), "{}", text(&error));
    assert_eq!(error.kind(), ErrorKind::Backend);
    let db: SqliteDatabase = once("codes-sqlite-missing", "sqlite:///no/such/file.db");
    let error = run(&db, "select 1").await.unwrap_err();
    assert!(text(&error).contains("check the path"), "{}", text(&error));
}
