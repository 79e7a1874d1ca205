//! Behind PgBouncer in transaction mode, with two connections of the server for all, and MariaDB told
//! of a pooler.

use super::*;
use mainstay_database::SessionOptions;
use sqlx::{Executor, SqlSafeStr};

fn behind(name: &str, url: String) -> PgDatabase {
    DatabaseClient::builder()
        .name(name)
        .url(url)
        .max_connections(16)
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
        .policy(|p| p.timeout(ms(500)).base_delay(ms(5)))
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
