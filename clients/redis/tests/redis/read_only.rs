//! [`FallbackConfig::read_only`], cell by cell: reads are answered from memory, writes are errors, and the
//! server is told nothing afterwards.

use crate::{
    calls,
    degraded::{Place, get, is_unavailable},
    ms, until, until_true,
};
use futures_util::StreamExt;
use mainstay_policy::{BreakerState, Effect, HealthStatus};
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure, RedisState, Source, Ttl};
use mainstay_test_support::{Port, Proxy, Redis, RedisCluster};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

const MINUTE: Duration = Duration::from_secs(60);

fn reader(name: &str, url: String) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(url)
        .policy(|p| p.timeout(ms(1_500)).base_delay(ms(10)).recovery_timeout(ms(200)))
        .fallback(FallbackConfig::read_only())
        .build()
        .unwrap()
}

fn at(place: &Place) -> String {
    Redis::url_at(place.proxy.addr())
}

/// Every write that there is, by its name.
async fn writes(cache: &RedisClient) -> Vec<(&'static str, Option<mainstay_policy::Error>)> {
    let get = || cache.run("GET").key("k");
    vec![
        ("set", cache.set("k", "2").await.err()),
        ("mset", cache.mset([("k", "2"), ("new", "2")]).await.err()),
        ("del", cache.del("k").await.err()),
        ("expire", cache.expire("k", MINUTE).await.err()),
        ("persist", cache.persist("k").await.err()),
        ("hset", cache.hset("h", "f", "2").await.err()),
        ("hdel", cache.hdel("h", "f").await.err()),
        ("incr", cache.incr("n").await.err()),
        ("decr", cache.decr("n").await.err()),
        ("hincr_by", cache.hincr_by("h", "n", 1).await.err()),
        ("set_if_absent", cache.set_if_absent("new", "2").await.err()),
        ("set_if_present", cache.set_if_present("k", "2").await.err()),
        ("keep_ttl", cache.set("k", "2").keep_ttl().await.err()),
        ("get_set", cache.get_set::<String>("k", "2").await.err()),
        ("get_del", cache.get_del::<String>("k").await.err()),
        ("run", cache.run("APPEND").key("k").arg("2").await.err()),
        // Only the server does these, be it to read.
        ("run to read", get().await.err()),
        ("pipeline", cache.pipeline([get()]).await.err()),
        ("scan", cache.scan::<String>("*").next().await.unwrap().err()),
    ]
}

#[tokio::test]
async fn reads_are_answered_from_memory_writes_are_refused_and_the_server_forgets_nothing() {
    let place = Place::new();
    let cache = reader("t-reader", at(&place));
    cache.set("k", "1").ttl(MINUTE).await.unwrap();
    cache.set("seen", "1").await.unwrap();
    assert_eq!(place.redis.say("SET other other"), "+OK\r\n");
    for (key, fields) in [("h", 2), ("part", 2), ("unseen", 2)] {
        assert_eq!(place.redis.say(&format!("HSET {key} f 1 g 1")), format!(":{fields}\r\n"));
    }
    cache.hgetall::<String>("h").await.unwrap();
    cache.hget::<String>("part", "f").await.unwrap();
    place.take_away(&cache).await;

    let one = Some("1".to_owned());
    assert_eq!(get(&cache, "k").await, (one.clone(), Source::Fallback));
    assert_eq!(get(&cache, "other").await, (None, Source::Nobody));
    for (key, field, answer) in [
        ("h", "f", (one.clone(), Source::Fallback)),
        ("part", "f", (one.clone(), Source::Fallback)),
        ("part", "g", (None, Source::Nobody)),
        ("unseen", "f", (None, Source::Nobody)),
    ] {
        let found = cache.hget_answer::<String>(key, field).await.unwrap();
        assert_eq!((found.value, found.source), answer, "{key} {field}");
    }
    let many = cache.mget_answers::<String>(["k", "other", "h"]).await.unwrap();
    let many: Vec<_> = many.into_iter().map(|answer| (answer.value, answer.source)).collect();
    // Known to be a hash, which is a miss here.
    let hash = (None, Source::Fallback);
    assert_eq!(many, [(one, Source::Fallback), (None, Source::Nobody), hash]);
    for (key, answer) in [
        ("k", (true, Source::Fallback)),
        ("h", (true, Source::Fallback)),
        ("other", (false, Source::Nobody)),
    ] {
        let there = cache.exists_answer(key).await.unwrap();
        assert_eq!((there.value, there.source), answer, "{key}");
    }
    assert!(matches!(cache.ttl("k").await.unwrap(), Ttl::Left(left) if left <= MINUTE));
    assert_eq!(cache.ttl("seen").await.unwrap(), Ttl::Forever);
    for key in ["other", "h"] {
        let error = cache.ttl(key).await.unwrap_err();
        assert!(is_unavailable(&error), "{key}: {error:?}");
    }
    assert_eq!(cache.hgetall::<String>("h").await.unwrap().len(), 2);
    let none = cache.hgetall_answer::<String>("unseen").await.unwrap();
    assert_eq!((none.value.len(), none.source), (0, Source::Nobody));
    let part = cache.hgetall::<String>("part").await.unwrap_err();
    assert!(is_unavailable(&part), "{part:?}");

    for (name, error) in writes(&cache).await {
        let error = error.unwrap_or_else(|| panic!("{name} was taken"));
        assert!(is_unavailable(&error), "{name}: {error:?}");
    }
    assert_eq!(cache.dirty_keys(), 0);
    assert_eq!(get(&cache, "seen").await, (Some("1".into()), Source::Fallback));

    place.give_back(&cache).await;
    let answered = async || get(&cache, "k").await == (Some("1".into()), Source::Redis);
    until_true("answered by the server", ms(30_000), answered).await;
    assert_eq!(get(&cache, "other").await, (Some("other".into()), Source::Redis));
    assert_eq!(cache.hgetall_answer::<String>("h").await.unwrap().source, Source::Redis);
    assert_eq!(place.redis.say("DBSIZE"), ":6\r\n");
    assert_eq!(calls(&place.redis, "del") + calls(&place.redis, "hdel"), 0);
    let refused: Vec<_> = writes(&cache).await.into_iter().filter(|(_, e)| e.is_some()).collect();
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(place.redis.say("GET n"), "$1\r\n0\r\n");
}

