//! Sentinels: a master that dies or freezes is replaced, and sentinels may die and freeze too.

use crate::{ms, pipeline_in_order, strict, text, until_true};
use mainstay_policy::{HealthStatus, report};
use mainstay_redis::RedisFailure;
use mainstay_test_support::{
    RedisSentinels,
    servers::{Resp, Server},
};

#[tokio::test]
async fn the_new_master_is_found_when_the_old_one_is_killed() {
    let mut redis = RedisSentinels::start();
    let client = strict("t-sentinel", &redis.url());
    client.set("k", "1").await.unwrap();
    assert_eq!(redis.servers[0].say("GET k"), "$1\r\n1\r\n");
    redis.servers[0].kill();
    let out = until_true("writable", ms(20_000), async || client.set("k", "2").await.is_ok()).await;
    println!("writable again after {out:?}");
    assert_eq!(redis.servers[1].say("GET k"), "$1\r\n2\r\n");
    // The old one comes back, believes for a moment that it is master still, and is put right.
    redis.servers[0].restart();
    for n in 0..200 {
        client.set("k", n.to_string()).await.unwrap();
        assert_eq!(text(&client, "k").await, Some(n.to_string()));
        tokio::time::sleep(ms(5)).await;
    }
    assert_eq!(redis.servers[1].say("GET k"), "$3\r\n199\r\n");
    assert_eq!(client.health_check().await.status, HealthStatus::Healthy);
}

#[tokio::test]
async fn a_frozen_master_is_left_for_the_new_one() {
    let mut redis = RedisSentinels::start();
    let client = strict("t-sentinel-frozen", &redis.url());
    client.set("k", "1").await.unwrap();
    redis.servers[0].hang();
    let out = until_true("writable", ms(20_000), async || client.set("k", "2").await.is_ok()).await;
    println!("writable again after {out:?}");
    assert_eq!(redis.servers[1].say("GET k"), "$1\r\n2\r\n");
    redis.servers[0].resume();
    for _ in 0..100 {
        client.set("k", "3").await.unwrap();
    }
    assert_eq!(redis.servers[1].say("GET k"), "$1\r\n3\r\n");
}

#[tokio::test]
async fn one_sentinel_that_lives_is_enough() {
    let mut redis = RedisSentinels::start();
    redis.sentinels[0].hang();
    redis.sentinels[1].kill();
    let client = strict("t-sentinel-one", &redis.url());
    // Whoever waits for the one that is frozen is not answered in the time for a first connection.
    pipeline_in_order(&client).await;
    client.set("k", "1").await.unwrap();
    // And with none left calls go on: they do not go through sentinels.
    redis.sentinels[2].kill();
    for _ in 0..50 {
        client.set("k", "2").await.unwrap();
    }
}

#[tokio::test]
async fn a_master_that_nobody_knows_is_said() {
    let redis = RedisSentinels::start();
    let url = redis.url().replace("mymaster", "theirmaster");
    let client = strict("t-sentinel-name", &url);
    let error = client.get::<String>("k").await.unwrap_err();
    let text = report(&error).to_string();
    assert!(text.contains("sentinelServiceName"), "{text}");
    let health = client.health_check().await;
    assert_eq!(health.status, HealthStatus::Unhealthy, "{}", health.detail);
}

fn order<P: Resp>(server: &Server<P>, orders: &[&str]) {
    for order in orders {
        assert_eq!(server.say(order), "+OK\r\n", "{order}");
    }
}

/// Nobody gets in without a password, and that of the servers is none of the sentinels'.
#[tokio::test]
async fn servers_and_sentinels_have_credentials_of_their_own() {
    let mut redis = RedisSentinels::start();
    for server in &redis.servers {
        let user = "ACL SETUSER app on >s@rver ~* &* +@all";
        order(server, &[user, "CONFIG SET masteruser app", "CONFIG SET masterauth s@rver"]);
    }
    for sentinel in &redis.sentinels {
        let user = "ACL SETUSER watch on >w&tch ~* &* +@all";
        let of_servers =
            ["SENTINEL SET mymaster auth-user app", "SENTINEL SET mymaster auth-pass s@rver"];
        order(sentinel, &[&[user][..], &of_servers].concat());
        let of_others =
            ["SENTINEL CONFIG SET sentinel-user watch", "SENTINEL CONFIG SET sentinel-pass w&tch"];
        order(sentinel, &of_others);
    }
    redis.servers.iter().for_each(|server| order(server, &["ACL SETUSER default off"]));
    redis.sentinels.iter().for_each(|sentinel| order(sentinel, &["ACL SETUSER default off"]));
    let url = |user: &str| redis.url().replace("://", &format!("://{user}@"));
    let of_sentinels = "&sentinelUsername=watch&sentinelPassword=w%26tch";
    for (name, url) in [
        ("t-sentinel-no-password", url("app:s%40rver")),
        ("t-sentinel-wrong", url("app:s%40rver") + &of_sentinels.replace("tch", "ach")),
        ("t-sentinel-wrong-server", url("app:w%26tch") + of_sentinels),
    ] {
        let error = strict(name, &url).set("k", "1").await.unwrap_err();
        let failure = error.downcast_ref::<RedisFailure>();
        assert!(failure.is_some_and(RedisFailure::is_auth), "{name}: {}", report(&error));
    }
    let client = strict("t-sentinel-auth", &(url("app:s%40rver") + of_sentinels));
    client.set("k", "1").await.unwrap();
    // The new master wants it too.
    redis.servers[0].kill();
    until_true("writable", ms(20_000), async || client.set("k", "2").await.is_ok()).await;
    assert_eq!(text(&client, "k").await.as_deref(), Some("2"));
}
