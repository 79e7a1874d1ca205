//! The table of the crate's documentation, cell by cell: what each command does while the server is
//! away, and what the server holds once it is back.

use crate::{client, ms, until};
use mainstay_policy::Error;
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure, RedisState, Source, Ttl};
use mainstay_test_support::{Proxy, Redis};
use std::time::Duration;

/// A server that can be taken away and keeps what it holds.
pub(crate) struct Place {
    pub(crate) redis: Redis,
    pub(crate) proxy: Proxy,
}

impl Place {
    pub(crate) fn new() -> Self {
        let redis = Redis::start();
        let proxy = Proxy::in_front_of(redis.address());
        Self { redis, proxy }
    }

    pub(crate) async fn take_away(&self, cache: &RedisClient) {
        self.proxy.refuse();
        self.proxy.cut();
        until(cache, RedisState::Degraded).await;
    }

    pub(crate) async fn give_back(&self, cache: &RedisClient) {
        self.proxy.listen();
        until(cache, RedisState::Connected).await;
    }
}

pub(crate) fn is_unavailable(error: &Error) -> bool {
    // By memory, or by what keeps the call from the server.
    let failure = error.downcast_ref::<RedisFailure>();
    !error.is_outcome_unknown()
        && failure.map_or(error.is_circuit_open(), |f| f.is_unavailable() || f.is_outage())
}

pub(crate) async fn get(cache: &RedisClient, key: &str) -> (Option<String>, Source) {
    let answer = cache.get_answer(key).await.unwrap();
    (answer.value, answer.source)
}

#[tokio::test]
async fn reads_and_writes() {
    let place = Place::new();
    let cache = client("t-cells", place.proxy.addr());
    for key in ["seen", "written", "deleted", "lived", "unseen"] {
        cache.set(key, "old").ttl(Duration::from_secs(90)).await.unwrap();
    }
    assert_eq!(place.redis.say("SET other other"), "+OK\r\n");
    place.take_away(&cache).await;

    // get, mget
    assert_eq!(get(&cache, "seen").await, (Some("old".into()), Source::Fallback));
    assert_eq!(get(&cache, "other").await, (None, Source::Nobody));
    let many = cache.mget_answers::<String>(["seen", "other"]).await.unwrap();
    let many: Vec<_> = many.into_iter().map(|answer| (answer.value, answer.source)).collect();
    assert_eq!(many, [(Some("old".into()), Source::Fallback), (None, Source::Nobody)]);
    // set, mset
    cache.set("written", "new").await.unwrap();
    cache.set("short", "new").ttl(ms(30)).await.unwrap();
    cache.mset([("m1", "1"), ("m2", "2")]).await.unwrap();
    assert_eq!(get(&cache, "written").await, (Some("new".into()), Source::Fallback));
    assert_eq!(cache.mget::<i32>(["m1", "m2"]).await.unwrap(), [Some(1), Some(2)]);
    let short = std::time::Instant::now();
    while get(&cache, "short").await.0.is_some() {
        assert!(short.elapsed() < ms(5_000));
        tokio::task::yield_now().await;
    }
    // del
    assert!(cache.del("deleted").await.unwrap());
    assert!(!cache.del("deleted").await.unwrap());
    assert_eq!(get(&cache, "deleted").await, (None, Source::Fallback));
    // exists
    assert!(cache.exists("seen").await.unwrap());
    assert!(!cache.exists("deleted").await.unwrap());
    let unknown = cache.exists_answer("other").await.unwrap();
    assert_eq!((unknown.value, unknown.source), (false, Source::Nobody));
    // ttl, expire, persist
    assert!(matches!(cache.ttl("seen").await.unwrap(), Ttl::Left(_)));
    let written = cache.ttl_answer("written").await.unwrap();
    assert_eq!((written.value, written.source), (Ttl::Forever, Source::Fallback));
    assert_eq!(cache.ttl("deleted").await.unwrap(), Ttl::Missing);
    let unknown = cache.ttl("other").await.unwrap_err();
    assert!(is_unavailable(&unknown), "the server has it: {unknown:?}");
    assert!(cache.expire("lived", Duration::from_secs(9)).await.unwrap());
    assert!(
        matches!(cache.ttl("lived").await.unwrap(), Ttl::Left(l) if l <= Duration::from_secs(9))
    );
    assert!(cache.persist("lived").await.unwrap());
    assert!(!cache.expire("deleted", Duration::from_secs(9)).await.unwrap());
    assert!(is_unavailable(&cache.expire("other", Duration::from_secs(9)).await.unwrap_err()));
    assert!(is_unavailable(&cache.persist("other").await.unwrap_err()));

    let dirty = cache.dirty_keys();
    assert_eq!(dirty, 6, "written, short, m1, m2, deleted, lived");
    place.give_back(&cache).await;
    for key in ["written", "short", "m1", "m2", "deleted", "lived"] {
        assert_eq!(place.redis.say(&format!("EXISTS {key}")), ":0\r\n", "{key}");
        assert_eq!(get(&cache, key).await, (None, Source::Redis));
    }
    assert_eq!(get(&cache, "seen").await, (Some("old".into()), Source::Redis));
    assert_eq!(get(&cache, "other").await, (Some("other".into()), Source::Redis));
}

