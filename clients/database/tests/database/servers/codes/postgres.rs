use super::*;

#[tokio::test]
async fn its_answers() {
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
    // As that of a statement which is older than its table, which see.
    judge("0A000", sql("select count(*) from t for update"), OWN_FAULT).await;
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
    super::judge::<Pg>(name, "3D000", run(&missing, "select 1"), REFUSED).await;
    let name = "codes-pg-norole";
    let stranger: PgDatabase = once(name, &server.url().replace("postgres@", "stranger@"));
    super::judge::<Pg>(name, "28000", run(&stranger, "select 1"), REFUSED).await;

    // A file that cannot grow: the table's is a device that is always full.
    run(&db, "create table full_disk (n int)").await.unwrap();
    let path =
        "select current_setting('data_directory') || '/' || pg_relation_filepath('full_disk')";
    let path: String = sqlx::query_scalar(path).fetch_one(&referee).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let name = "codes-pg-full";
    let fresh: PgDatabase = once(name, &server.url());
    super::judge::<Pg>(name, "53100", run(&fresh, "insert into full_disk values (1)"), ILL).await;
    // The server goes on, for what needs no more room.
    run(&fresh, "update t set n = 3 where id = 2").await.unwrap();

    // No connection is left: seven for all, three for the superuser, which we are.
    let name = "codes-pg-many";
    let hog: PgDatabase = client("codes-pg-hog", server.url());
    let mut held = Vec::new();
    while let Ok(connection) = hog.acquire().await {
        held.push(connection);
    }
    let late: PgDatabase = once(name, &server.url());
    let started = Instant::now();
    super::judge::<Pg>(name, "53300", run(&late, "select 1"), ILL).await;
    assert!(started.elapsed() < ms(4_000));
    drop(held);
    hog.close(ms(10_000)).await;
    until("there is a connection again", || async { run(&late, "select 1").await.is_ok() }).await;
}

/// The server ends connections that wait too long, here inside a transaction and outside of one.
#[tokio::test]
async fn it_ends_connections_that_wait_too_long() {
    type Pg = sqlx::Postgres;
    let name = "codes-pg-idle";
    let db: PgDatabase = once(name, &POSTGRES.url());
    let referee = postgres("codes-pg-idle-referee");
    let gone = async |process: i32| {
        until("its process has ended", || async {
            let there = "select count(*) from pg_stat_activity where pid = $1";
            let there = sqlx::query_scalar::<_, i64>(there).bind(process);
            there.fetch_one(&referee).await.unwrap() == 0
        })
        .await;
    };
    let process = "select pg_backend_pid()";
    let transaction = db.transaction(async |tx| {
        let set = "set local idle_in_transaction_session_timeout = 20";
        sqlx::query(set).execute(&mut *tx).await?;
        gone(sqlx::query_scalar(process).fetch_one(&mut *tx).await?).await;
        sqlx::query("select 1").execute(&mut *tx).await?;
        Ok::<_, Error>(())
    });
    judge::<Pg>(name, "25P03", transaction, CONFLICT).await;

    let mut connection = db.acquire().await.unwrap();
    let ended: i32 = sqlx::query_scalar(process).fetch_one(&mut connection).await.unwrap();
    let set = "set idle_session_timeout = 20";
    sqlx::query(set).execute(&mut connection).await.unwrap();
    gone(ended).await;
    let error = Error::from(sqlx::query("select 1").execute(&mut connection).await.unwrap_err());
    assert!(error.is_outcome_unknown() && text(&error).contains("57P05"), "{}", text(&error));
    drop(connection);
    run(&db, "select 1").await.unwrap();
}

/// A page that holds what the server did not write there, and a file that is gone.
#[tokio::test]
async fn it_says_that_data_are_damaged() {
    type Pg = sqlx::Postgres;
    let mut server = Postgres::start();
    let (name, path) = (
        "codes-pg-damage",
        "select current_setting('data_directory') || '/' || \
                        pg_relation_filepath($1::regclass)",
    );
    let db: PgDatabase = once(name, &server.url());
    run(&db, "create table torn as select 1 as n; create table gone as select 1 as n")
        .await
        .unwrap();
    run(&db, "checkpoint").await.unwrap();
    let path = async |table: &str| -> String {
        sqlx::query_scalar(path).bind(table).fetch_one(&db).await.unwrap()
    };
    let (torn, gone) = (path("torn").await, path("gone").await);
    server.stop();
    std::fs::write(torn, [7; 8192]).unwrap();
    std::fs::remove_file(gone).unwrap();
    server.restart();
    until("it answers", || async { run(&db, "select 1").await.is_ok() }).await;
    judge::<Pg>(name, "XX001", run(&db, "select * from torn"), REFUSED).await;
    judge::<Pg>(name, "58P01", run(&db, "select * from gone"), LOST).await;
}