#[tokio::test]
async fn a_load_is_answered_from_memory_else_by_its_loader_whose_error_it_is() {
    let place = Place::new();
    let cache = reader("t-reader-loads", at(&place));
    let asked = Arc::<AtomicU32>::default();
    let loads = |value: &'static str| async move { Ok::<_, io::Error>(value.to_owned()) };
    cache.get_or_load("k", MINUTE, move || loads("1")).await.unwrap();
    let old = cache.get_or_load("old", ms(50), move || loads("1"));
    old.stale_if_error(MINUTE).await.unwrap();
    place.take_away(&cache).await;

    let never = || async { panic!("memory has it") };
    let known = cache.get_or_load::<String, io::Error, _, _>("k", MINUTE, never).await;
    assert_eq!(known.unwrap(), "1");
    // Nor is what is loaded kept.
    for value in ["2", "3"] {
        let loaded = cache.get_or_load("unseen", MINUTE, move || loads(value)).await;
        assert_eq!(loaded.unwrap(), value);
    }
    let fails = || {
        let asked = Arc::clone(&asked);
        move || async move {
            asked.fetch_add(1, Ordering::SeqCst);
            Err::<String, _>(io::Error::other("down"))
        }
    };
    for stale in [Duration::ZERO, MINUTE] {
        let error = cache.get_or_load("unseen", MINUTE, fails()).stale_if_error(stale).await;
        let error = error.unwrap_err();
        assert!(error.downcast_ref::<io::Error>().is_some(), "{error:?}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    until_true("over", ms(30_000), async || {
        let stands_in = cache.get_or_load("old", ms(50), fails()).stale_if_error(MINUTE).await;
        assert_eq!(stands_in.unwrap(), "1");
        asked.load(Ordering::SeqCst) > 2
    })
    .await;
    let replaced =
        cache.get_or_load("old", ms(50), move || loads("2")).stale_if_error(MINUTE).await;
    assert_eq!(replaced.unwrap(), "2");
    assert_eq!(cache.dirty_keys(), 0);
}

