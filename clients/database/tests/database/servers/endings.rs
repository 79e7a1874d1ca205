//! A transaction ends by `commit()` and `rollback()`. Whatever else would end it is refused, or is the
//! end of the session too: what follows would stand for itself.

use super::*;
use mainstay_database::SqliteDatabase;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// MariaDB commits before it: a deadlock afterwards would have everything done again.
#[tokio::test]
async fn what_mariadb_commits_before_is_refused_in_a_transaction() {
    let db = mariadb("endings-maria");
    let create = "create table audit (n int) engine=innodb; create table staging (n int)";
    sqlx::raw_sql(create).execute(&db).await.unwrap();
    let runs = AtomicU32::new(0);
    let error = db
        .transaction(async |tx| {
            let first = runs.fetch_add(1, SeqCst) == 0;
            sqlx::query("insert into audit values (1)").execute(&mut *tx).await?;
            sqlx::raw_sql("truncate staging").execute(&mut *tx).await?;
            if first {
                let deadlock = "signal sqlstate '40001' set mysql_errno = 1213";
                sqlx::raw_sql(deadlock).execute(&mut *tx).await?;
            }
            Ok::<_, Error>(())
        })
        .await
        .unwrap_err();
    assert!(text(&error).contains("take acquire()"), "{}", text(&error));
    let rows = || sqlx::query_scalar::<_, i64>("select count(*) from audit").fetch_one(&db);
    assert_eq!((rows().await.unwrap(), runs.into_inner()), (0, 1));

    // The session is as it was, and what is temporary is no end of it.
    let mut session = db.session().await.unwrap();
    sqlx::query("insert into audit values (2)").execute(&mut session).await.unwrap();
    for refused in [
        "drop table staging",
        "/* why */ COMMIT",
        "select 1; begin",
        "# x\nrollback",
        "check table staging",
        "analyze local table staging",
        "set default role none",
    ] {
        let error = sqlx::raw_sql(refused).execute(&mut session).await.unwrap_err();
        assert!(text(&error.into()).contains("end the transaction"), "{refused}");
        let mut rows = sqlx::raw_sql(refused).fetch(&mut session);
        futures_util::StreamExt::next(&mut rows).await.unwrap().unwrap_err();
    }
    let harmless = "create temporary table mine (n int); drop temporary table mine; \
                    begin not atomic select 1; begin insert into audit values (2); end; end";
    sqlx::raw_sql(harmless).execute(&mut session).await.unwrap();
    session.rollback().await.unwrap();
    assert_eq!(rows().await.unwrap(), 0);
    // On a connection it is everybody's own business.
    let mut connection = db.acquire().await.unwrap();
    let own = "begin; insert into audit values (3); truncate staging; insert into audit values (4); \
               rollback";
    sqlx::raw_sql(own).execute(&mut connection).await.unwrap();
    assert_eq!(rows().await.unwrap(), 2);
}

#[tokio::test]
async fn a_commit_in_words_is_refused_where_tables_may_be_made() {
    let db = postgres("endings-pg");
    let mut session = db.session().await.unwrap();
    sqlx::query("create table ended (n text)").execute(&mut session).await.unwrap();
    for refused in ["commit", "end", "rollback", "start transaction", "prepare transaction 'x'"] {
        let error = sqlx::query(refused).execute(&mut session).await.unwrap_err();
        assert!(text(&error.into()).contains("with commit() or rollback()"), "{refused}");
    }
    let harmless = "savepoint s; insert into ended values ('x; commit'); rollback to s; \
                    do $$ begin perform 1; end $$; insert into ended values ('once')";
    sqlx::raw_sql(harmless).execute(&mut session).await.unwrap();
    session.commit().await.unwrap();
    let rows: Vec<String> = sqlx::query_scalar("select n from ended").fetch_all(&db).await.unwrap();
    assert_eq!(rows, ["once"]);
}

/// Not a deadlock alone: the table of locks was full.
#[tokio::test]
async fn an_error_by_which_mariadb_rolled_back_is_the_end_of_the_session() {
    let db = mariadb("endings-locks");
    sqlx::raw_sql("create table locked (n int) engine=innodb").execute(&db).await.unwrap();
    let mut session = db.session().await.unwrap();
    let full = "signal sqlstate 'HY000' set mysql_errno = 1206";
    sqlx::raw_sql(full).execute(&mut session).await.unwrap_err();
    let insert = "insert into locked values (1)";
    let refused = sqlx::query(insert).execute(&mut session).await.unwrap_err();
    assert!(text(&refused.into()).contains("take a new session"));
}

/// A constraint may say so, a statement, or a trigger. Any other error leaves the transaction as it is.
#[tokio::test]
async fn an_error_by_which_sqlite_rolled_back_is_the_end_of_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("a.db").display());
    let db: SqliteDatabase = client("endings-sqlite", url);
    let create = "create table t (n integer primary key); insert into t values (1); \
                  create trigger t_limit before insert on t when new.n > 100 begin \
                      select raise(rollback, 'too large'); end; \
                  create table u (n integer unique on conflict rollback); insert into u values (1)";
    sqlx::raw_sql(create).execute(&db).await.unwrap();
    let insert = |n: i32| sqlx::query("insert into t values (?)").bind(n);
    for ends in [
        "insert or rollback into t values (1)",
        "insert into t values (101)",
        "insert into u values (1)",
    ] {
        for in_part in [false, true] {
            let mut session = db.session().await.unwrap();
            insert(2).execute(&mut session).await.unwrap();
            if in_part {
                let mut part = session.savepoint().await.unwrap();
                sqlx::query(ends).execute(&mut part).await.unwrap_err();
            } else {
                sqlx::query(ends).execute(&mut session).await.unwrap_err();
            }
            let error = insert(3).execute(&mut session).await.unwrap_err();
            assert!(text(&error.into()).contains("take a new session"), "{ends}");
            session.commit().await.unwrap_err();
        }
        let mut session = db.session().await.unwrap();
        sqlx::query(ends).execute(&mut session).await.unwrap_err();
        session.rollback().await.unwrap();
    }
    let mut session = db.session().await.unwrap();
    insert(2).execute(&mut session).await.unwrap();
    insert(1).execute(&mut session).await.unwrap_err();
    insert(3).execute(&mut session).await.unwrap();
    session.commit().await.unwrap();
    let rows: Vec<i64> = sqlx::query_scalar("select n from t").fetch_all(&db).await.unwrap();
    assert_eq!(rows, [1, 2, 3]);
}
