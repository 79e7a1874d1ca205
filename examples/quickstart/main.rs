//! What does Mainstay do for a service whose database, cache, API and store fail one after another?
//!
//! ```sh
//! cargo run --example quickstart
//! ```
//!
//! Needs nothing: it starts an SQLite file, a Redis, an HTTP and an S3 server of its own, does a
//! little work through all four clients, and breaks each server in turn while the work goes on.
//! Given `MAINSTAY_DATABASE_URL`, `MAINSTAY_REDIS_URL`, `MAINSTAY_HTTP_BASE_URL` or
//! `MAINSTAY_S3_BUCKET` it works on those servers instead, breaks nothing there and removes what it
//! wrote. Exits non-zero if a step did not do what it says.
//!
//! This file is the story. The work itself is in `work.rs`: getters and calls as in the README.
#![allow(missing_docs)]

mod servers;
mod story;
mod timeline;
mod work;

use mainstay::{HealthStatus, RedisState, get_redis_client, report};
use mainstay_test_support::s3::Answer;
use serde_json::{Map, Value};
use servers::Fault;
use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::{Duration, Instant},
};
use story::{PATIENCE, Step, Story};
use timeline::{AnyError, check};
use work::{Dependency, KEY, retries};

#[tokio::main]
async fn main() -> ExitCode {
    match quickstart().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            timeline::stopped(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn quickstart() -> Result<(), AnyError> {
    let mut story = Story::begin().await?;
    let told = tell(&mut story).await;
    let cleaned = story.clean_up().await;
    told.and(cleaned)?;
    story.timeline.end();
    Ok(())
}

async fn tell(story: &mut Story) -> Result<(), AnyError> {
    everything_is_up(story).await?;
    for of in Dependency::ALL {
        if !story.servers.is_ours(of) {
            somebody_elses_server_works_on(story, of).await?;
            continue;
        }
        match of {
            Dependency::Database => {
                the_database_is_locked(story).await?;
                the_database_is_damaged(story).await?;
            }
            Dependency::Redis => redis_stops_and_returns(story).await?,
            Dependency::Http => {
                the_api_stumbles(story).await?;
                the_api_stops_and_returns(story).await?;
            }
            Dependency::S3 => {
                the_store_drops_a_connection(story).await?;
                the_store_fails_and_recovers(story).await?;
            }
        }
    }
    health_is_told(story).await
}

async fn everything_is_up(story: &mut Story) -> Result<(), AnyError> {
    story.chapter("One round of the work, with everything up").await;
    for of in Dependency::ALL {
        let step = story.step(of).await;
        story.show(of, &step);
        if let Err(error) = &step.seen.result {
            return Err(report(error).to_string().into());
        }
    }
    let whole = story.work.copy().is_some_and(|copy| !copy.is_empty());
    story.expect(whole, "all four answered, and the report came back byte for byte")
}

async fn somebody_elses_server_works_on(story: &mut Story, of: Dependency) -> Result<(), AnyError> {
    story
        .chapter(&format!("Your {of} server is not ours to break: one more round of the work"))
        .await;
    let step = story.round(of).await?;
    story.show(of, &step);
    story.quote(&step);
    let itself = of != Dependency::Redis || get_redis_client()?.state() == RedisState::Connected;
    story.expect(step.seen.result.is_ok() && itself, "it did its part")
}

async fn the_database_is_locked(story: &mut Story) -> Result<(), AnyError> {
    story.chapter("DATABASE: another connection locks the file, until we have retried once").await;
    let policy = story.work.policy(Dependency::Database)?;
    let Some(sqlite) = &mut story.servers.sqlite else { return Ok(()) };
    let before = sqlite.rows().await;
    sqlite.lock().await?;
    let (locked, so_far) = (Instant::now(), retries(&policy));
    let unlock = async {
        while retries(&policy) == so_far && locked.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sqlite.unlock().await
    };
    let (seen, unlocked) = tokio::join!(story.work.step(Dependency::Database), unlock);
    unlocked?;
    let after = story.servers.counted(Dependency::Database).await;
    let step = Step { seen, before, after };
    story.show(Dependency::Database, &step);
    let repeated = step.seen.result.is_ok() && step.seen.retries > 0;
    story.expect(
        repeated && step.counted() == Some(1),
        "the write was refused by the lock and repeated; the order is in the file once",
    )
}

async fn the_database_is_damaged(story: &mut Story) -> Result<(), AnyError> {
    story.chapter("DATABASE: the file is damaged, its first 100 bytes are overwritten").await;
    if let Some(sqlite) = &mut story.servers.sqlite {
        sqlite.damage()?;
    }
    story.fails_until_the_breaker_opens(Dependency::Database).await?;
    let all = story.work.from_cache == story.rounds();
    story.expect(all, "meanwhile the work took the orders from the cache")?;

    story.remark("The bytes are written back.");
    if let Some(sqlite) = &mut story.servers.sqlite {
        sqlite.repair()?;
    }
    story.recovers(Dependency::Database).await?;
    let written = story.work.written;
    let rows = story.servers.counted(Dependency::Database).await;
    let claim = format!("the file holds the {written} orders that were acknowledged, each once");
    story.expect(rows == Some(written), &claim)
}

async fn redis_stops_and_returns(story: &mut Story) -> Result<(), AnyError> {
    story.chapter("REDIS: the server stops, and memory answers in its place").await;
    let before = story.servers.redis_commands();
    if let Some(redis) = &mut story.servers.redis {
        redis.stop().await;
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let step = story.round(Dependency::Redis).await?;
        story.show(Dependency::Redis, &step);
        step.seen.result?;
        slowest = slowest.max(step.seen.latency);
    }
    let degraded = get_redis_client()?.state() == RedisState::Degraded;
    let quick = slowest < PATIENCE / 10;
    story.expect(degraded && quick, "no call failed or waited; the client says Degraded")?;
    let unseen = story.servers.redis_commands().len() == before.len();
    let older = story.servers.redis_value(KEY) != story.work.text();
    story.expect(unseen && older, "the server saw nothing of it: it still holds older orders")?;

    story.remark("The server is back, with what it held.");
    if let Some(redis) = &mut story.servers.redis {
        redis.listen();
    }
    let back = Instant::now();
    let mut shown = false;
    loop {
        let step = story.round(Dependency::Redis).await?;
        let current = story.servers.redis_value(KEY) == story.work.text();
        if current || !shown {
            story.show(Dependency::Redis, &step);
            shown = true;
        }
        step.seen.result?;
        if current {
            break;
        }
        check(back.elapsed() < PATIENCE, "the server is used again within 5 s")?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let commands = story.servers.redis_commands();
    let first = commands.get(before.len()).map(String::as_str);
    story.expect(
        first == Some(&format!("DEL {KEY}")),
        "before anything else the server was told to forget its older orders",
    )?;
    story.expect(story.work.older_reads == 0, "so no read gave older orders than the last write")
}

async fn the_api_stumbles(story: &mut Story) -> Result<(), AnyError> {
    story.chapter("HTTP: the server answers 503 twice, and later loses two answers").await;
    let stored = story.servers.stored();
    story.servers.fail(Fault::Busy(2));
    let step = story.step(Dependency::Http).await;
    story.show(Dependency::Http, &step);
    let repeated = step.seen.result.is_ok() && step.counted() == Some(3);
    let once = story.servers.stored() == stored + 1;
    story.expect(repeated && once, "refused twice, taken at the third attempt")?;

    story.servers.fail(Fault::CutAfterStoring(1));
    let before = story.servers.counted(Dependency::Http).await;
    let seen = story.work.post_without_key().await;
    let after = story.servers.counted(Dependency::Http).await;
    let step = Step { seen, before, after };
    story.show(Dependency::Http, &step);
    story.quote(&step);
    let unknown = matches!(&step.seen.result, Err(error) if error.is_outcome_unknown());
    story.expect(
        unknown && step.counted() == Some(1),
        "a POST that the server may have taken was not sent again, and the error says so",
    )?;

    let stored = story.servers.stored();
    story.servers.fail(Fault::CutAfterStoring(1));
    let step = story.step(Dependency::Http).await;
    story.show(Dependency::Http, &step);
    let repeated = step.seen.result.is_ok() && step.counted() == Some(2);
    let once = story.servers.stored() == stored + 1;
    story.expect(repeated && once, "with an idempotency key it was sent again, and stored once")
}

async fn the_api_stops_and_returns(story: &mut Story) -> Result<(), AnyError> {
    story.chapter("HTTP: the server stops listening").await;
    if let Some(http) = &mut story.servers.http {
        http.stop().await;
    }
    story.fails_until_the_breaker_opens(Dependency::Http).await?;

    story.remark("The server listens again.");
    if let Some(http) = &mut story.servers.http {
        http.listen();
    }
    story.recovers(Dependency::Http).await
}

async fn the_store_drops_a_connection(story: &mut Story) -> Result<(), AnyError> {
    story.chapter("S3: the store closes a connection instead of answering").await;
    if let Some(s3) = &story.servers.s3 {
        let first = AtomicBool::new(true);
        s3.front(move |_| if first.swap(false, SeqCst) { Answer::Close } else { Answer::Pass });
    }
    let step = story.round(Dependency::S3).await?;
    story.show(Dependency::S3, &step);
    let repeated = step.seen.result.is_ok() && step.counted() == Some(3);
    story.expect(repeated, "the upload was repeated, and the report came back byte for byte")
}

async fn the_store_fails_and_recovers(story: &mut Story) -> Result<(), AnyError> {
    story.chapter("S3: the store answers everything with 500").await;
    let copy = story.work.copy();
    if let Some(s3) = &story.servers.s3 {
        s3.front(|_| Answer::Status(500, "InternalError"));
    }
    story.fails_until_the_breaker_opens(Dependency::S3).await?;
    story.expect(story.work.copy() == copy, "the copy of the last report is untouched")?;

    story.remark("The store works again.");
    if let Some(s3) = &story.servers.s3 {
        s3.front(|_| Answer::Pass);
    }
    story.recovers(Dependency::S3).await
}

async fn health_is_told(story: &mut Story) -> Result<(), AnyError> {
    story.chapter("What a readiness probe is told: health_check() of each client").await;
    let mut checks = Map::new();
    let mut claim = "every dependency is healthy again";
    let mut healthy = true;
    for of in Dependency::ALL {
        let health = story.work.health(of).await?;
        let well = health.status == HealthStatus::Healthy;
        // Whether the base of somebody's API answers with 2xx is not ours to say.
        if of == Dependency::Http && !story.servers.is_ours(of) && !well {
            claim = "healthy but for the base URL of your API; a probe of it needs health_check_at";
        } else {
            healthy &= well;
        }
        checks.insert(of.to_string(), serde_json::to_value(&health)?);
    }
    println!("{}", serde_json::to_string_pretty(&Value::Object(checks))?);
    story.expect(healthy, claim)?;

    story.chapter("What the breakers counted: get_resilience_health()").await;
    let health = mainstay::get_resilience_health();
    println!("{}", serde_json::to_string_pretty(&health)?);
    story.expect(health.overall_health == HealthStatus::Healthy, "every breaker is closed again")
}
