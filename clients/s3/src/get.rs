//! One object read: what is said about it, its bytes in memory, or a stream of them.

use crate::{
    CustomerKey, S3Client, S3Failure,
    call::{GET, HEAD, Target},
    encryption::with_key,
    numbers::{Direction, count_bytes, count_repeat},
    object::ObjectHead,
    stall::within,
    stream::ObjectStream,
    transfer::tuning::check_idle,
};
use aws_sdk_s3::{
    Client,
    operation::get_object::{GetObjectOutput, builders::GetObjectFluentBuilder},
    primitives::ByteStream,
};
use bytes::{Bytes, BytesMut};
use mainstay_policy::{Deadline, Error, Operation};
use std::{
    fmt,
    ops::Range,
    pin::Pin,
    time::{Duration, Instant},
};

const MIB: u64 = 1024 * 1024;
/// What `get` reads unless told otherwise.
const LIMIT: u64 = 64 * MIB;
/// Read at once, in the plain attempt timeout; a longer object is asked for again, in more time.
const AT_ONCE: u64 = 4 * MIB;
/// What a server announces is not worth more memory than this before it has come.
const ROOM: u64 = 8 * MIB;

/// An object to be read; see [`S3Client::get`].
#[derive(Clone)]
#[must_use = "an object is read when this is awaited or streamed"]
pub struct Get {
    pub(crate) client: S3Client,
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) range: Option<Range<u64>>,
    pub(crate) version_id: Option<String>,
    if_match: Option<String>,
    pub(crate) customer: Option<CustomerKey>,
    limit: u64,
    idle: Option<Duration>,
}

