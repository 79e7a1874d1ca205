//! What fred does when nobody stops it, and does not do here.

use crate::{ms, pipeline_in_order, strict, until_true};
use mainstay_policy::Effect;
use mainstay_redis::RedisState;
use mainstay_test_support::{
    Proxy, Redis,
    proxy::{Accept, Direction},
};
use std::time::{Duration, Instant};

/// How many SETs the server was sent, by its own count.
fn sets(redis: &Redis) -> u32 {
    let stats = redis.say("INFO commandstats");
    let calls = stats.split("cmdstat_set:calls=").nth(1).and_then(|rest| rest.split(',').next());
    calls.unwrap_or("0").parse().unwrap()
}

#[tokio::test]
async fn a_command_whose_answer_was_lost_is_not_sent_again() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let client = strict("t-replay", &Redis::url_at(proxy.addr()));
    client.get::<String>("k").await.unwrap();
    proxy.lose_next_reply();
    let error = client.set("k", "1").await.unwrap_err();
    assert_eq!(error.effect(), Effect::Unknown, "{error:?}");
    assert_eq!(error.attempts(), 1);
    until_true("connected", ms(5000), async || client.state() == RedisState::Connected).await;
    client.get::<String>("k").await.unwrap();
    assert_eq!(sets(&redis), 1);
}

#[tokio::test]
async fn nothing_is_queued_for_a_server_that_is_away() {
    let mut redis = Redis::start();
    let client = strict("t-queue", &redis.url());
    client.set("k", "1").await.unwrap();
    redis.kill();
    until_true("down", ms(2000), async || client.state() == RedisState::Degraded).await;
    let began = Instant::now();
    for n in 0..1000 {
        if n % 2 == 0 {
            client.set("k", "2").await.unwrap_err();
        } else {
            // A caller who goes away leaves nothing behind either.
            let _ = tokio::time::timeout(Duration::from_micros(50), client.set("k", "2")).await;
        }
    }
    assert!(began.elapsed() < ms(2000), "{:?}", began.elapsed());
    redis.restart();
    until_true("connected", ms(5000), async || client.state() == RedisState::Connected).await;
    assert_eq!(client.get::<String>("k").await.unwrap(), None);
    assert_eq!(sets(&redis), 0);
}

/// The network swallows everything, and nobody is told: a connection without another end.
#[tokio::test]
async fn a_silent_connection_is_given_up_though_pings_are_written_to_it() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let client = strict("t-half-open", &Redis::url_at(proxy.addr()));
    client.set("k", "1").await.unwrap();
    let before = proxy.accepted();
    proxy.set(|faults| faults.hold());
    let error = client.set("k", "2").await.unwrap_err();
    assert_eq!(error.effect(), Effect::Unknown, "{error:?}");
    let asked = proxy.arrived(Direction::Requests);
    proxy.until("another connection", |proxy| proxy.accepted() > before).await;
    assert!(proxy.arrived(Direction::Requests) > asked, "a PING was written");
    proxy.heal();
    until_true("connected", ms(5000), async || client.state() == RedisState::Connected).await;
    client.set("k", "3").await.unwrap();
    assert_eq!(redis.say("GET k"), "$1\r\n3\r\n");
}

#[tokio::test]
async fn a_pipeline_that_waits_for_the_first_connection_keeps_its_order() {
    let redis = Redis::start();
    pipeline_in_order(&strict("t-pipeline-order", &redis.url())).await;
}

#[tokio::test]
async fn attempts_to_connect_grow_apart() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    proxy.set(|faults| faults.accept = Accept::Close);
    let client = strict("t-backoff", &Redis::url_at(proxy.addr()));
    client.get::<String>("k").await.unwrap_err();
    let began = Instant::now();
    proxy.until("five attempts", |proxy| proxy.accepted() >= 5).await;
    let events = proxy.events();
    let at: Vec<Instant> = events
        .iter()
        .filter(|event| event.what == mainstay_test_support::proxy::What::Accepted)
        .map(|event| event.at)
        .collect();
    // 50, 100, 200 and 400 ms, each with up to 50 ms more.
    assert!(at[4] - at[0] >= ms(700), "{:?}", at[4] - at[0]);
    assert!(at[4] - at[3] > at[1] - at[0]);
    assert!(began.elapsed() < ms(5000), "{:?}", began.elapsed());
    proxy.heal();
    until_true("connected", ms(5000), async || client.state() == RedisState::Connected).await;
}

#[tokio::test]
async fn slow_answers_are_waited_for_as_long_as_the_attempt_may_take() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let client = strict("t-slow", &Redis::url_at(proxy.addr()));
    client.set("k", "1").await.unwrap();
    proxy.set(|faults| faults.replies.latency = ms(1200));
    // Over the second after which a fallback would answer: without one there is nobody to turn to.
    assert_eq!(client.get::<String>("k").await.unwrap().as_deref(), Some("1"));
    assert_eq!(client.state(), RedisState::Connected);
}
