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
//! let cache = RedisClient::builder().build()?; // or get_redis_client(); both from MAINSTAY_REDIS_URL
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
//!
//! The promise: **a read never gives a value older than this client's last successful write.** It may
//! become a miss, as this is a cache. Memory holds what this client wrote and what it last saw, both
//! bounded ([`FallbackConfig`]).
//!
//! | command | connected | server away, fallback on | key written meanwhile, server back |
//! |---|---|---|---|
//! | `get`, `hget`, `mget` | Redis | what was written here, else what was seen within `max_stale` and its own lifetime, where that is known, else a miss from [`Source::Nobody`] | as while away, until Redis has forgotten its own value |
//! | `exists` | Redis | whether memory knows it | as while away |
//! | `ttl` | Redis | of a value that memory knows, if it was written here or its lifetime asked for before; else, and of hashes, `unavailable` | as while away; of a hash waits, as `hgetall` |
//! | `hgetall` | Redis | a hash seen or written whole; nothing known: empty, [`Source::Nobody`]; a part known: `unavailable` | waits for Redis to be told, up to 1 s |
//! | `set`, `mset`, `del`, `hset`, `hdel` | Redis; an unknown outcome counts as away | kept here, `Ok`; refused when `max_dirty` is reached (of an unknown outcome: still unknown) | sent once Redis has been told, else kept here |
//! | `expire`, `persist` | Redis | of a value that memory knows, for no longer than `max_stale` if it was only seen; else, and of hashes, `unavailable` | as `set` |
//! | `incr`, `decr`, `hincr_by` | Redis; never repeated after an unknown outcome, which is an error | `unavailable`, or counted here with [`count_offline`](FallbackConfig::count_offline) | waits, then Redis, from 0; with `count_offline` counted here |
//! | `set_if_absent`, `set_if_present`, `keep_ttl`, `get_set`, `get_del` | Redis; not repeated after an unknown outcome, but for `keep_ttl` | `unavailable`, always | waits, then Redis |
//! | `scan`, `run`, `pipeline` | Redis; memory forgets what they may have changed | the error of the call | waits for the keys it names, or for all with FLUSHALL, FLUSHDB, SWAPDB, DEBUG and scripts that name none, then Redis |
//! | `get_or_load` | Redis, else the loader | memory, else the loader; kept here | as `get` and `set` |
//!
//! - `unavailable` is an error with [`RedisFailure::is_unavailable`], or the one that kept the call
//!   from the server: an open breaker, a closed link.
//! - A write that your own rate limit or bulkhead refuses, or that begins after its deadline, is an error,
//!   not an outage: the server is there, and would later delete what was kept here. A read is answered
//!   from memory all the same.
//! - A write that was refused before it was sent leaves memory as it was.
//! - When the server is back, every key and field written meanwhile is **deleted** there before it is
//!   read there again; nothing is written back, which could overwrite what others wrote.
//!   The user in the URL must be allowed DEL and HDEL: without them such keys stay as while away, which
//!   a warning and `health_check()` say.
//! - [`FallbackConfig::read_only`]: the first four rows; writes are errors, and what `get_or_load` loads
//!   is not kept.
//!   [`FallbackConfig::off`]: every outage is an error.
//! - Types are kept apart as Redis does, with the same error from either tier.
//! - A counter's key should be written by nothing else: while one task's `incr` is under way, another's
//!   write of that key may be kept here, and the key is then deleted there with what was counted.
//! - In a cluster each master has a breaker of its own, `redis@host:port` by name; who isolates the
//!   client's, `redis`, isolates them all, for calls that begin from then on. `mget`, `mset` and
//!   `pipeline` of several slots are one operation and go by the client's: it opens only when such calls
//!   fail, and a master that is away makes the keys of that one call come from memory, or fail without a
//!   fallback.
//! - Of a hash changed through this client memory is whole again once `hgetall` has seen it.
//! - Credentials that the server refuses are an error, not an outage, also once the breaker is open.
//! - What is not promised: writes of other clients are seen late by at most `max_stale`; a write of
//!   one key by two tasks of this client at once ends in either order; without a fallback, bytes of a
//!   connection that was lost may still arrive after a later write; of a client in two runtimes, each of
//!   which has a connection, a write that one of these holds up may arrive when the other has deleted
//!   its key, over what was written since; a server that loses what it has acknowledged, in a restart
//!   from a snapshot or a failover to a replica that lags, answers with what it has.
//!
//! # Without a URL
//! The client is a bounded cache of this process: as if the server were always away, except that
//! nothing gets stale or has to be told, and that of a hash memory has all there is. A warning says
//! so when it is built, and `health_check()` says degraded.
//!
//! | feature | gives |
//! |---|---|
//! | `tls` | `rediss://` |
//! | `metrics` | `mainstay.redis.reads`, `.writes` (by `tier`: redis, fallback, none; each key of `mget` and `mset`, nothing of `run`, `pipeline` and `scan`), `.errors`, `.recovered`, `.dirty` for the `metrics` facade |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod answer;
mod boxed;
mod classify;
mod client;
mod command;
mod config;
mod direct;
mod ends;
mod fallback;
mod hashes;
mod health;
mod json;
mod link;
mod load;
mod many;
mod numbers;
mod patience;
mod query;
mod recovery;
mod run;
mod scan;
mod strings;
mod value;

pub use answer::{Answer, Source};
pub use classify::RedisFailure;
pub use client::RedisClient;
pub use config::{
    FallbackConfig, RedisClientBuilder, all_redis_clients, get_redis_client,
    get_redis_client_named, set_redis_client, set_redis_client_named,
};
pub use health::RedisState;
pub use json::Json;
pub use load::{Load, LoadFailure};
pub use query::Ttl;
pub use run::Run;
pub use strings::{Set, SetIf};
pub use value::{FromValue, ToValue, Value};
