//! What the tests start, break and look into. Nothing here knows our clients, and nothing here is
//! published.
//!
//! [`Postgres`], [`Mariadb`] and [`Redis`] are real servers, private to a test. [`Proxy`] stands before
//! any of them and is the network's faults. [`Port`] reserves an address, so that one where nobody
//! listens stays one. [`Authority`] signs certificates. [`again`] runs a test in a process of its own, and
//! what lies in a [`temporary`] directory goes with the process. With feature `s3`, `S3` is a store in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

mod authority;
mod directory;
mod port;
mod process;
pub mod proxy;
#[cfg(feature = "s3")]
pub mod s3;
pub mod servers;

pub use authority::Authority;
pub use directory::temporary;
pub use port::Port;
pub use process::again;
pub use proxy::Proxy;
#[cfg(feature = "s3")]
pub use s3::S3;
pub use servers::{
    Mariadb, Pgbouncer, Postgres, Redis, RedisCluster, RedisSentinels, Sentinel, TlsRedis,
    TlsSentinel,
};
