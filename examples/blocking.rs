//! How does a program that is not async use the clients?
//!
//! It writes `.wait()` for `.await`; limits, retries and breakers are the same. No server is needed.
#![allow(missing_docs)]

use mainstay::{Deadline, RedisClient, SqliteDatabase, blocking::Wait, sqlx};
use std::time::Duration;

fn main() -> Result<(), mainstay::Error> {
    let db = SqliteDatabase::builder().url("sqlite::memory:").build()?;
    let mut session = db.session().wait()?;
    sqlx::query("create table users (name text)").execute(&mut session).wait()?;
    sqlx::query("insert into users values ('John')").execute(&mut session).wait()?;
    session.commit().wait()?;

    let cache = RedisClient::builder().without_server().build()?;
    // All that is called in here ends within two seconds.
    let name = Deadline::within(Duration::from_secs(2)).scope_blocking(|| {
        let name: String = sqlx::query_scalar("select name from users").fetch_one(&db).wait()?;
        cache.set("user:1", name).wait()?;
        cache.get::<String>("user:1").wait()
    })?;
    println!("user 1 is {name:?}");
    println!("the database is {:?}", db.health_check().wait().status);
    println!(
        "the cache is {:?}: {}",
        cache.health_check().wait().status,
        cache.health_check().wait().detail
    );
    Ok(())
}
