//! What a caller gets wrong at a server: said at once, once, and without what must not be shown.

use super::*;
use mainstay_policy::BreakerState;
use sqlx::postgres::{PgDatabaseError, PgErrorPosition};

async fn is_refused<DB: Backend>(name: &str, url: &str, words: &[&str]) {
    let db: DatabaseClient<DB> = client(name, url.to_owned());
    let started = Instant::now();
    let error = db.session().await.unwrap_err();
    let text = text(&error);
    println!("{text}");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!text.contains("s3cret") && !text.contains("somebody"), "{text}");
    assert_eq!((error.attempts(), error.is_outcome_unknown()), (1, false), "{text}");
    assert!(started.elapsed() < ms(5_000));
    let health = db.health_check().await;
    assert!(!health.detail.contains("s3cret"), "{}", health.detail);
    assert!(health.detail.contains("refuses user or password"), "{}", health.detail);
}

#[tokio::test]
async fn a_wrong_password_for_postgres() {
    let server = Postgres::start();
    let db: PgDatabase = client("password-pg", server.url());
    let create = "create role somebody login password 's3cret-right'";
    sqlx::query(create).execute(&db).await.unwrap();
    let rules: String = sqlx::query_scalar("show hba_file").fetch_one(&db).await.unwrap();
    let trusting = std::fs::read_to_string(&rules).unwrap();
    let asking = format!("host all somebody 127.0.0.1/32 scram-sha-256\n{trusting}");
    std::fs::write(&rules, asking).unwrap();
    sqlx::query("select pg_reload_conf()").execute(&db).await.unwrap();
    let url = |password: &str| server.url().replace("postgres@", &format!("somebody:{password}@"));
    until("it asks for the password", || async {
        let plain = sqlx::PgPool::connect(&url("s3cret-wrong")).await;
        plain.is_err()
    })
    .await;
    let words = ["28P01", "refuses user or password; check the URL"];
    is_refused::<sqlx::Postgres>("password-pg-wrong", &url("s3cret-wrong"), &words).await;
    let right: PgDatabase = client("password-pg-right", url("s3cret-right"));
    sqlx::query("select 1").execute(&right).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_for_mariadb() {
    let db = mariadb("password-maria");
    let create = "create user somebody identified by 's3cret-right'";
    sqlx::raw_sql(create).execute(&db).await.unwrap();
    let url = |password: &str| {
        let url = MARIADB.url().replace("root@", &format!("somebody:{password}@"));
        url.replace("/mysql?", "/?")
    };
    let words = ["28000", "refuses user or password; check the URL"];
    is_refused::<sqlx::MySql>("password-maria-wrong", &url("s3cret-wrong"), &words).await;
    let right: MySqlDatabase = client("password-maria-right", url("s3cret-right"));
    sqlx::query("do 1").execute(&right).await.unwrap();
}

/// Through the client, a session and a transaction, with the driver's own error kept.
#[tokio::test]
async fn an_error_in_sql_keeps_its_position() {
    let db = postgres("position");
    let wrong = "select 1 frm pg_class";
    let position = |error: Error| {
        let driver = error.downcast_ref::<sqlx::Error>().unwrap().as_database_error().unwrap();
        match driver.downcast_ref::<PgDatabaseError>().position() {
            Some(PgErrorPosition::Original(position)) => position,
            other => panic!("{other:?}"),
        }
    };
    let error = sqlx::query(wrong).execute(&db).await.unwrap_err();
    assert_eq!(position(error.into()), 14);
    let mut session = db.session().await.unwrap();
    let error = sqlx::query(wrong).execute(&mut session).await.unwrap_err();
    assert_eq!(position(error.into()), 14);
    let error = db
        .transaction(async |tx| {
            sqlx::query(wrong).execute(&mut *tx).await?;
            Ok::<_, Error>(())
        })
        .await
        .unwrap_err();
    assert_eq!(position(error), 14);

    let error = sqlx::query_scalar::<_, i64>("select 'text'").fetch_one(&db).await.unwrap_err();
    assert!(matches!(error, sqlx::Error::ColumnDecode { .. }), "{error}");
}

/// MariaDB makes each statement of a text a transaction: sent again, the first would be done twice.
#[tokio::test]
async fn a_text_that_stopped_halfway_is_not_sent_again() {
    let (db, holder) = (mariadb("halfway"), mariadb("halfway-holder"));
    let create = "create table done (n int) engine=innodb; \
                  create table held (n int primary key) engine=innodb; \
                  insert into held values (1)";
    sqlx::raw_sql(create).execute(&holder).await.unwrap();
    let mut session = holder.session().await.unwrap();
    sqlx::query("update held set n = 2").execute(&mut session).await.unwrap();
    let done = || sqlx::query_scalar::<_, i64>("select count(*) from done").fetch_one(&holder);
    for (times, halfway) in [
        (1, "insert into done values (1); select n from held for update nowait"),
        (
            2,
            "create or replace procedure clear() begin delete from held; begin end; end; \
             insert into done values (1); select n from held for update nowait",
        ),
    ] {
        let error = Error::from(sqlx::raw_sql(halfway).execute(&db).await.unwrap_err());
        assert!(error.is_outcome_unknown(), "{}", text(&error));
        assert_eq!(error.attempts(), 1, "{}", text(&error));
        assert_eq!(done().await.unwrap(), times);
    }

    // One statement is all or nothing, and is repeated.
    let whole = "insert into done select n from held for update nowait";
    let error = Error::from(sqlx::raw_sql(whole).execute(&db).await.unwrap_err());
    assert!(!error.is_outcome_unknown() && error.attempts() == 3, "{}", text(&error));
    assert_eq!(done().await.unwrap(), 2);
}

/// What lasts as long as the connection does is nothing that the next caller may meet.
#[tokio::test]
async fn statements_that_were_discarded_are_missed_by_nobody() {
    let db: PgDatabase = DatabaseClient::builder()
        .name("discarded")
        .url(POSTGRES.url())
        .max_connections(1)
        .build()
        .unwrap();
    for discard in ["discard all", "deallocate all", "reset all"] {
        let kept = || sqlx::query_scalar::<_, i32>("select $1 + 1").bind(1).fetch_one(&db);
        let limit = || {
            sqlx::query_scalar::<_, String>("select current_setting('statement_timeout')")
                .fetch_one(&db)
        };
        assert_eq!(kept().await.unwrap(), 2);
        let before = limit().await.unwrap();
        sqlx::raw_sql(discard).execute(&db).await.unwrap();
        assert_eq!(kept().await.unwrap(), 2, "{discard}");
        assert_eq!(limit().await.unwrap(), before, "{discard}");
    }
}

/// The driver says so in words alone, and in the same kind of error as for an answer that makes no
/// sense.
#[tokio::test]
async fn what_the_driver_cannot_do_is_said_once_and_is_no_fault_of_the_server() {
    let refused = |error: sqlx::Error, words: &str| {
        let error = Error::from(error);
        let text = text(&error);
        assert!(text.contains(words), "{text}");
        assert!(!error.is_outcome_unknown() && error.attempts() == 1, "{text}");
    };
    let db = mariadb("too-few");
    for _ in 0..4 {
        let query = sqlx::query("insert into nosuch select ?, ? from dual").bind(1);
        let error = query.execute(&db).await.unwrap_err();
        // No such table is found out first.
        assert!(error.as_database_error().is_some(), "{error}");
        refused(sqlx::query("select ?, ?").bind(1).execute(&db).await.unwrap_err(), "placeholders");
    }
    assert_eq!(db.policy().breaker().state(), BreakerState::Closed);

    let db = postgres("copies");
    sqlx::query("create table copied (n int)").execute(&db).await.unwrap();
    for _ in 0..4 {
        let copy = sqlx::raw_sql("copy copied from stdin").execute(&db).await;
        refused(copy.unwrap_err(), "copy_in_raw");
    }
    assert_eq!(db.policy().breaker().state(), BreakerState::Closed);
    let mut bare = sqlx::Acquire::acquire(&db).await.unwrap();
    let mut copy = bare.copy_in_raw("copy copied from stdin").await.unwrap();
    copy.send(&b"1\n2\n"[..]).await.unwrap();
    assert_eq!(copy.finish().await.unwrap(), 2);
    let many = sqlx::query_scalar::<_, i64>("select count(*) from copied").fetch_one(&db);
    assert_eq!(many.await.unwrap(), 2);
}

/// Each way round: what answers is no database of this kind.
#[tokio::test]
async fn another_database_behind_the_port_is_told_from_a_broken_connection() {
    let url = format!("postgres://root@{}/x", MARIADB.address());
    let db: PgDatabase = client("not-postgres", url);
    let error = db.session().await.unwrap_err();
    assert!(text(&error).contains("check that host and port are this database's"), "{error}");
    assert!(!error.is_outcome_unknown());
}
