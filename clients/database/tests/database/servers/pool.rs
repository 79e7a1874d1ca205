//! The pool under fire: connections killed while idle, futures dropped at random, closing, adopting.

use super::*;
use mainstay_database::DatabaseFailure;
use mainstay_policy::{Deadline, HealthStatus};
use mainstay_test_support::{Port, Proxy};
use sqlx::postgres::PgPoolOptions;

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

async fn run(query: PgQuery<'_>, db: &PgDatabase) -> Result<(), Error> {
    query.execute(db).await?;
    Ok(())
}

/// The server closes every idle connection, again and again, and nobody notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections_killed_by_the_server_cause_no_error() {
    const SIZE: i64 = 250;
    let server = Postgres::start_with(&["--max_connections=300"]);
    let db: PgDatabase = DatabaseClient::builder()
        .name("killed-idle")
        .url(server.url())
        .max_connections(u32::try_from(SIZE).unwrap())
        // So many at once take their time on a busy machine.
        .connect_timeout(ms(20_000))
        .acquire_timeout(ms(20_000))
        .build()
        .unwrap();
    let referee: PgDatabase = client("killed-idle-referee", server.url());
    sqlx::query("create table t (n int)").execute(&referee).await.unwrap();
    let (mut killed, mut written) = (0, 0);
    while killed < 1_000 {
        let all = (0..SIZE).map(|_| db.acquire());
        drop(futures_util::future::try_join_all(all).await.unwrap());
        until_at_rest(&db).await;
        // For longer than goes without a ping, as the server knows.
        until("they have been idle", || async {
            let idle = "select count(*) from pg_stat_activity where state = 'idle' \
                        and clock_timestamp() - state_change > '1100 ms' and pid <> pg_backend_pid()";
            sqlx::query_scalar::<_, i64>(idle).fetch_one(&referee).await.unwrap() >= SIZE
        })
        .await;
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where backend_type = 'client backend' and pid <> pg_backend_pid()";
        killed += sqlx::query_scalar::<_, i64>(kill).fetch_one(&referee).await.unwrap();
        let work = (0..SIZE).map(|n| {
            let db = &db;
            async move {
                let done: Result<(), Error> = match n % 3 {
                    0 => run(sqlx::query("select 1"), db).await,
                    1 => run(sqlx::query("insert into t values (1)"), db).await,
                    _ => {
                        let mut session = db.session().await?;
                        sqlx::query("insert into t values (1)").execute(&mut session).await?;
                        session.commit().await
                    }
                };
                done
            }
        });
        futures_util::future::try_join_all(work).await.unwrap();
        written += (0..SIZE).map(|n| i64::from(n % 3 != 0)).sum::<i64>();
    }
    let rows: i64 = sqlx::query_scalar("select count(*) from t").fetch_one(&referee).await.unwrap();
    println!("{killed} killed while idle, {written} writes acknowledged, {rows} there");
    assert_eq!(rows, written);
    let health = db.health_check().await;
    assert_eq!(health.status, HealthStatus::Healthy);
    println!("{}", health.detail);
}

/// Moments after their last use, when none is pinged: what can be repeated is, and BEGIN is its own
/// ping.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_killed_a_moment_ago_cost_no_read_and_no_transaction() {
    let server = Postgres::start();
    let db: PgDatabase = client("killed-now", server.url());
    let referee: PgDatabase = client("killed-now-referee", server.url());
    for _ in 0..20 {
        drop(futures_util::future::try_join_all((0..10).map(|_| db.acquire())).await.unwrap());
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                    where backend_type = 'client backend' and pid <> pg_backend_pid()";
        sqlx::query(kill).execute(&referee).await.unwrap();
        let work = (0..10).map(|n| {
            let db = &db;
            async move {
                if n % 2 == 0 {
                    sqlx::query("select 1").execute(db).await?;
                    return Ok(());
                }
                let mut session = db.session().await?;
                sqlx::query("select 1").execute(&mut session).await?;
                session.commit().await
            }
        });
        futures_util::future::try_join_all(work).await.map_err(|e: Error| text(&e)).unwrap();
    }
}

