//! The client without a server, and, with feature `test-servers`, against a private redis-server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mainstay_policy::{BreakerState, HealthStatus};
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure, RedisState};
use mainstay_test_support::{Port, Proxy, proxy::Accept};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn text(client: &RedisClient, key: &str) -> Option<String> {
    client.get(key).await.unwrap()
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

#[tokio::test]
async fn without_a_url_it_is_a_cache_of_this_process() {
    let cache = RedisClient::builder().name("t-local").build().unwrap();
    cache.set("k", "1").await.unwrap();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    assert_eq!(cache.get::<Vec<u8>>("k").await.unwrap().as_deref(), Some(&b"1"[..]));
    cache.set("short", String::from("1")).ttl(ms(20)).await.unwrap();
    tokio::time::sleep(ms(30)).await;
    assert_eq!(text(&cache, "short").await, None);
    cache.hset("user", "name", "John").await.unwrap();
    assert_eq!(cache.hget::<String>("user", "name").await.unwrap().as_deref(), Some("John"));
    assert_eq!(cache.hget::<String>("user", "age").await.unwrap(), None);
    assert!(cache.hdel("user", "name").await.unwrap());
    assert!(cache.del("k").await.unwrap());
    assert!(!cache.del("k").await.unwrap());
    assert_eq!(cache.state(), RedisState::Degraded);
    let health = cache.health_check().await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(health.detail.contains("no Redis configured"), "{}", health.detail);
}

#[tokio::test]
async fn bad_input_is_said_in_words() {
    let cache = RedisClient::builder().name("t-input").build().unwrap();
    let zero = cache.set("k", "v").ttl(Duration::ZERO).await.unwrap_err();
    assert!(zero.to_string().contains("ttl of 0"), "{zero}");
    cache.set("k", vec![0xff, 0xfe]).ttl(Duration::MAX).await.unwrap();
    let binary = cache.get::<String>("k").await.unwrap_err();
    assert!(binary.to_string().contains("not UTF-8"), "{binary}");
    let hash = cache.hset("k", "f", "v").await.unwrap_err();
    assert!(hash.downcast_ref::<RedisFailure>().unwrap().is_wrong_type());
}

#[tokio::test]
async fn with_nobody_at_the_url_memory_answers_and_the_breaker_opens() {
    let nowhere = Port::reserve();
    let cache = client("t-refused", nowhere.address());
    let started = Instant::now();
    cache.set("k", "1").await.unwrap();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    cache.hset("h", "f", "1").await.unwrap();
    assert!(started.elapsed() < ms(1000), "{:?}", started.elapsed());
    for n in 0..5 {
        assert_eq!(text(&cache, &format!("miss{n}")).await, None);
    }
    assert_eq!(cache.policy().breaker().state(), BreakerState::Open);
    assert!(cache.del("k").await.unwrap());
    assert_eq!(text(&cache, "k").await, None);
    let health = cache.health_check().await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(health.detail.contains("refused"), "{}", health.detail);
}

#[tokio::test]
async fn without_a_fallback_an_outage_is_an_error_with_its_cause_in_under_a_second() {
    let nowhere = Port::reserve();
    let url = format!("redis://user:s3cret@{}", nowhere.address());
    let client = RedisClient::builder()
        .name("t-strict")
        .url(url)
        .fallback(FallbackConfig::off())
        .build()
        .unwrap();
    let started = Instant::now();
    let error = client.get::<String>("k").await.unwrap_err();
    assert!(started.elapsed() < ms(1000), "{:?}", started.elapsed());
    let text = format!("{error:?} {}", mainstay_policy::report(&error));
    assert!(text.contains("refused"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    assert!(!error.is_outcome_unknown());
    assert_eq!(client.health_check().await.status, HealthStatus::Unhealthy);
}

#[tokio::test]
async fn a_full_fallback_refuses_what_it_cannot_keep() {
    let nowhere = Port::reserve();
    let cache = RedisClient::builder()
        .name("t-full")
        .url(format!("redis://{}", nowhere.address()))
        .fallback(FallbackConfig::new().max_dirty_entries(2))
        .build()
        .unwrap();
    cache.set("a", "1").await.unwrap();
    cache.set("b", "1").await.unwrap();
    let error = cache.set("c", "1").await.unwrap_err();
    assert!(error.downcast_ref::<RedisFailure>().unwrap().is_fallback_full());
    assert!(!error.is_outcome_unknown());
    cache.set("a", "2").await.unwrap();
    assert_eq!(text(&cache, "a").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_nobody_up() {
    let proxy = Proxy::in_front_of(Port::reserve().address());
    proxy.set(|faults| faults.accept = Accept::Silent);
    let cache = client("t-mute", proxy.addr());
    let started = Instant::now();
    cache.set("k", "1").await.unwrap();
    assert!(started.elapsed() < ms(1000), "{:?}", started.elapsed());
    let started = Instant::now();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    assert!(started.elapsed() < ms(500), "{:?}", started.elapsed());
    assert_eq!(cache.health_check().await.status, HealthStatus::Degraded);
    assert!(proxy.accepted() > 0);
}

#[test]
fn outside_a_runtime_the_getter_works() {
    let client = mainstay_redis::get_redis_client().unwrap();
    mainstay_redis::set_redis_client(client);
    let error = mainstay_redis::get_redis_client_named("absent").unwrap_err();
    assert!(error.to_string().contains("MAINSTAY_REDIS_ABSENT_URL"), "{error}");
}

#[cfg(feature = "test-servers")]
mod server {
    use super::*;
    use mainstay_test_support::Redis;
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    fn answers_within(server: SocketAddr, limit: Duration) -> bool {
        let mut stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(limit)).unwrap();
        stream.write_all(b"PING\r\n").unwrap();
        stream.read(&mut [0; 16]).is_ok()
    }

    async fn until(client: &RedisClient, state: RedisState) {
        let started = Instant::now();
        while client.state() != state {
            assert!(started.elapsed() < ms(10_000), "still {:?}", client.state());
            tokio::time::sleep(ms(5)).await;
        }
    }

    #[tokio::test]
    async fn the_server_holds_what_was_written() {
        let redis = Redis::start();
        let cache = client("t-works", redis.address());
        cache.set("k", "1").await.unwrap();
        assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
        assert_eq!(redis.say("GET k"), "$1\r\n1\r\n");
        assert_eq!(redis.say("PTTL k"), ":-1\r\n");
        cache.set("k", "2").ttl(Duration::from_secs(60)).await.unwrap();
        let left = redis.say("PTTL k");
        let left: i64 = left.trim_start_matches(':').trim().parse().unwrap();
        assert!((59_000..=60_000).contains(&left), "{left}");
        cache.set("long", "1").ttl(Duration::MAX).await.unwrap();
        cache.hset("h", "f", vec![0, 0xff]).await.unwrap();
        let field = cache.hget::<Vec<u8>>("h", "f").await.unwrap();
        assert_eq!(field.as_deref(), Some(&[0, 0xff][..]));
        assert_eq!(cache.hget::<String>("h", "g").await.unwrap(), None);
        assert!(cache.hdel("h", "f").await.unwrap());
        assert!(!cache.hdel("h", "f").await.unwrap());
        assert!(cache.del("k").await.unwrap());
        assert!(!cache.del("k").await.unwrap());
        assert_eq!(text(&cache, "k").await, None);
        let health = cache.health_check().await;
        assert_eq!(health.status, HealthStatus::Healthy, "{}", health.detail);
        assert_eq!(cache.state(), RedisState::Connected);
    }

    #[tokio::test]
    async fn an_answered_mistake_is_not_repeated_and_is_no_failure() {
        let redis = Redis::start();
        let cache = client("t-wrongtype", redis.address());
        cache.set("k", "1").await.unwrap();
        for _ in 0..5 {
            let error = cache.hget::<String>("k", "f").await.unwrap_err();
            assert_eq!(error.attempts(), 1);
            assert!(error.downcast_ref::<RedisFailure>().unwrap().is_wrong_type());
            assert!(error.downcast_ref::<fred::error::Error>().is_some());
        }
        assert_eq!(cache.policy().breaker().state(), BreakerState::Closed);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn killed_in_mid_work_memory_answers_and_a_restart_closes_the_breaker() {
        let mut redis = Redis::start();
        let cache = client("t-kill", redis.address());
        cache.set("seen", "server").await.unwrap();
        let (progress, mut written) = tokio::sync::watch::channel(0_u32);
        let worker = tokio::spawn({
            let cache = cache.clone();
            async move {
                let (mut n, mut slowest) = (0_u32, Duration::ZERO);
                let started = Instant::now();
                while started.elapsed() < ms(1500) {
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
            assert!(killed.elapsed() < ms(1000), "the breaker did not open");
            tokio::time::sleep(ms(1)).await;
        }
        assert_eq!(text(&cache, "seen").await.as_deref(), Some("server"), "the shadow answers");
        assert_eq!(cache.state(), RedisState::Degraded);
        assert_eq!(cache.health_check().await.status, HealthStatus::Degraded);
        let before = *written.borrow();
        written.wait_for(|n| *n >= before + 100).await.unwrap();
        redis.restart();
        let (n, slowest) = worker.await.unwrap();
        assert!(n > 100, "{n}");
        assert!(slowest < ms(1000), "{slowest:?}");
        until(&cache, RedisState::Connected).await;
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
        for (key, field) in [
            ("seen", None),
            ("text", None),
            ("gone", None),
            ("hash", Some("f")),
            ("hash", Some("g")),
        ] {
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
        assert!(started.elapsed() < ms(1400), "memory takes over: {:?}", started.elapsed());
        cache.del("gone").await.unwrap();
        cache.hset("hash", "f", "new").await.unwrap();
        assert_eq!(text(&cache, "text").await.as_deref(), Some("new"));
        assert_eq!(cache.hget::<String>("hash", "g").await.unwrap().as_deref(), Some("old"));
        redis.resume();
        let started = Instant::now();
        let mut recovered = false;
        while !recovered || started.elapsed() < ms(500) {
            recovered |= cache.state() == RedisState::Connected;
            let read = text(&cache, "text").await;
            assert!(read.is_none() || read.as_deref() == Some("new"), "{read:?}");
            assert_eq!(text(&cache, "gone").await, None);
            let field = cache.hget::<String>("hash", "f").await.unwrap();
            assert!(field.is_none() || field.as_deref() == Some("new"), "{field:?}");
            assert!(started.elapsed() < ms(10_000));
            tokio::time::sleep(ms(2)).await;
        }
        // The server was told to forget, and only that.
        assert_eq!(redis.say("EXISTS text gone"), ":0\r\n");
        assert_eq!(redis.say("HGET hash f"), "$-1\r\n");
        assert_eq!(redis.say("HGET hash g"), "$3\r\nold\r\n");
    }

    /// Many tasks write one key each all the time; every read sees that task's last write or a miss.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn under_load_freezes_and_kills_bring_no_old_value_back() {
        let mut redis = Redis::start();
        let cache = client("t-load", redis.address());
        let end = Instant::now() + ms(4000);
        let mut tasks = Vec::new();
        for task in 0..16 {
            let cache = cache.clone();
            tasks.push(tokio::spawn(async move {
                let (mut n, mut misses) = (0_u32, 0_u32);
                let key = format!("k{task}");
                while Instant::now() < end {
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
        let mut calls = 0;
        for task in tasks {
            let (n, misses) = task.await.unwrap();
            calls += n;
            assert!(misses < n / 10 + 20, "{misses} misses of {n}");
        }
        assert!(calls > 1000, "{calls}");
        until(&cache, RedisState::Connected).await;
    }

    #[tokio::test]
    async fn a_timeout_is_unknown_and_is_sent_no_more_often_than_allowed() {
        let redis = Redis::start();
        let client = RedisClient::builder()
            .name("t-wire")
            .url(redis.url())
            .policy(|p| p.timeout(ms(100)).max_attempts(2).base_delay(ms(10)))
            .fallback(FallbackConfig::off())
            .build()
            .unwrap();
        client.del("k").await.unwrap();
        let mut sleeping = redis.tell("DEBUG SLEEP 0.6");
        while answers_within(redis.address(), ms(20)) {}
        let error = client.set("k", "1").await.unwrap_err();
        assert!(error.is_outcome_unknown(), "{error:?}");
        assert_eq!(error.attempts(), 2, "{error:?}");
        sleeping.read_exact(&mut [0; 5]).unwrap();
        tokio::time::sleep(ms(300)).await;
        client.get::<String>("k").await.unwrap();
        let stats = redis.say("INFO commandstats");
        let calls = stats.split("cmdstat_set:calls=").nth(1).and_then(|s| s.split(',').next());
        let calls: u32 = calls.unwrap_or("0").parse().unwrap();
        assert!(calls <= 2, "{stats}");
    }

    #[tokio::test]
    async fn refused_credentials_are_an_error_not_an_outage() {
        let redis = Redis::start_with(&["--requirepass", "right"]);
        for (name, user) in [("t-wrongpass", ":s3cret@"), ("t-nopass", "")] {
            let cache = RedisClient::builder()
                .name(name)
                .url(format!("redis://{user}{}", redis.address()))
                .build()
                .unwrap();
            let started = Instant::now();
            let error = cache.set("k", "1").await.unwrap_err();
            assert!(started.elapsed() < ms(1000), "{:?}", started.elapsed());
            assert_eq!(error.attempts(), 1, "not retried");
            assert!(error.downcast_ref::<RedisFailure>().unwrap().is_auth(), "{error:?}");
            let text = format!("{error:?} {}", mainstay_policy::report(&error));
            assert!(text.contains("credentials") && !text.contains("s3cret"), "{text}");
        }
        let cache = RedisClient::builder()
            .name("t-rightpass")
            .url(format!("redis://:right@{}", redis.address()))
            .build()
            .unwrap();
        cache.set("k", "1").await.unwrap();
        assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
    }

    #[test]
    fn one_client_works_in_two_runtimes_one_after_the_other_and_at_once() {
        let redis = Redis::start();
        let cache = client("t-runtimes", redis.address());
        let runtime = || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build().unwrap()
        };
        for n in 0..2 {
            let runtime = runtime();
            runtime.block_on(async {
                if n == 1 {
                    assert_eq!(text(&cache, "k").await.as_deref(), Some("0"));
                }
                cache.set("k", n.to_string()).await.unwrap();
                assert_eq!(text(&cache, "k").await, Some(n.to_string()));
                assert_eq!(cache.state(), RedisState::Connected);
            });
        }
        let (one, two) = (runtime(), runtime());
        one.block_on(async { cache.set("k", "one").await.unwrap() });
        two.block_on(async { assert_eq!(text(&cache, "k").await.as_deref(), Some("one")) });
        drop(two);
        one.block_on(async { assert_eq!(text(&cache, "k").await.as_deref(), Some("one")) });
    }

    #[tokio::test]
    async fn a_dropped_client_leaves_no_connection() {
        let redis = Redis::start();
        let cache = client("t-dropped", redis.address());
        cache.set("k", "1").await.unwrap();
        let connected = || redis.say("INFO clients").contains("connected_clients:2");
        assert!(connected(), "ours and the referee's");
        drop(cache);
        let started = Instant::now();
        while connected() {
            assert!(started.elapsed() < ms(3000));
            tokio::time::sleep(ms(10)).await;
        }
    }
}

/// Values are this process's; links are each runtime's own.
#[test]
fn the_singleton_works_from_a_second_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = RedisClient::builder().name("t-singleton").build().unwrap();
    mainstay_redis::set_redis_client(local);
    runtime().block_on(async {
        let cache = mainstay_redis::get_redis_client().unwrap();
        cache.set("k", "1").await.unwrap();
    });
    runtime().block_on(async {
        let cache = mainstay_redis::get_redis_client().unwrap();
        assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
    });
}
