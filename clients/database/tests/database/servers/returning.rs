//! The first row of a write is an answer: what it says was done.

use super::*;
use futures_util::StreamExt;
use mainstay_database::SqliteDatabase;

/// One attempt, of a file with ten thousand rows.
async fn file(name: &str) -> (tempfile::TempDir, SqliteDatabase) {
    let dir = tempfile::tempdir().unwrap();
    let db: SqliteDatabase = DatabaseClient::builder()
        .name(name)
        .url(format!("sqlite://{}?mode=rwc", dir.path().join("a.db").display()))
        .policy(|p| p.max_attempts(1).timeout(ms(4_000)))
        .build()
        .unwrap();
    let create = "create table t (id integer primary key); \
                  insert into t with recursive n(i) as (select 1 union all select i + 1 from n) \
                      select i from n limit 10000";
    sqlx::raw_sql(create).execute(&db).await.unwrap();
    (dir, db)
}

/// Of what writes nothing the first row is enough, with whatever word it begins.
#[tokio::test]
async fn sqlite_reads_no_further_than_the_first_row_of_a_read() {
    let (_dir, db) = file("returning-endless").await;
    let endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n";
    let first = || sqlx::query_scalar::<_, i64>(endless);
    assert_eq!(first().fetch_one(&db).await.unwrap(), 1);
    let mut session = db.session().await.unwrap();
    assert_eq!(first().fetch_optional(&mut session).await.unwrap(), Some(1));
    session.commit().await.unwrap();
}

/// The row is there before SQLite commits, when a constraint may still be in the way.
#[tokio::test]
async fn sqlite_gives_no_row_of_what_a_constraint_undid() {
    let (_dir, db) = file("returning-deferred").await;
    let create = "create table child (t integer references t deferrable initially deferred)";
    sqlx::raw_sql(create).execute(&db).await.unwrap();
    let orphan = "insert into child values (20000) returning t";
    let error = sqlx::query(orphan).fetch_one(&db).await.unwrap_err();
    assert!(error.as_database_error().unwrap().is_foreign_key_violation(), "{error}");
    let rows: i64 = sqlx::query_scalar("select count(*) from child").fetch_one(&db).await.unwrap();
    assert_eq!(rows, 0);
}

/// Or a reader.
#[tokio::test]
async fn sqlite_gives_no_row_of_what_a_reader_kept_from_being_committed() {
    let (_dir, db) = file("returning-reader").await;
    let written = || async {
        let written = sqlx::query_scalar::<_, i64>("select count(*) from t where id = 20000");
        written.fetch_one(&db).await.unwrap()
    };
    let insert = "insert into t values (20000) returning id";
    // It is read on until there is no room for more rows, and held there.
    let mut rows = sqlx::query("select id from t").fetch(&db);
    rows.next().await.unwrap().unwrap();
    let error = Error::from(sqlx::query(insert).fetch_one(&db).await.unwrap_err());
    assert!(!error.is_outcome_unknown(), "{}", text(&error));
    drop(rows);
    until_at_rest(&db).await;
    assert_eq!(written().await, 0);
    assert_eq!(sqlx::query_scalar::<_, i64>(insert).fetch_one(&db).await.unwrap(), 20_000);
    assert_eq!(written().await, 1);
}

/// A row that fails comes after those that do not.
#[tokio::test]
async fn mariadb_gives_no_row_of_what_failed_at_a_later_one() {
    let db = mariadb("returning-failed");
    let create = "create table returned_none (n int primary key) engine=innodb";
    sqlx::raw_sql(create).execute(&db).await.unwrap();
    let twice = "insert into returned_none values (1), (2), (1) returning n";
    let error = sqlx::query(twice).fetch_one(&db).await.unwrap_err();
    assert!(error.as_database_error().unwrap().is_unique_violation(), "{error}");
}

/// The server undoes a write whose rows nobody reads to the end.
#[tokio::test]
async fn mariadb_has_done_all_of_what_it_gives_a_row_of() {
    let db = mariadb("returning-all");
    let create = "create table returned_all (n int primary key) engine=innodb";
    sqlx::raw_sql(create).execute(&db).await.unwrap();
    let many = "insert into returned_all select seq from seq_1_to_300000 returning n";
    let first: i32 = sqlx::query_scalar(many).fetch_one(&db).await.unwrap();
    until_at_rest(&db).await;
    let rows = sqlx::query_scalar::<_, i64>("select count(*) from returned_all").fetch_one(&db);
    assert_eq!((first, rows.await.unwrap()), (1, 300_000));
}
