//! Answers by which a server refuses writes, before a client with a fallback: what is kept here is
//! deleted there in the end, and nothing older than it is read; with one that only reads a write is the
//! error that it would be without. And what a server refuses without an answer.

use crate::{
    calls,
    degraded::get,
    ms,
    refusals::{code, ok},
    strict, text, until, until_true,
};
use mainstay_policy::Effect;
use mainstay_redis::{FallbackConfig, RedisClient, RedisState, Source};
use mainstay_test_support::Redis;
use std::{
    io::{Read, Write},
    time::Instant,
};

fn build(name: &str, redis: &Redis, fallback: FallbackConfig) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(redis.url())
        .policy(|p| p.timeout(ms(1500)).max_attempts(1).recovery_timeout(ms(200)))
        .fallback(fallback)
        .build()
        .unwrap()
}

/// By which code a server refuses writes, what makes it do so and what ends that.
struct Refusal {
    code: &'static str,
    orders: &'static [&'static str],
    end: &'static str,
    /// Whether it answers reads meanwhile.
    reads: bool,
}

const REFUSALS: [Refusal; 5] = [
    Refusal {
        code: "OOM",
        orders: &["CONFIG SET maxmemory 1"],
        end: "CONFIG SET maxmemory 0",
        reads: true,
    },
    Refusal {
        code: "MISCONF",
        orders: &["CONFIG SET save \"3600 1000000\"", "CONFIG SET dir /proc"],
        end: "CONFIG SET stop-writes-on-bgsave-error no",
        reads: true,
    },
    Refusal {
        code: "NOREPLICAS",
        orders: &["CONFIG SET min-replicas-to-write 1"],
        end: "CONFIG SET min-replicas-to-write 0",
        reads: true,
    },
    Refusal {
        code: "READONLY",
        orders: &["REPLICAOF 127.0.0.1 1"],
        end: "REPLICAOF NO ONE",
        reads: true,
    },
    Refusal {
        code: "MASTERDOWN",
        orders: &[
            "CONFIG SET replica-serve-stale-data no",
            "CONFIG SET replica-read-only no",
            "REPLICAOF 127.0.0.1 1",
        ],
        end: "REPLICAOF NO ONE",
        reads: false,
    },
];

impl Refusal {
    fn server() -> Redis {
        Redis::start_with(&["--enable-protected-configs", "local"])
    }

    async fn begin(&self, redis: &Redis) {
        for order in self.orders {
            ok(redis, order);
        }
        if self.code == "MISCONF" {
            assert!(redis.say("BGSAVE").starts_with('+'));
        }
        let refuses = async || redis.say("SET by hand").starts_with(&format!("-{}", self.code));
        until_true(self.code, ms(10_000), refuses).await;
    }
}

#[tokio::test]
async fn what_is_refused_for_now_is_kept_here_and_then_deleted_there() {
    for refusal in &REFUSALS {
        let (redis, code) = (Refusal::server(), refusal.code);
        let cache = build(&format!("t-kept-{code}"), &redis, FallbackConfig::new());
        for key in ["seen", "k", "gone"] {
            cache.set(key, "old").await.unwrap();
        }
        cache.hset("h", "f", "old").await.unwrap();
        refusal.begin(&redis).await;
        cache.set("k", "new").await.unwrap();
        cache.mset([("m", "new")]).await.unwrap();
        cache.hset("h", "f", "new").await.unwrap();
        // Out of memory a server still deletes: it may have forgotten the key by now.
        let not_older = async || {
            for value in [text(&cache, "k").await, text(&cache, "m").await] {
                assert!(value.is_none() || value.as_deref() == Some("new"), "{code}: {value:?}");
            }
            let field = cache.hget::<String>("h", "f").await.unwrap();
            assert!(field.is_none() || field.as_deref() == Some("new"), "{code}: {field:?}");
        };
        not_older().await;
        cache.del("gone").await.unwrap();
        assert_eq!(text(&cache, "gone").await, None, "{code}");
        assert_eq!(text(&cache, "seen").await.as_deref(), Some("old"), "{code}");
        ok(&redis, refusal.end);
        until_true("recovered", ms(10_000), async || {
            let recovered = cache.state() == RedisState::Connected;
            not_older().await;
            recovered
        })
        .await;
        assert_eq!(redis.say("EXISTS k m gone h"), ":0\r\n", "{code}");
        assert_eq!(
            (get(&cache, "k").await, cache.dirty_keys()),
            ((None, Source::Redis), 0),
            "{code}"
        );
        assert_eq!(get(&cache, "seen").await, (Some("old".into()), Source::Redis), "{code}");
    }
}

