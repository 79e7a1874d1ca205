//! Savepoints, isolation, reads that may not write, and connections that are not as they were.

use super::*;
use mainstay_database::{CommitOutcome, Isolation, SessionOptions};
use mainstay_test_support::Proxy;
use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering::SeqCst},
};

#[tokio::test]
async fn a_savepoint_is_undone_alone_with_its_errors() {
    let db = postgres("savepoint");
    sqlx::query("create table parts (n int primary key)").execute(&db).await.unwrap();
    let mut session = db.session().await.unwrap();
    let insert = |n: i32| sqlx::query("insert into parts values ($1)").bind(n);
    insert(1).execute(&mut session).await.unwrap();
    let mut part = session.savepoint().await.unwrap();
    insert(2).execute(&mut part).await.unwrap();
    insert(2).execute(&mut part).await.unwrap_err();
    part.rollback().await.unwrap();
    let mut part = session.savepoint().await.unwrap();
    insert(3).execute(&mut part).await.unwrap();
    let mut inner = part.savepoint().await.unwrap();
    insert(4).execute(&mut inner).await.unwrap();
    drop(inner);
    part.release().await.unwrap();
    // Dropped after an error: undone at the next statement.
    let mut part = session.savepoint().await.unwrap();
    insert(1).execute(&mut part).await.unwrap_err();
    drop(part);
    insert(5).execute(&mut session).await.unwrap();
    session.commit().await.unwrap();
    let rows: Vec<i32> =
        sqlx::query_scalar("select n from parts order by n").fetch_all(&db).await.unwrap();
    assert_eq!(rows, [1, 3, 5]);
}

#[tokio::test]
async fn isolation_and_read_only_reach_the_server() {
    let db = postgres("isolation");
    let options = SessionOptions::new().isolation(Isolation::Serializable).read_only();
    let mut session = db.session_with(options).await.unwrap();
    let level: String =
        sqlx::query_scalar("show transaction_isolation").fetch_one(&mut session).await.unwrap();
    assert_eq!(level, "serializable");
    let error = sqlx::query("create table never (n int)").execute(&mut session).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "25006");
    drop(session);
    // The caller's own wish is no failover: the connection stays.
    until_at_rest(&db).await;
    assert_eq!(db.pool_status().idle, 1);

    let db = mariadb("isolation-maria");
    let options = SessionOptions::new().isolation(Isolation::ReadCommitted).read_only();
    let mut session = db.session_with(options).await.unwrap();
    let error = sqlx::query("delete from db").execute(&mut session).await.unwrap_err();
    assert!(error.to_string().contains("1792"), "{error}");
    session.rollback().await.unwrap();
}

#[tokio::test]
async fn a_read_is_refused_by_the_server_when_it_writes() {
    let db = postgres("read");
    sqlx::query("create table reads (n int)").execute(&db).await.unwrap();
    // A SELECT by its first word.
    sqlx::query(
        "create function sneak() returns int language sql as 'insert into reads values (1) returning n'",
    )
    .execute(&db)
    .await
    .unwrap();
    let refused = |e: sqlx::Error| e.as_database_error().unwrap().code().unwrap().into_owned();
    let error = sqlx::query("select sneak()").execute(db.read()).await.unwrap_err();
    assert_eq!(refused(error), "25006");
    let error = sqlx::query("insert into reads values (2)").execute(db.read()).await.unwrap_err();
    assert_eq!(refused(error), "25006");
    let failed = Error::from(sqlx::query("select sneak()").execute(db.read()).await.unwrap_err());
    assert_eq!(failed.attempts(), 1);
    sqlx::query("insert into reads values (3)").execute(&db).await.unwrap();
    let n: i64 =
        sqlx::query_scalar("select count(*) from reads").fetch_one(db.read()).await.unwrap();
    assert_eq!(n, 1);
    assert_eq!(db.policy().breaker().state(), mainstay_policy::BreakerState::Closed);

    let db = mariadb("read-maria");
    sqlx::raw_sql("create table test_reads (n int)").execute(&db).await.unwrap();
    let error =
        sqlx::query("insert into test_reads values (1)").execute(db.read()).await.unwrap_err();
    assert!(error.to_string().contains("1792"), "{error}");
    sqlx::query("insert into test_reads values (2)").execute(&db).await.unwrap();
    let n: i64 =
        sqlx::query_scalar("select count(*) from test_reads").fetch_one(db.read()).await.unwrap();
    assert_eq!(n, 1);
}

