//! The commands against a server, each by what the server then holds.

use crate::{client, degraded::Place};
use futures_util::{FutureExt, TryStreamExt};
use mainstay_redis::{Json, RedisClient, RedisFailure, Source, Ttl, Value};
use mainstay_test_support::Redis;
use std::{collections::HashMap, future::IntoFuture, time::Duration};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn failure(error: &mainstay_policy::Error) -> &RedisFailure {
    error.downcast_ref().unwrap()
}

#[tokio::test]
async fn values_counters_and_lifetimes() {
    let redis = Redis::start();
    let cache = client("t-strings", redis.address());
    cache.set("k", "1").ttl(secs(60)).await.unwrap();
    cache.set("k", "2").keep_ttl().await.unwrap();
    assert!(matches!(cache.ttl("k").await.unwrap(), Ttl::Left(left) if left > secs(50)));
    assert!(cache.persist("k").await.unwrap());
    assert!(!cache.persist("k").await.unwrap());
    assert_eq!(cache.ttl("k").await.unwrap(), Ttl::Forever);
    assert!(cache.expire("k", secs(5)).await.unwrap());
    assert!(!cache.expire("none", secs(5)).await.unwrap());
    assert_eq!(cache.ttl("none").await.unwrap(), Ttl::Missing);
    assert!(cache.exists("k").await.unwrap() && !cache.exists("none").await.unwrap());

    assert!(cache.set_if_absent("lock", "me").ttl(secs(50)).await.unwrap());
    assert!(!cache.set_if_absent("lock", "you").await.unwrap());
    assert!(!cache.set_if_present("none", "1").await.unwrap());
    assert!(cache.set_if_present("lock", "still me").ttl(secs(90)).await.unwrap());
    assert_eq!(redis.say("GET lock"), "$8\r\nstill me\r\n");
    assert!(matches!(cache.ttl("lock").await.unwrap(), Ttl::Left(left) if left > secs(60)));
    assert_eq!(cache.get_set::<String>("lock", "x").await.unwrap().as_deref(), Some("still me"));
    assert_eq!(cache.get_del::<String>("lock").await.unwrap().as_deref(), Some("x"));
    assert_eq!(cache.get_del::<String>("lock").await.unwrap(), None);

    assert_eq!(cache.incr("n").await.unwrap(), 1);
    assert_eq!(cache.incr_by("n", 41).await.unwrap(), 42);
    assert_eq!(cache.decr("n").await.unwrap(), 41);
    assert_eq!(cache.get::<i64>("n").await.unwrap(), Some(41));
    cache.set("n", i64::MAX).await.unwrap();
    let over = cache.incr("n").await.unwrap_err();
    assert!(failure(&over).is_not_a_number(), "{over:?}");
    cache.set("text", "x").await.unwrap();
    assert!(failure(&cache.incr("text").await.unwrap_err()).is_not_a_number());
    assert_eq!(cache.get::<i64>("text").await.unwrap_err().attempts(), 0, "our own refusal");
}

#[tokio::test]
async fn hashes() {
    let redis = Redis::start();
    let cache = client("t-hashes", redis.address());
    cache.hset("h", "a", "1").await.unwrap();
    assert_eq!(cache.hincr_by("h", "a", 4).await.unwrap(), 5);
    cache.hset("h", "b", Json(vec![1, 2])).await.unwrap();
    let all = cache.hgetall_answer::<String>("h").await.unwrap();
    let want = [("a", "5"), ("b", "[1,2]")].map(|(f, v)| (f.to_owned(), v.to_owned()));
    assert_eq!((all.value, all.source), (HashMap::from(want), Source::Redis));
    assert!(cache.hgetall::<String>("none").await.unwrap().is_empty());
    cache.set("k", "1").await.unwrap();
    for error in [
        cache.hgetall::<String>("k").await.unwrap_err(),
        cache.hset("k", "f", "1").await.unwrap_err(),
        cache.hincr_by("k", "f", 1).await.unwrap_err(),
        cache.incr("h").await.unwrap_err(),
        cache.get::<String>("h").await.unwrap_err(),
    ] {
        assert!(failure(&error).is_wrong_type(), "{error:?}");
        assert!(failure(&error).to_string().contains("another type"), "{error:?}");
    }
}

