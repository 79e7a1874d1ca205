//! What reaches the server while all is well.

use crate::{client, ms, text, until_true};
use mainstay_policy::{BreakerState, HealthStatus};
use mainstay_redis::{RedisFailure, RedisState};
use mainstay_test_support::{Proxy, Redis};
use std::{
    future::{Future, poll_fn},
    task::Poll,
    time::{Duration, Instant},
};

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
    assert!((50_000..=60_000).contains(&left), "{left}");
    cache.set("long", "1").ttl(Duration::from_secs(99 * 365 * 86_400)).await.unwrap();
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

#[tokio::test]
async fn a_closed_client_says_goodbye_and_connects_no_more() {
    let redis = Redis::start();
    let cache = client("t-close", redis.address());
    cache.set("k", "1").await.unwrap();
    let clients = || {
        // One is ours, which asks.
        redis.say("INFO clients").split_once("connected_clients:").unwrap().1[..1].to_owned()
    };
    // A process that is being started elsewhere may hold a copy of the first connection for a moment.
    until_true("two clients", ms(30_000), async || clients() == "2").await;
    cache.close(Duration::from_secs(5)).await;
    // A watcher left behind would have connected again by its next look.
    let later = Instant::now() + Duration::from_millis(600);
    while clients() != "1" || Instant::now() < later {
        assert!(later.elapsed() < Duration::from_secs(10), "{}", clients());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cache.state(), RedisState::Degraded);
    cache.set("k", "2").await.unwrap();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("2"), "the fallback answers");
    assert_eq!(redis.say("GET k"), "$1\r\n1\r\n");
}

#[tokio::test]
async fn who_closes_a_second_time_cuts_no_call_short() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let cache = client("t-close-twice", proxy.addr());
    cache.set("n", "1").await.unwrap();
    proxy.set(|faults| faults.replies.hold = true);
    let started = Instant::now();
    let call = tokio::spawn({
        let cache = cache.clone();
        async move { cache.incr("n").await }
    });
    while redis.say("GET n") != "$1\r\n2\r\n" {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::task::yield_now().await;
    }
    let within = Duration::from_secs(10);
    let mut first = std::pin::pin!(cache.close(within));
    let mut second = std::pin::pin!(cache.close(within));
    poll_fn(|cx| {
        assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    proxy.set(|faults| faults.replies.hold = false);
    assert_eq!(call.await.unwrap().unwrap(), 2);
    first.await;
    second.await;
}
