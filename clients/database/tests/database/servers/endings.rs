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
    // It begins nothing, and may go to any connection.
    assert!(sqlx::query("xa recover").fetch_all(&db).await.unwrap().is_empty());
}

/// By the server's own doing: what came before it stays, whatever is rolled back after it.
#[tokio::test]
async fn what_mariadb_commits_before_is_known_and_nothing_else_is_refused() {
    let db = mariadb("endings-known");
    let create = "create table kept (n int) engine=innodb; create table emptied (n int)";
    sqlx::raw_sql(create).execute(&db).await.unwrap();
    let mut wrong = Vec::new();
    for (statement, commits) in [
        ("create temporary sequence seq", true),
        ("create or replace temporary sequence seq", true),
        ("create temporary table seq (n int)", false),
        ("create temporary table steps (sequence int)", false),
        ("set statement max_statement_time = 9 for truncate emptied", true),
        ("set statement lock_wait_timeout = 9, max_statement_time = 9 for commit", true),
        ("set statement max_statement_time = 9 for insert into emptied values (1)", false),
        ("execute immediate 'truncate emptied'", true),
        ("prepare p from 'truncate emptied'; execute p", true),
        ("prepare p from 'truncate emptied'", false),
        ("begin not atomic truncate emptied; end", true),
        ("begin not atomic if 1 then begin select 1; commit; end; end if; end", true),
        ("begin not atomic if 1 then insert into emptied values (1); end if; end", false),
        ("begin not atomic select 1; l: begin truncate emptied; end; end", true),
        (
            "begin not atomic declare exit handler for sqlexception, sqlwarning commit; \
             signal sqlstate '45000'; end",
            true,
        ),
        (
            "begin not atomic declare exit handler for sqlstate '45000' \
             insert into emptied values (1); signal sqlstate '45000'; end",
            false,
        ),
        ("if 1 then commit; end if", true),
        ("if 0 then select 1; else truncate emptied; end if", true),
        ("case when 1 then commit; end case", true),
        ("repeat commit; until 1 end repeat", true),
        ("for i in (select 1) do commit; end for", true),
        ("if 1 then select case when 1 then 2 else 3 end; end if", false),
    ] {
        let mut connection = db.acquire().await.unwrap();
        let own =
            format!("delete from kept; begin; insert into kept values (1); {statement}; rollback");
        sqlx::raw_sql(sqlx::AssertSqlSafe(own)).execute(&mut connection).await.unwrap();
        let rows: i64 = sqlx::query_scalar("select count(*) from kept")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        let mut session = db.session().await.unwrap();
        let done = sqlx::raw_sql(statement).execute(&mut session).await.map_err(Error::from);
        let refused = done.is_err_and(|error| text(&error).contains("end the transaction"));
        if (rows == 1, refused) != (commits, commits) {
            wrong.push((statement, rows, refused));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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

/// A lock wait that took too long rolls back its statement, or all, as the server was started. Whoever
/// goes on after it loses nothing unseen.
#[tokio::test]
async fn after_a_lock_wait_a_session_goes_on_only_where_its_work_is_still_there() {
    for on in [false, true] {
        let rollback = if on { "--innodb-rollback-on-timeout=1" } else { "--skip-name-resolve" };
        let server = Mariadb::start_with(&[rollback, "--innodb-lock-wait-timeout=1"]);
        let db: MySqlDatabase = client(&format!("endings-wait-{on}"), server.url());
        let create = "create table t (id int primary key, n int) engine=innodb; \
                      insert into t values (1, 0)";
        sqlx::raw_sql(create).execute(&db).await.unwrap();
        let mut other = db.session().await.unwrap();
        let update = "update t set n = n + 1 where id = 1";
        sqlx::query(update).execute(&mut other).await.unwrap();
        let insert = |id: i32| sqlx::query("insert into t values (?, 0)").bind(id);
        let at_once = "select n from t where id = 1 for update nowait";
        for (round, wait) in [(0, update), (1, at_once), (2, update), (3, at_once)] {
            let (first, second) = (10 * round + 2, 10 * round + 3);
            let mut session = db.session().await.unwrap();
            insert(first).execute(&mut session).await.unwrap();
            let error = sqlx::query(wait).execute(&mut session).await.unwrap_err();
            assert!(error.to_string().contains("1205"), "{error}");
            // Two ways to go on: with a statement, or with COMMIT alone.
            let mut expected = vec![first];
            let went_on = if round < 2 {
                expected.push(second);
                let went_on = insert(second).execute(&mut session).await.is_ok();
                session.commit().await.is_ok() && went_on
            } else {
                session.commit().await.is_ok()
            };
            let rows = "select id from t where id between ? and ? order by id";
            let rows: Vec<i32> =
                sqlx::query_scalar(rows).bind(first).bind(second).fetch_all(&db).await.unwrap();
            if on {
                assert_eq!((went_on, rows), (false, vec![]), "{wait}, {round}");
            } else {
                assert_eq!((went_on, rows), (true, expected), "{wait}, {round}");
            }
        }
        // A whole transaction that swallows it is run again, not committed by half.
        let runs = AtomicU32::new(0);
        let done = db.transaction(async |tx| {
            runs.fetch_add(1, SeqCst);
            insert(90).execute(&mut *tx).await?;
            let _ = sqlx::query(at_once).execute(&mut *tx).await;
            Ok::<_, Error>(())
        });
        let done = done.await.is_ok();
        let n: i64 = sqlx::query_scalar("select count(*) from t where id = 90")
            .fetch_one(&db)
            .await
            .unwrap();
        assert_eq!((done, n, runs.into_inner()), if on { (false, 0, 3) } else { (true, 1, 1) });
    }
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
