//! A command whose answer is lost is sent again only if that does no harm, however often the policy
//! would. One that nobody waits for any more may go out, before all that its client writes after it.

use crate::{client, ms, text, until};
use futures_util::FutureExt;
use mainstay_policy::{Effect, Error};
use mainstay_redis::{FallbackConfig, RedisClient, RedisState};
use mainstay_test_support::{Proxy, Redis, proxy::Direction};
use std::{fmt::Debug, future::IntoFuture};

/// A server and a client that would send again and again.
struct Place {
    redis: Redis,
    proxy: Proxy,
    client: RedisClient,
}

impl Place {
    fn new(name: &str) -> Self {
        let redis = Redis::start();
        let proxy = Proxy::in_front_of(redis.address());
        let client = RedisClient::builder()
            .name(name)
            .url(Redis::url_at(proxy.addr()))
            .policy(|p| {
                let p = p.max_attempts(30).base_delay(ms(40)).max_delay(ms(100));
                p.enable_budget(false).enable_circuit_breaker(false)
            })
            .fallback(FallbackConfig::off())
            .build()
            .unwrap();
        Self { redis, proxy, client }
    }

    /// How this call ends, whose first answer is lost, and how often the server was asked.
    async fn loses_the_answer<T>(
        &self,
        command: &str,
        call: impl IntoFuture<Output = Result<T, Error>>,
    ) -> (Result<T, Error>, u32) {
        until(&self.client, RedisState::Connected).await;
        assert_eq!(self.redis.say("CONFIG RESETSTAT"), "+OK\r\n");
        self.proxy.lose_next_reply();
        let end = call.await;
        let stats = self.redis.say("INFO commandstats");
        let calls = stats.split(&format!("cmdstat_{command}:calls=")).nth(1).unwrap();
        (end, calls.split(',').next().unwrap().parse().unwrap())
    }

    async fn once<T: Debug>(
        &self,
        command: &str,
        call: impl IntoFuture<Output = Result<T, Error>>,
    ) {
        let (end, asked) = self.loses_the_answer(command, call).await;
        let error = end.unwrap_err();
        let seen = (error.effect(), error.attempts(), asked);
        assert_eq!(seen, (Effect::Unknown, 1, 1), "{command}: {error:?}");
    }
}

#[tokio::test]
async fn what_would_happen_twice_is_not_sent_again() {
    let place = Place::new("t-once");
    let cache = &place.client;
    cache.mset([("token", "1"), ("replaced", "1"), ("present", "1")]).await.unwrap();
    place.once("incrby", cache.incr("n")).await;
    place.once("incrby", cache.decr("m")).await;
    place.once("hincrby", cache.hincr_by("h", "f", 1)).await;
    place.once("getdel", cache.get_del::<String>("token")).await;
    place.once("set", cache.get_set::<String>("replaced", "2")).await;
    place.once("set", cache.set_if_absent("absent", "1")).await;
    place.once("set", cache.set_if_present("present", "2")).await;
    place.once("lpush", cache.run("LPUSH").key("l").arg("1")).await;
    // One of them is enough. The others may not have been sent yet when the first is answered.
    let mixed = [cache.run("INCR").key("o"), cache.run("GET").key("k")];
    place.once("incr", cache.pipeline(mixed)).await;
    assert_eq!(cache.mget::<i64>(["n", "m", "o"]).await.unwrap(), [Some(1), Some(-1), Some(1)]);
}

#[tokio::test]
async fn what_leaves_the_same_state_is_sent_again() {
    let place = Place::new("t-again");
    let cache = &place.client;
    let (kept, asked) = place.loses_the_answer("set", cache.set("k", "1").keep_ttl()).await;
    kept.unwrap();
    assert_eq!(asked, 2);
    let safe = [cache.run("HSET").key("h").arg("f").arg("1"), cache.run("GET").key("k")];
    let (done, asked) = place.loses_the_answer("hset", cache.pipeline(safe)).await;
    assert!(done.unwrap().iter().all(Result::is_ok));
    assert_eq!(asked, 2);
}

/// Its caller is gone, and it goes out all the same.
#[tokio::test]
async fn a_write_that_is_dropped_is_sent_before_the_next_one() {
    let place = Place::new("t-dropped");
    let (cache, proxy) = (&place.client, &place.proxy);
    until(cache, RedisState::Connected).await;
    proxy.set(|faults| faults.hold());
    let sent = proxy.arrived(Direction::Requests);
    assert!(cache.set("k", "dropped").into_future().now_or_never().is_none());
    proxy.until("the SET", |proxy| proxy.arrived(Direction::Requests) > sent).await;
    proxy.heal();
    cache.set("k", "next").await.unwrap();
    assert_eq!(place.redis.say("GET k"), "$4\r\nnext\r\n");
    assert!(place.redis.say("INFO commandstats").contains("cmdstat_set:calls=2,"));
}

/// The driver has it, and a connection that is gone, which nobody knows yet.
#[tokio::test]
async fn a_write_that_is_dropped_in_an_outage_undoes_nothing_that_was_written_in_it() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let cache = client("t-dropped-away", proxy.addr());
    cache.set("k", "old").await.unwrap();
    proxy.refuse();
    proxy.cut();
    assert_eq!(cache.state(), RedisState::Connected);
    assert!(cache.set("k", "dropped").into_future().now_or_never().is_none());
    cache.set("k", "next").await.unwrap();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("next"));
    proxy.listen();
    until(&cache, RedisState::Connected).await;
    assert_eq!(text(&cache, "k").await, None, "deleted");
    assert_eq!(redis.say("EXISTS k"), ":0\r\n");
}