impl fmt::Debug for Get {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Get").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl S3Client {
    /// Reads an object: awaited into memory, or with [`Get::stream`] piece by piece.
    ///
    /// In memory its checksum is verified before it is returned, if the store sends one.
    ///
    /// # Errors
    /// A missing object or bucket, an object over the [limit](Get::limit) of 64 MiB, or what kept
    /// it from being read.
    ///
    /// # Cancel safety
    /// Dropping the future reads no further.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn main_(s3: mainstay_s3::S3Client) -> Result<(), mainstay_policy::Error> {
    /// let report = s3.get("bucket", "2026/report.csv").await?;
    /// let footer = s3.get("bucket", "2026/data.parquet").range(1_000..1_064).await?;
    /// let mut log = s3.get("bucket", "2026/huge.log").stream().await?;
    /// while let Some(piece) = log.chunk().await? {
    ///     println!("{} bytes more of {}", piece.len(), log.head().size);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn get(&self, bucket: &str, key: &str) -> Get {
        Get {
            client: self.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            range: None,
            version_id: None,
            if_match: None,
            customer: None,
            limit: LIMIT,
            idle: None,
        }
    }

    /// What is said about one object: length, ETag, type, metadata.
    ///
    /// # Errors
    /// A missing object or bucket (the store does not say which), or what kept it from being asked.
    pub async fn head(&self, bucket: &str, key: &str) -> Result<ObjectHead, Error> {
        self.get(bucket, key).head().await
    }

    /// Whether there is such an object; `false` for a missing bucket too.
    ///
    /// # Errors
    /// As [`S3Client::head`], a missing object apart. Without the right to list the bucket the
    /// store answers 403 for an object that is not there.
    pub async fn exists(&self, bucket: &str, key: &str) -> Result<bool, Error> {
        match self.head(bucket, key).await {
            Ok(_) => Ok(true),
            Err(error) if error.downcast_ref().is_some_and(S3Failure::is_not_found) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Get {
    /// The most bytes that are read into memory; a longer object is an error. Default: 64 MiB. A
    /// stream has no limit.
    pub const fn limit(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    /// A body of which nothing comes for so long has failed: it is asked for again, by a stream from where
    /// it was. Default: the attempt timeout of the policy.
    pub const fn idle_timeout(mut self, idle: Duration) -> Self {
        self.idle = Some(idle);
        self
    }

    /// Only these bytes of it; an end beyond the object's is the object's. Other bytes, of a store that
    /// ignores ranges, are an error. The store does not let the checksum of a part be verified.
    pub const fn range(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    /// This version of it, in a bucket that keeps versions.
    pub fn version_id(mut self, id: impl Into<String>) -> Self {
        self.version_id = Some(id.into());
        self
    }

    /// Only if it is the version with this ETag; else the error's
    /// [`is_precondition_failed`](S3Failure::is_precondition_failed).
    pub fn if_match(mut self, etag: impl Into<String>) -> Self {
        self.if_match = Some(etag.into());
        self
    }

    /// The key that it was [encrypted](crate::Encryption::Customer) with.
    pub fn customer_key(mut self, key: CustomerKey) -> Self {
        self.customer = Some(key);
        self
    }

    /// What is said about the object, without its bytes.
    ///
    /// # Errors
    /// As [`S3Client::head`].
    pub async fn head(&self) -> Result<ObjectHead, Error> {
        self.head_for(&HEAD).await
    }

    pub(crate) async fn head_for(&self, operation: &Operation) -> Result<ObjectHead, Error> {
        let target = self.target()?;
        let call = self.client.call(operation, target, 0, |sdk, attempt| {
            let head = with_key!(sdk.head_object(), self.customer.as_ref())
                .bucket(&self.bucket)
                .key(&self.key)
                .set_version_id(self.version_id.clone())
                .set_if_match(self.if_match.clone())
                .send();
            async move { head.await.map_err(|e| S3Failure::sdk(e, attempt).of_a_read()) }
        });
        Ok(ObjectHead::of_head(call.await?))
    }

    /// Reads piece by piece, in bounded memory. A body that breaks off goes on from there, pinned to
    /// the same version; see [`ObjectStream`].
    ///
    /// # Errors
    /// As awaiting it, the limit apart.
    pub async fn stream(self) -> Result<ObjectStream, Error> {
        ObjectStream::open(self).await
    }

    pub(crate) fn idle(&self) -> Option<Duration> {
        self.idle.or(self.client.policy().timeout())
    }

    /// # Errors
    /// What no object can be asked for.
    pub(crate) fn target(&self) -> Result<Target<'_>, Error> {
        let target = Target::object(&self.bucket, &self.key)?;
        check_idle(self.idle)?;
        if self.range.as_ref().is_some_and(|range| range.start >= range.end) {
            return Err(Error::invalid(
                "the range is empty; give it as start..end, end not included",
            ));
        }
        Ok(target)
    }

    /// The request; for these bytes only, and this version, if they are given.
    pub(crate) fn request(
        &self,
        sdk: &Client,
        range: Option<&Range<u64>>,
        etag: Option<&str>,
    ) -> GetObjectFluentBuilder {
        let etag = etag.or(self.if_match.as_deref());
        with_key!(sdk.get_object(), self.customer.as_ref())
            .bucket(&self.bucket)
            .key(&self.key)
            .set_version_id(self.version_id.clone())
            .set_if_match(etag.map(str::to_owned))
            .set_range(range.map(|r| format!("bytes={}-{}", r.start, r.end - 1)))
    }

    /// Whether the answer holds what was asked for: some stores ignore ranges.
    pub(crate) fn is_answered_by(&self, got: &GetObjectOutput) -> bool {
        self.range.as_ref().is_none_or(|range| {
            whole(got).is_some_and(|(held, total)| held == (range.start..range.end.min(total)))
        })
    }

    async fn bytes(self) -> Result<Bytes, Error> {
        let target = self.target()?;
        let (mut most, mut expected) = (AT_ONCE.min(self.limit), 0);
        let (this, started, idle) = (&self, Instant::now(), self.idle());
        loop {
            let read = self.client.call(&GET, target, expected, |sdk, attempt| {
                count_repeat(Direction::Download, attempt);
                let get = this.request(&sdk, this.range.as_ref(), None).send();
                async move {
                    let got = get.await.map_err(|e| S3Failure::sdk(e, attempt).of_a_read())?;
                    if !this.is_answered_by(&got) {
                        return Err(S3Failure::garbled());
                    }
                    match length(got.content_length) {
                        Some(length) if length > most => Ok(Err(length)),
                        length => read(got.body, length, this.limit, idle).await.map(Ok),
                    }
                }
            });
            // What was spent on learning the length counts: it is one call.
            let deadline = self.client.policy_for(expected).deadline().filter(|_| expected > 0);
            let end = match deadline.map(|all| all.saturating_sub(started.elapsed())) {
                Some(left) => Deadline::within(left).scope(read).await,
                None => read.await,
            };
            match end? {
                Ok(bytes) => {
                    count_bytes(Direction::Download, bytes.len() as u64);
                    return Ok(bytes);
                }
                Err(length) if length > self.limit => {
                    let error = S3Failure::too_long(Some(length), self.limit);
                    return Err(self.client.local(&GET, error.about(&self.bucket, true)));
                }
                Err(length) => (most, expected) = (length, length),
            }
        }
    }
}

impl IntoFuture for Get {
    type Output = Result<Bytes, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.bytes())
    }
}

/// A length as the SDK has it.
pub(crate) fn length(announced: Option<i64>) -> Option<u64> {
    announced?.try_into().ok()
}

/// The bytes that an answer holds, and the length of the whole object.
pub(crate) fn whole(got: &GetObjectOutput) -> Option<(Range<u64>, u64)> {
    match got.content_range() {
        Some(text) => content_range(text),
        None => length(got.content_length).map(|length| (0..length, length)),
    }
}

/// Bytes and total of `bytes 0-9/100`.
pub(crate) fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, end) = (start.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
    let total = total.parse().ok()?;
    (start < end && end <= total).then_some((start..end, total))
}

/// All bytes of a body, which must be as many as announced.
async fn read(
    mut body: ByteStream,
    announced: Option<u64>,
    limit: u64,
    idle: Option<Duration>,
) -> Result<Bytes, S3Failure> {
    let room = announced.unwrap_or_default().min(ROOM);
    let mut bytes = BytesMut::with_capacity(usize::try_from(room).unwrap_or_default());
    while let Some(piece) = within(idle, body.next()).await? {
        bytes.extend_from_slice(&piece.map_err(S3Failure::body)?);
        if bytes.len() as u64 > limit {
            return Err(S3Failure::too_long(announced, limit));
        }
    }
    match announced {
        Some(length) if length != bytes.len() as u64 => Err(S3Failure::short()),
        _ => Ok(bytes.freeze()),
    }
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn a_content_range_is_read_or_refused() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0..10, 100)));
        for bad in ["", "bytes */0", "bytes 5-4/10", "bytes 0-10/10", "bytes 0-9/*", "0-9/100"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
