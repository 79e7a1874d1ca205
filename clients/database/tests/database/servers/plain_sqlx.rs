//! Failures of plain sqlx 0.9 that this crate exists for: each is shown there, and absent here.

use super::*;
use mainstay_test_support::Proxy;
use sqlx::{mysql::MySqlPoolOptions, postgres::PgPoolOptions};

/// Drops a future after so many polls, or lets it end before: whether it was dropped.
async fn drop_after<F: Future>(polls: u32, future: F) -> bool {
    let mut future = Box::pin(future);
    for _ in 0..polls {
        if poll_once(&mut future).await {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

/// Rounds of writes after a `begin` that was given up, to a server five milliseconds away, until one
/// of plain sqlx is missing; of ours none may be.
#[tokio::test]
async fn a_begin_that_was_dropped_swallows_the_next_write() {
    const ROUND: i64 = 40;
    let proxy = Proxy::in_front_of(POSTGRES.address());
    proxy.set(|faults| faults.replies.latency = ms(5));
    let url = Postgres::url_at(proxy.addr());
    let referee = postgres("lost-referee");
    sqlx::query("create table lost (n int)").execute(&referee).await.unwrap();
    let count = |n: i32| {
        let count = sqlx::query_scalar("select count(*) from lost where n = $1").bind(n);
        async { count.fetch_one(&referee).await.unwrap() }
    };
    let ours: PgDatabase =
        DatabaseClient::builder().name("lost").url(&url).max_connections(1).build().unwrap();
    let patience = |n: i64| ms(n.unsigned_abs() % 12);
    let (mut written, mut plain_there) = (0, 0);
    while plain_there == written {
        assert!(written < 20 * ROUND, "sqlx has mended this");
        let plain = PgPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
        for n in 0..ROUND {
            let _ = tokio::time::timeout(patience(n), plain.begin()).await;
            sqlx::query("insert into lost values (1)").execute(&plain).await.unwrap();
            let _ = tokio::time::timeout(patience(n), ours.session()).await;
            sqlx::query("insert into lost values (2)").execute(&ours).await.unwrap();
        }
        written += ROUND;
        plain.close().await;
        plain_there = count(1).await;
    }
    let ours: i64 = count(2).await;
    println!("of {written} acknowledged writes: {plain_there} on plain sqlx, {ours} here");
    assert_eq!(ours, written);
}

#[tokio::test]
async fn a_commit_says_ok_for_what_was_rolled_back() {
    let plain = PgPoolOptions::new().connect(&POSTGRES.url()).await.unwrap();
    sqlx::query("create table honest (n int primary key)").execute(&plain).await.unwrap();
    let mut tx = plain.begin().await.unwrap();
    sqlx::query("insert into honest values (1)").execute(&mut *tx).await.unwrap();
    sqlx::query("insert into honest values (1)").execute(&mut *tx).await.unwrap_err();
    tx.commit().await.expect("sqlx has mended this");
    let rows: i64 =
        sqlx::query_scalar("select count(*) from honest").fetch_one(&plain).await.unwrap();
    assert_eq!(rows, 0);

    let ours = postgres("honest");
    let mut session = ours.session().await.unwrap();
    sqlx::query("insert into honest values (1)").execute(&mut session).await.unwrap();
    sqlx::query("insert into honest values (1)").execute(&mut session).await.unwrap_err();
    let error = session.commit().await.unwrap_err();
    assert!(text(&error).contains("nothing was committed"), "{}", text(&error));

    // A nested begin that was dropped resets sqlx's count: COMMIT is never sent.
    let mut tx = plain.begin().await.unwrap();
    sqlx::query("insert into honest values (2)").execute(&mut *tx).await.unwrap();
    drop_after(1, sqlx::Connection::begin(&mut *tx)).await;
    let committed = tx.commit().await;
    let there: i64 = sqlx::query_scalar("select count(*) from honest where n = 2")
        .fetch_one(&plain)
        .await
        .unwrap();
    println!("plain sqlx, a nested begin dropped: {committed:?}, rows there: {there}");

    let error = loop {
        let mut session = ours.session().await.unwrap();
        sqlx::query("insert into honest values (3)").execute(&mut session).await.unwrap();
        if drop_after(1, session.savepoint()).await {
            break session.commit().await.unwrap_err();
        }
        // On a quick machine the first poll may see the answer.
        session.rollback().await.unwrap();
    };
    assert!(!error.is_outcome_unknown(), "{}", text(&error));
    // And one that was leaked is no reason to keep COMMIT back, or ROLLBACK.
    let mut session = ours.session().await.unwrap();
    sqlx::query("insert into honest values (5)").execute(&mut session).await.unwrap();
    std::mem::forget(session.savepoint().await.unwrap());
    session.rollback().await.unwrap();
    sqlx::query("insert into honest values (6)").execute(&ours).await.unwrap();
    let mut session = ours.session().await.unwrap();
    sqlx::query("insert into honest values (4)").execute(&mut session).await.unwrap();
    std::mem::forget(session.savepoint().await.unwrap());
    session.commit().await.unwrap();
    let rows: Vec<i32> =
        sqlx::query_scalar("select n from honest where n > 2").fetch_all(&plain).await.unwrap();
    assert_eq!(rows, [6, 4]);
}

#[tokio::test]
async fn a_query_that_was_dropped_keeps_its_place_in_the_pool() {
    let plain = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ms(3_000))
        .connect(&POSTGRES.url())
        .await
        .unwrap();
    tokio::time::timeout(ms(50), sqlx::query("select pg_sleep(20)").execute(&plain))
        .await
        .unwrap_err();
    let error = sqlx::query("select 1").execute(&plain).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::PoolTimedOut), "sqlx has mended this");

    let ours: PgDatabase = DatabaseClient::builder()
        .name("place")
        .url(POSTGRES.url())
        .max_connections(1)
        .build()
        .unwrap();
    tokio::time::timeout(ms(50), sqlx::query("select pg_sleep(20)").execute(&ours))
        .await
        .unwrap_err();
    let started = Instant::now();
    sqlx::query("select 1").execute(&ours).await.unwrap();
    assert!(started.elapsed() < ms(10_000), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_wrong_number_of_values_wedges_a_connection_to_mysql() {
    let plain = MySqlPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ms(3_000))
        .connect(&MARIADB.url())
        .await
        .unwrap();
    let error = sqlx::query("select ?").execute(&plain).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::Protocol(_)), "{error}");
    let error = sqlx::query("select 1").execute(&plain).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::PoolTimedOut), "sqlx has mended this");

    let ours: MySqlDatabase = DatabaseClient::builder()
        .name("wedged")
        .url(MARIADB.url())
        .max_connections(1)
        .build()
        .unwrap();
    sqlx::query("insert into nowhere values (?)").execute(&ours).await.unwrap_err();
    let error = sqlx::query("do ?").execute(&ours).await.unwrap_err();
    println!("here: {}", text(&error.into()));
    let n: i64 = sqlx::query_scalar("select 1").fetch_one(&ours).await.unwrap();
    assert_eq!(n, 1);
}

#[tokio::test]
async fn mysql_connections_survive_drops_at_every_point() {
    let ours: MySqlDatabase = DatabaseClient::builder()
        .name("maria-drops")
        .url(MARIADB.url())
        .max_connections(1)
        .build()
        .unwrap();
    sqlx::raw_sql("create table test_drops (n int)").execute(&ours).await.unwrap();
    for polls in 0..30 {
        drop_after(polls, ours.session()).await;
        drop_after(polls, sqlx::query("select n, 'text' from test_drops").fetch_all(&ours)).await;
        sqlx::query("insert into test_drops values (?)").bind(polls).execute(&ours).await.unwrap();
    }
    let rows: i64 =
        sqlx::query_scalar("select count(*) from test_drops").fetch_one(&ours).await.unwrap();
    assert_eq!(rows, 30);
    until_at_rest(&ours).await;
}
