//! A client and the runtimes that come and go around it.

use crate::{client, degraded::Place, ms, strict, text, until, until_true};
use mainstay_redis::{RedisFailure, RedisState};
use mainstay_test_support::{Redis, RedisCluster};
use std::time::Instant;

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

/// As of a job that has a runtime of its own and calls it now and then.
#[test]
fn a_runtime_that_nobody_polls_holds_up_no_other_s_recovery() {
    let place = Place::new();
    let cache = client("t-not-polled", place.proxy.addr());
    let current = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (kept, other) = (current(), current());
    kept.block_on(async {
        cache.set("k", "old").await.unwrap();
        place.take_away(&cache).await;
        cache.set("k", "new").await.unwrap();
        place.proxy.set(|faults| faults.replies.latency = ms(300));
        place.proxy.listen();
        let deleted = async || place.redis.say("EXISTS k") == ":0\r\n";
        until_true("deleted", ms(10_000), deleted).await;
        assert_eq!(cache.dirty_keys(), 1, "the answer is on its way still");
    });
    other.block_on(async {
        until(&cache, RedisState::Connected).await;
        cache.set("k", "newer").await.unwrap();
        assert_eq!(text(&cache, "k").await.as_deref(), Some("newer"));
    });
    kept.block_on(async {
        until(&cache, RedisState::Connected).await;
        assert_eq!(text(&cache, "k").await.as_deref(), Some("newer"));
    });
    assert_eq!(place.redis.say("GET k"), "$5\r\nnewer\r\n");
}

#[tokio::test]
async fn a_dropped_client_leaves_no_connection() {
    let redis = Redis::start();
    let cache = client("t-dropped-client", redis.address());
    cache.set("k", "1").await.unwrap();
    let connected = || redis.say("INFO clients").contains("connected_clients:2");
    // A process that is being started elsewhere may hold a copy of another one for a moment.
    until_true("ours and the referee's", ms(30_000), async || connected()).await;
    drop(cache);
    let started = Instant::now();
    while connected() {
        assert!(started.elapsed() < ms(3000));
        tokio::time::sleep(ms(10)).await;
    }
}

#[tokio::test]
async fn a_client_closed_before_its_first_call_connects_no_more() {
    let (redis, cluster) = (Redis::start(), RedisCluster::start(3, false));
    let urls = [
        format!("redis://{}", redis.address()),
        cluster.url(),
        format!("redis-sentinel://{}/0?sentinelServiceName=main", redis.address()),
    ];
    for (n, url) in urls.iter().enumerate() {
        let client = strict(&format!("t-closed-{n}"), url);
        let began = Instant::now();
        client.close(ms(5000)).await;
        let error = client.get::<String>("k").await.unwrap_err();
        assert!(error.downcast_ref::<RedisFailure>().unwrap().is_outage(), "{url}: {error:?}");
        let text = mainstay_policy::report(&error).to_string();
        assert!(text.contains("the connection was closed"), "{url}: {text}");
        assert!(began.elapsed() < ms(700), "{url}: nothing is waited for: {:?}", began.elapsed());
        assert_eq!(client.state(), RedisState::Degraded, "{url}");
    }
}