/// Dropped at random points, nothing leaks: no connection, no place, no open transaction.
#[tokio::test]
async fn futures_dropped_at_random_leak_nothing() {
    let server = Postgres::start();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let db: PgDatabase = DatabaseClient::builder()
        .name("random-drops")
        .url(server.url())
        .max_connections(3)
        .build()
        .unwrap();
    sqlx::query("create table t (n int)").execute(&db).await.unwrap();
    let mut acknowledged = 0;
    for _ in 0..400 {
        let work = async {
            let mut session = db.session().await?;
            sqlx::query("insert into t values (1)").execute(&mut session).await?;
            let mut part = session.savepoint().await?;
            sqlx::query("insert into t values (2)").execute(&mut part).await?;
            part.release().await?;
            sqlx::query("select n from t limit 3").fetch_all(&db).await?;
            session.rollback().await
        };
        let mut work = Box::pin(work);
        for _ in 0..random.u32(0..60) {
            if poll_once(&mut work).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(work);
        sqlx::query("insert into t values (3)").execute(&db).await.unwrap();
        acknowledged += 1;
    }
    until_at_rest(&db).await;
    let status = db.pool_status();
    assert_eq!((status.in_use, status.waiting), (0, 0), "seed {seed}");
    // Those that were given up are closed once their statements are cancelled.
    until("all are closed or idle", || async {
        let status = db.pool_status();
        status.size == status.idle
    })
    .await;
    let referee: PgDatabase = client("random-drops-referee", server.url());
    until("no transaction is open", || async {
        let open = "select count(*) from pg_stat_activity where state like 'idle in%'";
        sqlx::query_scalar::<_, i64>(open).fetch_one(&referee).await.unwrap() == 0
    })
    .await;
    let rows: Vec<(i32, i64)> =
        sqlx::query_as("select n, count(*) from t group by n").fetch_all(&referee).await.unwrap();
    assert_eq!(rows, [(3, acknowledged)], "seed {seed}");
    // And the pool is whole.
    let all = futures_util::future::try_join_all((0..3).map(|_| db.acquire())).await.unwrap();
    assert_eq!(all.len(), 3);
}

#[tokio::test]
async fn the_cause_of_a_refused_connection_is_known_at_once() {
    let port = Port::reserve();
    let db: PgDatabase = DatabaseClient::builder()
        .name("refused")
        .url(Postgres::url_at(port.address()))
        .policy(|p| p.max_attempts(1).enable_circuit_breaker(false))
        .build()
        .unwrap();
    // The least of some: a machine that is busy with something else makes none of them shorter.
    let mut least = Duration::MAX;
    for _ in 0..10 {
        let started = Instant::now();
        let error = db.session().await.unwrap_err();
        least = least.min(started.elapsed());
        assert!(text(&error).contains("refused"), "{}", text(&error));
    }
    println!("refused: known after {least:?}");
    assert!(least < ms(50), "{least:?}");
}

/// Waits as each refusal says, and so for nothing else: what is sent first succeeds.
async fn first_success<DB: Backend>(db: &DatabaseClient<DB>) -> Duration {
    let (started, mut refused) = (Instant::now(), 0);
    while let Err(error) = db.session().await {
        assert!(error.is_circuit_open() && error.is_rejected(), "{}", text(&error));
        refused += 1;
        assert!(refused <= 2, "{}", text(&error));
        tokio::time::sleep(error.retry_after().unwrap()).await;
    }
    started.elapsed()
}

/// With the policy's own break. A caller that asks when he is told to is served by the first probe.
#[tokio::test]
async fn the_first_success_comes_when_the_break_is_over() {
    async fn comes<DB: Backend>(proxy: &Proxy, url: String) {
        let db: DatabaseClient<DB> = DatabaseClient::builder()
            .name(format!("back-{}", DB::NAME))
            .url(url)
            .policy(|p| p.base_delay(ms(1)))
            .build()
            .unwrap();
        db.session().await.unwrap();
        proxy.refuse();
        proxy.cut();
        let left = loop {
            match db.session().await {
                Err(error) if error.is_circuit_open() && error.is_rejected() => {
                    break error.retry_after().unwrap();
                }
                other => assert!(other.is_err()),
            }
        };
        proxy.listen();
        let took = first_success(&db).await;
        println!(
            "{}: first success {took:?} after it was back, {left:?} left of the break",
            DB::NAME
        );
        assert!(left <= ms(2_300), "{left:?}");
    }
    let postgres = Proxy::in_front_of(POSTGRES.address());
    comes::<sqlx::Postgres>(&postgres, Postgres::url_at(postgres.addr())).await;
    let mariadb = Proxy::in_front_of(MARIADB.address());
    comes::<sqlx::MySql>(&mariadb, Mariadb::url_at(mariadb.addr())).await;
}

#[tokio::test]
async fn a_name_that_is_not_known_is_said_so() {
    // No name may be so long: nobody has to be asked.
    let url = format!("postgres://u:s3cret@{}/d", "n".repeat(64));
    let error = client::<sqlx::Postgres>("unknown-host", url).session().await.unwrap_err();
    let text = text(&error);
    assert!(text.contains("the host's name is not known") && !text.contains("s3cret"), "{text}");
}

/// Many who wait make one dial.
#[tokio::test]
async fn a_server_that_is_down_is_dialled_once_for_all() {
    let proxy = Proxy::in_front_of(Port::reserve().address());
    proxy.set(|faults| faults.accept = mainstay_test_support::proxy::Accept::Silent);
    let db: PgDatabase = DatabaseClient::builder()
        .name("one-dial")
        .url(Postgres::url_at(proxy.addr()))
        .connect_timeout(ms(200))
        .policy(|p| p.max_attempts(1).enable_circuit_breaker(false))
        .build()
        .unwrap();
    let all = futures_util::future::join_all((0..10).map(|_| db.session())).await;
    assert!(all.iter().all(Result::is_err));
    // The kernel connects before the proxy knows of it.
    proxy.until("it is dialled", |proxy| proxy.accepted() >= 1).await;
    assert_eq!(proxy.accepted(), 1);
}

#[tokio::test]
async fn an_exhausted_pool_is_no_fault_of_the_server() {
    let db: PgDatabase = DatabaseClient::builder()
        .name("exhausted")
        .url(POSTGRES.url())
        .max_connections(2)
        .connect_timeout(ms(10_000))
        .acquire_timeout(ms(2_000))
        .policy(|p| p.max_attempts(1).failure_threshold(1))
        .build()
        .unwrap();
    let held = futures_util::future::try_join_all((0..2).map(|_| db.acquire())).await.unwrap();
    let error = db.session().await.unwrap_err();
    assert!(error.downcast_ref::<DatabaseFailure>().unwrap().is_pool_exhausted());
    assert!(text(&error).contains("2 of 2 are in use"), "{}", text(&error));
    let health = db.health_check().await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(health.detail.contains("2 in use, 0 waiting"), "{}", health.detail);
    drop(held);
    sqlx::query("select 1").execute(&db).await.unwrap();
}

/// Whoever asks, in whatever runtime or in none; and nobody's connections are opened for it.
#[test]
fn its_status_is_that_of_all_runtimes() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let db: PgDatabase = DatabaseClient::builder()
        .name("status-runtimes")
        .url(POSTGRES.url())
        .max_connections(2)
        .build()
        .unwrap();
    let seen = || {
        let status = db.pool_status();
        (status.in_use, status.size, status.max)
    };
    assert_eq!(seen(), (0, 0, 2));
    let (busy, other) = (runtime(), runtime());
    let all = (0..2).map(|_| db.acquire());
    let held = busy.block_on(futures_util::future::try_join_all(all)).unwrap();
    assert_eq!((seen(), other.block_on(async { seen() })), ((2, 2, 2), (2, 2, 2)));
    let health = other.block_on(db.health_check());
    assert_eq!(health.status, HealthStatus::Degraded, "{}", health.detail);
    let one = other.block_on(db.acquire()).unwrap();
    assert_eq!(seen(), (3, 3, 4));
    drop((held, one));
    drop((busy, other));
    assert_eq!(seen(), (0, 0, 2));
}