#[tokio::test]
async fn several_keys_and_all_keys_under_a_prefix() {
    let redis = Redis::start();
    let cache = RedisClient::builder()
        .name("t-many")
        .url(redis.url())
        .key_prefix("sh[o]p*:")
        .build()
        .unwrap();
    cache.mset((0..600).map(|n| (format!("k{n}"), n))).await.unwrap();
    cache.hset("h", "f", "1").await.unwrap();
    assert_eq!(
        cache.mget::<i32>(["k1", "none", "h", "k599"]).await.unwrap(),
        [Some(1), None, None, Some(599)]
    );
    assert_eq!(redis.say("GET sh[o]p*:k7"), "$1\r\n7\r\n");
    assert_eq!(redis.say("SET shop:k1 other"), "+OK\r\n");
    assert_eq!(redis.say("SET k1 other"), "+OK\r\n");
    let mut keys: Vec<String> = cache.scan("k*").try_collect().await.unwrap();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 600, "ours and no others");
    assert!(keys.contains(&"k599".to_owned()), "without the prefix");
    let one: Vec<String> = cache.scan("h").try_collect().await.unwrap();
    assert_eq!(one, ["h"]);
}

#[tokio::test]
async fn json_goes_in_and_comes_out() {
    let redis = Redis::start();
    let cache = client("t-json", redis.address());
    let user = HashMap::from([("name".to_owned(), "s3cret".to_owned())]);
    cache.set_json("user", &user).ttl(secs(60)).await.unwrap();
    assert_eq!(cache.get_json::<HashMap<String, String>>("user").await.unwrap(), Some(user));
    let wrong = cache.get_json::<Vec<u32>>("user").await.unwrap_err();
    let text = format!("{wrong:?} {}", mainstay_policy::report(&wrong));
    assert!(text.contains("not the JSON") && !text.contains("s3cret"), "{text}");
    let none = cache.set_json("map", &HashMap::from([((1, 2), 3)])).await.unwrap_err();
    assert!(none.to_string().contains("cannot be written as JSON"), "{none}");
}

