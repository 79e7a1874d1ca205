//! One object written from memory.

use crate::{
    S3Client, S3Failure,
    call::{Doubt, PUT, Target},
    encryption::with_key,
    numbers::{Direction, count_bytes, count_repeat},
    options::{PutOptions, put_options},
    stall::watched,
    transfer::upload::mark,
};
use aws_sdk_s3::{Client, primitives::ByteStream};
use bytes::Bytes;
use mainstay_policy::Error;
use std::{fmt, pin::Pin};

/// A conditional write's mark in the object's metadata: it tells whether a 412 that answers a
/// repeat is about our own first attempt.
const MARK: &str = "mainstay-write";

/// What the store says of an object that it has written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The mark of this version, for [`PutOptions::if_match`]; not a checksum.
    pub etag: Option<String>,
    /// The version's id, in a bucket that keeps versions.
    pub version_id: Option<String>,
}

/// An object to be written; see [`S3Client::put`].
#[must_use = "an object is written when this is awaited"]
pub struct Put {
    client: S3Client,
    bucket: String,
    key: String,
    bytes: Bytes,
    options: PutOptions,
}

put_options!(Put);

impl fmt::Debug for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Put")
            .field("bucket", &self.bucket)
            .field("length", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

impl IntoFuture for Put {
    type Output = Result<Written, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let target = Target::object(&self.bucket, &self.key)?;
            let options = self.options.with_type_of(&self.key, None);
            options.check()?;
            let mark = options.condition.is_some().then(mark);
            let mark = mark.as_deref();
            if mark.is_some() {
                options.check_room(MARK)?;
            }
            let (client, length) = (&self.client, self.bytes.len() as u64);
            let doubt = &Doubt::default();
            let written = client.call(&PUT, target, length, |sdk, attempt| {
                count_repeat(Direction::Upload, attempt);
                let mut put = options.put(sdk.put_object()).bucket(&self.bucket).key(&self.key);
                if let Some(mark) = mark {
                    put = put.metadata(MARK, mark);
                }
                let body = ByteStream::from(self.bytes.clone());
                // The SDK's CRC-32 header guards the bytes; signing them too costs a SHA-256.
                let put = put.body(body).customize().disable_payload_signing();
                let (idle, options) = (client.policy().timeout(), &options);
                async move {
                    doubt.sent();
                    let put = watched(idle, |watch| async {
                        let put = put.interceptor(watch).send();
                        put.await.map_err(|e| S3Failure::of_write(e, attempt))
                    });
                    let error = match put.await {
                        Ok(put) => {
                            let (etag, version_id) = (put.e_tag, put.version_id);
                            return Ok(Written { etag, version_id });
                        }
                        Err(error) => doubt.of(error),
                    };
                    let echo = error.is_precondition_failed() && error.is_in_doubt();
                    match mark.filter(|_| echo) {
                        // Another attempt may have written the object.
                        Some(mark) => {
                            landed(&sdk, target, options, mark, attempt).await?.ok_or(error)
                        }
                        None => Err(error),
                    }
                }
            });
            let written = written.await?;
            count_bytes(Direction::Upload, length);
            Ok(written)
        })
    }
}

impl S3Client {
    /// Writes an object, replacing one that is there unless a condition says otherwise.
    ///
    /// # Errors
    /// A missing bucket, a condition that does not hold
    /// ([`is_precondition_failed`](S3Failure::is_precondition_failed)), options that S3 does not
    /// take, or what kept it from being written. The object is then as it was, unless the
    /// [outcome is unknown](Error::is_outcome_unknown).
    ///
    /// # Cancel safety
    /// A future that is dropped leaves the object as it was or written, never in part.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn main_(s3: mainstay_s3::S3Client) -> Result<(), mainstay_policy::Error> {
    /// s3.put("bucket", "note.txt", "hello").await?;
    /// s3.put("bucket", "lock", "mine").if_absent().await?;
    /// # Ok(()) }
    /// ```
    pub fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) -> Put {
        let (client, bucket, key) = (self.clone(), bucket.to_owned(), key.to_owned());
        Put { client, bucket, key, bytes: bytes.into(), options: PutOptions::new() }
    }
}

/// What was written, if the object is the one with this mark.
async fn landed(
    sdk: &Client,
    target: Target<'_>,
    options: &PutOptions,
    mark: &str,
    attempt: u32,
) -> Result<Option<Written>, S3Failure> {
    let head = with_key!(sdk.head_object(), options.customer());
    let head = head.bucket(target.bucket).key(target.key.unwrap_or_default()).send().await;
    match head.map_err(|e| S3Failure::sdk(e, attempt)) {
        Ok(head) => {
            let ours = head.metadata().and_then(|m| m.get(MARK)).is_some_and(|m| m == mark);
            Ok(ours.then_some(Written { etag: head.e_tag, version_id: head.version_id }))
        }
        Err(error) if error.is_repeatable() => Err(error),
        // It is not there, or may not be looked at.
        Err(_) => Ok(None),
    }
}
