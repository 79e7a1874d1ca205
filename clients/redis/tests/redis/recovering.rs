//! The last column of the table in the crate's documentation, cell by cell: the server is back, but is
//! not allowed to delete what was written meanwhile, so that it stays at that.

use crate::{
    client,
    degraded::{Place, get, is_unavailable},
    load::Source as Loader,
    ms, until, until_true,
};
use mainstay_redis::{FallbackConfig, RedisClient, RedisState, Source, Ttl, Value};
use std::{future::IntoFuture, sync::Arc, time::Duration};
use tokio::task::JoinHandle;

const MINUTE: Duration = Duration::from_secs(60);

impl Place {
    pub(crate) fn ok(&self, command: &str) {
        assert_eq!(self.redis.say(command), "+OK\r\n", "{command}");
    }

    pub(crate) async fn give_back_but_forget_nothing(&self, cache: &RedisClient) {
        self.ok("ACL SETUSER default -del -hdel");
        self.proxy.listen();
        until(cache, RedisState::Recovering).await;
    }

    pub(crate) fn forget(&self) {
        self.ok("ACL SETUSER default +del +hdel");
    }
}

#[tokio::test]
async fn reads_of_what_was_written_are_answered_here_and_all_others_by_the_server() {
    let place = Place::new();
    let cache = client("t-recovering-reads", place.proxy.addr());
    cache.hset("h", "g", "old").await.unwrap();
    place.take_away(&cache).await;
    cache.set("text", "new").ttl(MINUTE).await.unwrap();
    cache.del("gone").await.unwrap();
    cache.hset("h", "f", "new").await.unwrap();
    cache.del("whole").await.unwrap();
    cache.hset("whole", "f", "new").await.unwrap();
    // Somebody else's, all of it older for this client than its own.
    place.ok("MSET text other gone other clean other");
    assert_eq!(place.redis.say("HSET h f other"), ":1\r\n");
    assert_eq!(place.redis.say("HSET whole f other e other"), ":2\r\n");
    place.give_back_but_forget_nothing(&cache).await;

    assert_eq!(get(&cache, "text").await, (Some("new".into()), Source::Fallback));
    assert_eq!(get(&cache, "gone").await, (None, Source::Fallback));
    assert_eq!(get(&cache, "clean").await, (Some("other".into()), Source::Redis));
    let many = cache.mget_answers::<String>(["text", "gone", "clean"]).await.unwrap();
    let many: Vec<_> = many.into_iter().map(|answer| (answer.value, answer.source)).collect();
    let (new, other) = (Some("new".to_owned()), Some("other".to_owned()));
    let local = Source::Fallback;
    assert_eq!(many, [(new.clone(), local), (None, local), (other, Source::Redis)]);
    let field = async |key: &str, field: &str| {
        let answer = cache.hget_answer::<String>(key, field).await.unwrap();
        (answer.value, answer.source)
    };
    assert_eq!(field("h", "f").await, (new.clone(), local));
    assert_eq!(field("h", "g").await, (Some("old".into()), Source::Redis));
    assert_eq!(field("whole", "e").await, (None, local));
    for (key, there) in [("text", true), ("gone", false), ("h", true), ("whole", true)] {
        let answer = cache.exists_answer(key).await.unwrap();
        assert_eq!((answer.value, answer.source), (there, local), "{key}");
    }
    assert_eq!(cache.exists_answer("clean").await.unwrap().source, Source::Redis);
    let left = cache.ttl_answer("text").await.unwrap();
    assert!(matches!(left.value, Ttl::Left(left) if left <= MINUTE), "{left:?}");
    assert_eq!(left.source, local);
    let gone = cache.ttl_answer("gone").await.unwrap();
    assert_eq!((gone.value, gone.source), (Ttl::Missing, local));
    let clean = cache.ttl_answer("clean").await.unwrap();
    assert_eq!((clean.value, clean.source), (Ttl::Forever, Source::Redis));
    let whole = cache.hgetall_answer::<String>("whole").await.unwrap();
    assert_eq!((whole.value.get("f"), whole.source), (new.as_ref(), local));
    assert_eq!(whole.value.len(), 1);
    assert!(is_unavailable(&cache.hgetall::<String>("h").await.unwrap_err()), "waited in vain");
    // No key is named.
    let keys: Vec<String> = futures_util::TryStreamExt::try_collect(cache.scan("*")).await.unwrap();
    assert_eq!(keys.len(), 5, "{keys:?}");

    place.forget();
    until(&cache, RedisState::Connected).await;
    for key in ["text", "gone", "whole"] {
        assert_eq!(place.redis.say(&format!("EXISTS {key}")), ":0\r\n", "{key}");
        assert_eq!(get(&cache, key).await, (None, Source::Redis), "{key}");
    }
    assert_eq!(field("h", "f").await, (None, Source::Redis));
    assert_eq!(field("h", "g").await, (Some("old".into()), Source::Redis));
}

