//! Cells of the table in the crate's documentation that have no story of their own.

use crate::{
    calls, client,
    degraded::{Place, get, is_unavailable},
    ms, until, until_true,
};
use mainstay_policy::Error;
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure, RedisState, Source, Ttl};
use mainstay_test_support::Redis;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

fn build(name: &str, place: &Place, fallback: FallbackConfig) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(Redis::url_at(place.proxy.addr()))
        .policy(|p| p.timeout(ms(1500)).max_attempts(1).recovery_timeout(ms(200)))
        .fallback(fallback)
        .build()
        .unwrap()
}

async fn mget(cache: &RedisClient, keys: &[&str]) -> Vec<(Option<String>, Source)> {
    let answers = cache.mget_answers::<String>(keys).await.unwrap();
    answers.into_iter().map(|answer| (answer.value, answer.source)).collect()
}

#[tokio::test]
async fn a_hash_is_a_miss_among_several_keys_whoever_answers() {
    let place = Place::new();
    let cache = client("t-mget-hash", place.proxy.addr());
    assert_eq!(place.redis.say("HSET seen f 1"), ":1\r\n");
    cache.set("text", "1").await.unwrap();
    let keys = ["seen", "text", "made", "cut"];
    let text = |source| (Some("1".to_owned()), source);
    let (redis, local, nobody) =
        ((None, Source::Redis), (None, Source::Fallback), (None, Source::Nobody));
    let there = [redis.clone(), text(Source::Redis), redis.clone(), redis.clone()];
    assert_eq!(mget(&cache, &keys).await, there);
    assert_eq!(cache.hget::<String>("seen", "f").await.unwrap().as_deref(), Some("1"));
    place.take_away(&cache).await;
    cache.hset("made", "f", "1").await.unwrap();
    // Whether there is more of that one only the server knows.
    cache.hdel("cut", "f").await.unwrap();
    let away = [local.clone(), text(Source::Fallback), local.clone(), nobody];
    assert_eq!(mget(&cache, &keys).await, away);
    place.give_back_but_forget_nothing(&cache).await;
    let told = [redis.clone(), text(Source::Redis), local, redis.clone()];
    assert_eq!(mget(&cache, &keys).await, told);
    place.forget();
    until(&cache, RedisState::Connected).await;
    assert_eq!(mget(&cache, &keys).await, there);
}

#[tokio::test]
async fn what_was_seen_is_told_for_so_long_and_what_was_written_for_as_long_as_it_lives() {
    let place = Place::new();
    let max = ms(3_000);
    let cache = build("t-max-stale", &place, FallbackConfig::new().max_stale(max));
    let seen = Instant::now();
    cache.set("seen", "1").await.unwrap();
    cache.hset("h", "f", "1").await.unwrap();
    cache.hgetall::<String>("h").await.unwrap();
    place.take_away(&cache).await;
    cache.set("written", "1").await.unwrap();
    let mut told = 0;
    until_true("stale", ms(10_000), async || {
        let answer = cache.get_answer::<String>("seen").await.unwrap();
        match answer.source {
            Source::Fallback => {
                told += 1;
                assert_eq!(answer.value.as_deref(), Some("1"));
                false
            }
            source => {
                assert_eq!((answer.value, source), (None, Source::Nobody));
                true
            }
        }
    })
    .await;
    assert!(told > 0 && seen.elapsed() >= max, "{told} times in {:?}", seen.elapsed());
    let forgotten =
        async || cache.hgetall_answer::<String>("h").await.unwrap().source == Source::Nobody;
    until_true("the hash too", ms(30_000), forgotten).await;
    assert_eq!(cache.hget_answer::<String>("h", "f").await.unwrap().source, Source::Nobody);
    assert_eq!(cache.exists_answer("seen").await.unwrap().source, Source::Nobody);
    assert!(is_unavailable(&cache.ttl("seen").await.unwrap_err()));
    assert!(is_unavailable(&cache.expire("seen", MINUTE).await.unwrap_err()));
    assert_eq!(get(&cache, "written").await, (Some("1".into()), Source::Fallback));
}

