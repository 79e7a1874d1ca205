//! A cluster: redirections, moves, failovers, and a dead master that takes nobody else along.

use crate::{ms, pipeline_in_order, strict, text, until_true};
use mainstay_policy::{BreakerState, Decider, Effect, HealthStatus};
use mainstay_redis::{RedisClient, RedisFailure, RedisState, Source, Value};
use mainstay_test_support::RedisCluster;
use std::{
    future::IntoFuture,
    time::{Duration, Instant},
};

/// How many keys say MOVED when this node is asked, by its own count.
fn redirections(cluster: &RedisCluster, node: usize) -> u32 {
    let stats = cluster.nodes[node].say("INFO errorstats");
    let count = stats
        .split("errorstat_MOVED:count=")
        .nth(1)
        .map_or("0", |rest| rest.split(['\r', ',']).next().unwrap_or("0"));
    count.parse().unwrap()
}

#[tokio::test]
async fn every_key_goes_to_its_master_at_once() {
    let cluster = RedisCluster::start(3, false);
    // One node of three is all that is told.
    let url = format!("redis-cluster://{}", cluster.nodes[1].address());
    let client = strict("t-cluster", &url);
    for master in 0..3 {
        let key = cluster.key_of(master, 0);
        client.set(&key, "1").await.unwrap();
        assert_eq!(text(&client, &key).await.as_deref(), Some("1"));
        assert_eq!(cluster.nodes[master].say(&format!("GET {key}")), "$1\r\n1\r\n");
        client.hset(format!("{{{key}}}h"), "f", "2").await.unwrap();
        assert_eq!(redirections(&cluster, master), 0);
    }
    let health = client.health_check().await;
    assert_eq!(health.status, HealthStatus::Healthy, "{}", health.detail);
    assert_eq!(client.state(), RedisState::Connected);
}

/// Those that the URL does not name too.
#[tokio::test]
async fn every_node_is_told_the_credentials() {
    let cluster = RedisCluster::start(2, false);
    let keys = [0, 1].map(|master| cluster.key_of(master, 0));
    for node in &cluster.nodes {
        for order in ["ACL SETUSER app on >p@ss ~* &* +@all", "ACL SETUSER default off"] {
            assert_eq!(node.say(order), "+OK\r\n");
        }
    }
    let at = |user: &str| format!("redis-cluster://{user}@{}", cluster.nodes[0].address());
    let client = strict("t-cluster-auth", &at("app:p%40ss"));
    for key in &keys {
        client.set(key, "1").await.unwrap();
        assert_eq!(text(&client, key).await.as_deref(), Some("1"));
    }
    let error = strict("t-cluster-wrong", &at("app:pass")).set("k", "1").await.unwrap_err();
    let failure = error.downcast_ref::<RedisFailure>();
    assert!(failure.is_some_and(RedisFailure::is_auth), "{error:?}");
}

#[tokio::test]
async fn what_one_master_refuses_and_the_others_have_done_is_unknown() {
    let cluster = RedisCluster::start(3, false);
    let client = strict("t-cluster-in-part", &cluster.url());
    let keys = [0, 1].map(|master| cluster.key_of(master, 0));
    for key in &keys {
        client.set(key, "1").await.unwrap();
    }
    let forbid = |node: usize| cluster.nodes[node].say("ACL SETUSER default -flushall");
    assert_eq!(forbid(0), "+OK\r\n");
    let error = client.run("FLUSHALL").await.unwrap_err();
    assert_eq!((code(&error).as_str(), error.effect()), ("NOPERM", Effect::Unknown), "{error:?}");
    assert_eq!(text(&client, &keys[0]).await.as_deref(), Some("1"));
    assert_eq!(text(&client, &keys[1]).await, None, "flushed");
    for node in [1, 2] {
        assert_eq!(forbid(node), "+OK\r\n");
    }
    let error = client.run("FLUSHALL").await.unwrap_err();
    assert_eq!((code(&error).as_str(), error.effect()), ("NOPERM", Effect::Permanent), "{error:?}");
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test]
async fn who_isolates_the_client_isolates_every_master() {
    let cluster = RedisCluster::start(3, false);
    let client = strict("t-cluster-isolated", &cluster.url());
    let keys = [0, 1, 2].map(|master| cluster.key_of(master, 0));
    for key in &keys {
        client.set(key, "1").await.unwrap();
    }
    client.policy().breaker().isolate();
    for key in &keys {
        for error in [
            client.get::<String>(key).await.unwrap_err(),
            client.set(key, "2").await.unwrap_err(),
            client.run("GET").key(key).await.unwrap_err(),
        ] {
            assert_eq!(error.decider(), Some(Decider::Isolation), "{error:?}");
        }
    }
    assert_eq!(client.state(), RedisState::Degraded);
    client.policy().breaker().reset();
    for key in &keys {
        assert_eq!(text(&client, key).await.as_deref(), Some("1"));
    }
    // One master's breaker by its own name.
    let one = format!("redis:t-cluster-isolated@{}", cluster.nodes[0].address());
    mainstay_policy::breaker(&one).unwrap().isolate();
    let error = client.get::<String>(&keys[0]).await.unwrap_err();
    assert_eq!(error.decider(), Some(Decider::Isolation), "{error:?}");
    assert_eq!(text(&client, &keys[1]).await.as_deref(), Some("1"));
    assert_eq!(client.state(), RedisState::Degraded);
    let health = client.health_check().await;
    assert_eq!(health.status, HealthStatus::Healthy, "{}", health.detail);
    assert!(health.detail.contains(&one), "{}", health.detail);
}