#[tokio::test]
async fn any_other_command_and_several_in_one_round_trip() {
    let redis = Redis::start();
    let cache = client("t-run", redis.address());
    let length = cache.run("lpush").key("list").arg("a").arg("b").await.unwrap();
    assert_eq!(length.as_integer(), Some(2));
    let list = cache.run("LRANGE").key("list").arg(0).arg(-1).await.unwrap();
    assert!(matches!(&list, Value::Array(items) if items.len() == 2), "{list:?}");
    assert_eq!(format!("{list:?}"), "Array([Bytes(1 bytes), Bytes(1 bytes)])");
    let script = "return redis.call('INCRBY', KEYS[1], ARGV[1])";
    let sum = cache.run("EVAL").arg(script).arg(1).key("n").arg(5).await.unwrap();
    assert_eq!(sum.to::<i64>().unwrap(), Some(5));
    let results = cache
        .pipeline([
            cache.run("INCR").key("n"),
            cache.run("HGET").key("list").arg("f"),
            cache.run("GET").key("none"),
        ])
        .await
        .unwrap();
    assert_eq!(results[0].as_ref().unwrap().as_integer(), Some(6));
    assert!(failure(results[1].as_ref().unwrap_err()).is_wrong_type());
    assert_eq!(results[2].as_ref().unwrap(), &Value::Nil);
    assert!(cache.pipeline([]).await.unwrap().is_empty());
    for (run, word) in [
        (cache.run("BLPOP").key("list").arg(0), "BLPOP would block"),
        (cache.run("multi"), "MULTI would block or change"),
        (cache.run("XREAD").arg("BLOCK").arg(0).arg("STREAMS").key("s").arg("$"), "blocking XREAD"),
        (cache.run("CONFIG GET").arg("*"), "one word"),
        (cache.run(""), "one word"),
    ] {
        let error = run.await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    let unknown = cache.run("NOSUCH").arg("s3cret").await.unwrap_err();
    assert!(!format!("{unknown:?} {unknown}").contains("s3cret"), "{unknown:?}");
    assert_eq!(unknown.attempts(), 1);
}

/// What `run` changes is not remembered by the fallback, also when it is not said to be a key.
#[tokio::test]
async fn memory_forgets_what_other_commands_may_have_changed() {
    let mut redis = Redis::start();
    let cache = client("t-forget", redis.address());
    for key in ["a", "b", "c", "d"] {
        cache.set(key, "old").await.unwrap();
    }
    cache.run("SET").key("a").arg("new").await.unwrap();
    cache.run("SET").arg("b").arg("new").await.unwrap();
    assert_eq!(cache.get_set::<String>("c", "new").await.unwrap().as_deref(), Some("old"));
    redis.hang();
    for (key, source) in [
        ("a", Source::Nobody),
        ("b", Source::Nobody),
        ("c", Source::Nobody),
        ("d", Source::Fallback),
    ] {
        assert_eq!(cache.get_answer::<String>(key).await.unwrap().source, source, "{key}");
    }
    redis.resume();
}

/// It may happen yet.
#[tokio::test]
async fn memory_forgets_what_a_command_may_change_whose_caller_left() {
    let place = Place::new();
    let cache = client("t-forget-dropped", place.proxy.addr());
    cache.set("k", "old").await.unwrap();
    assert!(cache.run("SET").key("k").arg("new").into_future().now_or_never().is_none());
    place.take_away(&cache).await;
    assert_eq!(cache.get_answer::<String>("k").await.unwrap().source, Source::Nobody);
}

/// Keys that a command does not name may be any.
#[tokio::test]
async fn memory_forgets_all_that_commands_without_keys_may_have_changed() {
    let place = Place::new();
    let cache = client("t-forget-all", place.proxy.addr());
    let script = "return redis.call('SET', 'k', 'new')";
    let hash = cache.run("SCRIPT").arg("LOAD").arg(script).await.unwrap().to::<String>();
    let hash = hash.unwrap().unwrap();
    let library = format!("#!lua name=l\nredis.register_function('f', function() {script} end)");
    cache.run("FUNCTION").arg("LOAD").arg(library).await.unwrap();
    for (command, arguments) in [
        ("FLUSHALL", &[][..]),
        ("FLUSHDB", &[]),
        ("SWAPDB", &["0", "1"]),
        ("DEBUG", &["SLEEP", "0"]),
        ("EVAL", &[script, "0"]),
        ("EVALSHA", &[&hash, "0"]),
        ("FCALL", &["f", "0"]),
    ] {
        cache.set("k", "old").await.unwrap();
        cache.hset("h", "f", "old").await.unwrap();
        let run = arguments.iter().fold(cache.run(command), |run, argument| run.arg(*argument));
        run.await.unwrap();
        place.take_away(&cache).await;
        let told = cache.get_answer::<String>("k").await.unwrap();
        assert_eq!((told.value, told.source), (None, Source::Nobody), "{command}");
        let told = cache.hget_answer::<String>("h", "f").await.unwrap();
        assert_eq!((told.value, told.source), (None, Source::Nobody), "{command}");
        place.give_back(&cache).await;
    }
    for run in [
        cache.run("EVAL").arg("return 1").arg(1).key("other"),
        cache.run("EVAL_RO").arg("return 1").arg(0),
    ] {
        cache.set("k", "old").await.unwrap();
        run.await.unwrap();
        place.take_away(&cache).await;
        assert_eq!(cache.get_answer::<String>("k").await.unwrap().source, Source::Fallback);
        place.give_back(&cache).await;
    }
    cache.pipeline([cache.run("SET").key("k").arg("new"), cache.run("PING")]).await.unwrap();
    place.take_away(&cache).await;
    assert_eq!(cache.get_answer::<String>("k").await.unwrap().source, Source::Nobody);
}

#[tokio::test]
async fn keys_fields_and_values_have_limits() {
    let redis = Redis::start();
    let cache = RedisClient::builder()
        .name("t-limits")
        .url(redis.url())
        .max_key_bytes(10)
        .max_value_bytes(20)
        .build()
        .unwrap();
    let (long, large) = ("s3cret-and-too-long", "s3cret that is longer than that");
    for error in [
        cache.set(long, "1").await.unwrap_err(),
        cache.get::<String>(long).await.unwrap_err(),
        cache.hset("h", long, "1").await.unwrap_err(),
        cache.set("k", large).await.unwrap_err(),
        cache.hset("h", "f", large).await.unwrap_err(),
        cache.mset([("k", large)]).await.unwrap_err(),
        cache.run("LPUSH").key("l").arg(large).await.unwrap_err(),
        cache.set_if_absent("k", large).await.unwrap_err(),
    ] {
        let text = format!("{error:?} {error}");
        assert!(text.contains("over the limit of") && text.contains("raise max_"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    for error in [
        cache.expire("k", Duration::ZERO).await.unwrap_err(),
        cache.set("k", "1").ttl(Duration::ZERO).await.unwrap_err(),
        cache.set("k", "1").ttl(Duration::MAX).await.unwrap_err(),
        cache.set_if_absent("k", "1").ttl(Duration::MAX).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("lifetime (ttl)"), "{error}");
    }
    let both = cache.set("k", "1").ttl(secs(1)).keep_ttl().await.unwrap_err();
    assert!(both.to_string().contains("use one"), "{both}");
    assert_eq!(redis.say("DBSIZE"), ":0\r\n");
}

#[tokio::test]
async fn a_replica_is_degraded() {
    let redis = Redis::start();
    let cache = client("t-role", redis.address());
    let health = cache.health_check().await;
    assert_eq!(health.detail, "PING answered by a master; Redis answers");
    assert_eq!(redis.say("REPLICAOF 127.0.0.1 1"), "+OK\r\n");
    let health = cache.health_check().await;
    assert!(health.detail.contains("replica"), "{}", health.detail);
    assert_eq!(health.status, mainstay_policy::HealthStatus::Degraded);
}
