//! What is given up here ends on the server, and its connection is handed to nobody.

use super::*;
use futures_util::TryStreamExt;
use mainstay_database::SqliteDatabase;
use mainstay_policy::{Deadline, Decider, Hedge, get_resilience_health};

/// Statements with this mark that PostgreSQL is at.
async fn pg_runs(referee: &PgDatabase, mark: &str) -> bool {
    let running = "select count(*) from pg_stat_activity where state = 'active' \
                   and pid <> pg_backend_pid() and query like '%' || $1 || '%'";
    let n: i64 = sqlx::query_scalar(running).bind(mark).fetch_one(referee).await.unwrap();
    n > 0
}

async fn maria_runs(referee: &MySqlDatabase, mark: &str) -> bool {
    let running = "select count(*) from information_schema.processlist \
                   where id <> connection_id() and info like concat('%', ?, '%')";
    let n: i64 = sqlx::query_scalar(running).bind(mark).fetch_one(referee).await.unwrap();
    n > 0
}

/// Polls both: the work, which does not end, and the wait.
async fn while_running(work: impl Future, wait: impl Future<Output = ()>) {
    tokio::select! {
        _ = work => panic!("it ended"),
        () = wait => {}
    }
}

#[tokio::test]
async fn postgres_ends_a_statement_that_was_dropped() {
    let (db, referee) = (postgres("cancel-pg"), postgres("cancel-pg-referee"));
    let sleep = sqlx::query("select pg_sleep(60), 'dropped'").execute(&db);
    while_running(sleep, until("it runs", || pg_runs(&referee, "'dropped'"))).await;
    let dropped = Instant::now();
    until("it is cancelled", || async { !pg_runs(&referee, "'dropped'").await }).await;
    println!("cancelled on PostgreSQL {:?} after the drop", dropped.elapsed());
    assert!(dropped.elapsed() < ms(20_000));
    until_at_rest(&db).await;
    let n: i32 = sqlx::query_scalar("select 1").fetch_one(&db).await.unwrap();
    assert_eq!(n, 1);
}

/// Many at once go by one side connection, in a pool with none to spare.
#[tokio::test]
async fn many_statements_are_cancelled_together() {
    let server = Postgres::start();
    let db: PgDatabase = DatabaseClient::builder()
        .name("cancel-many")
        .url(server.url())
        .max_connections(40)
        // Forty processes of the server start at once.
        .connect_timeout(ms(20_000))
        .acquire_timeout(ms(20_000))
        .build()
        .unwrap();
    let referee: PgDatabase = client("cancel-many-referee", server.url());
    let count = || async {
        let running = "select count(*) from pg_stat_activity where query like '%''many''' \
                       and pid <> pg_backend_pid() and state = 'active'";
        let n: i64 = sqlx::query_scalar(running).fetch_one(&referee).await.unwrap();
        n
    };
    let all = futures_util::future::join_all(
        (0..40).map(|_| sqlx::query("select pg_sleep(60), 'many'").execute(&db)),
    );
    while_running(all, until("all run", || async { count().await == 40 })).await;
    let dropped = Instant::now();
    until("all are cancelled", || async { count().await == 0 }).await;
    println!("40 cancelled {:?} after the drop", dropped.elapsed());
    until_at_rest(&db).await;
    assert_eq!(db.pool_status().waiting, 0);
}

/// The deadline is earlier than the server's own limit, and the session is still held.
#[tokio::test]
async fn postgres_ends_a_statement_of_a_session_whose_time_is_up() {
    let (db, referee) = (postgres("cancel-late"), postgres("cancel-late-referee"));
    let mut session = db.session().await.unwrap();
    let sleep = sqlx::query("select pg_sleep(60), 'late'").execute(&mut session);
    let error = Error::from(Deadline::within(ms(200)).scope(sleep).await.unwrap_err());
    assert!(error.is_timeout() && !error.is_outcome_unknown(), "{}", text(&error));
    until("it is cancelled", || async { !pg_runs(&referee, "'late'").await }).await;
    let refused = sqlx::query("select 1").execute(&mut session).await.unwrap_err();
    assert!(text(&refused.into()).contains("take a new session"));
    let error = session.commit().await.unwrap_err();
    assert!(!error.is_outcome_unknown(), "{}", text(&error));
}

