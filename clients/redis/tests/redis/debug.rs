//! What a server does when it is told to (`DEBUG`): it sleeps, for one who asked and for all others, loads
//! its data anew, crashes in the middle of a pipeline, or refuses one command with words that end all
//! those which are under way.

use crate::{
    Warnings, calls, client,
    degraded::{Place, get},
    ms, nothing_older, text, until, until_true,
};
use mainstay_policy::{Effect, Error};
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure, RedisState, Source, Value};
use mainstay_test_support::{Redis, proxy::Direction};
use std::{
    future::IntoFuture,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// Gives orders on a connection that the server knows already, so that it reads them before anything
/// that is sent after this.
fn order(redis: &Redis, orders: &str) -> TcpStream {
    let mut referee = redis.tell("PING");
    let mut pong = [0; 7];
    referee.read_exact(&mut pong).unwrap();
    referee.write_all(format!("{orders}\r\n").as_bytes()).unwrap();
    referee
}

fn build(name: &str, place: &Place, timeout: Duration, fallback: FallbackConfig) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(Redis::url_at(place.proxy.addr()))
        .policy(move |p| p.timeout(timeout).base_delay(ms(10)).recovery_timeout(ms(200)))
        .fallback(fallback)
        .build()
        .unwrap()
}

/// Nobody knows whether it happened, and it was sent once.
fn unknown(error: &Error) {
    assert_eq!((error.effect(), error.attempts()), (Effect::Unknown, 1), "{error:?}");
}

#[tokio::test]
async fn a_sleep_of_less_than_a_second_is_waited_for() {
    let warnings = Warnings::default();
    let _heard = tracing::subscriber::set_default(warnings.clone());
    for (name, fallback) in [("t-nap", FallbackConfig::new()), ("t-nap-off", FallbackConfig::off())]
    {
        let place = Place::new();
        let cache = build(name, &place, ms(1500), fallback);
        cache.set("k", "1").await.unwrap();
        cache.hset("h", "f", "1").await.unwrap();
        let began = Instant::now();
        let _sleep = order(&place.redis, "DEBUG SLEEP 0.2");
        let (one, many, field, there, set, sum) = tokio::join!(
            cache.get_answer::<String>("k"),
            cache.mget_answers::<String>(["k"]),
            cache.hget_answer::<String>("h", "f"),
            cache.exists_answer("k"),
            async { cache.set("l", "1").await },
            cache.incr("n"),
        );
        assert!(began.elapsed() >= ms(150), "it slept");
        let sources = [
            one.unwrap().source,
            many.unwrap()[0].source,
            field.unwrap().source,
            there.unwrap().source,
        ];
        assert_eq!(sources, [Source::Redis; 4], "{name}");
        set.unwrap();
        assert_eq!(sum.unwrap(), 1);
        assert_eq!(place.redis.say("GET l"), "$1\r\n1\r\n");
        let stands = (cache.state(), cache.dirty_keys(), place.proxy.accepted());
        assert_eq!(stands, (RedisState::Connected, 0, 1), "{name}");
    }
    assert_eq!(warnings.of("link"), [""; 0]);
}

#[tokio::test]
async fn memory_answers_for_a_server_asleep_and_what_it_does_as_it_wakes_is_deleted() {
    let place = Place::new();
    let cache = client("t-asleep", place.proxy.addr());
    for key in ["seen", "text", "gone"] {
        cache.set(key, "old").await.unwrap();
    }
    cache.hset("hash", "f", "old").await.unwrap();
    let began = Instant::now();
    let _sleep = order(&place.redis, "DEBUG SLEEP 4");
    let here = async {
        let (seen, text, gone, field) = tokio::join!(
            get(&cache, "seen"),
            async { cache.set("text", "new").await },
            cache.del("gone"),
            cache.hset("hash", "f", "new"),
        );
        assert!(began.elapsed() < ms(3_500), "memory takes over: {:?}", began.elapsed());
        assert_eq!(seen, (Some("old".into()), Source::Fallback));
        text.unwrap();
        gone.unwrap();
        field.unwrap();
    };
    let (sum, ()) = tokio::join!(cache.incr("n"), here);
    unknown(&sum.unwrap_err());
    assert_eq!(cache.state(), RedisState::Degraded);
    assert_eq!(get(&cache, "text").await, (Some("new".into()), Source::Fallback));
    // It wakes, does all that it was sent, and is told to forget it.
    let mut recovered = false;
    until_true("recovered", ms(10_000), async || {
        recovered |= cache.state() == RedisState::Connected;
        nothing_older(&cache).await;
        recovered
    })
    .await;
    assert_eq!(place.redis.say("EXISTS text gone hash"), ":0\r\n");
    assert_eq!(get(&cache, "text").await, (None, Source::Redis));
    assert_eq!(get(&cache, "seen").await, (Some("old".into()), Source::Redis));
    assert_eq!(calls(&place.redis, "set"), 4, "the late one ran");
    assert_eq!(calls(&place.redis, "hset"), 2);
    assert_eq!(place.redis.say("GET n"), "$1\r\n1\r\n", "once");
}

