//! Killed, frozen and restarted: memory answers, and nothing older than a write comes back.

use crate::{client, ms, nothing_older, text, until, until_true};
use mainstay_policy::{BreakerState, HealthStatus, get_resilience_health};
use mainstay_redis::RedisState;
use mainstay_test_support::Redis;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_mid_work_memory_answers_and_a_restart_closes_the_breaker() {
    let mut redis = Redis::start();
    let cache = client("t-kill", redis.address());
    cache.set("seen", "server").await.unwrap();
    let (progress, mut written) = tokio::sync::watch::channel(0_u32);
    let enough = Arc::new(AtomicBool::new(false));
    let worker = tokio::spawn({
        let (cache, enough) = (cache.clone(), Arc::clone(&enough));
        async move {
            let (mut n, mut slowest) = (0_u32, Duration::ZERO);
            while !enough.load(Relaxed) {
                n += 1;
                let (began, key) = (Instant::now(), format!("k{}", n % 100));
                cache.set(&key, n.to_string()).await.unwrap();
                // Never older than the write just acknowledged; a miss after recovery only.
                if let Some(read) = text(&cache, &key).await {
                    assert_eq!(read, n.to_string());
                }
                slowest = slowest.max(began.elapsed());
                progress.send_replace(n);
                tokio::time::sleep(ms(1)).await;
            }
            (n, slowest)
        }
    });
    written.wait_for(|n| *n >= 50).await.unwrap();
    redis.kill();
    let killed = Instant::now();
    while cache.policy().breaker().state() != BreakerState::Open {
        assert!(killed.elapsed() < ms(5000), "the breaker did not open");
        tokio::time::sleep(ms(1)).await;
    }
    assert_eq!(text(&cache, "seen").await.as_deref(), Some("server"), "the shadow answers");
    assert_eq!(cache.state(), RedisState::Degraded);
    assert_eq!(cache.health_check().await.status, HealthStatus::Degraded);
    let before = *written.borrow();
    written.wait_for(|n| *n >= before + 100).await.unwrap();
    redis.restart();
    until(&cache, RedisState::Connected).await;
    let before = *written.borrow();
    written.wait_for(|n| *n >= before + 100).await.unwrap();
    enough.store(true, Relaxed);
    let (n, slowest) = worker.await.unwrap();
    assert!(n > 200, "{n}");
    // A command that was being written as the connection broke waits for its own end, which is 1 s where
    // memory can answer.
    assert!(slowest < ms(2_900), "{slowest:?}");
    assert_eq!(cache.policy().breaker().state(), BreakerState::Closed);
    cache.set("after", "1").await.unwrap();
    assert_eq!(redis.say("GET after"), "$1\r\n1\r\n");
    assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
}

/// The server keeps its old values through the outage; it is only frozen.
#[tokio::test]
async fn a_write_during_the_outage_is_never_followed_by_the_older_value() {
    let mut redis = Redis::start();
    let cache = client("t-stale", redis.address());
    for (key, field) in
        [("seen", None), ("text", None), ("gone", None), ("hash", Some("f")), ("hash", Some("g"))]
    {
        match field {
            None => cache.set(key, "old").await.unwrap(),
            Some(field) => cache.hset(key, field, "old").await.unwrap(),
        }
    }
    redis.hang();
    let started = Instant::now();
    let (read, write) =
        tokio::join!(text(&cache, "seen"), async { cache.set("text", "new").await });
    assert_eq!(read.as_deref(), Some("old"));
    write.unwrap();
    assert!(started.elapsed() < ms(2_900), "memory takes over: {:?}", started.elapsed());
    cache.del("gone").await.unwrap();
    cache.hset("hash", "f", "new").await.unwrap();
    assert_eq!(text(&cache, "text").await.as_deref(), Some("new"));
    assert_eq!(cache.hget::<String>("hash", "g").await.unwrap().as_deref(), Some("old"));
    redis.resume();
    let started = Instant::now();
    let mut recovered = false;
    while !recovered || started.elapsed() < ms(500) {
        recovered |= cache.state() == RedisState::Connected;
        nothing_older(&cache).await;
        assert!(started.elapsed() < ms(10_000));
        tokio::time::sleep(ms(2)).await;
    }
    // The server was told to forget, and only that.
    assert_eq!(redis.say("EXISTS text gone"), ":0\r\n");
    assert_eq!(redis.say("HGET hash f"), "$-1\r\n");
    assert_eq!(redis.say("HGET hash g"), "$3\r\nold\r\n");
}

#[tokio::test]
async fn a_lifetime_given_while_all_was_well_ends_while_the_server_is_away() {
    let mut redis = Redis::start();
    let cache = client("t-expire", redis.address());
    cache.set("k", "1").await.unwrap();
    assert!(cache.expire("k", ms(3_000)).await.unwrap());
    assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    redis.hang();
    until_true("it has ended", ms(30_000), async || text(&cache, "k").await.is_none()).await;
}

/// Many tasks write one key each all the time; every read sees that task's last write or a miss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_freezes_and_kills_bring_no_old_value_back() {
    let mut redis = Redis::start();
    let cache = client("t-load", redis.address());
    let enough = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for task in 0..16 {
        let (cache, enough) = (cache.clone(), Arc::clone(&enough));
        tasks.push(tokio::spawn(async move {
            let (mut n, mut misses) = (0_u32, 0_u32);
            let key = format!("k{task}");
            while !enough.load(Relaxed) {
                n += 1;
                if n % 5 == 0 {
                    cache.del(&key).await.unwrap();
                    assert_eq!(text(&cache, &key).await, None);
                    continue;
                }
                cache.set(&key, n.to_string()).await.unwrap();
                match text(&cache, &key).await {
                    Some(read) => assert_eq!(read, n.to_string(), "{key}"),
                    None => misses += 1,
                }
                tokio::task::yield_now().await;
            }
            (n, misses)
        }));
    }
    for round in 0..3 {
        tokio::time::sleep(ms(300)).await;
        if round % 2 == 0 {
            redis.kill();
            tokio::time::sleep(ms(300)).await;
            redis.restart();
        } else {
            redis.hang();
            tokio::time::sleep(ms(1200)).await;
            redis.resume();
        }
    }
    until(&cache, RedisState::Connected).await;
    enough.store(true, Relaxed);
    let mut calls = 0;
    for task in tasks {
        let (n, misses) = task.await.unwrap();
        calls += n;
        assert!(misses < n / 10 + 20, "{misses} misses of {n}");
    }
    assert!(calls > 1000, "{calls}");
    let fallbacks = get_resilience_health().circuit_breakers["redis:t-load"].fallbacks;
    assert!(fallbacks > 100, "{fallbacks}: the faults were felt");
}