/// It takes no new connections while it waits for the last ones to end.
#[tokio::test]
async fn it_takes_no_more_connections_while_it_shuts_down() {
    let server = Postgres::start();
    let name = "codes-pg-stopping";
    let db: PgDatabase = once(name, &server.url());
    let mut held =
        client::<sqlx::Postgres>("codes-pg-stopping-held", server.url()).session().await.unwrap();
    let postmaster = "select split_part(pg_read_file('postmaster.pid'), chr(10), 1)";
    let postmaster: String = sqlx::query_scalar(postmaster).fetch_one(&mut held).await.unwrap();
    let told = std::process::Command::new("kill").args(["-TERM", &postmaster]).status();
    assert!(told.unwrap().success());
    until("it has heard", || async { run(&db, "select 1").await.is_err() }).await;
    db.policy().breaker().reset();
    judge::<sqlx::Postgres>(name, "57P03", run(&db, "select 1"), ILL).await;
    // What has begun is finished.
    sqlx::query("create table last (n int)").execute(&mut held).await.unwrap();
    held.commit().await.unwrap();
}

/// All its processes end because one of them was killed: 57P02, which it says as a warning, so that
/// the driver sees no more than the end of the connection.
#[tokio::test]
async fn one_that_lost_a_process_is_back_at_once() {
    let server = Postgres::start();
    let db: PgDatabase = client("codes-crash", server.url());
    run(&db, "create table t (n int)").await.unwrap();
    let mut held = db.session().await.unwrap();
    let process: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&db).await.unwrap();
    let sleep = sqlx::query("select pg_sleep(60), 'crash'").execute(&mut held);
    let kill = async {
        let referee: PgDatabase = client("codes-crash-referee", server.url());
        let asleep = "select count(*) from pg_stat_activity where query like '%''crash%' \
                      and state = 'active' and pid <> pg_backend_pid()";
        until("it sleeps", || async {
            sqlx::query_scalar::<_, i64>(asleep).fetch_one(&referee).await.unwrap() == 1
        })
        .await;
        let killed = std::process::Command::new("kill").args(["-9", &process.to_string()]).status();
        assert!(killed.unwrap().success());
        Instant::now()
    };
    let (ended, killed) = tokio::join!(sleep, kill);
    let error = Error::from(ended.unwrap_err());
    // Inside a transaction: nothing was committed.
    assert_eq!((error.effect(), error.is_outcome_unknown()), (Effect::Transient, false));
    assert!(text(&error).contains("the connection was lost"), "{}", text(&error));
    until("it writes again", || async {
        sqlx::query("insert into t values (1)").execute(db.idempotent()).await.is_ok()
    })
    .await;
    println!("writes again {:?} after one process was killed", killed.elapsed());
    drop(held);
    until_at_rest(&db).await;
    futures_util::future::try_join_all((0..10).map(|_| db.acquire())).await.unwrap();
}

/// What it writes of a COMMIT before it answers does not fit on the disk: it dies of that, and when it
/// is back, the COMMIT may be there.
#[tokio::test]
async fn it_dies_of_a_full_disk_in_mid_commit() {
    type Pg = sqlx::Postgres;
    // The session is to find it, not one of the processes that write in the background.
    let server = Postgres::start_with(&["--wal_writer_delay=10s", "--bgwriter_delay=10s"]);
    let name = "codes-pg-panic";
    let referee: PgDatabase = client("codes-pg-panic-referee", server.url());
    run(&referee, "create table t (n int)").await.unwrap();
    let db: PgDatabase = once(name, &server.url());
    let mut session = db.session().await.unwrap();
    let path = "select current_setting('data_directory') || '/pg_wal/' || \
                pg_walfile_name(pg_current_wal_insert_lsn())";
    let path: String = sqlx::query_scalar(path).fetch_one(&mut session).await.unwrap();
    sqlx::query("insert into t values (1)").execute(&mut session).await.unwrap();
    // The process opens it when it first writes to it.
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    judge::<Pg>(name, "53100", session.commit(), LOST).await;
}