#[tokio::test]
async fn a_lifetime_is_told_of_a_value_for_which_it_was_asked_before() {
    let place = Place::new();
    let cache = client("t-ttl-asked", place.proxy.addr());
    for key in ["asked", "unasked", "alone"] {
        assert_eq!(place.redis.say(&format!("SET {key} 1 PX 60000")), "+OK\r\n");
    }
    assert_eq!(place.redis.say("SET forever 1"), "+OK\r\n");
    for key in ["asked", "unasked", "forever"] {
        assert_eq!(get(&cache, key).await.1, Source::Redis);
    }
    for key in ["asked", "forever", "alone", "missing"] {
        cache.ttl(key).await.unwrap();
    }
    place.take_away(&cache).await;
    let left = cache.ttl_answer("asked").await.unwrap();
    assert!(matches!(left.value, Ttl::Left(left) if left <= MINUTE), "{left:?}");
    assert_eq!(left.source, Source::Fallback);
    assert_eq!(cache.ttl("forever").await.unwrap(), Ttl::Forever);
    // Of a value that memory does not have it keeps no lifetime either, nor of a hash.
    cache.hset("hash", "f", "1").await.unwrap();
    for key in ["unasked", "alone", "missing", "hash"] {
        let error = cache.ttl(key).await.unwrap_err();
        assert!(is_unavailable(&error), "{key}: {error:?}");
    }
    // But the server can be waited for.
    assert_eq!(place.redis.say("HSET hash g 1"), ":1\r\n");
    place.give_back_but_forget_nothing(&cache).await;
    let (left, ()) = tokio::join!(cache.ttl_answer("hash"), async { place.forget() });
    let left = left.unwrap();
    assert_eq!((left.value, left.source), (Ttl::Forever, Source::Redis));
}

/// Every write that the fallback takes, each of a key of its own.
async fn writes(cache: &RedisClient, n: usize) -> (&'static str, Result<(), Error>) {
    match n {
        0 => ("set", cache.set("set", "2").await),
        1 => ("mset", cache.mset([("mset", "2")]).await),
        2 => ("del", cache.del("del").await.map(drop)),
        3 => ("hset", cache.hset("hset", "f", "2").await),
        4 => ("hdel", cache.hdel("hdel", "f").await.map(drop)),
        5 => ("expire", cache.expire("expire", MINUTE).await.map(drop)),
        _ => ("persist", cache.persist("persist").await.map(drop)),
    }
}

const WRITES: usize = 7;

async fn written_before(cache: &RedisClient) {
    for key in ["set", "mset", "del", "expire"] {
        cache.set(key, "1").await.unwrap();
    }
    for key in ["hset", "hdel"] {
        cache.hset(key, "f", "1").await.unwrap();
    }
    cache.set("persist", "1").ttl(MINUTE).await.unwrap();
}

#[tokio::test]
async fn a_full_fallback_refuses_each_write_and_tells_of_each_that_it_may_have_happened() {
    let place = Place::new();
    let full = || FallbackConfig::new().max_dirty_entries(0);
    let cache = build("t-full-cells", &place, full());
    // One that would send it once more, and finds the link closed.
    let twice = RedisClient::builder()
        .name("t-full-twice")
        .url(Redis::url_at(place.proxy.addr()))
        .policy(|p| p.timeout(ms(1500)).base_delay(ms(10)).recovery_timeout(ms(200)))
        .fallback(full())
        .build()
        .unwrap();
    for (cache, n) in [&cache, &twice].into_iter().flat_map(|c| (0..WRITES).map(move |n| (c, n))) {
        written_before(cache).await;
        place.proxy.lose_next_reply();
        let (name, result) = writes(cache, n).await;
        // The second attempt may have found another connection.
        if let Err(error) = result {
            assert!(error.is_outcome_unknown(), "{name}: {error:?}");
        } else {
            assert!(std::ptr::eq(cache, &raw const twice), "{name}");
        }
        until_true("connected", ms(30_000), async || {
            cache.run("PING").await.is_ok() && cache.state() == RedisState::Connected
        })
        .await;
    }
    written_before(&cache).await;
    place.take_away(&cache).await;
    for n in 0..WRITES {
        let (name, result) = writes(&cache, n).await;
        let error = result.unwrap_err();
        assert!(
            error.downcast_ref::<RedisFailure>().unwrap().is_fallback_full(),
            "{name}: {error:?}"
        );
        assert!(!error.is_outcome_unknown(), "{name}: {error:?}");
    }
    place.give_back(&cache).await;
    // It was told of none of them.
    assert_eq!(place.redis.say("EXISTS set mset del hset hdel expire persist"), ":7\r\n");
    assert_eq!(place.redis.say("MGET set mset"), "*2\r\n$1\r\n1\r\n$1\r\n1\r\n");
    assert_eq!(place.redis.say("PTTL expire"), ":-1\r\n");
}

