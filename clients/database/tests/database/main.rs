//! SQLite always; with feature `test-servers` private PostgreSQL and MariaDB servers too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

#[cfg(feature = "sqlite")]
mod around;
#[cfg(feature = "sqlite")]
mod bad_input;
#[cfg(feature = "sqlite")]
mod files;
#[cfg(feature = "sqlite")]
mod macros;
#[cfg(all(feature = "metrics", feature = "sqlite"))]
mod metrics;
#[cfg(all(feature = "test-servers", feature = "sqlite"))]
mod servers;

use futures_util::TryStreamExt;
use mainstay_database::{
    DatabaseFailure, SqliteDatabase, get_database_client, set_database_client,
};
use mainstay_policy::{BreakerState, Deadline, Error, ErrorKind, HealthStatus};
use std::time::{Duration, Instant};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Whether it is ready after being polled once.
#[cfg(any(feature = "metrics", feature = "test-servers"))]
async fn poll_once<F: Future + Unpin>(future: &mut F) -> bool {
    use std::{pin::Pin, task::Poll};
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_ready())).await
}

/// A new file with one table of two accounts.
async fn accounts(name: &str) -> (tempfile::TempDir, SqliteDatabase) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("a.db").display());
    let db = SqliteDatabase::builder().name(name).url(url).build().unwrap();
    sqlx::query("create table account (id integer primary key, amount integer not null)")
        .execute(&db)
        .await
        .unwrap();
    sqlx::query("insert into account values (1, 100), (2, 0)").execute(&db).await.unwrap();
    (dir, db)
}

async fn amount(db: &SqliteDatabase, id: i64) -> i64 {
    sqlx::query_scalar("select amount from account where id = ?")
        .bind(id)
        .fetch_one(db)
        .await
        .unwrap()
}

#[tokio::test]
async fn plain_queries_run_on_the_client_and_in_sessions() {
    let (_dir, db) = accounts("t-plain").await;
    let mut session = db.session().await.unwrap();
    sqlx::query("update account set amount = 50 where id = ?")
        .bind(1)
        .execute(&mut session)
        .await
        .unwrap();
    let inside: i64 = sqlx::query_scalar("select amount from account where id = 1")
        .fetch_one(&mut session)
        .await
        .unwrap();
    assert_eq!(inside, 50);
    session.commit().await.unwrap();
    assert_eq!(amount(&db, 1).await, 50);

    let mut session = db.session().await.unwrap();
    sqlx::query("delete from account").execute(&mut session).await.unwrap();
    drop(session);
    assert_eq!(amount(&db, 1).await, 50);

    let mut session = db.session().await.unwrap();
    sqlx::query("delete from account").execute(&mut session).await.unwrap();
    session.rollback().await.unwrap();
    let rows: Vec<(i64, i64)> =
        sqlx::query_as::<_, (i64, i64)>("select id, amount from account order by id")
            .fetch(&db)
            .try_collect()
            .await
            .unwrap();
    assert_eq!(rows, [(1, 50), (2, 0)]);

    let mut connection = db.acquire().await.unwrap();
    let n: i64 = sqlx::query_scalar("select count(*) from account")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(n, 2);
    assert_eq!(db.health_check().await.status, HealthStatus::Healthy);
}

