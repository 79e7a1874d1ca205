//! What is sent, how often, and what a refused password is.

use crate::{ms, until};
use mainstay_policy::HealthStatus;
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure, RedisState};
use mainstay_test_support::Redis;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

fn answers_within(server: SocketAddr, limit: Duration) -> bool {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(limit)).unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    stream.read(&mut [0; 16]).is_ok()
}

#[tokio::test]
async fn a_timeout_is_unknown_and_is_sent_no_more_often_than_allowed() {
    let redis = Redis::start();
    let client = RedisClient::builder()
        .name("t-wire")
        .url(redis.url())
        .policy(|p| p.timeout(ms(100)).max_attempts(2).base_delay(ms(10)))
        .fallback(FallbackConfig::off())
        .build()
        .unwrap();
    until(&client, RedisState::Connected).await;
    client.del("k").await.unwrap();
    let mut sleeping = redis.tell("DEBUG SLEEP 0.6");
    while answers_within(redis.address(), ms(20)) {}
    let error = client.set("k", "1").await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error:?}");
    assert_eq!(error.attempts(), 2, "{error:?}");
    sleeping.read_exact(&mut [0; 5]).unwrap();
    tokio::time::sleep(ms(300)).await;
    client.get::<String>("k").await.unwrap();
    let stats = redis.say("INFO commandstats");
    let calls = stats.split("cmdstat_set:calls=").nth(1).and_then(|s| s.split(',').next());
    let calls: u32 = calls.unwrap_or("0").parse().unwrap();
    assert!(calls <= 2, "{stats}");
}

#[tokio::test]
async fn refused_credentials_are_an_error_not_an_outage() {
    let redis = Redis::start_with(&["--requirepass", "right"]);
    for (name, user) in [("t-wrongpass", ":s3cret@"), ("t-nopass", "")] {
        let cache = RedisClient::builder()
            .name(name)
            .url(format!("redis://{user}{}", redis.address()))
            .build()
            .unwrap();
        let started = Instant::now();
        let error = cache.set("k", "1").await.unwrap_err();
        assert!(started.elapsed() < ms(1000), "{:?}", started.elapsed());
        assert_eq!(error.attempts(), 1, "not retried");
        assert!(error.downcast_ref::<RedisFailure>().unwrap().is_auth(), "{error:?}");
        let text = format!("{error:?} {}", mainstay_policy::report(&error));
        assert!(text.contains("credentials") && !text.contains("s3cret"), "{text}");
    }
    let cache = RedisClient::builder()
        .name("t-rightpass")
        .url(format!("redis://:right@{}", redis.address()))
        .build()
        .unwrap();
    cache.set("k", "1").await.unwrap();
    assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
}