#[tokio::test]
async fn a_pipeline_that_waits_for_the_first_connection_keeps_its_order() {
    let cluster = RedisCluster::start(3, false);
    pipeline_in_order(&strict("t-cluster-order", &cluster.url())).await;
}

#[tokio::test]
async fn every_master_is_flushed() {
    let cluster = RedisCluster::start(3, false);
    let client = strict("t-cluster-flush", &cluster.url());
    let keys = [0, 1, 2].map(|master| cluster.key_of(master, 0));
    for command in ["FLUSHDB", "FLUSHALL"] {
        for key in &keys {
            client.set(key, "1").await.unwrap();
        }
        let answer = client.run(command).await.unwrap();
        assert_eq!(answer, Value::Bytes("OK".into()));
        for key in &keys {
            assert_eq!(client.get::<String>(key).await.unwrap(), None, "{command} {key}");
        }
    }
}

#[tokio::test]
async fn a_slot_on_the_move_is_followed_without_an_error() {
    let cluster = RedisCluster::start(3, false);
    let client = strict("t-move", &cluster.url());
    let tag = cluster.key_of(0, 0);
    let keys: Vec<String> = (0..20).map(|n| format!("{{{tag}}}{n}")).collect();
    for key in &keys {
        client.set(key, "1").await.unwrap();
    }
    let moving = cluster.start_to_move(cluster.slot(&tag), 0, 2);
    for key in &keys[..10] {
        moving.key(key);
    }
    // Half here, half there, and new ones there: ASK.
    for key in &keys {
        assert_eq!(text(&client, key).await.as_deref(), Some("1"), "{key}");
    }
    client.set(format!("{{{tag}}}new"), "1").await.unwrap();
    for key in &keys[10..] {
        moving.key(key);
    }
    moving.finish();
    // MOVED, once.
    let before = redirections(&cluster, 0);
    for key in &keys {
        assert_eq!(text(&client, key).await.as_deref(), Some("1"), "{key}");
        client.set(key, "2").await.unwrap();
    }
    // Twice where the map was asked of a node that had not heard of it yet.
    let told = redirections(&cluster, 0) - before;
    assert!((1..=2).contains(&told), "{told}");
    assert_eq!(cluster.nodes[2].say(&format!("GET {}", keys[0])), "$1\r\n2\r\n");
}