#[tokio::test]
async fn each_operation_that_memory_answers_is_counted_as_a_fallback() {
    let fallbacks =
        |name: &str| mainstay_policy::get_resilience_health().circuit_breakers[name].fallbacks;
    let place = Place::new();
    let cache = client("t-counted", place.proxy.addr());
    let (count, keys) = (|| fallbacks("redis:t-counted"), ["k", "l", "m"]);
    cache.mset(keys.map(|key| (key, "1"))).await.unwrap();
    cache.mget::<String>(keys).await.unwrap();
    cache.get::<String>("k").await.unwrap();
    assert_eq!(count(), 0);
    place.take_away(&cache).await;
    for (n, key) in (1..).zip(["k", "nobody's"]) {
        get(&cache, key).await;
        assert_eq!(count(), n, "{key}");
    }
    cache.set("k", "2").await.unwrap();
    assert_eq!(count(), 3);
    cache.mset(keys.map(|key| (key, "2"))).await.unwrap();
    assert_eq!(count(), 4);
    cache.mget::<String>(keys).await.unwrap();
    assert_eq!(count(), 5);
    // Nothing is kept then.
    cache.incr("n").await.unwrap_err();
    assert_eq!(count(), 5);
    let load = || async { Ok::<_, std::io::Error>("3".to_owned()) };
    for (n, key, value) in [(6, "k", "2"), (7, "loaded", "3")] {
        let got = cache.get_or_load::<String, _, _, _>(key, Duration::from_secs(60), load).await;
        assert_eq!((got.unwrap().as_str(), count()), (value, n), "{key}");
    }
    place.give_back(&cache).await;
    get(&cache, "k").await;
    assert_eq!(count(), 7);

    let alone = RedisClient::builder().name("t-alone").without_server().build().unwrap();
    alone.set("k", "1").await.unwrap();
    get(&alone, "k").await;
    assert_eq!(fallbacks("redis:t-alone"), 0, "there is no server");
}

#[tokio::test]
async fn hashes() {
    let place = Place::new();
    let cache = client("t-hash-cells", place.proxy.addr());
    assert_eq!(place.redis.say("HSET whole a 1 b 2"), ":2\r\n");
    assert_eq!(place.redis.say("HSET part a 1 b 2"), ":2\r\n");
    cache.hgetall::<String>("whole").await.unwrap();
    cache.hget::<String>("part", "a").await.unwrap();
    cache.set("text", "1").await.unwrap();
    let away = std::time::Instant::now();
    place.take_away(&cache).await;

    let hget = async |key: &str, field: &str| {
        let answer = cache.hget_answer::<String>(key, field).await.unwrap();
        (answer.value, answer.source)
    };
    assert_eq!(hget("part", "a").await, (Some("1".into()), Source::Fallback));
    assert_eq!(hget("part", "b").await, (None, Source::Nobody));
    let whole = cache.hgetall_answer::<String>("whole").await.unwrap();
    assert_eq!((whole.value.len(), whole.source), (2, Source::Fallback));
    assert!(is_unavailable(&cache.hgetall::<String>("part").await.unwrap_err()));
    // Of a hash too, for which another command is asked.
    let since = away.elapsed();
    let age = cache.exists_answer("whole").await.unwrap().age.unwrap();
    assert!(age >= since, "{age:?}");
    let none = cache.hgetall_answer::<String>("none").await.unwrap();
    assert_eq!((none.value.len(), none.source), (0, Source::Nobody));
    cache.hset("part", "a", "9").await.unwrap();
    assert!(cache.hdel("whole", "a").await.unwrap());
    assert_eq!(hget("part", "a").await, (Some("9".into()), Source::Fallback));
    assert_eq!(hget("whole", "a").await, (None, Source::Fallback));
    assert!(is_unavailable(&cache.expire("part", Duration::from_secs(9)).await.unwrap_err()));
    assert!(is_unavailable(&cache.ttl("part").await.unwrap_err()));
    // The same error from either tier.
    for error in [
        cache.hget::<String>("text", "f").await.unwrap_err(),
        cache.hset("text", "f", "1").await.unwrap_err(),
        cache.get::<String>("part").await.unwrap_err(),
    ] {
        assert!(error.downcast_ref::<RedisFailure>().unwrap().is_wrong_type(), "{error:?}");
    }

    place.give_back(&cache).await;
    assert_eq!(place.redis.say("HGET part a"), "$-1\r\n");
    assert_eq!(place.redis.say("HGET part b"), "$1\r\n2\r\n");
    assert_eq!(place.redis.say("HGET whole a"), "$-1\r\n");
    assert_eq!(place.redis.say("HGET whole b"), "$1\r\n2\r\n");
}

