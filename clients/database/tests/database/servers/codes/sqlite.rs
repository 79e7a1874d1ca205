use super::*;
use mainstay_database::SqliteDatabase;
use mainstay_policy::ErrorKind;

#[tokio::test]
async fn its_answers() {
    type Lite = sqlx::Sqlite;
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}?mode=rwc", dir.path().join("a.db").display());
    let name = "codes-sqlite";
    let db: SqliteDatabase = DatabaseClient::builder()
        .name(name)
        .url(&url)
        .policy(|p| p.max_attempts(1).timeout(ms(4_000)).failure_threshold(1_000))
        .build()
        .unwrap();
    run(&db, "create table t (id integer primary key, n text)").await.unwrap();
    run(&db, "insert into t values (1, '')").await.unwrap();
    judge::<Lite>(name, "1555", run(&db, "insert into t values (1, '')"), OWN_FAULT).await;
    judge::<Lite>(name, "1", run(&db, "selec 1"), OWN_FAULT).await;
    let full = "pragma max_page_count = 1; insert into t values (2, zeroblob(100000))";
    judge::<Lite>(name, "13", run(&db, full), ILL).await;
    judge::<Lite>(name, "8", run(&db, "pragma query_only = on; delete from t"), ILL).await;
    // 517: it read, another one wrote, and now it wants to write on what it had read.
    run(&db, "pragma journal_mode = wal").await.unwrap();
    let mut connection = db.acquire().await.unwrap();
    sqlx::query("begin").execute(&mut connection).await.unwrap();
    sqlx::query("select * from t").fetch_all(&mut connection).await.unwrap();
    run(&db, "insert into t values (7, '')").await.unwrap();
    let before = counts(name);
    let error = sqlx::query("delete from t").execute(&mut connection).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "517");
    let after = counts(name);
    assert_eq!((after.0, after.1, after.2), (before.0, before.1, before.2 + 1), "neutral");
    drop(connection);
    let held = db.session().await.unwrap();
    judge::<Lite>(name, "5", run(&db, "delete from t"), CONFLICT).await;
    drop(held);

    let junk = dir.path().join("junk.db");
    std::fs::write(&junk, vec![7; 4096]).unwrap();
    let name = "codes-sqlite-junk";
    let db: SqliteDatabase = once(name, &format!("sqlite://{}", junk.display()));
    let error = run(&db, "select * from t").await.unwrap_err();
    assert!(text(&error).contains("file is not a database"), "{}", text(&error));
    assert_eq!(error.kind(), ErrorKind::Backend);
    let db: SqliteDatabase = once("codes-sqlite-missing", "sqlite:///no/such/file.db");
    let error = run(&db, "select 1").await.unwrap_err();
    assert!(text(&error).contains("check the path"), "{}", text(&error));
}