/// A BEGIN of the caller's own, or a setting, does not reach the next caller.
#[tokio::test]
async fn a_connection_that_was_changed_is_not_handed_on() {
    let db: PgDatabase = DatabaseClient::builder()
        .name("changed")
        .url(POSTGRES.url())
        .max_connections(1)
        .build()
        .unwrap();
    sqlx::query("create table changed (n int)").execute(&db).await.unwrap();
    let mut connection = db.acquire().await.unwrap();
    sqlx::query("begin").execute(&mut connection).await.unwrap();
    sqlx::query("insert into changed values (1)").execute(&mut connection).await.unwrap();
    drop(connection);
    sqlx::query("insert into changed values (2)").execute(&db).await.unwrap();
    let mut connection = db.acquire().await.unwrap();
    sqlx::query("set search_path = nowhere").execute(&mut connection).await.unwrap();
    drop(connection);
    let rows: Vec<i32> = sqlx::query_scalar("select n from changed").fetch_all(&db).await.unwrap();
    assert_eq!(rows, [2]);
}

/// What PostgreSQL forgets with the transaction, MariaDB keeps, or takes for the next one.
#[tokio::test]
async fn nor_one_of_mariadb_by_words_that_are_harmless_elsewhere() {
    let db: MySqlDatabase = DatabaseClient::builder()
        .name("changed-maria")
        .url(MARIADB.url())
        .max_connections(1)
        .build()
        .unwrap();
    let connection = || async {
        let id = sqlx::query_scalar::<_, u64>("select connection_id()").fetch_one(&db);
        id.await.unwrap()
    };
    let mut kept = Vec::new();
    for change in [
        "set local foreign_key_checks = 0",
        "set transaction read only",
        "# all of it\nset foreign_key_checks = 0",
        "/*!40014 set foreign_key_checks = 0 */",
        "flush tables",
    ] {
        let before = connection().await;
        sqlx::raw_sql(change).execute(&db).await.unwrap();
        if connection().await == before {
            kept.push(change);
        }
    }
    assert!(kept.is_empty(), "{kept:?}");
}

/// A pool of the caller's own would lend it again as it is.
#[tokio::test]
async fn nor_does_one_of_an_adopted_pool_go_back_there() {
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    let pool = pool.connect_lazy(&POSTGRES.url()).unwrap();
    let db = PgDatabase::from_pool(pool.clone()).unwrap();
    sqlx::query("create table changed_lent (n int)").execute(&db).await.unwrap();
    let insert = |n: i32| sqlx::query("insert into changed_lent values ($1)").bind(n);
    let mut connection = db.acquire().await.unwrap();
    sqlx::query("begin").execute(&mut connection).await.unwrap();
    insert(1).execute(&mut connection).await.unwrap();
    drop(connection);
    insert(2).execute(&db).await.unwrap();
    let mut session = db.session().await.unwrap();
    insert(3).execute(&mut session).await.unwrap();
    session.commit().await.unwrap();
    let rows = || sqlx::query_scalar::<_, i32>("select n from changed_lent").fetch_all(&pool);
    assert_eq!(rows().await.unwrap(), [2, 3]);
    sqlx::query("set search_path = nowhere").execute(&db).await.unwrap();
    assert_eq!(rows().await.unwrap(), [2, 3]);
}

/// Dropped, it is rolled back at once: its locks are not kept until the connection's next use.
#[tokio::test]
async fn a_dropped_session_lets_go_of_its_locks() {
    let (db, other) = (postgres("locks"), postgres("locks-other"));
    sqlx::query("create table locks (n int)").execute(&db).await.unwrap();
    sqlx::query("insert into locks values (1)").execute(&db).await.unwrap();
    let mut session = db.session().await.unwrap();
    sqlx::query("update locks set n = 2").execute(&mut session).await.unwrap();
    drop(session);
    let started = Instant::now();
    sqlx::query("update locks set n = 3").execute(&other).await.unwrap();
    assert!(started.elapsed() < ms(10_000), "{:?}", started.elapsed());
    until_at_rest(&db).await;
    assert_eq!(db.pool_status().idle, 1);
}