#[tokio::test]
async fn a_write_that_was_refused_before_it_was_sent_leaves_memory_as_it_was() {
    let place = Place::new();
    let cache = client("t-never-sent", place.proxy.addr());
    assert_eq!(place.redis.say("HSET whole a 1 b 2"), ":2\r\n");
    assert_eq!(place.redis.say("HSET one a 1"), ":1\r\n");
    for key in ["whole", "one"] {
        cache.hgetall::<String>(key).await.unwrap();
    }
    for key in ["counter", "forever", "k"] {
        cache.set(key, "5").await.unwrap();
    }
    place.take_away(&cache).await;
    // The first of them find the link closed, the others the breaker open.
    for _ in 0..2 {
        for error in [
            cache.hincr_by("whole", "a", 1).await.unwrap_err(),
            cache.hincr_by("whole", "c", 1).await.unwrap_err(),
            cache.hincr_by("one", "a", 1).await.unwrap_err(),
            cache.expire("whole", Duration::from_secs(9)).await.unwrap_err(),
            cache.incr("counter").await.unwrap_err(),
            cache.set_if_absent("k", "6").await.unwrap_err(),
            cache.set_if_present("k", "6").await.unwrap_err(),
            cache.set("k", "6").keep_ttl().await.unwrap_err(),
            cache.get_set::<String>("k", "6").await.unwrap_err(),
            cache.get_del::<String>("k").await.unwrap_err(),
            cache.run("SET").key("k").arg("6").await.unwrap_err(),
            cache.pipeline([cache.run("DEL").key("k")]).await.unwrap_err(),
            cache.run("FLUSHALL").await.unwrap_err(),
        ] {
            assert!(is_unavailable(&error), "{error:?}");
        }
        assert!(!cache.persist("forever").await.unwrap());
    }
    assert_eq!(cache.dirty_keys(), 0);
    for (key, fields) in [("whole", 2), ("one", 1)] {
        let all = cache.hgetall_answer::<String>(key).await.unwrap();
        assert_eq!((all.value.len(), all.source), (fields, Source::Fallback), "{key}");
        assert_eq!(all.value["a"], "1", "{key}");
    }
    for key in ["counter", "forever", "k"] {
        assert_eq!(get(&cache, key).await, (Some("5".into()), Source::Fallback), "{key}");
    }
}

#[tokio::test]
async fn several_writes_that_were_never_sent_leave_memory_as_it_was() {
    let place = Place::new();
    let cache = RedisClient::builder()
        .name("t-never-sent-many")
        .url(format!("redis://{}", place.proxy.addr()))
        .policy(|p| p.timeout(ms(1_500)).max_attempts(1).recovery_timeout(ms(200)))
        .fallback(FallbackConfig::new().max_dirty_entries(10))
        .build()
        .unwrap();
    until(&cache, RedisState::Connected).await;
    let keys: Vec<String> = (0..100).map(|n| format!("k{n}")).collect();
    cache.mset(keys.iter().map(|key| (key, "old"))).await.unwrap();
    cache.mget::<String>(&keys).await.unwrap();
    place.take_away(&cache).await;
    let full = cache.mset(keys.iter().map(|key| (key, "new"))).await.unwrap_err();
    assert!(full.downcast_ref::<RedisFailure>().unwrap().is_fallback_full(), "{full:?}");
    // Those that fit are kept, and the others are what they were.
    let values = cache.mget::<String>(&keys).await.unwrap();
    let count = |text: &str| values.iter().flatten().filter(|value| *value == text).count();
    assert_eq!((count("new"), count("old")), (10, 90));
}