#[tokio::test]
async fn rows_half_read_leave_a_connection_that_is_in_order() {
    let db: PgDatabase = DatabaseClient::builder()
        .name("cancel-rows")
        .url(POSTGRES.url())
        .max_connections(1)
        .build()
        .unwrap();
    for _ in 0..20 {
        let mut rows = sqlx::query("select generate_series(1, 10000)").fetch(&db);
        futures_util::StreamExt::next(&mut rows).await.unwrap().unwrap();
        drop(rows);
        let n: i32 = sqlx::query_scalar("select 7").fetch_one(&db).await.unwrap();
        assert_eq!(n, 7);
    }
}

/// Else the server would hold its locks for as long as the connection is idle, and the next caller
/// would have to read all of it.
#[tokio::test]
async fn a_result_of_which_one_row_was_read_ends_on_the_server() {
    let (db, referee) = (postgres("cancel-rest"), postgres("cancel-rest-referee"));
    let all = "select generate_series(1, 100000000), 'rest'";
    let mut rows = sqlx::query(all).fetch(&db);
    futures_util::StreamExt::next(&mut rows).await.unwrap().unwrap();
    assert!(pg_runs(&referee, "'rest'").await);
    drop(rows);
    until("it is cancelled", || async { !pg_runs(&referee, "'rest'").await }).await;
    let mut connection = db.acquire().await.unwrap();
    let mut rows = sqlx::query(all).fetch(&mut connection);
    futures_util::StreamExt::next(&mut rows).await.unwrap().unwrap();
    drop(rows);
    drop(connection);
    until("it is cancelled", || async { !pg_runs(&referee, "'rest'").await }).await;
    until_at_rest(&db).await;
}

/// sqlx would read the rest for whoever has the connection next.
#[tokio::test]
async fn mariadb_ends_a_stream_that_was_dropped() {
    let (db, referee) = (mariadb("rest-maria"), mariadb("rest-maria-referee"));
    let all = "select seq, 'stream' from seq_1_to_1000000000";
    let mut rows = sqlx::query(all).fetch(&db);
    futures_util::StreamExt::next(&mut rows).await.unwrap().unwrap();
    assert!(maria_runs(&referee, "seq_1_to_1000000000").await);
    drop(rows);
    until("it is killed", || async { !maria_runs(&referee, "seq_1_to_1000000000").await }).await;
}

#[tokio::test]
async fn mariadb_ends_a_statement_that_was_dropped() {
    let (db, referee) = (mariadb("cancel-maria"), mariadb("cancel-maria-referee"));
    let sleep = sqlx::query("select sleep(60), 'dropped'").execute(&db);
    while_running(sleep, until("it runs", || maria_runs(&referee, "'dropped'"))).await;
    let dropped = Instant::now();
    until("it is cancelled", || async { !maria_runs(&referee, "'dropped'").await }).await;
    println!("killed on MariaDB {:?} after the drop", dropped.elapsed());
    assert!(dropped.elapsed() < ms(20_000));
    until_at_rest(&db).await;

    let mut session = db.session().await.unwrap();
    let sleep = sqlx::query("select sleep(60), 'late'").execute(&mut session);
    let error = Error::from(Deadline::within(ms(200)).scope(sleep).await.unwrap_err());
    assert!(error.is_timeout(), "{}", text(&error));
    until("it is cancelled", || async { !maria_runs(&referee, "'late'").await }).await;
}

