//! What the tests start, break and look into. Nothing here knows our clients, and nothing here is
//! published.
//!
//! [`Port`] reserves an address, so that one where nobody listens stays one. With feature `s3`,
//! `S3` is a store in this process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

mod port;
#[cfg(feature = "s3")]
pub mod s3;

pub use port::Port;
#[cfg(feature = "s3")]
pub use s3::S3;