/// For so long that the connection is given up, with what it had under way.
#[tokio::test]
async fn without_a_fallback_a_long_sleep_leaves_a_count_unknown_and_a_new_connection() {
    let place = Place::new();
    let client = build("t-deep-sleep", &place, ms(1_000), FallbackConfig::off());
    until(&client, RedisState::Connected).await;
    client.set("k", "1").await.unwrap();
    let before = place.proxy.accepted();
    let _sleep = order(&place.redis, "DEBUG SLEEP 8");
    unknown(&client.incr("n").await.unwrap_err());
    client.get::<String>("k").await.unwrap_err();
    place.proxy.until("another connection", |proxy| proxy.accepted() > before).await;
    until(&client, RedisState::Connected).await;
    assert_eq!(client.get::<i64>("n").await.unwrap(), Some(1));
    assert_eq!(calls(&place.redis, "incrby"), 1);
    assert_eq!(client.incr("n").await.unwrap(), 2);
}

#[tokio::test]
async fn who_sends_the_server_to_sleep_is_not_answered_and_the_others_are_from_memory() {
    let place = Place::new();
    let cache = client("t-own-sleep", place.proxy.addr());
    cache.set("k", "old").await.unwrap();
    let sent = place.proxy.arrived(Direction::Requests);
    let sleep = tokio::spawn(cache.run("DEBUG").arg("SLEEP").arg(4).into_future());
    place.proxy.until("it is sent", |proxy| proxy.arrived(Direction::Requests) > sent).await;
    cache.set("k", "new").await.unwrap();
    assert_eq!(get(&cache, "k").await, (Some("new".into()), Source::Fallback));
    // What DEBUG may have changed memory does not tell.
    assert_eq!(get(&cache, "other").await, (None, Source::Nobody));
    unknown(&sleep.await.unwrap().unwrap_err());
    until(&cache, RedisState::Connected).await;
    assert_eq!(calls(&place.redis, "debug"), 1);
    assert_eq!(get(&cache, "k").await, (None, Source::Redis), "deleted");
}

#[tokio::test]
async fn a_server_that_falls_asleep_in_a_recovery_has_acknowledged_nothing() {
    let place = Place::new();
    let cache = client("t-sleepy-recovery", place.proxy.addr());
    place.take_away(&cache).await;
    cache.set("k", "new").await.unwrap();
    place.ok("SET k other");
    place.give_back_but_forget_nothing(&cache).await;
    // The next DEL finds it allowed, and the server asleep.
    let _sleep = order(&place.redis, "ACL SETUSER default +del +hdel\r\nDEBUG SLEEP 4");
    until(&cache, RedisState::Degraded).await;
    assert_eq!(cache.dirty_keys(), 1);
    assert_eq!(get(&cache, "k").await, (Some("new".into()), Source::Fallback));
    until_true("told", ms(10_000), async || {
        let told = cache.state() == RedisState::Connected;
        let read = text(&cache, "k").await;
        assert!(read.is_none() || read.as_deref() == Some("new"), "{read:?}");
        told
    })
    .await;
    assert_eq!(get(&cache, "k").await, (None, Source::Redis));
    assert_eq!(place.redis.say("EXISTS k"), ":0\r\n");
    let deletions = calls(&place.redis, "del");
    assert!(deletions >= 2, "as it woke, and once more to be sure: {deletions}");
}