/// It would hold the file's lock for ever.
#[tokio::test]
async fn sqlite_ends_a_write_that_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("a.db").display());
    let db = SqliteDatabase::builder().name("cancel-sqlite").url(url).build().unwrap();
    sqlx::query("create table t (n integer)").execute(&db).await.unwrap();
    let endless = "insert into t with recursive n(i) as (select 1 union all select i + 1 from n) \
                   select i from n where i < 0";
    let endless = sqlx::query(endless).execute(&db);
    tokio::time::timeout(ms(200), endless).await.unwrap_err();
    let dropped = Instant::now();
    sqlx::query("insert into t values (1)").execute(&db).await.unwrap();
    println!("SQLite's lock was free {:?} after the drop", dropped.elapsed());
    assert!(dropped.elapsed() < ms(4_000), "{:?}", dropped.elapsed());
    until_at_rest(&db).await;
}

/// Of a result that nobody read to its end, MariaDB goes on sending: the driver would read it away before
/// the next caller's statement. A few rows are read at once; of a gigabyte the server is told to stop.
#[tokio::test]
async fn rows_that_one_caller_left_are_not_read_on_the_next_ones_time() {
    let db: MySqlDatabase = DatabaseClient::builder()
        .name("left-rows")
        .url(MARIADB.url())
        .max_connections(1)
        .build()
        .unwrap();
    let connection =
        || async { sqlx::query_scalar::<_, u64>("select connection_id()").fetch_one(&db).await };
    let mut first = connection().await.unwrap();
    let few = "select seq from seq_1_to_10";
    // A machine that is busy for the tenth of a second that it may take is no fault of ours.
    for left in (0..10).rev() {
        assert_eq!(sqlx::query_scalar::<_, u64>(few).fetch_one(&db).await.unwrap(), 1);
        let now = connection().await.unwrap();
        if now == first {
            break;
        }
        assert!(left > 0, "it is never read to its end");
        first = now;
    }

    let many = "select repeat('x', 1000) from seq_1_to_1000000";
    sqlx::query(many).fetch_one(&db).await.unwrap();
    let asked = Instant::now();
    let next = connection().await.unwrap();
    println!("the next caller waited {:?}", asked.elapsed());
    assert_ne!(next, first, "nobody reads a gigabyte away");
    assert!(asked.elapsed() < ms(3_000), "{:?}", asked.elapsed());
}

/// The loser of a race is cancelled like any other; nothing but what the server knows to be a read is raced.
#[tokio::test]
async fn only_a_read_has_a_second_copy() {
    let db: PgDatabase = DatabaseClient::builder()
        .name("hedged")
        .url(POSTGRES.url())
        .policy(|policy| policy.hedge(Hedge::After(ms(50))))
        .build()
        .unwrap();
    let copies = || get_resilience_health().circuit_breakers[db.policy().name()].hedges;
    let slow = "select pg_sleep(0.3)";
    sqlx::query(slow).execute(&db).await.unwrap();
    sqlx::query(slow).execute(db.idempotent()).await.unwrap();
    assert_eq!(copies(), 0, "a `select` may call what writes");
    sqlx::query(slow).execute(db.read()).await.unwrap();
    assert_eq!(copies(), 1);
}

/// What is left of it is less with every row, each of which comes in time.
#[tokio::test]
async fn a_stream_of_many_rows_ends_by_the_deadline_around_it() {
    let db = postgres("cancel-stream");
    // More than the server keeps back for the next one.
    let rows = "select repeat('x', 9000), pg_sleep(0.05) from generate_series(1, 100)";
    let mut session = db.session().await.unwrap();
    for held in [false, true] {
        let started = Instant::now();
        let read = async {
            let mut rows = if held {
                sqlx::query(rows).fetch(&mut session)
            } else {
                sqlx::query(rows).fetch(&db)
            };
            while rows.try_next().await?.is_some() {}
            Ok::<_, Error>(())
        };
        let error = Deadline::within(ms(500)).scope(read).await.unwrap_err();
        assert_eq!(error.decider(), Some(Decider::Deadline), "{}", text(&error));
        assert!(started.elapsed() < ms(2_500), "{:?}", started.elapsed());
    }
}
