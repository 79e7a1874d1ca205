//! Mainstay: resilient clients for Rust services.
//!
//! | feature | gives |
//! |---|---|
//! | (always) | the policy engine |
//! | `postgres`, `sqlite` (default), `mysql` | `DatabaseClient` with its sessions, over sqlx |
//! | `http` (default) | `HttpClient` |
//! | `redis` (default) | `RedisClient`, which answers from memory while the server is away |
//! | `redis-tls` | `rediss://` URLs |
//! | `s3` (default) | `S3Client` |
//! | `macros` (default) | attributes such as `#[database_resilient]` around functions |
//! | `blocking` | the clients for callers that are not async |
//! | `full` | all of these |
//! | `metrics` | durations, decisions and states for the `metrics` facade |
//! | `axum` | routes for probes, a header layer (`web`), errors as answers of handlers |
//! | `prometheus` | `/metrics` among them |
//! | `dashboard` | a live page among them |
//! | `doctor` | the program `mainstay doctor`, which checks settings and what they name |
//! | `chaos` | faults on purpose, for your own tests |
//! | `test-util` | time is tokio's clock, which your tests may pause |
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mainstay::{Kind, Policy};
//!
//! let policy = Policy::builder(Kind::Api, "payments").max_attempts(3).build()?;
//! let answer = policy.call(|| async { Ok::<_, std::io::Error>(42) }).await?;
//! assert_eq!(answer, 42);
//! println!("{:?}", mainstay::get_resilience_health().overall_health);
//! # Ok(()) }
//! ```

#[cfg(feature = "blocking")]
pub mod blocking;
mod shutdown;
#[cfg(feature = "axum")]
pub mod web;
// Their examples use every feature.
#[cfg(all(doc, feature = "full", feature = "chaos", feature = "test-util"))]
pub mod guides;

// What is named below is what most callers name; the rest of a client, such as the type that a builder
// is, is in its module.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use mainstay_database as database;
#[cfg(feature = "http")]
pub use mainstay_http as http;
#[cfg(feature = "redis")]
pub use mainstay_redis as redis;
#[cfg(feature = "s3")]
pub use mainstay_s3 as s3;

#[cfg(feature = "mysql")]
pub use mainstay_database::MySqlDatabase;
#[cfg(feature = "postgres")]
pub use mainstay_database::PgDatabase;
#[cfg(feature = "sqlite")]
pub use mainstay_database::SqliteDatabase;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub use mainstay_database::{
    CommitOutcome, DatabaseClient, DatabaseClientBuilder, DatabaseConnection, DatabaseFailure,
    Isolation, PoolStatus, Savepoint, Session, SessionOptions, TlsMode, get_database_client,
    get_database_client_named, set_database_client, set_database_client_named, sqlx,
};
#[cfg(feature = "http")]
pub use mainstay_http::{
    Download, ErrorResponse, HttpClient, HttpDouble, HttpFailure, Multipart, Reply, RequestBody,
    Response, get_http_client, get_http_client_for, get_http_client_named, set_http_client,
    set_http_client_for, set_http_client_named,
};
#[cfg(feature = "macros")]
#[doc(inline)]
pub use mainstay_macros::{
    api_resilient, cache_resilient, database_resilient, file_resilient, ml_resilient, resilient,
};
pub use mainstay_policy::*;
#[cfg(feature = "redis")]
pub use mainstay_redis::{
    Answer, FallbackConfig, FromValue, Json, RedisClient, RedisFailure, RedisState, Source,
    ToValue, Ttl, Value, get_redis_client, get_redis_client_named, set_redis_client,
    set_redis_client_named,
};
#[cfg(feature = "s3")]
pub use mainstay_s3::{
    Addressing, Checksums, CustomerKey, Deletion, Encryption, ObjectHead, ObjectStream,
    ObjectSummary, Page, Presigned, PutOptions, S3Client, S3Failure, Written, get_s3_client,
    get_s3_client_named, remove_partial_downloads, set_s3_client, set_s3_client_named,
};
pub use shutdown::shutdown;
