//! The policy leaves its timer to fred's, which runs in the caller's own task: a call ends by it
//! whatever has become of the connection, and of the task that keeps it.

use crate::{ms, strict};
use fred::{
    clients::Client,
    interfaces::{ClientLike, KeysInterface},
    types::{
        Builder,
        config::{Config, ReconnectPolicy},
    },
};
use mainstay_policy::Effect;
use mainstay_test_support::{Port, Proxy, Redis, proxy::Direction};
use std::{net::SocketAddr, time::Instant};

const LIMIT: std::time::Duration = ms(200);

fn raw(server: SocketAddr) -> Client {
    let config = Config::from_url(&Redis::url_at(server)).unwrap();
    let mut builder = Builder::from_config(config);
    builder.set_policy(ReconnectPolicy::new_constant(0, 3_000));
    builder.with_performance_config(|config| config.default_command_timeout = LIMIT);
    builder.with_connection_config(|config| config.max_command_attempts = 1);
    builder.build().unwrap()
}

/// Nothing but fred's timer wakes this before the test fails.
async fn ends(client: &Client, case: &str) {
    let began = Instant::now();
    let call = client.get::<Option<String>, _>("k");
    let end = tokio::time::timeout(ms(10_000), call).await.unwrap_or_else(|_| panic!("{case}"));
    assert!(end.is_err(), "{case}: {end:?}");
    assert!(began.elapsed() < ms(2_000), "{case}: {:?}", began.elapsed());
}

#[tokio::test]
async fn fred_ends_a_call_in_time_whatever_became_of_its_connection() {
    let mut redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());

    let client = raw(proxy.addr());
    let task = client.init().await.unwrap();
    proxy.set(|faults| faults.hold());
    ends(&client, "a network that holds everything").await;
    proxy.heal();
    task.abort();

    let client = raw(proxy.addr());
    let task = client.init().await.unwrap();
    proxy.set(|faults| faults.hold());
    let asked = proxy.arrived(Direction::Requests);
    let cut = async {
        proxy.until("the request", |proxy| proxy.arrived(Direction::Requests) > asked).await;
        proxy.refuse();
        proxy.cut();
    };
    tokio::join!(ends(&client, "a connection that is cut meanwhile"), cut);
    // Three seconds until it tries again.
    ends(&client, "a reconnection that is waited for").await;
    proxy.heal();
    proxy.listen();
    task.abort();

    let client = raw(redis.address());
    let task = client.init().await.unwrap();
    redis.hang();
    ends(&client, "a server that is frozen").await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    ends(&client, "a connection whose task is gone").await;

    let nobody = Port::reserve();
    let client = raw(nobody.address());
    let task = client.connect();
    ends(&client, "a server that was never there").await;
    task.abort();
}

/// The same of a whole call, and of what it tells.
#[tokio::test]
async fn a_call_to_a_frozen_server_ends_by_its_attempt_s_timeout() {
    let mut redis = Redis::start();
    let client = strict("t-timers", &redis.url());
    client.set("k", "1").await.unwrap();
    redis.hang();
    let began = Instant::now();
    let error = client.set("k", "2").await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert_eq!(error.effect(), Effect::Unknown, "{error:?}");
    let took = began.elapsed();
    assert!(took >= ms(1_480) && took < ms(3_000), "{took:?}");
}
