//! What README shows compiles: its blocks of Rust stand here line by line, in names of this file.
//! Nobody runs them; the quickstart and the service do the same against servers. What a copied line may
//! do twice is run here.

use axum::{Router, middleware};
use mainstay::{
    CallError, Deadline, Error, Json, Kind, PgDatabase, Policy, Readiness, RedisClient, Session,
    api_resilient, sqlx, web,
};
use serde::{Deserialize, Serialize};
use std::{cell::Cell, io, time::Duration};
use tokio::{fs::File, io::AsyncWriteExt};

type AnyError = Box<dyn std::error::Error>;
type BankError = io::Error;
type Date = String;
type Rates = Vec<f64>;

#[derive(Debug, Deserialize, Serialize)]
struct User {
    name: String,
}

/// As `#[derive(sqlx::FromRow)]` writes it where sqlx is a dependency.
impl<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> for User {
    fn from_row(row: &'r sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self { name: sqlx::Row::try_get(row, "name")? })
    }
}

struct Bank;

impl Bank {
    async fn rates(&self, _: Date) -> Result<Rates, BankError> {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn bank() -> Bank {
    Bank
}

async fn transfer(_: &mut Session<sqlx::Postgres>, _: i64, _: i64) -> Result<(), Error> {
    Ok(())
}

async fn credit_limit(_: &str) -> Result<u64, BankError> {
    Ok(1_000)
}

async fn charge(card: &str) -> Result<String, BankError> {
    Ok(card.to_owned())
}

async fn load_user(_: i64) -> Result<Json<User>, Error> {
    Ok(Json(User { name: "John".to_owned() }))
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[rustfmt::skip]
#[allow(unused_variables, dead_code)]
async fn how_it_is_used(from: i64, to: i64, card: String, mut file: File) -> Result<(), AnyError> {
    let db: PgDatabase = mainstay::get_database_client()?;                  // plain sqlx on it
    let user: User = sqlx::query_as("select * from users where id = $1").bind(7).fetch_one(&db).await?;
    let mut session = db.session().await?;                                  // a transaction
    sqlx::query("update users set name = $1").bind("John").execute(&mut session).await?;
    session.commit().await?;                                                // or rolled back on drop
    db.transaction(async |tx| transfer(tx, from, to).await).await?;         // run again on a conflict
    let n: i64 = sqlx::query_scalar("select count(*) from users").fetch_one(db.read()).await?; // a write is refused
    let reporting: PgDatabase = mainstay::get_database_client_named("reporting")?; // MAINSTAY_DATABASE_REPORTING_URL

    let api = mainstay::get_http_client_for("https://api.example.com/v1")?;
    let users: Vec<User> = api.get("users").query(&[("page", 2)]).await?.error_for_status()?.json()?; // repeated when it fails
    api.post("users").json(&user).await?;                                   // sent once, unless refused
    api.post("users").json(&user).idempotency_key("order-17").await?;       // repeated, with its key
    let mut export = api.get("export.csv").resume_by_range().stream().await?; // piece by piece
    while let Some(piece) = export.chunk().await? { file.write_all(&piece).await?; }
    let health = api.health_check_at("/health").await;                      // for a readiness probe

    let cache = mainstay::get_redis_client()?;                               // works without a server
    cache.set("key", "value").ttl(Duration::from_secs(3600)).await?;
    let value: Option<String> = cache.get("key").await?;
    let user: Json<User> = cache.get_or_load("user:7", secs(600), || load_user(7)).await?; // one caller loads

    let s3 = mainstay::get_s3_client()?;
    s3.upload_file("report.csv", "bucket", "2026/report.csv").await?;
    s3.download_file("bucket", "2026/report.csv", "copy.csv").await?;       // whole, or untouched
    s3.upload_file("backup.tar", "bucket", "backup.tar").resume().on_progress(|p| println!("{} of {}", p.done, p.total)).await?;

    let policy = Policy::builder(Kind::Api, "api:payments").max_attempts(3).build()?; // or Policy::api("payments")
    let limit = policy.call(|| credit_limit(&card)).await?;                 // a read: repeated when it fails
    let receipt = policy.operation("charge").idempotent(false).call(|| charge(&card)).await?; // again only if it certainly did not happen

    #[api_resilient(operation_name = "rates", max_attempts = 3)]             // the same around a function
    async fn rates(day: Date) -> Result<Rates, CallError<BankError>> { bank().rates(day).await }

    Deadline::within(secs(2)).scope(async { /* every client's call in here ends by it */ }).await;
    Ok(())
}

#[rustfmt::skip]
#[allow(unused_variables, dead_code)]
async fn how_it_is_watched(app: Router, db: PgDatabase, cache: RedisClient) {
    let readiness = Readiness::builder()
        .critical("database", db.clone(), |db| async move { db.health_check().await })
        .optional("redis", cache.clone(), |cache| async move { cache.health_check().await })
        .build();                                                           // one check an interval, whatever the probes
    let app = app.layer(middleware::from_fn(web::resilience_status))        // X-Resilience-Status
        .merge(web::Routes::new(readiness.clone()).pool(&db).router());
    readiness.drain();                                                      // asked to end: no more work comes
    mainstay::shutdown(Duration::from_secs(3)).await;                       // after the last request
}

/// The bank has the money, and its answer is lost.
#[tokio::test]
async fn a_charge_whose_answer_is_lost_is_not_sent_again() {
    let (card, charges) = ("4711".to_owned(), Cell::new(0));
    let charge = async |card: &str| {
        charges.set(charges.get() + 1);
        match charges.get() {
            1 => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
            _ => Ok(card.to_owned()),
        }
    };
    let policy = Policy::builder(Kind::Api, "readme").base_delay(Duration::ZERO).build().unwrap();
    #[rustfmt::skip]
    let as_in_readme = async || {
        let receipt = policy.operation("charge").idempotent(false).call(|| charge(&card)).await?; // again only if it certainly did not happen
        Ok::<_, CallError<io::Error>>(receipt)
    };
    let error = as_in_readme().await.unwrap_err();
    assert_eq!((charges.get(), error.attempts()), (1, 1));
    assert!(error.is_outcome_unknown(), "{error}");
}

#[test]
fn readme_shows_what_compiles() {
    let lines = |text: &'static str| text.lines().map(str::trim).filter(|line| !line.is_empty());
    let (readme, here) = (include_str!("../../README.md"), include_str!("readme.rs"));
    let here: Vec<_> = lines(here).collect();
    let mut blocks = 0;
    for block in readme.split("```rust\n").skip(1) {
        let block: Vec<_> = lines(block.split("```").next().unwrap()).collect();
        assert!(here.windows(block.len()).any(|part| part == block), "not here: {block:#?}");
        blocks += 1;
    }
    assert_eq!((blocks, readme.matches("```rust").count()), (2, 2), "a block in another language?");
}
