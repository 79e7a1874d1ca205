//! sqlx's macros on the client: `migrate!`, and `query!` with what `cargo sqlx prepare` wrote to
//! `.sqlx`, so that no database is needed to build this.

use mainstay_database::SqliteDatabase;

#[tokio::test]
async fn migrations_and_checked_queries_run_on_the_client() {
    let db = SqliteDatabase::builder().name("macros").url("sqlite::memory:").build().unwrap();
    for _ in 0..2 {
        sqlx::migrate!("tests/migrations").run(&db).await.unwrap();
    }
    let user =
        sqlx::query!("select id, name from users where id = ?", 1).fetch_one(&db).await.unwrap();
    assert_eq!((user.id, user.name.as_str()), (1, "John"));

    let mut session = db.session().await.unwrap();
    sqlx::query!("update users set name = ? where id = ?", "Jane", 1)
        .execute(&mut session)
        .await
        .unwrap();
    session.commit().await.unwrap();
    let names: Vec<String> =
        sqlx::query_scalar!("select name from users").fetch_all(db.read()).await.unwrap();
    assert_eq!(names, ["Jane"]);
}