#[tokio::test]
async fn what_only_the_server_may_do_is_refused() {
    let place = Place::new();
    let cache = client("t-refused-cells", place.proxy.addr());
    cache.set("k", "1").await.unwrap();
    // What it stored is known, with its lifetime, and what it did not store is not.
    let minute = Duration::from_secs(60);
    assert!(cache.set_if_absent("taken", "me").ttl(minute).await.unwrap());
    assert!(!cache.set_if_absent("taken", "you").await.unwrap());
    assert!(cache.set_if_absent("kept", "me").ttl(minute).await.unwrap());
    assert!(cache.set_if_present("kept", "still me").ttl(minute).await.unwrap());
    // An answer without a lifetime takes that away from nobody.
    assert_eq!(get(&cache, "kept").await.1, Source::Redis);
    place.take_away(&cache).await;
    assert_eq!(get(&cache, "taken").await, (None, Source::Nobody));
    assert_eq!(get(&cache, "kept").await, (Some("still me".into()), Source::Fallback));
    assert!(matches!(cache.ttl("kept").await.unwrap(), Ttl::Left(left) if left <= minute));
    for error in [
        cache.set_if_absent("lock", "1").await.unwrap_err(),
        cache.set_if_present("k", "1").await.unwrap_err(),
        cache.set("k", "1").keep_ttl().await.unwrap_err(),
        cache.get_set::<String>("k", "2").await.unwrap_err(),
        cache.get_del::<String>("k").await.unwrap_err(),
        cache.incr("n").await.unwrap_err(),
        cache.hincr_by("h", "f", 1).await.unwrap_err(),
        cache.run("LPUSH").key("l").arg("1").await.unwrap_err(),
        cache.pipeline([cache.run("GET").key("k")]).await.unwrap_err(),
        futures_util::StreamExt::next(&mut cache.scan::<String>("*")).await.unwrap().unwrap_err(),
    ] {
        assert!(is_unavailable(&error), "{error:?}");
    }
    assert_eq!(cache.dirty_keys(), 0);
    // And while the server has not been told of a key.
    cache.set("k", "2").await.unwrap();
    let refused = cache.get_del::<String>("k").await.unwrap_err();
    assert!(is_unavailable(&refused), "{refused:?}");
    place.give_back(&cache).await;
    assert!(cache.set_if_absent("k", "3").await.unwrap());
}

#[tokio::test]
async fn a_counter_counts_offline_if_it_may_and_begins_again() {
    let place = Place::new();
    let cache = RedisClient::builder()
        .name("t-counting")
        .url(format!("redis://{}", place.proxy.addr()))
        .policy(|p| p.timeout(ms(1500)).base_delay(ms(10)).recovery_timeout(ms(200)))
        .fallback(FallbackConfig::new().count_offline())
        .build()
        .unwrap();
    assert_eq!(cache.incr_by("n", 5).await.unwrap(), 5);
    assert_eq!(cache.get::<i64>("n").await.unwrap(), Some(5));
    place.take_away(&cache).await;
    assert_eq!(cache.incr("n").await.unwrap(), 6);
    assert_eq!(cache.decr("n").await.unwrap(), 5);
    assert_eq!(cache.incr("m").await.unwrap(), 1);
    assert_eq!(cache.hincr_by("h", "f", 2).await.unwrap(), 2);
    assert_eq!(cache.hincr_by("h", "f", -3).await.unwrap(), -1);
    place.give_back(&cache).await;
    assert_eq!(cache.incr("n").await.unwrap(), 1);
    assert_eq!(cache.hincr_by("h", "f", 2).await.unwrap(), 2);
}