/// They wait while their keys are being deleted, as `set` does.
#[tokio::test]
async fn each_write_of_a_key_that_is_being_deleted_waits_and_is_sent() {
    let place = Place::new();
    // Without a breaker, which would let one key be deleted before the others.
    let cache = RedisClient::builder()
        .name("t-draining-cells")
        .url(Redis::url_at(place.proxy.addr()))
        .policy(|p| p.timeout(ms(1500)).enable_circuit_breaker(false))
        .build()
        .unwrap();
    place.take_away(&cache).await;
    written_before(&cache).await;
    for key in ["set", "del", "expire", "persist"] {
        place.ok(&format!("SET {key} other"));
    }
    for key in ["hset", "hdel"] {
        assert_eq!(place.redis.say(&format!("HSET {key} f other")), ":1\r\n");
    }
    place.proxy.set(|faults| faults.replies.latency = ms(300));
    place.proxy.listen();
    let deleted = async || place.redis.say("DBSIZE") == ":0\r\n";
    until_true("deleted", ms(10_000), deleted).await;
    // The answers to that are on their way still.
    assert_eq!(cache.dirty_keys(), 7);
    place.ok("CONFIG RESETSTAT");
    let (set, del, hset, hdel, expire, persist) = tokio::join!(
        async { cache.set("set", "2").await },
        cache.del("del"),
        cache.hset("hset", "f", "2"),
        cache.hdel("hdel", "f"),
        cache.expire("expire", MINUTE),
        cache.persist("persist"),
    );
    set.unwrap();
    hset.unwrap();
    let changed = [del, hdel, expire, persist].map(Result::unwrap);
    assert_eq!(changed, [false; 4], "the server says that there was nothing any more");
    assert_eq!(cache.dirty_keys(), 0, "sent, not kept");
    for command in ["set", "del", "hset", "hdel", "pexpire", "persist"] {
        assert_eq!(calls(&place.redis, command), 1, "{command}");
    }
    assert_eq!(place.redis.say("GET set"), "$1\r\n2\r\n");
    assert_eq!(place.redis.say("HGET hset f"), "$1\r\n2\r\n");
}

#[tokio::test]
async fn whatever_counts_here_counts_here_until_the_server_has_been_told() {
    let place = Place::new();
    let cache = build("t-recovering-count-cells", &place, FallbackConfig::new().count_offline());
    cache.set("n", "5").await.unwrap();
    cache.hset("h", "f", "5").await.unwrap();
    place.take_away(&cache).await;
    assert_eq!(cache.decr("n").await.unwrap(), 4);
    assert_eq!(cache.hincr_by("h", "f", 2).await.unwrap(), 7);
    place.give_back_but_forget_nothing(&cache).await;
    assert_eq!(cache.decr("n").await.unwrap(), 3);
    assert_eq!(cache.hincr_by("h", "f", 2).await.unwrap(), 9);
    assert_eq!(place.redis.say("MGET n"), "*1\r\n$1\r\n5\r\n");
    place.forget();
    until(&cache, RedisState::Connected).await;
    assert_eq!(cache.decr("n").await.unwrap(), -1);
    assert_eq!(cache.hincr_by("h", "f", 2).await.unwrap(), 2);
}
