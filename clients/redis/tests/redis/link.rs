//! What fred does when nobody stops it, and does not do here.

use crate::{client, ms, pipeline_in_order, strict, text, until, until_true};
use mainstay_policy::{Deadline, Effect, HealthStatus};
use mainstay_redis::{FallbackConfig, RedisClient, RedisState};
use mainstay_test_support::{
    Proxy, Redis,
    proxy::{Accept, Direction},
};
use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};
use tokio::{
    io::{copy, copy_bidirectional},
    net::{TcpSocket, TcpStream},
};

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
    until_true("connected", ms(30_000), async || client.state() == RedisState::Connected).await;
    client.get::<String>("k").await.unwrap();
    assert_eq!(sets(&redis), 1);
}

#[tokio::test]
async fn nothing_is_queued_for_a_server_that_is_away() {
    let mut redis = Redis::start();
    let client = strict("t-queue", &redis.url());
    client.set("k", "1").await.unwrap();
    redis.kill();
    until_true("down", ms(30_000), async || client.state() == RedisState::Degraded).await;
    let began = Instant::now();
    for _ in 0..1000 {
        client.set("k", "2").await.unwrap_err();
    }
    assert!(began.elapsed() < ms(20_000), "{:?}", began.elapsed());
    redis.restart();
    until_true("connected", ms(30_000), async || client.state() == RedisState::Connected).await;
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
    until_true("connected", ms(30_000), async || client.state() == RedisState::Connected).await;
    client.set("k", "3").await.unwrap();
    assert_eq!(redis.say("GET k"), "$1\r\n3\r\n");
}

/// A connected client that waits for an answer so long.
async fn hurried(name: &str, proxy: &Proxy, timeout: Duration) -> RedisClient {
    let client = RedisClient::builder()
        .name(name)
        .url(Redis::url_at(proxy.addr()))
        .policy(move |p| p.timeout(timeout).max_attempts(1).enable_circuit_breaker(false))
        .fallback(FallbackConfig::off())
        .build()
        .unwrap();
    until(&client, RedisState::Connected).await;
    client
}

#[tokio::test]
async fn a_silent_connection_is_given_up_though_nobody_waits_for_a_second() {
    for (name, timeout, deadline) in
        [("t-half-open-short", ms(700), ms(60_000)), ("t-half-open-late", ms(1500), ms(300))]
    {
        let redis = Redis::start();
        let proxy = Proxy::in_front_of(redis.address());
        let client = hurried(name, &proxy, timeout).await;
        until_true("set", ms(30_000), async || client.set("k", "1").await.is_ok()).await;
        let before = proxy.accepted();
        proxy.set(|faults| faults.hold());
        let get = Deadline::within(deadline).scope(client.get::<String>("k"));
        assert!(get.await.unwrap_err().is_timeout(), "{name}");
        proxy.until("another connection", |proxy| proxy.accepted() > before).await;
        proxy.heal();
        until_true("set again", ms(30_000), async || client.set("k", "2").await.is_ok()).await;
    }
}

#[tokio::test]
async fn a_slow_connection_is_not_taken_for_a_silent_one_by_who_cannot_wait() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let client = hurried("t-slow-and-short", &proxy, ms(200)).await;
    assert_eq!(redis.say("SET k 1"), "+OK\r\n");
    proxy.set(|faults| faults.replies.latency = ms(300));
    // Counted before they are passed on, so what the client has read is among them.
    let before = proxy.arrived(Direction::Replies);
    client.get::<String>("k").await.unwrap_err();
    let answers = "$1\r\n1\r\n+PONG\r\n".len() as u64;
    proxy.until("both answers", |p| p.bytes(Direction::Replies) >= before + answers).await;
    proxy.heal();
    let answered =
        async || client.get::<String>("k").await.is_ok_and(|k| k.as_deref() == Some("1"));
    until_true("answered", ms(30_000), answered).await;
    assert_eq!((client.state(), proxy.accepted()), (RedisState::Connected, 1));
}

/// Nothing that is sent gets through, so that it waits in this machine's kernel, which goes on trying
/// when nobody holds the connection any more.
#[tokio::test]
async fn what_a_connection_that_is_given_up_has_not_delivered_never_arrives() {
    let redis = Redis::start();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let cache = client("t-late", listener.local_addr().unwrap());
    // Begins to connect.
    assert_eq!(cache.state(), RedisState::Degraded);
    let (mut old, _) = listener.accept().await.unwrap();
    let mut server = TcpStream::connect(redis.address()).await.unwrap();
    tokio::select! {
        end = copy_bidirectional(&mut old, &mut server) => panic!("{end:?}"),
        set = cache.set("k", "first") => set.unwrap(),
    }
    // From here on nobody reads.
    cache.set("k", vec![b'x'; 256 * 1024]).await.unwrap();
    cache.set("k", "last").await.unwrap();
    assert_eq!(cache.dirty_keys(), 1);
    let (mut new, _) = listener.accept().await.unwrap();
    let mut beside = TcpStream::connect(redis.address()).await.unwrap();
    tokio::spawn(async move { copy_bidirectional(&mut new, &mut beside).await });
    until(&cache, RedisState::Connected).await;
    assert_eq!(text(&cache, "k").await, None, "deleted");

    let rest = copy(&mut old, &mut server).await;
    assert_eq!(rest.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    assert_eq!(text(&cache, "k").await, None);
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
    assert!(at[4] - at[3] >= ms(400), "{:?}", at[4] - at[3]);
    assert!(began.elapsed() < ms(20_000), "{:?}", began.elapsed());
    proxy.heal();
    until_true("connected", ms(30_000), async || client.state() == RedisState::Connected).await;
}

#[tokio::test]
async fn slow_answers_are_waited_for_as_long_as_the_attempt_may_take() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let client = hurried("t-slow", &proxy, ms(10_000)).await;
    client.set("k", "1").await.unwrap();
    proxy.set(|faults| faults.replies.latency = ms(1200));
    // Over the second after which a fallback would answer: without one there is nobody to turn to.
    assert_eq!(client.get::<String>("k").await.unwrap().as_deref(), Some("1"));
    assert_eq!(client.state(), RedisState::Connected);
    proxy.set(|faults| faults.replies.latency = ms(200));
    let health = client.health_check().await;
    assert!(health.latency >= ms(200), "{:?} {}", health.latency, health.detail);
    assert_eq!(health.status, HealthStatus::Healthy, "{}", health.detail);
}