#[tokio::test]
async fn writes_of_what_was_written_are_kept_here_and_all_others_are_sent() {
    let place = Place::new();
    let cache = client("t-recovering-writes", place.proxy.addr());
    place.take_away(&cache).await;
    for key in ["set", "many", "deleted", "lived", "stays"] {
        cache.set(key, "1").ttl(MINUTE).await.unwrap();
    }
    cache.hset("h", "f", "1").await.unwrap();
    cache.hset("h", "g", "1").await.unwrap();
    place.ok("MSET set other many other deleted other lived other stays other");
    place.give_back_but_forget_nothing(&cache).await;

    cache.set("set", "2").await.unwrap();
    cache.mset([("many", "2"), ("clean", "2")]).await.unwrap();
    assert!(cache.del("deleted").await.unwrap());
    assert!(cache.expire("lived", ms(9_000)).await.unwrap());
    assert!(cache.persist("stays").await.unwrap());
    cache.hset("h", "f", "2").await.unwrap();
    assert!(cache.hdel("h", "g").await.unwrap());
    for (key, value) in [("set", Some("2")), ("many", Some("2")), ("deleted", None)] {
        assert_eq!(get(&cache, key).await, (value.map(str::to_owned), Source::Fallback), "{key}");
    }
    let left = cache.ttl_answer("lived").await.unwrap();
    assert!(matches!(left.value, Ttl::Left(left) if left <= ms(9_000)), "{left:?}");
    assert_eq!(cache.ttl("stays").await.unwrap(), Ttl::Forever);
    assert_eq!(cache.hget::<String>("h", "f").await.unwrap().as_deref(), Some("2"));
    assert_eq!(cache.hget::<String>("h", "g").await.unwrap(), None);
    let server = place.redis.say("MGET set many deleted lived stays clean");
    assert_eq!(server.matches("other").count(), 5, "{server}");
    assert_eq!(get(&cache, "clean").await, (Some("2".into()), Source::Redis));

    place.forget();
    until(&cache, RedisState::Connected).await;
    assert_eq!(place.redis.say("EXISTS set many deleted lived stays h"), ":0\r\n");
    assert_eq!(get(&cache, "clean").await, (Some("2".into()), Source::Redis));
}

#[tokio::test]
async fn a_write_while_its_key_is_being_deleted_waits_and_is_sent() {
    let place = Place::new();
    let cache = client("t-draining", place.proxy.addr());
    for many in [false, true] {
        place.take_away(&cache).await;
        cache.set("k", "1").await.unwrap();
        place.ok("SET k other");
        place.proxy.set(|faults| faults.replies.latency = ms(300));
        place.proxy.listen();
        let deleted = async || place.redis.say("EXISTS k") == ":0\r\n";
        until_true("deleted", ms(10_000), deleted).await;
        // The answer to that is on its way still.
        assert_eq!(cache.dirty_keys(), 1);
        if many {
            cache.mset([("clean", "2"), ("k", "2")]).await.unwrap();
        } else {
            cache.set("k", "2").await.unwrap();
        }
        assert_eq!(cache.dirty_keys(), 0);
        assert_eq!(place.redis.say("GET k"), "$1\r\n2\r\n");
        place.proxy.heal();
    }
    assert_eq!(place.redis.say("GET clean"), "$1\r\n2\r\n");
}