#[tokio::test]
async fn what_is_refused_for_now_is_an_error_where_memory_takes_no_writes() {
    for refusal in &REFUSALS {
        let redis = Refusal::server();
        let name = format!("t-not-kept-{}", refusal.code);
        let cache = build(&name, &redis, FallbackConfig::read_only());
        for key in ["seen", "k", "l"] {
            cache.set(key, "old").await.unwrap();
        }
        refusal.begin(&redis).await;
        let error = cache.set("k", "new").await.unwrap_err();
        assert_eq!((code(&error).as_str(), error.effect()), (refusal.code, Effect::Transient));
        let source = if refusal.reads { Source::Redis } else { Source::Fallback };
        let seen = (Some("old".to_owned()), source);
        until_true("read", ms(30_000), async || get(&cache, "seen").await == seen).await;
        assert_eq!(cache.dirty_keys(), 0);
        ok(&redis, refusal.end);
        until_true("written", ms(30_000), async || cache.set("l", "new").await.is_ok()).await;
        assert_eq!(redis.say("MGET k l"), "*2\r\n$3\r\nold\r\n$3\r\nnew\r\n", "{}", refusal.code);
    }
}

/// A server that takes no writes for a while does not refuse them: whoever sends one is not read from
/// until it goes on, and then does what it was sent.
#[tokio::test]
async fn writes_that_a_server_keeps_waiting_hold_nobody_up_and_are_deleted() {
    let redis = Redis::start();
    let cache = build("t-paused", &redis, FallbackConfig::new());
    let without = strict("t-paused-off", &redis.url());
    cache.mset([("seen", "old"), ("k", "old"), ("l", "old")]).await.unwrap();
    assert_eq!(text(&without, "seen").await.as_deref(), Some("old"));
    ok(&redis, "CLIENT PAUSE 60000 WRITE");
    assert_eq!(get(&cache, "seen").await.1, Source::Redis, "reads are answered");
    assert_eq!(text(&without, "seen").await.as_deref(), Some("old"));
    let before = calls(&redis, "set");
    let began = Instant::now();
    let (kept, failed) = tokio::join!(async { cache.set("k", "new").await }, async {
        without.set("l", "new").await
    });
    kept.unwrap();
    let failed = failed.unwrap_err();
    assert_eq!((failed.effect(), failed.attempts()), (Effect::Unknown, 1), "{failed:?}");
    assert!(began.elapsed() < ms(3000), "{:?}", began.elapsed());
    assert_eq!(get(&cache, "k").await, (Some("new".into()), Source::Fallback));
    assert_eq!(get(&cache, "seen").await, (Some("old".into()), Source::Fallback));
    assert_eq!(calls(&redis, "set"), before);
    ok(&redis, "CLIENT UNPAUSE");
    for client in [&cache, &without] {
        until(client, RedisState::Connected).await;
    }
    assert_eq!(get(&cache, "k").await, (None, Source::Redis), "deleted");
    assert_eq!(redis.say("EXISTS k"), ":0\r\n");
    assert_eq!(text(&without, "l").await.as_deref(), Some("new"), "it was done late");
    assert_eq!(calls(&redis, "set"), before + 2, "each once");
}

#[tokio::test]
async fn a_server_with_too_many_clients_is_away_for_the_next_one() {
    let redis = Redis::start();
    let mut referee = redis.tell("PING");
    let mut answer = [0; 7];
    referee.read_exact(&mut answer).unwrap();
    ok(&redis, "CONFIG SET maxclients 1");
    let refused = async || redis.say("PING").contains("max number of clients");
    until_true("full", ms(30_000), refused).await;
    let cache = build("t-crowded", &redis, FallbackConfig::new());
    let began = Instant::now();
    cache.set("k", "1").await.unwrap();
    assert!(began.elapsed() < ms(2000), "{:?}", began.elapsed());
    assert_eq!(get(&cache, "k").await, (Some("1".into()), Source::Fallback));
    assert_eq!(cache.state(), RedisState::Degraded);
    let without = strict("t-crowded-off", &redis.url());
    let error = without.set("l", "1").await.unwrap_err();
    assert_eq!(error.effect(), Effect::NeverSent, "{error:?}");
    referee.write_all(b"CONFIG SET maxclients 100\r\n").unwrap();
    for client in [&cache, &without] {
        until(client, RedisState::Connected).await;
    }
    assert_eq!(redis.say("EXISTS k l"), ":0\r\n");
    assert_eq!(get(&cache, "k").await, (None, Source::Redis), "deleted");
}
