//! The client without a server, and, with feature `test-servers`, against a private redis-server.
//! One binary, a file per idea.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod away;
#[cfg(feature = "test-servers")]
mod cluster;
mod local;
#[cfg(feature = "test-servers")]
mod outage;
#[cfg(feature = "test-servers")]
mod runtimes;
#[cfg(feature = "test-servers")]
mod wire;
#[cfg(feature = "test-servers")]
mod works;

use mainstay_redis::RedisClient;
use std::{net::SocketAddr, time::Duration};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn text(client: &RedisClient, key: &str) -> Option<String> {
    client.get(key).await.unwrap()
}

/// A client with short breaks, for a server at this address.
fn client(name: &str, server: SocketAddr) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(format!("redis://{server}"))
        .policy(|p| p.timeout(ms(1500)).base_delay(ms(10)).recovery_timeout(ms(200)))
        .build()
        .unwrap()
}

/// Waits for a state that must come.
#[cfg(feature = "test-servers")]
async fn until(client: &RedisClient, state: mainstay_redis::RedisState) {
    let started = std::time::Instant::now();
    while client.state() != state {
        assert!(started.elapsed() < ms(10_000), "still {:?}", client.state());
        tokio::time::sleep(ms(5)).await;
    }
}