/// A load that has begun.
async fn loading(
    cache: &RedisClient,
    source: &Arc<Loader>,
) -> JoinHandle<Result<String, mainstay_policy::Error>> {
    let (cache, loader) = (cache.clone(), Arc::clone(source));
    let load = async move { cache.get_or_load("k", MINUTE, move || loader.load()).await };
    let load = tokio::spawn(load);
    source.begun.notified().await;
    load
}

#[tokio::test]
async fn what_is_loaded_while_a_write_waits_is_not_stored_over_it() {
    let (place, source) = (Place::new(), Arc::<Loader>::default());
    let cache = client("t-load-waiting", place.proxy.addr());
    place.take_away(&cache).await;
    cache.del("k").await.unwrap();
    place.give_back_but_forget_nothing(&cache).await;
    let write = tokio::spawn(cache.run("SET").key("k").arg("new").into_future());
    let load = loading(&cache, &source).await;
    place.forget();
    assert_eq!(write.await.unwrap().unwrap(), Value::Bytes("OK".into()));
    source.may_end.notify_one();
    assert_eq!(load.await.unwrap().unwrap(), "value 1");
    assert_eq!(place.redis.say("GET k"), "$3\r\nnew\r\n");
}

#[tokio::test]
async fn what_is_loaded_while_its_key_is_being_deleted_is_not_stored_over_a_write() {
    let (place, source) = (Place::new(), Arc::<Loader>::default());
    let cache = client("t-load-draining", place.proxy.addr());
    place.take_away(&cache).await;
    cache.del("k").await.unwrap();
    place.ok("SET k other");
    place.proxy.set(|faults| faults.replies.latency = ms(300));
    place.proxy.listen();
    let deleted = async || place.redis.say("EXISTS k") == ":0\r\n";
    until_true("deleted", ms(10_000), deleted).await;
    // The answer to that is on its way still.
    let write = tokio::spawn(cache.set("k", "new").into_future());
    let load = loading(&cache, &source).await;
    write.await.unwrap().unwrap();
    assert_eq!(cache.dirty_keys(), 0, "it was sent");
    source.may_end.notify_one();
    assert_eq!(load.await.unwrap().unwrap(), "value 1");
    assert_eq!(place.redis.say("GET k"), "$3\r\nnew\r\n");
}

#[tokio::test]
async fn what_only_the_server_may_do_waits_until_it_has_been_told() {
    let place = Place::new();
    let cache = client("t-recovering-waits", place.proxy.addr());
    place.take_away(&cache).await;
    let keys =
        ["count", "absent", "present", "keep", "get_set", "get_del", "run", "pipeline", "never"];
    for key in keys {
        cache.set(key, "41").ttl(MINUTE).await.unwrap();
        place.ok(&format!("SET {key} 100"));
    }
    for key in ["h", "all"] {
        cache.hset(key, "f", "41").await.unwrap();
        assert_eq!(place.redis.say(&format!("HSET {key} f 100 g 5")), ":2\r\n");
    }
    place.give_back_but_forget_nothing(&cache).await;
    for error in [
        cache.incr("never").await.unwrap_err(),
        cache.set_if_absent("never", "1").await.unwrap_err(),
        cache.run("APPEND").key("never").arg("x").await.unwrap_err(),
    ] {
        assert!(is_unavailable(&error), "{error:?}");
    }
    let append = |key| cache.run("APPEND").key(key).arg("x");
    let (count, field, absent, present, keep, set, del, run, pipeline, all, ()) = tokio::join!(
        cache.incr("count"),
        cache.hincr_by("h", "f", 1),
        cache.set_if_absent("absent", "1"),
        cache.set_if_present("present", "1"),
        async { cache.set("keep", "1").keep_ttl().await },
        cache.get_set::<String>("get_set", "1"),
        cache.get_del::<String>("get_del"),
        async { append("run").await },
        cache.pipeline([append("pipeline")]),
        cache.hgetall::<String>("all"),
        // Last, when all of them have begun.
        async { place.forget() },
    );
    assert_eq!(count.unwrap(), 1);
    assert_eq!(field.unwrap(), 1);
    assert!(absent.unwrap());
    assert!(!present.unwrap());
    keep.unwrap();
    assert_eq!(place.redis.say("PTTL keep"), ":-1\r\n");
    assert_eq!(set.unwrap(), None);
    assert_eq!(del.unwrap(), None);
    assert_eq!(run.unwrap(), Value::Integer(1));
    assert_eq!(pipeline.unwrap().remove(0).unwrap(), Value::Integer(1));
    let all = all.unwrap();
    assert_eq!((all.len(), all.get("g").map(String::as_str)), (1, Some("5")));
}