/// The answer to COMMIT is lost, and the check finds out that it was done: once.
#[tokio::test]
async fn a_lost_commit_can_be_looked_up() {
    let server = Postgres::start();
    let proxy = Proxy::in_front_of(server.address());
    let db: PgDatabase = client("lookup", Postgres::url_at(proxy.addr()));
    let referee: PgDatabase = client("lookup-referee", server.url());
    sqlx::query("create table lookup (n int)").execute(&referee).await.unwrap();
    let (id, runs) = (Mutex::new(String::new()), AtomicU32::new(0));
    let done = db
        .transaction_checked(
            SessionOptions::new(),
            async |tx| {
                runs.fetch_add(1, SeqCst);
                sqlx::query("insert into lookup values (1)").execute(&mut *tx).await?;
                let transaction = tx.transaction_id().await?;
                id.lock().unwrap().clone_from(&transaction);
                proxy.lose_next_reply();
                Ok::<_, Error>(transaction)
            },
            async |db: &PgDatabase| {
                let id = id.lock().unwrap().clone();
                db.commit_outcome(&id).await
            },
        )
        .await
        .unwrap();
    assert_eq!((proxy.lost(), runs.load(SeqCst)), (1, 1));
    assert_eq!(db.commit_outcome(&done).await.unwrap(), CommitOutcome::Committed);
    let rows: i64 =
        sqlx::query_scalar("select count(*) from lookup").fetch_one(&referee).await.unwrap();
    assert_eq!(rows, 1);
}

/// Two that lock in opposite order: one is run again, both are done.
#[tokio::test]
async fn a_deadlock_is_run_again() {
    let db = postgres("deadlock");
    sqlx::query("create table deadlock (id int primary key, n int)").execute(&db).await.unwrap();
    sqlx::query("insert into deadlock values (1, 0), (2, 0)").execute(&db).await.unwrap();
    let (both, runs) = (tokio::sync::Barrier::new(2), AtomicU32::new(0));
    let (db, both, runs) = (&db, &both, &runs);
    let one = |first: i32, second: i32| async move {
        let met = AtomicU32::new(0);
        let add = "update deadlock set n = n + 1 where id = $1";
        db.transaction(async |tx| {
            runs.fetch_add(1, SeqCst);
            sqlx::query(add).bind(first).execute(&mut *tx).await?;
            if met.fetch_add(1, SeqCst) == 0 {
                both.wait().await;
            }
            sqlx::query(add).bind(second).execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await
    };
    let (left, right) = tokio::join!(one(1, 2), one(2, 1));
    left.and(right).unwrap();
    assert!(runs.load(SeqCst) >= 3);
    let n: i64 = sqlx::query_scalar("select sum(n) from deadlock").fetch_one(db).await.unwrap();
    assert_eq!(n, 4);
}

/// An error that another run might not meet, swallowed; what fails the closure then is its own.
#[tokio::test]
async fn a_conflict_that_was_got_over_is_no_reason_to_run_again() {
    let (db, other) = (postgres("got-over"), postgres("got-over-other"));
    sqlx::query("create table got_over (n int primary key)").execute(&db).await.unwrap();
    sqlx::query("insert into got_over values (1)").execute(&db).await.unwrap();
    let mut holder = other.session().await.unwrap();
    sqlx::query("update got_over set n = 1").execute(&mut holder).await.unwrap();
    let runs = AtomicU32::new(0);
    let error = db
        .transaction(async |tx| {
            runs.fetch_add(1, SeqCst);
            let mut part = tx.savepoint().await?;
            let locked = "select n from got_over for update nowait";
            sqlx::query(locked).execute(&mut part).await.unwrap_err();
            part.rollback().await?;
            sqlx::query("insert into got_over values (2), (2)").execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await
        .unwrap_err();
    let driver = error.downcast_ref::<sqlx::Error>().unwrap().as_database_error().unwrap();
    assert_eq!((driver.code().unwrap().as_ref(), runs.load(SeqCst)), ("23505", 1));
}