#[tokio::test]
async fn close_is_bounded_and_what_comes_after_is_refused() {
    let db = postgres("closing");
    let held = db.session().await.unwrap();
    let started = Instant::now();
    db.close(ms(100)).await;
    assert!(started.elapsed() >= ms(100) && started.elapsed() < ms(8_000));
    let error = db.session().await.unwrap_err();
    assert!(text(&error).contains("the client is closed"), "{}", text(&error));
    assert_eq!(error.attempts(), 1);
    assert_eq!(db.health_check().await.status, HealthStatus::Unhealthy);
    drop(held);
    db.close(ms(10_000)).await;
    until_at_rest(&db).await;
    until("all are closed", || async { db.pool_status().size == 0 }).await;
}

/// SQLite's BEGIN waits for whoever writes, and is no sign of a dead connection.
#[tokio::test]
async fn a_begin_that_waits_for_a_writer_costs_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("a.db").display());
    let db: mainstay_database::SqliteDatabase = client("waits-sqlite", url);
    drop(futures_util::future::try_join_all((0..3).map(|_| db.acquire())).await.unwrap());
    until_at_rest(&db).await;
    let held = db.session().await.unwrap();
    let mut second = Box::pin(db.session());
    tokio::time::timeout(ms(1_300), &mut second).await.unwrap_err();
    assert_eq!(db.pool_status().size, 3);
    held.rollback().await.unwrap();
    second.await.unwrap().commit().await.unwrap();
    assert_eq!(db.pool_status().size, 3);
}

/// That a BEGIN was not answered in the little time its caller had left says nothing of the others.
#[tokio::test]
async fn a_caller_in_a_hurry_costs_the_pool_one_connection() {
    let proxy = Proxy::in_front_of(POSTGRES.address());
    let db: PgDatabase = client("hurry", Postgres::url_at(proxy.addr()));
    drop(futures_util::future::try_join_all((0..3).map(|_| db.acquire())).await.unwrap());
    until_at_rest(&db).await;
    proxy.set(|faults| faults.replies.hold = true);
    let hurried = Deadline::within(ms(500)).scope(db.session()).await.unwrap_err();
    assert!(hurried.is_timeout(), "{}", text(&hurried));
    proxy.heal();
    assert_eq!(db.pool_status().idle, 2);
}

