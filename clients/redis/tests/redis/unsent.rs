//! What was never sent: the error says so, and neither memory nor the server loses anything by it.

use crate::{
    client,
    degraded::{Place, get},
    ms,
    refusals::ok,
    until_true,
};
use mainstay_policy::{BreakerState, Deadline, Effect, HealthStatus, get_resilience_health};
use mainstay_redis::{RedisClient, Source};
use mainstay_test_support::Redis;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn what_memory_cannot_answer_for_a_closed_link_was_never_sent() {
    let place = Place::new();
    let cache = client("t-closed", place.proxy.addr());
    cache.set("k", "1").await.unwrap();
    place.take_away(&cache).await;
    let error = cache.ttl("unseen").await.unwrap_err();
    assert_eq!(cache.policy().breaker().state(), BreakerState::Closed);
    assert_eq!(error.effect(), Effect::NeverSent, "{error:?}");
    let error = cache.persist("unseen").await.unwrap_err();
    assert_eq!(error.effect(), Effect::NeverSent, "{error:?}");
}

#[tokio::test]
async fn refused_credentials_take_nothing_from_memory() {
    let place = Place::new();
    ok(&place.redis, "ACL SETUSER app on >old ~* +@all");
    let cache = RedisClient::builder()
        .name("t-shut-out")
        .url(format!("redis://app:old@{}", place.proxy.addr()))
        .policy(|p| p.timeout(ms(1500)).enable_circuit_breaker(false))
        .build()
        .unwrap();
    for key in ["k", "l", "m"] {
        cache.set(key, "1").await.unwrap();
    }
    ok(&place.redis, "ACL SETUSER app resetpass >new");
    assert_eq!(place.redis.say("CLIENT KILL USER app"), ":1\r\n");
    let refused = async || cache.health_check().await.detail.contains("credentials");
    until_true("refused", ms(30_000), refused).await;
    let errors = [
        cache.set("k", "2").await.unwrap_err(),
        cache.mset([("l", "2")]).await.unwrap_err(),
        cache.run("EVAL").arg("return 1").arg(0).await.unwrap_err(),
        cache.get::<String>("m").await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.effect(), Effect::NeverSent, "{error:?}");
    }
    place.proxy.refuse();
    place.proxy.cut();
    until_true("away", ms(10_000), async || cache.get::<String>("m").await.is_ok()).await;
    for key in ["k", "l", "m"] {
        assert_eq!(get(&cache, key).await, (Some("1".into()), Source::Fallback), "{key}");
    }
}

#[tokio::test]
async fn a_write_whose_deadline_has_passed_costs_the_server_nothing() {
    let place = Place::new();
    let cache = client("t-too-late", place.proxy.addr());
    for key in ["k", "l"] {
        cache.set(key, "1").await.unwrap();
    }
    let late = Deadline::within(Duration::ZERO);
    let errors = [
        late.scope(async { cache.set("k", "2").await }).await.unwrap_err(),
        late.scope(async { cache.mset([("l", "2")]).await }).await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_rejected() && error.is_timeout(), "{error:?}");
    }
    assert_eq!(cache.dirty_keys(), 0);
    assert_eq!(place.redis.say("MGET k l"), "*2\r\n$1\r\n1\r\n$1\r\n1\r\n");
    place.take_away(&cache).await;
    for key in ["k", "l"] {
        assert_eq!(get(&cache, key).await, (Some("1".into()), Source::Fallback), "{key}");
    }
}

#[tokio::test]
async fn nothing_to_write_is_nothing_that_memory_answers() {
    let redis = Redis::start();
    let cache = client("t-empty-mset", redis.address());
    cache.mset(Vec::<(&str, &str)>::new()).await.unwrap();
    let health = get_resilience_health();
    assert_eq!(health.circuit_breakers["redis:t-empty-mset"].fallbacks, 0);
}

/// Passes everything on, but for the answer to a PING once `shut_out` says so.
async fn relay(listener: TcpListener, server: SocketAddr, shut_out: Arc<AtomicBool>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(server).await else { return };
        let shut_out = Arc::clone(&shut_out);
        let (mut asks, mut hears) = client.into_split();
        let (mut says, mut is_asked) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut asks, &mut is_asked).await });
        tokio::spawn(async move {
            let mut buffer = vec![0; 65_536];
            while let Ok(n @ 1..) = says.read(&mut buffer).await {
                let mut said = String::from_utf8_lossy(&buffer[..n]).into_owned();
                if shut_out.load(Ordering::SeqCst) {
                    said = said.replace("+PONG\r\n", "-NOAUTH Authentication required.\r\n");
                }
                if hears.write_all(said.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

#[tokio::test]
async fn a_connection_whose_credentials_no_longer_count_is_unhealthy() {
    let redis = Redis::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cache = client("t-no-longer", listener.local_addr().unwrap());
    let shut_out = Arc::new(AtomicBool::new(false));
    tokio::spawn(relay(listener, redis.address(), Arc::clone(&shut_out)));
    cache.set("k", "1").await.unwrap();
    assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
    shut_out.store(true, Ordering::SeqCst);
    let health = cache.health_check().await;
    assert_eq!(health.status, HealthStatus::Unhealthy, "{}", health.detail);
    assert!(health.detail.contains("credentials"), "{}", health.detail);
}