#[tokio::test]
async fn read_only_answers_reads_and_refuses_writes() {
    let place = Place::new();
    let build = |name: &str, fallback| {
        RedisClient::builder()
            .name(name)
            .url(format!("redis://{}", place.proxy.addr()))
            .policy(|p| p.timeout(ms(1_500)).base_delay(ms(10)).recovery_timeout(ms(200)))
            .fallback(fallback)
            .build()
            .unwrap()
    };
    let reader = build("t-read-only", FallbackConfig::read_only());
    let strict = build("t-off", FallbackConfig::off());
    until(&reader, RedisState::Connected).await;
    until(&strict, RedisState::Connected).await;
    reader.set("k", "1").ttl(Duration::from_secs(90)).await.unwrap();
    reader.hset("h", "f", "1").await.unwrap();
    assert_eq!(reader.hgetall::<String>("h").await.unwrap().len(), 1);
    strict.set("k", "1").await.unwrap();
    place.take_away(&reader).await;
    until(&strict, RedisState::Degraded).await;
    assert_eq!(get(&reader, "k").await, (Some("1".into()), Source::Fallback));
    assert_eq!(reader.mget::<i32>(["k", "other"]).await.unwrap(), [Some(1), None]);
    assert_eq!(reader.hget::<i32>("h", "f").await.unwrap(), Some(1));
    assert_eq!(reader.hgetall::<i32>("h").await.unwrap().get("f"), Some(&1));
    assert!(reader.exists("k").await.unwrap());
    assert!(matches!(reader.ttl("k").await.unwrap(), Ttl::Left(_)));
    for n in [1, 2] {
        let load = move || async move { Ok::<_, std::io::Error>(n) };
        let loaded = reader.get_or_load("loaded", Duration::from_secs(90), load).await;
        assert_eq!(loaded.unwrap(), n, "what was loaded before was not kept");
    }
    for error in [
        reader.set("k", "2").await.unwrap_err(),
        reader.mset([("k", "2")]).await.unwrap_err(),
        reader.del("k").await.unwrap_err(),
        reader.expire("k", Duration::from_secs(9)).await.unwrap_err(),
        reader.persist("k").await.unwrap_err(),
        reader.hset("h", "f", "2").await.unwrap_err(),
        reader.hdel("h", "f").await.unwrap_err(),
        reader.incr("n").await.unwrap_err(),
        strict.get::<String>("k").await.unwrap_err(),
        strict.set("k", "2").await.unwrap_err(),
    ] {
        assert!(is_unavailable(&error), "{error:?}");
    }
    assert_eq!(reader.dirty_keys(), 0);
    // None of them was sent, so that what was known is true still.
    assert_eq!(get(&reader, "k").await, (Some("1".into()), Source::Fallback));
    assert_eq!(reader.hgetall::<i32>("h").await.unwrap().get("f"), Some(&1));
    place.give_back(&reader).await;
    let nothing = RedisClient::builder()
        .without_server()
        .fallback(FallbackConfig::read_only())
        .build()
        .unwrap_err();
    assert!(nothing.to_string().contains("takes writes"), "{nothing}");
}

#[tokio::test]
async fn a_write_that_may_have_happened_says_so_when_there_is_no_room_for_it_here() {
    let place = Place::new();
    let cache = RedisClient::builder()
        .name("t-no-room")
        .url(format!("redis://{}", place.proxy.addr()))
        .policy(|p| p.timeout(ms(1_500)).max_attempts(1).recovery_timeout(ms(200)))
        .fallback(FallbackConfig::new().max_dirty_entries(0))
        .build()
        .unwrap();
    let unknown = |error: &Error| {
        assert!(error.is_outcome_unknown(), "{error:?}");
        assert_eq!(error.attempts(), 1, "{error:?}");
        assert!(std::error::Error::source(error).is_some(), "{error:?}");
    };
    until(&cache, RedisState::Connected).await;
    cache.set("k", "old").await.unwrap();
    place.proxy.lose_next_reply();
    unknown(&cache.set("k", "new").await.unwrap_err());
    assert_eq!(place.redis.say("GET k"), "$3\r\nnew\r\n");

    until(&cache, RedisState::Connected).await;
    place.proxy.lose_next_reply();
    unknown(&cache.mset([("k", "newest"), ("l", "newest")]).await.unwrap_err());
    assert_eq!(place.redis.say("GET l"), "$6\r\nnewest\r\n");

    place.take_away(&cache).await;
    let full = cache.set("k", "never").await.unwrap_err();
    assert!(full.downcast_ref::<RedisFailure>().unwrap().is_fallback_full(), "{full:?}");
    assert!(!full.is_outcome_unknown());
}