#[tokio::test]
async fn an_adopted_pool_is_used_and_given_back() {
    let pool = PgPoolOptions::new().max_connections(2).connect_lazy(&POSTGRES.url()).unwrap();
    let db = PgDatabase::from_pool(pool.clone()).unwrap();
    sqlx::query("create table adopted (n int)").execute(&db).await.unwrap();
    assert_eq!(db.max_connections(), 2);
    let mut session = db.session().await.unwrap();
    sqlx::query("insert into adopted values (1)").execute(&mut session).await.unwrap();
    session.commit().await.unwrap();
    let refused = sqlx::query("insert into adopted values (2)").execute(db.read()).await;
    assert_eq!(refused.unwrap_err().as_database_error().unwrap().code().unwrap(), "25006");
    // What is given up ends on its server too, and frees its place at once.
    let sleep = sqlx::query("select pg_sleep(60), 'adopted'").execute(&db);
    let running = "select count(*) from pg_stat_activity where state = 'active' \
                   and query like '%''adopted''' and pid <> pg_backend_pid()";
    let runs = || async { sqlx::query_scalar::<_, i64>(running).fetch_one(&pool).await.unwrap() };
    tokio::select! {
        _ = sleep => panic!("it ended"),
        () = until("it runs", || async { runs().await == 1 }) => {}
    }
    until("it is cancelled", || async { runs().await == 0 }).await;
    let all = futures_util::future::try_join_all((0..2).map(|_| db.acquire())).await.unwrap();
    assert_eq!(pool.size(), 2);
    drop(all);
    let n: i64 = sqlx::query_scalar("select count(*) from adopted").fetch_one(&pool).await.unwrap();
    assert_eq!(n, 1);
    assert!(!db.pool().unwrap().is_closed());
}

/// sqlx would lend one that died while idle, if the pool was told not to ping.
#[tokio::test]
async fn an_adopted_pool_lends_no_connection_that_died() {
    let server = Postgres::start();
    let pool = PgPoolOptions::new().max_connections(4).test_before_acquire(false);
    let pool = pool.connect_lazy(&server.url()).unwrap();
    let db = PgDatabase::from_pool(pool.clone()).unwrap();
    let referee: PgDatabase = client("adopted-referee", server.url());
    for _ in 0..10 {
        drop(futures_util::future::try_join_all((0..4).map(|_| db.acquire())).await.unwrap());
        until("all are idle", || async { pool.num_idle() == 4 }).await;
        let others = "from pg_stat_activity where backend_type = 'client backend' \
                      and pid <> pg_backend_pid()";
        let ask = |what: &str| {
            sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(format!(
                "select count({what}) {others}"
            )))
        };
        // Those that were killed before take their time to go.
        until("there are four", || async { ask("*").fetch_one(&referee).await.unwrap() == 4 })
            .await;
        assert_eq!(ask("pg_terminate_backend(pid)").fetch_one(&referee).await.unwrap(), 4);
        sqlx::query("select 1").execute(&db).await.unwrap();
    }
}

/// Connections kept ready, and old ones closed.
#[tokio::test]
async fn connections_are_kept_ready_and_do_not_grow_old() {
    let db: PgDatabase = DatabaseClient::builder()
        .name("ready")
        .url(POSTGRES.url())
        .min_connections(2)
        .max_lifetime(ms(400))
        .build()
        .unwrap();
    sqlx::query("select 1").execute(&db).await.unwrap();
    until("two are open", || async { db.pool_status().idle == 2 }).await;
    let process = "select pg_backend_pid()";
    let before: i32 = sqlx::query_scalar(process).fetch_one(&db).await.unwrap();
    until("they have been replaced", || async {
        sqlx::query_scalar::<_, i32>(process).fetch_one(&db).await.unwrap() != before
    })
    .await;
}

/// The break time and one probe: no longer.
#[tokio::test]
async fn the_first_success_comes_with_the_first_probe_after_the_server_is_back() {
    let mut server = Postgres::start();
    let db: PgDatabase = client("comes-back", server.url());
    run(sqlx::query("select 1"), &db).await.unwrap();
    server.kill();
    until("the breaker is open", || async {
        db.session().await.is_err_and(|error| error.is_circuit_open())
    })
    .await;
    server.restart();
    let left = db.session().await.map_or_else(|e| e.retry_after(), |_| None);
    // The break is 200 ms at most, and up to 15 % longer by its jitter.
    assert!(left.unwrap_or_default() <= ms(230), "{left:?}");
    println!("first success {:?} after the server is back", first_success(&db).await);
}
