//! An S3 client over the AWS SDK and the policy engine: AWS itself, or any store that speaks S3.
//!
//! The SDK's own retries are off: the policy owns every attempt. Uploads of 16 MiB and more go in
//! parts, each repeated on its own, and are aborted if they fail or are dropped. Downloads go to a
//! temporary file beside the target, are pinned to one version of the object, and replace the
//! target at the end: it is whole or untouched. Checksums are compared from end to end, for parts and for the
//! whole. What a killed process left is [resumed](Upload::resume), or cleaned up by
//! [`S3Client::abort_uploads`] and [`remove_partial_downloads`]. Credentials are looked for on first use; nothing is
//! sent unsigned unless [`S3ClientBuilder::anonymous`] says so.
//!
//! ```no_run
//! # async fn main_() -> Result<(), mainstay_policy::Error> {
//! let s3 = mainstay_s3::get_s3_client()?;
//! s3.upload_file("report.csv", "bucket", "2026/report.csv").await?;
//! s3.download_file("bucket", "2026/report.csv", "copy.csv").await?;
//! s3.put("bucket", "2026/note.txt", "hello").metadata("owner", "me").if_absent().await?;
//! for object in s3.list("bucket", "2026/").await? {
//!     println!("{} {}", object.size, object.key);
//! }
//! # Ok(()) }
//! ```
//!
//! # What it costs
//!
//! A GiB up takes 0.5 to 0.9 s of CPU (1.2 over TLS), 0.8 to 1.04 of what object_store takes; a GiB down 1.0 to 1.2 s
//! (1.4), 1.0 to 1.18 of a get_object of the SDK that is written with care. An upload holds 64 MiB of
//! its file (more from 312 GiB on), a download up to 24 MiB. `clients/s3/benches` measures it beside its peers:
//!
//! ```sh
//! cargo run --release --manifest-path clients/s3/benches/Cargo.toml -- 256 9 plain 20
//! ```
//!
//! With feature `metrics`, `mainstay.s3.transfer.bytes`, `.parts` and `.retries` count what went up, down or from
//! object to object, by `direction`: files, put, get, streams and copies.
//!
//! # What may be done twice
//!
//! | operation | an attempt without an answer is | because |
//! |---|---|---|
//! | get, stream, head, exists, list, tags | repeated | reading changes nothing; a stream goes on at the next byte, of the same version |
//! | put, set_tags | repeated | the whole object, or all its tags, are written again |
//! | put `if_absent` or `if_match` | repeated; a 412 to the repeat is looked into | a mark in the metadata (`mainstay-write`) tells our own first attempt, which is a success, from somebody else's object or one that may not be read: then the error's outcome is unknown |
//! | copy | repeated | it is pinned to one version of its source |
//! | copy with a condition | repeated; a 412 to the repeat is an unknown outcome | the copy carries no mark: read the target |
//! | delete, delete_many | repeated | what is gone counts as deleted. In a bucket that keeps versions a repeat adds a marker, and between the two another writer's object may go |
//! | upload_file | each part repeated | the end, if it got no answer, is looked into by a mark (`mainstay-upload`), of a resumed upload by its checksum; where the object is not this one, the outcome is unknown. Before its end nothing has happened |
//! | presign | not sent | it is worked out here |
//!
//! What the store refused (`SlowDown`, 503, 409 of a condition) is repeated in any case, and what it
//! answered for good (missing, denied, wrong region) never is; of a write that an earlier attempt may have
//! done, its outcome is unknown then. Expired credentials, a clock that is
//! off and damaged bytes are worth one repeat.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod call;
mod checksum;
mod classify;
mod client;
mod config;
mod content_type;
mod copy;
mod credentials;
mod delete;
mod encryption;
mod get;
mod health;
mod list;
mod numbers;
mod object;
mod options;
mod presign;
mod put;
mod stall;
mod stream;
mod tags;
mod transfer;

pub use checksum::Checksums;
pub use classify::S3Failure;
pub use client::{
    S3Client, get_s3_client, get_s3_client_named, set_s3_client, set_s3_client_named,
};
pub use config::{Addressing, S3ClientBuilder};
pub use copy::Copy;
pub use delete::{Deletion, NotDeleted};
pub use encryption::{CustomerKey, Encryption};
pub use get::Get;
pub use list::{List, ObjectSummary, Page};
pub use mainstay_policy::Error;
pub use object::ObjectHead;
pub use options::PutOptions;
pub use presign::{PresignPut, Presigned};
pub use put::{Put, Written};
pub use stream::ObjectStream;
pub use transfer::{
    cleanup::remove_partial_downloads, download::Download, progress::Progress, upload::Upload,
};