#[tokio::test]
async fn memory_answers_for_a_server_that_loads_its_data() {
    let redis = Redis::start();
    let cache = client("t-reloading", redis.address());
    for key in ["seen", "k"] {
        cache.set(key, "old").await.unwrap();
    }
    for order in [
        "DEBUG POPULATE 1000 other 200",
        "CONFIG SET loading-process-events-interval-bytes 1024",
        "CONFIG SET key-load-delay 3000",
    ] {
        assert_eq!(redis.say(order), "+OK\r\n");
    }
    let _reload = order(&redis, "DEBUG RELOAD");
    until_true("loading", ms(30_000), async || {
        let (value, source) = get(&cache, "seen").await;
        assert_eq!(value.as_deref(), Some("old"), "{source:?}");
        source == Source::Fallback
    })
    .await;
    assert!(redis.say("GET k").starts_with("-LOADING"));
    cache.set("k", "new").await.unwrap();
    assert_eq!(get(&cache, "k").await, (Some("new".into()), Source::Fallback));
    assert!(cache.health_check().await.detail.contains("LOADING"));
    until(&cache, RedisState::Connected).await;
    assert_eq!(get(&cache, "k").await, (None, Source::Redis), "deleted");
    assert_eq!(redis.say("EXISTS k"), ":0\r\n");
    assert_eq!(get(&cache, "seen").await, (Some("old".into()), Source::Redis));
}

#[tokio::test]
async fn a_pipeline_in_which_the_server_ends_may_have_been_done() {
    for way in ["SEGFAULT", "RESTART"] {
        let mut redis = Redis::start();
        let cache = client(&format!("t-ends-{way}"), redis.address());
        cache.set("k", "old").await.unwrap();
        let pipeline = cache.pipeline([
            cache.run("INCR").key("n"),
            cache.run("DEBUG").arg(way),
            cache.run("INCR").key("n"),
        ]);
        unknown(&pipeline.await.unwrap_err());
        cache.set("k", "new").await.unwrap();
        if way == "SEGFAULT" {
            redis.restart();
        }
        until_true("up again", ms(10_000), async || {
            cache.incr("n").await.is_ok_and(|sum| sum == 1)
        })
        .await;
        until(&cache, RedisState::Connected).await;
        assert_eq!(redis.say("EXISTS k"), ":0\r\n", "{way}");
    }
}

/// What one command is answered with while another one is under way behind it, which is done.
#[tokio::test]
async fn an_answer_that_ends_a_connection_leaves_what_was_under_way_unknown() {
    // Whether the connection goes with it.
    for (said, ends) in [
        ("NOAUTH Authentication required.", true),
        ("CLUSTERDOWN The cluster is down", true),
        ("READONLY You can't write against a read only replica.", true),
        ("LOADING Redis is loading the dataset in memory", false),
        ("MISCONF Redis is configured to save", false),
        ("NOPERM this user has no permissions", false),
    ] {
        let place = Place::new();
        let code = said.split(' ').next().unwrap();
        let cache = build(&format!("t-said-{code}"), &place, ms(1500), FallbackConfig::new());
        cache.set("k", "old").await.unwrap();
        place.proxy.set(|faults| faults.replies.hold = true);
        let (told, sum, set, ()) = tokio::join!(
            cache.run("DEBUG").arg("ERROR").arg(said).into_future(),
            cache.incr("n"),
            async { cache.set("k", "new").await },
            async {
                let done = async || place.redis.say("GET k") == "$3\r\nnew\r\n";
                until_true("done", ms(30_000), done).await;
                place.proxy.heal();
            },
        );
        let told = told.unwrap_err();
        assert_eq!(told.is_outcome_unknown(), matches!(code, "NOAUTH" | "CLUSTERDOWN"), "{told:?}");
        let failure = told.downcast_ref::<RedisFailure>().unwrap();
        assert_eq!(failure.is_auth(), code == "NOAUTH", "{told:?}");
        // The neighbours.
        match sum {
            Ok(sum) => assert_eq!(sum, 1, "{code}"),
            Err(error) => unknown(&error),
        }
        // Who refuses the credentials is not away.
        assert_eq!(set.is_err(), code == "NOAUTH", "{code}: {set:?}");
        if let Err(error) = set {
            assert!(error.is_outcome_unknown(), "{error:?}");
        }
        until(&cache, RedisState::Connected).await;
        let read = text(&cache, "k").await;
        assert!(read.as_deref() != Some("old"), "{code}");
        assert_eq!(cache.incr("n").await.unwrap(), 2, "{code}: counted once");
        assert_eq!(place.proxy.accepted(), if ends { 2 } else { 1 }, "{code}");
        assert_eq!(cache.run("ECHO").arg("1").await.unwrap(), Value::Bytes("1".into()));
    }
}
