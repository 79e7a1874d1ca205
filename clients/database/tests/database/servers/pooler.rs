//! Behind PgBouncer in transaction mode, with two connections of the server for all, and MariaDB told
//! of a pooler.

use super::*;
use mainstay_database::SessionOptions;
use mainstay_policy::{BreakerState, HealthStatus};
use sqlx::{Executor, SqlSafeStr};

fn behind(name: &str, url: String) -> PgDatabase {
    DatabaseClient::builder()
        .name(name)
        .url(url)
        .max_connections(16)
        .connect_timeout(ms(10_000))
        .transaction_pooler()
        .policy(|p| p.timeout(ms(20_000)).max_attempts(1))
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_two_connections_without_an_error() {
    let server = Postgres::start();
    let pooler = server.pooler();
    let db = behind("pooler", pooler.url());
    sqlx::query("create table t (n int)").execute(&db).await.unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let db = db.clone();
            tokio::spawn(async move {
                for n in 0..75 {
                    let value = task * 1_000 + n;
                    // Two statements of one shape, told apart by what they give.
                    let got: i32 = sqlx::query_scalar("select $1::int4")
                        .bind(value)
                        .fetch_one(&db)
                        .await
                        .unwrap();
                    assert_eq!(got, value);
                    sqlx::query("insert into t values ($1)")
                        .bind(value)
                        .execute(&db)
                        .await
                        .unwrap();
                    let text: String = sqlx::query_scalar("select $1::text || 'x'")
                        .bind(value.to_string())
                        .fetch_one(db.read())
                        .await
                        .unwrap();
                    assert_eq!(text, format!("{value}x"));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let rows: i64 =
        sqlx::query_scalar("select count(distinct n) from t").fetch_one(&db).await.unwrap();
    assert_eq!(rows, 1_200);
    // Nothing is left on the server's connections.
    let mut session = db.session_with(SessionOptions::new()).await.unwrap();
    let named: i64 =
        sqlx::query_scalar("select count(*) from pg_prepared_statements where name <> ''")
            .fetch_one(&mut session)
            .await
            .unwrap();
    assert_eq!(named, 0);
    let refused = sqlx::query("insert into t values (1)").execute(db.read()).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "25006");
}

/// What prepares a statement and keeps it by name would leave it to all who are behind the pooler.
#[tokio::test]
async fn nothing_is_prepared_by_name() {
    let server = Postgres::start();
    let pooler = server.pooler();
    let db = behind("pooler-names", pooler.url());
    let refused = |error: sqlx::Error| {
        let text = text(&error.into());
        assert!(text.contains("leave it to query()"), "{text}");
    };
    refused((&db).prepare("select $1::int4".into_sql_str()).await.unwrap_err());
    refused((&db).describe("select $1::int4".into_sql_str()).await.unwrap_err());
    let mut held = futures_util::future::try_join_all((0..2).map(|_| db.session())).await.unwrap();
    for session in &mut held {
        refused(session.prepare("select $1::int4".into_sql_str()).await.unwrap_err());
        let named = "select count(*) from pg_prepared_statements where name <> ''";
        let named: i64 = sqlx::query_scalar(named).fetch_one(session).await.unwrap();
        assert_eq!(named, 0);
    }
}

/// A BEGIN waits there for its turn: that is no reason to close what others have.
#[tokio::test]
async fn a_begin_that_waits_its_turn_costs_no_connection() {
    let server = Postgres::start();
    let pooler = server.pooler();
    let db = behind("pooler-turns", pooler.url());
    drop(futures_util::future::try_join_all((0..6).map(|_| db.acquire())).await.unwrap());
    until_at_rest(&db).await;
    let held = futures_util::future::try_join_all((0..2).map(|_| db.session())).await.unwrap();
    let mut third = Box::pin(db.session());
    tokio::time::timeout(ms(1_300), &mut third).await.unwrap_err();
    assert_eq!(db.pool_status().size, 6);
    drop(held);
    third.await.unwrap().commit().await.unwrap();
    assert_eq!(db.pool_status().size, 6);
}

/// The transaction around a statement is ours: MariaDB may commit before that one, and undoes nothing
/// of it when no answer comes.
#[tokio::test]
async fn a_table_may_be_changed_through_the_client() {
    let db: MySqlDatabase = DatabaseClient::builder()
        .name("pooler-ddl")
        .url(MARIADB.url())
        .transaction_pooler()
        .policy(|p| p.timeout(ms(3_000)).base_delay(ms(5)))
        .build()
        .unwrap();
    sqlx::query("create table pooled (n int) engine=innodb").execute(&db).await.unwrap();
    let mut session = db.session().await.unwrap();
    let alter = "alter table pooled add column m int";
    let refused = sqlx::query(alter).execute(&mut session).await.unwrap_err();
    assert!(text(&refused.into()).contains("end the transaction"));
    let truncate = sqlx::query("truncate pooled").execute(db.read()).await.unwrap_err();
    assert!(text(&truncate.into()).contains("end the transaction"));
    sqlx::query("select n from pooled").fetch_all(&mut session).await.unwrap();
    let waited = Error::from(sqlx::query(alter).execute(&db).await.unwrap_err());
    assert!(waited.is_outcome_unknown() && waited.attempts() == 1, "{}", text(&waited));
    session.rollback().await.unwrap();
}

/// Of a server process that died the pooler says by the code of a message that makes no sense that
/// its connection broke. What that one had done is there.
#[tokio::test]
async fn what_a_process_did_before_it_died_is_unknown() {
    // A commit is done, and then waits for a standby that there is not.
    let server = Postgres::start_with(&["--synchronous_standby_names=nobody"]);
    let direct: PgDatabase = client("pooler-died-direct", server.url());
    let create = "set synchronous_commit = local; create table t (n int)";
    sqlx::raw_sql(create).execute(&direct).await.unwrap();
    let waits = "select pid from pg_stat_activity where wait_event = 'SyncRep'";
    let waits = async || sqlx::query_scalar::<_, i32>(waits).fetch_optional(&direct).await;
    for (before, name) in (0_i64..).zip(["query", "raw", "commit"]) {
        let pooler = server.pooler();
        let db = behind(&format!("pooler-died-{name}"), pooler.url());
        let write = async {
            let insert = "insert into t values (1)";
            match name {
                "query" => {
                    sqlx::query(insert).execute(&db).await?;
                }
                "raw" => {
                    sqlx::raw_sql(insert).execute(&db).await?;
                }
                _ => {
                    let mut session = db.session().await?;
                    sqlx::query(insert).execute(&mut session).await?;
                    session.commit().await?;
                }
            }
            Ok::<_, Error>(())
        };
        let kill = async {
            until("it waits", || async { waits().await.unwrap().is_some() }).await;
            let process = waits().await.unwrap().unwrap().to_string();
            let killed = std::process::Command::new("kill").args(["-9", &process]).status();
            assert!(killed.unwrap().success());
        };
        let (written, ()) = tokio::join!(write, kill);
        let error = written.unwrap_err();
        println!("{name}: {}", text(&error));
        assert!(error.is_outcome_unknown(), "{name}: {}", text(&error));
        assert!(text(&error).contains("08P01"), "{name}: {}", text(&error));
        // Who sees none of the others yet has not heard of its end.
        until("the server is back, and the row is there", || async {
            let rows = sqlx::query_scalar::<_, i64>("select count(*) from t").fetch_one(&direct);
            rows.await.is_ok_and(|rows| rows == before + 1)
        })
        .await;
    }
}

/// The pooler answers, and what it says is no answer of the server.
#[tokio::test]
async fn a_server_that_is_gone_behind_the_pooler_opens_the_breaker() {
    let mut server = Postgres::start();
    let pooler = server.pooler();
    let db: PgDatabase = DatabaseClient::builder()
        .name("pooler-gone")
        .url(pooler.url())
        .transaction_pooler()
        .policy(|p| p.max_attempts(1).timeout(ms(2_000)).failure_threshold(3))
        .build()
        .unwrap();
    db.session().await.unwrap().rollback().await.unwrap();
    server.stop();
    // Who comes before it knows waits in vain.
    until("it has found out", || async {
        text(&db.session().await.unwrap_err()).contains("08P01")
    })
    .await;
    db.policy().breaker().reset();
    for _ in 0..3 {
        assert_eq!(db.policy().breaker().state(), BreakerState::Closed);
        let error = db.session().await.unwrap_err();
        assert!(text(&error).contains("08P01") && !error.is_outcome_unknown(), "{}", text(&error));
    }
    assert_eq!(db.policy().breaker().state(), BreakerState::Open);
}

/// It lets everybody in from what it remembers of the server: only what the server answers tells.
#[tokio::test]
async fn the_pooler_does_not_speak_for_the_health_of_its_server() {
    let mut server = Postgres::start();
    let pooler = server.pooler();
    let [used, new] = ["used", "new"].map(|n| behind(&format!("pooler-health-{n}"), pooler.url()));
    sqlx::query("select 1").execute(&used).await.unwrap();
    let all = async |status| {
        for (db, idle) in [(&used, 1), (&new, 0)] {
            let health = db.health_check().await;
            assert_eq!(health.status, status, "with {idle}: {}", health.detail);
            println!("with {idle} idle: {}", health.detail);
        }
    };
    until_at_rest(&used).await;
    assert_eq!((used.pool_status().idle, new.pool_status().idle), (1, 0));
    all(HealthStatus::Healthy).await;
    server.stop();
    all(HealthStatus::Unhealthy).await;
    all(HealthStatus::Unhealthy).await;
    server.restart();
    until("it has found the server again", || async {
        used.health_check().await.status == HealthStatus::Healthy
    })
    .await;
    all(HealthStatus::Healthy).await;
}