#[tokio::test]
async fn with_its_breaker_isolated_reads_come_from_memory_and_writes_are_refused_by_it() {
    let redis = Redis::start();
    let cache = reader("t-reader-shut", redis.url());
    cache.set("k", "1").await.unwrap();
    let breaker = cache.policy().breaker();
    breaker.isolate();
    assert_eq!(get(&cache, "k").await, (Some("1".into()), Source::Fallback));
    assert_eq!(get(&cache, "other").await, (None, Source::Nobody));
    for (name, error) in writes(&cache).await {
        let error = error.unwrap_or_else(|| panic!("{name} was taken"));
        assert!(error.is_circuit_open(), "{name}: {error:?}");
    }
    assert_eq!(cache.state(), RedisState::Degraded);
    let health = cache.health_check().await;
    let stands = (health.status, health.breaker);
    assert_eq!(stands, (HealthStatus::Degraded, Some(BreakerState::Isolated)));
    assert!(health.detail.contains("the fallback answers"), "{}", health.detail);
    breaker.reset();
    assert_eq!(cache.state(), RedisState::Connected);
    assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
    assert_eq!(get(&cache, "k").await, (Some("1".into()), Source::Redis));
    cache.set("k", "2").await.unwrap();
}

#[tokio::test]
async fn refused_credentials_are_an_error_for_reads_too() {
    let redis = Redis::start_with(&["--requirepass", "right"]);
    let cache = reader("t-reader-wrongpass", format!("redis://:s3cret@{}", redis.address()));
    // Also once the breaker is open.
    for _ in 0..5 {
        for error in [
            cache.get::<String>("k").await.unwrap_err(),
            cache.mget::<String>(["k"]).await.unwrap_err(),
            cache.hget::<String>("h", "f").await.unwrap_err(),
            cache.exists("k").await.unwrap_err(),
            cache.set("k", "1").await.unwrap_err(),
        ] {
            let failure = error.downcast_ref::<RedisFailure>();
            let is_auth = failure.is_some_and(RedisFailure::is_auth);
            assert!(is_auth || error.is_circuit_open(), "{error:?}");
        }
    }
    let health = cache.health_check().await;
    assert_eq!(health.status, HealthStatus::Unhealthy, "{}", health.detail);
}

#[tokio::test]
async fn without_a_server_from_the_start_reads_are_misses_and_writes_errors_until_it_comes() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    proxy.refuse();
    for (name, address) in
        [("t-reader-away", Port::reserve().address()), ("t-reader-early", proxy.addr())]
    {
        let cache = reader(name, Redis::url_at(address));
        assert_eq!(get(&cache, "k").await, (None, Source::Nobody));
        let error = cache.set("k", "1").await.unwrap_err();
        assert!(is_unavailable(&error), "{error:?}");
        assert_eq!((cache.state(), cache.dirty_keys()), (RedisState::Degraded, 0));
        let health = cache.health_check().await;
        assert_eq!(health.status, HealthStatus::Degraded);
        assert!(health.detail.ends_with("the fallback answers"), "{}", health.detail);
        if address == proxy.addr() {
            proxy.listen();
            until(&cache, RedisState::Connected).await;
            until_true("taken", ms(30_000), async || cache.set("k", "1").await.is_ok()).await;
            assert_eq!(get(&cache, "k").await, (Some("1".into()), Source::Redis));
        }
    }
}

#[tokio::test]
async fn with_one_master_of_a_cluster_away_what_is_for_all_is_read_from_memory_and_not_written() {
    let mut cluster = RedisCluster::start(3, false);
    let cache = reader("t-reader-cluster", cluster.url());
    let keys = [0, 1, 2].map(|master| cluster.key_of(master, 0));
    for key in &keys {
        cache.set(key, "1").await.unwrap();
    }
    cluster.nodes[0].kill();
    until(&cache, RedisState::Degraded).await;
    let many = cache.mget_answers::<String>(&keys).await.unwrap();
    let many: Vec<_> = many.into_iter().map(|answer| (answer.value, answer.source)).collect();
    assert_eq!(many, [0, 1, 2].map(|_| (Some("1".to_owned()), Source::Fallback)));
    let error = cache.mset(keys.each_ref().map(|key| (key, "2"))).await.unwrap_err();
    assert_eq!(error.effect(), Effect::NeverSent, "{error:?}");
    let error = cache.set(&keys[0], "2").await.unwrap_err();
    assert!(is_unavailable(&error), "{error:?}");
    // The others' own go on.
    for master in [1, 2] {
        let key = &keys[master];
        assert_eq!(
            cluster.nodes[master].say(&format!("GET {key}")),
            "$1\r\n1\r\n",
            "nothing is done"
        );
        assert_eq!(get(&cache, key).await, (Some("1".into()), Source::Redis));
        cache.set(key, "3").await.unwrap();
        assert_eq!(cluster.nodes[master].say(&format!("GET {key}")), "$1\r\n3\r\n");
    }
    assert_eq!(cache.dirty_keys(), 0);
}