#[tokio::test]
async fn a_dead_master_takes_no_other_keys_along() {
    let mut cluster = RedisCluster::start(3, false);
    let client = strict("t-dead", &cluster.url());
    let keys: Vec<String> = (0..3).map(|master| cluster.key_of(master, 0)).collect();
    for key in &keys {
        client.set(key, "1").await.unwrap();
    }
    cluster.nodes[0].kill();
    let killed = Instant::now();
    let (mut calls, mut slowest, mut refused) = (0, Duration::ZERO, Duration::ZERO);
    while killed.elapsed() < ms(3000) {
        for (master, key) in keys.iter().enumerate() {
            let began = Instant::now();
            let answer = client.get::<String>(key).await;
            match master {
                0 => {
                    answer.unwrap_err();
                    refused = refused.max(began.elapsed());
                }
                _ => {
                    assert_eq!(answer.unwrap().as_deref(), Some("1"));
                    client.set(key, "1").await.unwrap();
                    slowest = slowest.max(began.elapsed());
                }
            }
            calls += 1;
        }
        tokio::time::sleep(ms(5)).await;
    }
    println!("{calls} calls, slowest of the others {slowest:?}, of the dead one's {refused:?}");
    assert!(calls > 100, "{calls}");
    // A server counts as silent after a second.
    assert!(slowest < ms(1_400), "{slowest:?}");
    assert!(refused < ms(1_400), "{refused:?}");
    assert_eq!(client.state(), RedisState::Degraded);
    let health = client.health_check().await;
    assert_eq!(health.status, HealthStatus::Degraded, "{}", health.detail);
    assert!(health.detail.contains("1 of 3 masters away"), "{}", health.detail);
    // What is for several masters fails as a whole, and nothing of it is done.
    let all = ["list", "other"].map(|name| keys.iter().map(move |key| format!("{{{key}}}{name}")));
    let [lists, others] = all.map(Iterator::collect::<Vec<_>>);
    let push = lists.iter().map(|key| client.run("RPUSH").key(key).arg("1"));
    for error in [
        client.pipeline(push).await.unwrap_err(),
        client.mset(others.iter().map(|key| (key, "1"))).await.unwrap_err(),
    ] {
        assert_eq!(error.effect(), Effect::NeverSent, "{error:?}");
    }
    for master in [1, 2] {
        let there = format!("EXISTS {} {}", lists[master], others[master]);
        assert_eq!(cluster.nodes[master].say(&there), ":0\r\n");
    }
    // Its own breaker opened, the client's and the others' did not.
    let breakers = mainstay_policy::get_resilience_health().circuit_breakers;
    let state = |node: usize| {
        let name = format!("redis:t-dead@{}", cluster.nodes[node].address());
        breakers[&name].state
    };
    assert_ne!(state(0), BreakerState::Closed);
    assert_eq!([state(1), state(2)], [BreakerState::Closed; 2]);
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
    client.mget::<String>(&keys).await.unwrap_err();
    assert_eq!(client.policy().breaker().state(), BreakerState::Open, "that was the third");
    assert_eq!(text(&client, &keys[1]).await.as_deref(), Some("1"));

    cluster.nodes[0].restart();
    let healed =
        until_true("healed", ms(10_000), async || client.get::<String>(&keys[0]).await.is_ok())
            .await;
    println!("healed after {:?}", healed);
    until_true("connected", ms(30_000), async || client.state() == RedisState::Connected).await;
}

#[tokio::test]
async fn a_frozen_master_is_answered_from_memory_the_others_by_themselves() {
    let mut cluster = RedisCluster::start(3, false);
    let cache = RedisClient::builder()
        .name("t-frozen")
        .url(cluster.url())
        .policy(|p| p.timeout(ms(1500)).base_delay(ms(10)).recovery_timeout(ms(200)))
        .build()
        .unwrap();
    let keys: Vec<String> = (0..3).map(|master| cluster.key_of(master, 0)).collect();
    let seen = cluster.key_of(0, 1);
    for key in keys.iter().chain([&seen]) {
        cache.set(key, "1").await.unwrap();
    }
    cluster.nodes[0].hang();
    assert_eq!(text(&cache, &keys[0]).await.as_deref(), Some("1"));
    cache.set(&keys[0], "2").await.unwrap();
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(text(&cache, &keys[0]).await.as_deref(), Some("2"));
        for key in &keys[1..] {
            cache.set(key, "3").await.unwrap();
        }
        // A server counts as silent after a second.
        assert!(began.elapsed() < ms(1000), "{:?}", began.elapsed());
    }
    // Written through, not kept here.
    assert_eq!(cluster.nodes[1].say(&format!("GET {}", keys[1])), "$1\r\n3\r\n");
    // All of a call that is for the frozen one too.
    let all = [&seen, &keys[1], &keys[2]];
    let many = async || {
        let answers = cache.mget_answers::<String>(all).await.unwrap();
        assert!(answers.iter().all(|answer| answer.source == Source::Fallback), "{answers:?}");
        answers.into_iter().flat_map(|answer| answer.value).collect::<Vec<_>>()
    };
    assert_eq!(many().await, ["1", "3", "3"]);
    cache.mset(all.map(|key| (key, "4"))).await.unwrap();
    assert_eq!(many().await, ["4"; 3]);
    cluster.nodes[0].resume();
    until_true("recovered", ms(10_000), async || cache.state() == RedisState::Connected).await;
    for (master, key) in [(0, &keys[0]), (0, &seen), (1, &keys[1]), (2, &keys[2])] {
        assert_eq!(cluster.nodes[master].say(&format!("EXISTS {key}")), ":0\r\n");
        assert_eq!(text(&cache, key).await, None, "deleted");
    }
}

