//! A Redis client that answers from memory while the server is away.
//!
//! Without a server, and without a URL, every call here still works:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), mainstay_policy::Error> {
//! use mainstay_redis::RedisClient;
//! use std::time::Duration;
//!
//! let cache = RedisClient::builder().build()?; // or get_redis_client(), from MAINSTAY_REDIS_URL
//! cache.set("key", "value").ttl(Duration::from_secs(3600)).await?;
//! let value: Option<String> = cache.get("key").await?;
//! assert_eq!(value.as_deref(), Some("value"));
//!
//! cache.hset("user:1", "name", "John").await?;
//! assert_eq!(cache.hget::<String>("user:1", "name").await?.as_deref(), Some("John"));
//! println!("{:?}: {}", cache.health_check().await.status, cache.health_check().await.detail);
//! # Ok(()) }
//! ```
//!
//! # While the server is away
//! - Reads give what this client last wrote, else what it last saw within `max_stale`, else `None`.
//! - Writes are kept in memory and return `Ok`; when [`FallbackConfig`]'s limits are reached they
//!   are refused, never accepted and lost.
//! - When it is back, every key and field written meanwhile is deleted there before it is read
//!   there again. A read never gives a value older than this client's last successful write, but
//!   such a value may become a miss: this is a cache.
//! - Credentials that the server refuses are an error, not an outage.
//!
//! # Without a URL
//! The client is a bounded cache of this process: least recently used values go first, and
//! `health_check()` says degraded.
//!
//! | feature | gives |
//! |---|---|
//! | `tls` | `rediss://` |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod answer;
mod classify;
mod client;
mod command;
mod config;
mod fallback;
mod hashes;
mod health;
mod json;
mod link;
mod load;
mod many;
mod numbers;
mod query;
mod recovery;
mod run;
mod scan;
mod strings;
mod value;

pub use answer::{Answer, Source};
pub use classify::RedisFailure;
pub use client::{RedisClient, RedisState};
pub use config::{
    FallbackConfig, RedisClientBuilder, all_redis_clients, get_redis_client,
    get_redis_client_named, set_redis_client,
};
pub use json::Json;
pub use load::{Load, LoadFailure};
pub use query::Ttl;
pub use run::Run;
pub use strings::{Set, SetIf};
pub use value::{FromValue, ToValue, Value};