#[tokio::test]
async fn what_the_database_answers_comes_as_sqlx_gives_it() {
    let (_dir, db) = accounts("t-answers").await;
    let none = sqlx::query("select 1 from account where id = 9").fetch_one(&db).await.unwrap_err();
    assert!(matches!(none, sqlx::Error::RowNotFound));
    let twice = sqlx::query("insert into account values (1, 1)").execute(&db).await.unwrap_err();
    assert!(twice.as_database_error().unwrap().is_unique_violation());
    let missing = sqlx::query("select 1 from nowhere").fetch_one(&db).await.unwrap_err();
    let own = Error::from(missing);
    assert_eq!(own.kind(), ErrorKind::Backend);
    assert!(own.to_string().contains("no such table: nowhere"), "{own}");
    assert!(own.downcast_ref::<sqlx::Error>().unwrap().as_database_error().is_some());
    let typed = sqlx::query_scalar::<_, i64>("select 'text'").fetch_one(&db).await.unwrap_err();
    assert!(matches!(typed, sqlx::Error::ColumnDecode { .. }));
    assert_eq!(db.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test]
async fn a_transaction_commits_whole_or_not_at_all_and_keeps_the_closures_error() {
    enum Failed {
        Mine,
        Other(Error),
    }
    impl From<Error> for Failed {
        fn from(error: Error) -> Self {
            Self::Other(error)
        }
    }
    let (_dir, db) = accounts("t-whole").await;
    let (from, to) = (1, 2);
    db.transaction(async |tx| {
        sqlx::query("update account set amount = amount - 30 where id = ?")
            .bind(from)
            .execute(&mut *tx)
            .await?;
        sqlx::query("update account set amount = amount + 30 where id = ?")
            .bind(to)
            .execute(&mut *tx)
            .await?;
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
    assert_eq!((amount(&db, 1).await, amount(&db, 2).await), (70, 30));
    let failed = db
        .transaction(async |tx| {
            sqlx::query("delete from account").execute(&mut *tx).await.map_err(Error::from)?;
            Err::<(), _>(Failed::Mine)
        })
        .await;
    match failed {
        Err(Failed::Mine) => {}
        Err(Failed::Other(error)) => panic!("{error}"),
        Ok(()) => panic!("committed"),
    }
    assert_eq!(amount(&db, 1).await, 70);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_of_one_file_lose_nothing() {
    let (_dir, db) = accounts("t-writers").await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let db = db.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    db.transaction(async |tx| {
                        let n: i64 = sqlx::query_scalar("select amount from account where id = 2")
                            .fetch_one(&mut *tx)
                            .await?;
                        sqlx::query("update account set amount = ? where id = 2")
                            .bind(n + 1)
                            .execute(&mut *tx)
                            .await?;
                        Ok::<_, Error>(())
                    })
                    .await
                    .unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(amount(&db, 2).await, 160);
}

#[tokio::test]
async fn an_exhausted_pool_says_how_many_are_in_use_and_leaves_the_breaker_closed() {
    let (dir, _db) = accounts("t-pool-setup").await;
    let url = format!("sqlite://{}", dir.path().join("a.db").display());
    let db = SqliteDatabase::builder()
        .name("t-pool")
        .url(url)
        .max_connections(1)
        .acquire_timeout(ms(1_000))
        .policy(|p| p.max_attempts(1).failure_threshold(1))
        .build()
        .unwrap();
    let held = db.session().await.unwrap();
    let error = db.session().await.unwrap_err();
    assert!(error.downcast_ref::<DatabaseFailure>().unwrap().is_pool_exhausted());
    let text = mainstay_policy::report(&error).to_string();
    assert!(text.contains("1 of 1 are in use"), "{text}");
    assert_eq!(db.policy().breaker().state(), BreakerState::Closed);
    assert_eq!(db.health_check().await.status, HealthStatus::Degraded);
    drop(held);
    assert_eq!(amount(&db, 1).await, 100);
}

/// The deadline around the session bounds each of its statements, as it bounds every client's call.
#[tokio::test]
async fn a_statement_in_a_session_ends_by_the_deadline_around_it() {
    let (_dir, db) = accounts("t-ambient").await;
    let mut session = db.session().await.unwrap();
    let started = Instant::now();
    let endless = "with recursive n(i) as (select 1 union all select i + 1 from n) \
                   select count(*) from n where i < 0";
    let ended = Deadline::within(ms(200)).scope(sqlx::query(endless).execute(&mut session)).await;
    let error = Error::from(ended.unwrap_err());
    assert!(error.is_timeout(), "{error:?}");
    assert!(started.elapsed() < ms(2_000), "{:?}", started.elapsed());
}

/// Nobody would wait for its answer, and its outcome would be unknown for nothing.
#[tokio::test]
async fn a_commit_whose_time_is_over_is_not_sent() {
    let (_dir, db) = accounts("t-over").await;
    let late = async {
        let mut session = db.session().await?;
        sqlx::query("update account set amount = 0").execute(&mut session).await?;
        tokio::time::sleep(Deadline::current().unwrap().left()).await;
        session.commit().await
    };
    let error = Deadline::within(ms(200)).scope(late).await.unwrap_err();
    assert!(error.is_timeout() && !error.is_outcome_unknown(), "{error:?}");
    println!("{}", mainstay_policy::report(&error));
    assert_eq!(amount(&db, 1).await, 100);
}

#[tokio::test]
async fn a_missing_file_is_named_at_once_and_not_asked_for_twice() {
    let db = SqliteDatabase::builder()
        .name("t-missing")
        .url("sqlite:///no/such/file.db")
        .build()
        .unwrap();
    let started = Instant::now();
    let error = db.session().await.unwrap_err();
    assert!(started.elapsed() < ms(5_000));
    assert_eq!(error.attempts(), 1);
    let text = mainstay_policy::report(&error).to_string();
    assert!(text.contains("unable to open database file"), "{text}");
    assert_eq!(db.health_check().await.status, HealthStatus::Unhealthy);
}

#[test]
fn bad_urls_are_named_without_their_secrets() {
    for url in ["postgres://u:s3cret@h/d", "u:s3cret@h", "s3cret://h", ""] {
        let error = SqliteDatabase::builder().url(url).build().unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("s3cret"), "{text}");
        assert!(text.contains("sqlite://"), "{text}");
    }
    let error = SqliteDatabase::builder().build().unwrap_err();
    assert!(error.to_string().contains("MAINSTAY_DATABASE_URL"), "{error}");
}

/// The first of two runtimes installs the client, the second finds it, with its pool made anew.
#[test]
fn the_singleton_works_from_a_second_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let (_dir, db) = first.block_on(accounts("t-singleton"));
    set_database_client(db);
    drop(first);
    for _ in 0..2 {
        runtime().block_on(async {
            let db: SqliteDatabase = get_database_client().unwrap();
            assert_eq!(amount(&db, 1).await, 100);
        });
    }
    let outside: SqliteDatabase = get_database_client().unwrap();
    assert!(outside.pool().is_none());
}

/// No timer, no pool: an error, not a panic.
#[test]
fn outside_a_runtime_it_says_so() {
    let db = SqliteDatabase::builder().name("t-no-runtime").url("sqlite::memory:").build().unwrap();
    let session = std::pin::pin!(db.session());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match session.poll(&mut context) {
        std::task::Poll::Ready(Err(error)) => {
            let text = mainstay_policy::report(&error).to_string();
            assert!(text.contains("no tokio runtime"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[cfg(feature = "test-servers")]
mod with_servers {
    use super::{ms, poll_once};
    use mainstay_database::{Backend, DatabaseClient, MySqlDatabase, PgDatabase};
    use mainstay_policy::{BreakerState, Error, HealthStatus};
    use mainstay_test_support::{Mariadb, Port, Postgres, Proxy, proxy::Accept};
    use std::time::{Duration, Instant};

    fn client<DB: Backend>(name: &str, url: String) -> DatabaseClient<DB> {
        DatabaseClient::builder()
            .name(name)
            .url(url)
            .connect_timeout(ms(5_000))
            .policy(|p| p.timeout(ms(5000)).base_delay(ms(10)).recovery_timeout(ms(1_000)))
            .build()
            .unwrap()
    }

    /// Asks until it answers; what comes between is an outage.
    async fn until_it_answers<DB: Backend>(db: &DatabaseClient<DB>) {
        let end = Instant::now() + Duration::from_secs(20);
        while let Err(error) = db.session().await {
            assert!(Instant::now() < end, "{error}");
            tokio::time::sleep(error.retry_after().unwrap_or(ms(10))).await;
        }
    }

    #[tokio::test]
    async fn postgres_killed_in_mid_work_opens_the_breaker_and_back_again_closes_it() {
        let mut server = Postgres::start();
        let db: PgDatabase = client("t-pg-kill", server.url());
        sqlx::query("create table t (n int)").execute(&db).await.unwrap();
        let mut session = db.session().await.unwrap();
        sqlx::query("insert into t values (1)").execute(&mut session).await.unwrap();
        server.kill();
        let commit = session.commit().await.unwrap_err();
        assert!(commit.is_outcome_unknown(), "{commit}");
        let mut refusal = None;
        for _ in 0..10 {
            let started = Instant::now();
            let error = db.session().await.unwrap_err();
            assert!(started.elapsed() < ms(5_000), "{:?}", started.elapsed());
            if error.is_rejected() {
                refusal = Some(error);
                break;
            }
            let text = mainstay_policy::report(&error).to_string();
            assert!(text.contains("cannot connect"), "{text}");
        }
        assert!(refusal.unwrap().is_circuit_open());
        assert_eq!(db.policy().breaker().state(), BreakerState::Open);
        let health = db.health_check().await;
        assert_eq!(health.status, HealthStatus::Unhealthy);
        assert!(health.detail.contains("refused"), "{}", health.detail);
        server.restart();
        until_it_answers(&db).await;
        assert_eq!(db.policy().breaker().state(), BreakerState::Closed);
        let rows: i64 = sqlx::query_scalar("select count(*) from t").fetch_one(&db).await.unwrap();
        assert_eq!(rows, 0);
        assert_eq!(db.health_check().await.status, HealthStatus::Healthy);
    }

    #[tokio::test]
    async fn postgres_keeps_its_promises_where_plain_sqlx_does_not() {
        let server = Postgres::start();
        let url = server.url();
        let db: PgDatabase = client("t-pg", url.clone());
        sqlx::query("create table t (id int primary key, n int)").execute(&db).await.unwrap();

        // A COMMIT after an error that was swallowed.
        let mut session = db.session().await.unwrap();
        sqlx::query("insert into t values (1, 0)").execute(&mut session).await.unwrap();
        sqlx::query("insert into t values (1, 0)").execute(&mut session).await.unwrap_err();
        let error = session.commit().await.unwrap_err();
        let text = mainstay_policy::report(&error).to_string();
        assert!(text.contains("nothing was committed") && !error.is_outcome_unknown(), "{text}");

        // A query given up keeps no slot.
        let one: PgDatabase = DatabaseClient::builder()
            .name("t-pg-one")
            .url(url.clone())
            .max_connections(1)
            .build()
            .unwrap();
        let sleep = sqlx::query("select pg_sleep(20)").execute(&one);
        tokio::time::timeout(ms(100), sleep).await.unwrap_err();
        let started = Instant::now();
        sqlx::query("select 1").execute(&one).await.unwrap();
        assert!(started.elapsed() < ms(2000), "{:?}", started.elapsed());

        // A begin dropped at any point swallows nobody's write.
        for polls in 0..40_u32 {
            let mut begin = Box::pin(one.session());
            for _ in 0..polls {
                if poll_once(&mut begin).await {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(begin);
            let id = i32::try_from(polls).unwrap() + 100;
            sqlx::query("insert into t values ($1, 0)").bind(id).execute(&one).await.unwrap();
        }
        let rows: i64 = sqlx::query_scalar("select count(*) from t where id >= 100")
            .fetch_one(&db)
            .await
            .unwrap();
        assert_eq!(rows, 40);

        // A COMMIT whose answer is lost is unknown and was done once.
        let proxy = Proxy::in_front_of(server.address());
        let behind: PgDatabase = client("t-pg-proxy", Postgres::url_at(proxy.addr()));
        let runs = std::sync::atomic::AtomicU32::new(0);
        let error = behind
            .transaction(async |tx| {
                runs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                sqlx::query("insert into t values (2, 0)").execute(&mut *tx).await?;
                proxy.lose_next_reply();
                Ok::<_, Error>(())
            })
            .await
            .unwrap_err();
        assert!(error.is_outcome_unknown(), "{error}");
        assert_eq!(proxy.lost(), 1);
        assert_eq!(runs.into_inner(), 1);
        let rows: i64 =
            sqlx::query_scalar("select count(*) from t where id = 2").fetch_one(&db).await.unwrap();
        assert_eq!(rows, 1);

        // A write whose answer is lost is not sent again; a SELECT is.
        proxy.lose_next_reply();
        // The reply that is lost here may be that of the ping before it: then it is a plain success.
        let _ = sqlx::query("insert into t values (3, 0)").execute(&behind).await;
        assert_eq!(proxy.lost(), 2);
        let rows: i64 =
            sqlx::query_scalar("select count(*) from t where id = 3").fetch_one(&db).await.unwrap();
        assert_eq!(rows, 1);
        proxy.lose_next_reply();
        let n: i32 = sqlx::query_scalar("select 7").fetch_one(&behind).await.unwrap();
        assert_eq!((n, proxy.lost()), (7, 3));

        // Conflicts run the whole closure again.
        sqlx::query("insert into t values (4, 0)").execute(&db).await.unwrap();
        let many: PgDatabase = DatabaseClient::builder()
            .name("t-pg-many")
            .url(url.clone())
            .policy(|p| p.max_attempts(50).base_delay(ms(2)).max_delay(ms(20)).enable_budget(false))
            .build()
            .unwrap();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let db = many.clone();
                tokio::spawn(async move {
                    for _ in 0..5 {
                        db.transaction(async |tx| {
                            sqlx::query("set transaction isolation level serializable")
                                .execute(&mut *tx)
                                .await?;
                            let n: i32 = sqlx::query_scalar("select n from t where id = 4")
                                .fetch_one(&mut *tx)
                                .await?;
                            sqlx::query("update t set n = $1 where id = 4")
                                .bind(n + 1)
                                .execute(&mut *tx)
                                .await?;
                            Ok::<_, Error>(())
                        })
                        .await
                        .unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let n: i32 =
            sqlx::query_scalar("select n from t where id = 4").fetch_one(&db).await.unwrap();
        assert_eq!(n, 20);

        // What is wrong for good is said at once and asked once.
        let missing: PgDatabase =
            client("t-pg-nodb", format!("postgres://postgres:s3cret@{}/nowhere", server.address()));
        let error = missing.session().await.unwrap_err();
        let text = format!("{error:?} {}", mainstay_policy::report(&error));
        assert!(
            text.contains("3D000") && text.contains("nowhere") && !text.contains("s3cret"),
            "{text}"
        );
        assert_eq!(error.attempts(), 1);
    }

    #[tokio::test]
    async fn a_silent_host_is_named_at_the_connect_timeout() {
        let proxy = Proxy::in_front_of(Port::reserve().address());
        proxy.set(|faults| faults.accept = Accept::Silent);
        let db: PgDatabase = DatabaseClient::builder()
            .name("t-silent")
            .url(Postgres::url_at(proxy.addr()))
            .policy(|p| p.max_attempts(1))
            .build()
            .unwrap();
        let started = Instant::now();
        let error = db.session().await.unwrap_err();
        assert!(started.elapsed() < ms(8_000), "{:?}", started.elapsed());
        let text = mainstay_policy::report(&error).to_string();
        assert!(text.contains("did not answer within 900"), "{text}");
        assert!(!error.is_outcome_unknown());
    }

    #[tokio::test]
    async fn mariadb_commits_rolls_back_meets_a_deadlock_and_comes_back() {
        let mut server = Mariadb::start();
        let db: MySqlDatabase = client("t-maria", server.url());
        sqlx::raw_sql(
            "create database test; create table test.t (id int primary key, n int not null)",
        )
        .execute(&db)
        .await
        .unwrap();
        sqlx::query("insert into test.t values (1, 0), (2, 0)").execute(&db).await.unwrap();
        let twice = "insert into test.t values (1, 0)";
        let error = Error::from(sqlx::query(twice).execute(db.idempotent()).await.unwrap_err());
        assert!(error.downcast_ref::<sqlx::Error>().unwrap().to_string().contains("'1'"));
        let text = format!("{error:?} {}", mainstay_policy::report(&error));
        assert!(text.contains("23000") && !text.contains("'1'"), "{text}");
        let limit: f64 = sqlx::query_scalar("select cast(@@max_statement_time as double)")
            .fetch_one(&db)
            .await
            .unwrap();
        assert!((limit - 5.0).abs() < 0.01, "{limit}");
        let mut session = db.session().await.unwrap();
        sqlx::query("delete from test.t").execute(&mut session).await.unwrap();
        drop(session);

        // Two transactions that lock in opposite order: one is run again, both are done.
        let both = std::sync::Arc::new(tokio::sync::Barrier::new(2));
        let tasks = [(1, 2), (2, 1)].map(|(first, second)| {
            let (db, both) = (db.clone(), std::sync::Arc::clone(&both));
            tokio::spawn(async move {
                let met = std::sync::atomic::AtomicBool::new(false);
                let add = "update test.t set n = n + 1 where id = ?";
                db.transaction(async |tx| {
                    sqlx::query(add).bind(first).execute(&mut *tx).await?;
                    if !met.swap(true, std::sync::atomic::Ordering::SeqCst) {
                        both.wait().await;
                    }
                    sqlx::query(add).bind(second).execute(&mut *tx).await?;
                    Ok::<_, Error>(())
                })
                .await
            })
        });
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let sum = "select cast(sum(n) as signed) from test.t";
        let n: i64 = sqlx::query_scalar(sum).fetch_one(&db).await.unwrap();
        assert_eq!(n, 4);

        let url = format!("mysql://stranger:s3cret@{}/mysql", server.address());
        let stranger: MySqlDatabase = client("t-maria-stranger", url);
        let error = stranger.session().await.unwrap_err();
        let text = format!("{error:?} {}", mainstay_policy::report(&error));
        assert!(text.contains("refuses user or password"), "{text}");
        assert!(!text.contains("'stranger'") && !text.contains("s3cret"), "{text}");
        assert_eq!(error.attempts(), 1);

        server.kill();
        for _ in 0..10 {
            db.session().await.unwrap_err();
        }
        assert_eq!(db.policy().breaker().state(), BreakerState::Open);
        server.restart();
        until_it_answers(&db).await;
        let n: i64 = sqlx::query_scalar(sum).fetch_one(&db).await.unwrap();
        assert_eq!(n, 4);
        assert_eq!(db.policy().breaker().state(), BreakerState::Closed);
    }
}
