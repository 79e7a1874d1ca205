//! The client without a server, and, with feature `test-servers`, against a private redis-server.
//! One binary, a file per idea.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod away;
#[cfg(feature = "test-servers")]
mod cluster;
#[cfg(feature = "test-servers")]
mod commands;
#[cfg(feature = "test-servers")]
mod counters;
#[cfg(feature = "test-servers")]
mod debug;
#[cfg(feature = "test-servers")]
mod degraded;
#[cfg(feature = "test-servers")]
mod failover;
#[cfg(feature = "test-servers")]
mod kept;
#[cfg(feature = "test-servers")]
mod link;
mod load;
mod local;
#[cfg(feature = "test-servers")]
mod model;
#[cfg(feature = "metrics")]
mod numbers;
#[cfg(feature = "test-servers")]
mod once;
#[cfg(feature = "test-servers")]
mod outage;
#[cfg(feature = "test-servers")]
mod read_only;
#[cfg(feature = "test-servers")]
mod recovering;
#[cfg(feature = "test-servers")]
mod refusals;
#[cfg(feature = "test-servers")]
mod runtimes;
#[cfg(feature = "test-servers")]
mod sentinel;
#[cfg(feature = "test-servers")]
mod standing;
#[cfg(feature = "test-servers")]
mod table;
#[cfg(feature = "test-servers")]
mod timers;
#[cfg(all(feature = "test-servers", feature = "tls"))]
mod tls;
#[cfg(feature = "test-servers")]
mod unsent;
#[cfg(feature = "test-servers")]
mod wire;
#[cfg(feature = "test-servers")]
mod works;

use mainstay_redis::RedisClient;
use std::{
    fmt::{Debug, Write as _},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn text(client: &RedisClient, key: &str) -> Option<String> {
    client.get(key).await.unwrap()
}

/// A text and a field that were written anew, and a key that was deleted, are that or missing.
#[cfg(feature = "test-servers")]
async fn nothing_older(client: &RedisClient) {
    let read = text(client, "text").await;
    assert!(read.is_none() || read.as_deref() == Some("new"), "{read:?}");
    assert_eq!(text(client, "gone").await, None);
    let field = client.hget::<String>("hash", "f").await.unwrap();
    assert!(field.is_none() || field.as_deref() == Some("new"), "{field:?}");
}

/// What this thread was warned of, with its fields.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn of(&self, what: &str) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|line| line.contains(what)).cloned().collect()
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// A client with short breaks, for a server at this address.
fn client(name: &str, server: SocketAddr) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(format!("redis://{server}"))
        .policy(|p| p.timeout(ms(1500)).base_delay(ms(10)).recovery_timeout(ms(200)))
        .build()
        .unwrap()
}

/// Waits for a state that must come.
#[cfg(feature = "test-servers")]
async fn until(client: &RedisClient, state: mainstay_redis::RedisState) {
    let started = std::time::Instant::now();
    while client.state() != state {
        assert!(started.elapsed() < ms(30_000), "still {:?}", client.state());
        tokio::time::sleep(ms(5)).await;
    }
}

/// Without retries and without memory, so that nothing hides an error.
#[cfg(feature = "test-servers")]
fn strict(name: &str, url: &str) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(url)
        .policy(|p| p.timeout(ms(1500)).max_attempts(1).recovery_timeout(ms(200)))
        .fallback(mainstay_redis::FallbackConfig::off())
        .build()
        .unwrap()
}

/// A list that is made of a hundred commands, sent before there is a connection.
#[cfg(feature = "test-servers")]
async fn pipeline_in_order(client: &RedisClient) {
    let pushes = (0..100).map(|n| client.run("RPUSH").key("l").arg(n));
    let lengths = client.pipeline(pushes).await.unwrap();
    assert_eq!(lengths.len(), 100);
    let list = client.run("LRANGE").key("l").arg(0).arg(-1).await.unwrap();
    let item = |n: i32| mainstay_redis::Value::Bytes(n.to_string().into());
    assert_eq!(list, mainstay_redis::Value::Array((0..100).map(item).collect()));
}

/// Waits until this holds; gives how long that took.
#[cfg(feature = "test-servers")]
async fn until_true(what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let started = std::time::Instant::now();
    while !holds().await {
        assert!(started.elapsed() < limit, "not {what}");
        tokio::time::sleep(ms(5)).await;
    }
    started.elapsed()
}

/// How often the server did this command, by its own count.
#[cfg(feature = "test-servers")]
fn calls(redis: &mainstay_test_support::Redis, command: &str) -> u32 {
    let stats = redis.say("INFO commandstats");
    let line =
        stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}