/// More keys of the one that stays away than fit one batch of the recovery.
#[tokio::test]
async fn masters_that_are_back_forget_while_another_is_still_away() {
    let mut cluster = RedisCluster::start(3, false);
    let cache = RedisClient::builder()
        .name("t-partly-back")
        .url(cluster.url())
        .policy(|p| p.timeout(ms(1500)).max_attempts(1).recovery_timeout(ms(200)))
        .build()
        .unwrap();
    let (away, back) = (cluster.key_of(0, 0), cluster.key_of(1, 0));
    for key in [&away, &back] {
        cache.set(key, "old").await.unwrap();
    }
    for node in &mut cluster.nodes {
        node.hang();
    }
    for n in 0..200 {
        cache.set(format!("{{{away}}}{n}"), "new").await.unwrap();
    }
    cache.set(&back, "new").await.unwrap();
    cluster.nodes[1].resume();
    cluster.nodes[2].resume();
    let forgotten = async || cluster.nodes[1].say(&format!("EXISTS {back}")) == ":0\r\n";
    until_true("forgotten", ms(15_000), forgotten).await;
    let written = async || {
        cache.set(&back, "newer").await.unwrap();
        cluster.nodes[1].say(&format!("GET {back}")) == "$5\r\nnewer\r\n"
    };
    until_true("written", ms(30_000), written).await;
    assert_eq!(text(&cache, &format!("{{{away}}}7")).await.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_key_of_a_master_that_is_there_is_waited_for_while_another_is_away() {
    let mut cluster = RedisCluster::start(3, false);
    let cache = RedisClient::builder()
        .name("t-partly-waits")
        .url(cluster.url())
        .policy(|p| p.timeout(ms(1500)).max_attempts(1).recovery_timeout(ms(200)))
        .build()
        .unwrap();
    let [key, other, third] = [0, 1, 2].map(|n| cluster.key_of(1, n));
    cache.set(&key, "41").await.unwrap();
    cluster.nodes[1].hang();
    cache.set(&key, "42").await.unwrap();
    cache.set(&third, "42").await.unwrap();
    assert_eq!(cache.dirty_keys(), 2);
    // Back, and not ready to forget.
    cluster.nodes[1].resume();
    assert_eq!(cluster.nodes[1].say("ACL SETUSER default -del"), "+OK\r\n");
    cluster.nodes[0].kill();
    until_true("partly away", ms(10_000), async || {
        let health = cache.health_check().await;
        health.detail.contains("1 of 3 masters away")
    })
    .await;
    until_true("back", ms(10_000), async || {
        cache.get_answer::<String>(&other).await.unwrap().source == Source::Redis
    })
    .await;
    assert_eq!(cache.dirty_keys(), 2, "or there is nothing to wait for");
    // A value may look like a key, and be one of the master that is away.
    let set = cache.run("SET").key(&third).arg(cluster.key_of(0, 0));
    let (sum, set, allowed) = tokio::join!(cache.incr(&key), set.into_future(), async {
        cluster.nodes[1].say("ACL SETUSER default +del")
    });
    assert_eq!((sum.unwrap(), allowed.as_str()), (1, "+OK\r\n"));
    assert_eq!(set.unwrap(), Value::Bytes("OK".into()));
}

#[tokio::test]
async fn a_replica_that_takes_over_is_found() {
    let mut cluster = RedisCluster::start(3, true);
    let client = strict("t-failover", &cluster.url());
    let key = cluster.key_of(0, 0);
    client.set(&key, "1").await.unwrap();
    cluster.nodes[0].kill();
    let out =
        until_true("writable", ms(20_000), async || client.set(&key, "2").await.is_ok()).await;
    println!("writable again after {out:?}");
    assert!(cluster.nodes[3].say("ROLE").contains("master"));
    assert_eq!(cluster.nodes[3].say(&format!("GET {key}")), "$1\r\n2\r\n");
    until_true("whole", ms(30_000), async || client.state() == RedisState::Connected).await;
    // Nobody asks the one that left any more, and its open breaker is nobody's trouble.
    let listed = |node: usize| {
        let name = format!("redis:t-failover@{}", cluster.nodes[node].address());
        mainstay_policy::breaker(&name).is_some()
    };
    assert!(listed(3));
    until_true("forgotten", ms(30_000), async || !listed(0)).await;
    // The old one comes back as a replica: nothing changes.
    cluster.nodes[0].restart();
    for _ in 0..100 {
        client.set(&key, "3").await.unwrap();
    }
}

/// A cluster that wants all its slots served refuses all when one is not.
#[tokio::test]
async fn a_cluster_that_says_it_is_down_is_an_outage_of_its_own_making() {
    let mut cluster =
        RedisCluster::start_with(3, false, &["--cluster-require-full-coverage", "yes"]);
    let client = strict("t-down", &cluster.url());
    let key = cluster.key_of(1, 0);
    client.set(&key, "1").await.unwrap();
    cluster.nodes[0].kill();
    let mut seen = None;
    until_true("down", ms(10_000), async || match client.get::<String>(&key).await {
        Err(error) if mainstay_policy::report(&error).to_string().contains("says it is down") => {
            seen = Some(error);
            true
        }
        _ => false,
    })
    .await;
    let error = seen.unwrap();
    // Others on that connection got the same words and may have been done.
    assert_eq!(error.effect(), Effect::Unknown, "{error:?}");
    cluster.nodes[0].restart();
    until_true("up", ms(15_000), async || client.get::<String>(&key).await.is_ok()).await;
}

#[tokio::test]
async fn a_server_in_no_cluster_says_so() {
    let redis = mainstay_test_support::Redis::start();
    let client = strict("t-none", &format!("redis-cluster://{}", redis.address()));
    let error = client.get::<String>("k").await.unwrap_err();
    let text = mainstay_policy::report(&error).to_string();
    assert!(text.contains("cluster"), "{text}");
    assert_eq!(client.health_check().await.status, HealthStatus::Unhealthy);
}

fn code(error: &mainstay_policy::Error) -> String {
    let driver = error.downcast_ref::<fred::error::Error>();
    driver.map_or("", |error| error.details()).split(' ').next().unwrap_or_default().to_owned()
}

/// The client's own `mget` and `mset` take such keys apart; what a caller writes is sent as it is.
#[tokio::test]
async fn keys_of_two_slots_in_one_command_are_answered_and_no_outage() {
    let cluster = RedisCluster::start(3, false);
    let client = strict("t-crossslot", &cluster.url());
    let (a, b) = (cluster.key_of(0, 0), cluster.key_of(1, 0));
    client.mset([(&a, "1"), (&b, "2")]).await.unwrap();
    assert_eq!(client.mget::<i64>([&a, &b]).await.unwrap(), [Some(1), Some(2)]);
    for _ in 0..5 {
        let error = client.run("MGET").key(&a).key(&b).await.unwrap_err();
        assert_eq!((code(&error).as_str(), error.effect()), ("CROSSSLOT", Effect::Permanent));
        assert_eq!(error.attempts(), 1);
    }
    assert_eq!(text(&client, &a).await.as_deref(), Some("1"), "no breaker opened");
}

/// Half of the keys are here and half there, so that neither node can answer.
#[tokio::test]
async fn keys_of_a_slot_half_moved_are_worth_another_try() {
    let cluster = RedisCluster::start(3, false);
    let client = strict("t-tryagain", &cluster.url());
    let tag = cluster.key_of(0, 0);
    let keys = [format!("{{{tag}}}a"), format!("{{{tag}}}b")];
    client.mset([(&keys[0], "1"), (&keys[1], "2")]).await.unwrap();
    let moving = cluster.start_to_move(cluster.slot(&tag), 0, 2);
    moving.key(&keys[0]);
    let error = client.mget::<i64>(&keys).await.unwrap_err();
    assert_eq!((code(&error).as_str(), error.effect()), ("TRYAGAIN", Effect::Transient));
    moving.key(&keys[1]);
    moving.finish();
    until_true("moved", ms(30_000), async || client.mget::<i64>(&keys).await.is_ok()).await;
    assert_eq!(client.mget::<i64>(&keys).await.unwrap(), [Some(1), Some(2)]);
}