#[tokio::test]
async fn what_changes_all_keys_waits_for_all_of_them() {
    let place = Place::new();
    let cache = client("t-recovering-flush", place.proxy.addr());
    for (command, arguments) in [
        ("FLUSHDB", &[][..]),
        ("FLUSHALL", &[]),
        ("SWAPDB", &["0", "1"]),
        ("DEBUG", &["SLEEP", "0"]),
    ] {
        let run = || arguments.iter().fold(cache.run(command), |run, argument| run.arg(*argument));
        place.take_away(&cache).await;
        cache.set("k", "1").await.unwrap();
        place.give_back_but_forget_nothing(&cache).await;
        let in_vain = run().await.unwrap_err();
        assert!(is_unavailable(&in_vain), "{command}: {in_vain:?}");
        let (done, ()) = tokio::join!(run().into_future(), async { place.forget() });
        done.unwrap();
        assert_eq!(get(&cache, "k").await, (None, Source::Redis), "{command}");
    }
}

#[tokio::test]
async fn what_may_count_here_counts_here_until_the_server_has_been_told() {
    let place = Place::new();
    let counting = FallbackConfig::new().count_offline();
    let cache = RedisClient::builder()
        .name("t-recovering-counts")
        .url(format!("redis://{}", place.proxy.addr()))
        .policy(|p| p.timeout(ms(1500)).base_delay(ms(10)).recovery_timeout(ms(200)))
        .fallback(counting)
        .build()
        .unwrap();
    cache.set("n", "5").await.unwrap();
    place.take_away(&cache).await;
    assert_eq!(cache.incr("n").await.unwrap(), 6);
    place.give_back_but_forget_nothing(&cache).await;
    assert_eq!(cache.incr("n").await.unwrap(), 7);
    place.forget();
    until(&cache, RedisState::Connected).await;
    assert_eq!(cache.incr("n").await.unwrap(), 1);
}

#[tokio::test]
async fn a_loader_is_asked_for_what_was_deleted_and_not_for_what_was_written() {
    let place = Place::new();
    let cache = client("t-recovering-load", place.proxy.addr());
    place.take_away(&cache).await;
    cache.set("written", "1").await.unwrap();
    cache.del("deleted").await.unwrap();
    place.ok("MSET written other deleted other");
    place.give_back_but_forget_nothing(&cache).await;
    let load = async |key: &str| {
        let loader = || async { Ok::<_, std::io::Error>("loaded".to_owned()) };
        cache.get_or_load::<String, _, _, _>(key, MINUTE, loader).await.unwrap()
    };
    assert_eq!(load("written").await, "1");
    assert_eq!(load("deleted").await, "loaded");
    assert_eq!(get(&cache, "deleted").await, (Some("loaded".into()), Source::Fallback));
    assert_eq!(place.redis.say("GET deleted"), "$5\r\nother\r\n");
    place.forget();
    until(&cache, RedisState::Connected).await;
    assert_eq!(place.redis.say("EXISTS written deleted"), ":0\r\n");
}
