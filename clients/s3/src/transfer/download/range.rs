//! One range of an object: fetched, hashed and written as it comes. What has come stays when an attempt
//! breaks off; the next asks for the rest, of the same version.

use super::Job;
use crate::{
    Checksums, CustomerKey, S3Failure,
    checksum::{Crc, Sum, Told},
    numbers::{Direction, count_bytes},
    stall::within,
    transfer::part::{self, Part},
};
use aws_sdk_s3::{Client, operation::get_object::GetObjectOutput, types::ChecksumMode};
use bytes::Bytes;
use crc_fast::Digest;
use std::{io, sync::Arc};
use tokio::task::{self, JoinHandle};

/// What is written at once: a hop to another thread per network read costs more than the write.
const GATHER: usize = 1024 * 1024;

/// What ties ranges together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) total: u64,
    pub(crate) etag: Option<String>,
}

pub(crate) struct Piece {
    part: Part,
    /// So many bytes are written.
    at: u64,
    /// Of what is written.
    digest: Option<(Crc, Digest)>,
    /// It is waited for before the next attempt: it must not overtake that one's.
    writing: Option<Writing>,
    pub(crate) version: Option<Version>,
    /// What the store said of the whole, if this is the whole.
    pub(crate) whole: Option<Told>,
}

/// A write on its way.
struct Writing {
    length: u64,
    /// As it is when that is written.
    digest: Option<(Crc, Digest)>,
    end: JoinHandle<io::Result<()>>,
}

impl Piece {
    pub(crate) fn new(part: Part, crc: Option<Crc>, version: Option<Version>) -> Self {
        let digest = crc.map(|crc| (crc, Digest::new(crc.algorithm())));
        Self { part, at: 0, digest, writing: None, version, whole: None }
    }

    pub(crate) fn sum(&self) -> Option<Sum> {
        let sum = |(crc, digest): &(Crc, Digest)| Sum {
            crc: *crc,
            value: digest.finalize(),
            length: self.at,
        };
        self.digest.as_ref().map(sum)
    }

    /// Waits for the write on its way.
    async fn settle(&mut self, job: &Job<'_>) -> Result<(), S3Failure> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        let written = (&mut writing.end).await.map_err(io::Error::other).flatten();
        let (length, digest) = (writing.length, writing.digest);
        self.writing = None;
        let path = &job.download.path;
        written.map_err(|error| S3Failure::local("written", path.clone(), error))?;
        self.digest = digest;
        self.at += length;
        match &job.tracker {
            Some(tracker) => tracker.moved(length),
            // The first range: the total is known when it is done.
            None => count_bytes(Direction::Download, length),
        }
        Ok(())
    }

    /// Begins to write what has come, after which the digest is this.
    async fn write(
        &mut self,
        job: &Job<'_>,
        frames: Vec<Bytes>,
        digest: Option<(Crc, Digest)>,
    ) -> Result<(), S3Failure> {
        self.settle(job).await?;
        let length = frames.iter().map(Bytes::len).sum::<usize>() as u64;
        if length == 0 {
            return Ok(());
        }
        let (file, mut at) = (Arc::clone(&job.file), self.part.start + self.at);
        // The kernel lets one at a time write to a file: more threads would wait for each other.
        let turn = Arc::clone(&job.turn).lock_owned().await;
        let end = task::spawn_blocking(move || {
            let _turn = turn;
            for frame in frames {
                part::write_all_at(&file, &frame, at)?;
                at += frame.len() as u64;
            }
            Ok(())
        });
        self.writing = Some(Writing { length, digest, end });
        Ok(())
    }

    /// Forgets what came: it is not what it should be.
    fn forget(&mut self) {
        self.at = 0;
        if let Some((crc, digest)) = &mut self.digest {
            *digest = Digest::new(crc.algorithm());
        }
    }

    /// One attempt at what is missing.
    pub(super) async fn fill(
        &mut self,
        job: &Job<'_>,
        sdk: Client,
        attempt: u32,
    ) -> Result<(), S3Failure> {
        self.settle(job).await?;
        let first = self.part.start + self.at;
        let mut end = self.part.start + self.part.length;
        if let Some(version) = &self.version {
            end = end.min(version.total);
        }
        if first >= end {
            return Ok(());
        }
        let checked = job.client().checksums() == Checksums::On;
        let customer = job.download.customer.as_ref();
        let answer = sdk
            .get_object()
            .bucket(job.target.bucket)
            .key(job.target.key.unwrap_or_default())
            .range(format!("bytes={first}-{}", end - 1))
            .set_if_match(self.version.as_ref().and_then(|version| version.etag.clone()))
            .set_sse_customer_algorithm(customer.map(CustomerKey::algorithm))
            .set_sse_customer_key(customer.map(CustomerKey::base64))
            .set_sse_customer_key_md5(customer.map(CustomerKey::md5))
            .set_checksum_mode(checked.then_some(ChecksumMode::Enabled))
            .send()
            .await;
        let got = match answer.map_err(|e| S3Failure::sdk(e, attempt)) {
            Ok(got) => got,
            // No byte at 0: the object is empty.
            Err(e) if e.status() == Some(416) && first == 0 && self.version.is_none() => {
                self.version = Some(Version::default());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let length = self.expect(&got, first, end)?;
        let whole_answer = got.content_range().is_none();
        match self.read(job, got, length).await {
            // The SDK compares a whole answer's checksum, after the bytes: which was wrong is not known.
            Err(error) if whole_answer => {
                self.settle(job).await?;
                self.forget();
                Err(error)
            }
            Err(error) => Err(error),
            Ok(()) => self.compare(),
        }
    }

    /// Whether the answer is what was asked for: how many bytes follow.
    fn expect(&mut self, got: &GetObjectOutput, first: u64, end: u64) -> Result<u64, S3Failure> {
        let length = got.content_length().and_then(|n| u64::try_from(n).ok());
        let (start, stop, total) = match (got.content_range(), length) {
            (Some(text), _) => content_range(text).ok_or_else(S3Failure::garbled)?,
            // The whole object, ranges ignored; good enough if it is no longer than a part.
            (None, Some(length)) if first == 0 && length <= end => (0, length, length),
            _ => return Err(S3Failure::garbled()),
        };
        let version = Version { total, etag: got.e_tag().map(str::to_owned) };
        // Some stores ignore If-Match.
        if self.version.as_ref().is_some_and(|known| *known != version) {
            return Err(S3Failure::changed());
        }
        if start != first || stop != total.min(end) {
            return Err(S3Failure::garbled());
        }
        self.version = Some(version);
        if total == stop && self.part.start == 0 {
            let (crc32, c) = (got.checksum_crc32(), got.checksum_crc32_c());
            let told = Told::read(crc32, c, got.checksum_crc64_nvme());
            self.whole = told.filter(|told| told.parts.is_none());
        }
        Ok(stop - start)
    }

    async fn read(
        &mut self,
        job: &Job<'_>,
        got: GetObjectOutput,
        length: u64,
    ) -> Result<(), S3Failure> {
        let idle = job.download.tuning.idle.or(job.client().policy().timeout());
        let mut body = got.body;
        let (mut frames, mut gathered, mut left) = (Vec::new(), 0, length);
        let mut digest = self.digest;
        loop {
            let broken = match within(idle, body.next()).await {
                Ok(Some(Ok(frame))) if frame.len() as u64 <= left => {
                    left -= frame.len() as u64;
                    gathered += frame.len();
                    // While it is in the processor's cache: twice as quick as when it is written.
                    if let Some((_, digest)) = &mut digest {
                        digest.update(&frame);
                    }
                    frames.push(frame);
                    if gathered >= GATHER {
                        self.write(job, std::mem::take(&mut frames), digest).await?;
                        gathered = 0;
                    }
                    continue;
                }
                Ok(Some(Ok(_))) => return Err(S3Failure::garbled()),
                Ok(Some(Err(error))) => Some(S3Failure::body(error)),
                Ok(None) if left > 0 => Some(S3Failure::short()),
                Ok(None) => None,
                Err(stalled) => Some(stalled),
            };
            self.write(job, frames, digest).await?;
            self.settle(job).await?;
            return broken.map_or(Ok(()), Err);
        }
    }

    /// A whole object in one range is compared at once, and fetched again by the next attempt.
    fn compare(&mut self) -> Result<(), S3Failure> {
        match (self.whole, self.sum()) {
            (Some(told), Some(sum)) if told.crc == sum.crc && !told.is_of(&[sum]) => {
                self.forget();
                Err(S3Failure::short())
            }
            _ => Ok(()),
        }
    }
}

/// Start, end (exclusive) and total of `bytes 0-9/100`.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, end) = (start.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
    let total = total.parse().ok()?;
    (start < end && end <= total).then_some((start, end, total))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn a_content_range_is_read_or_refused() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0, 10, 100)));
        for bad in ["", "bytes */0", "bytes 5-4/10", "bytes 0-10/10", "bytes 0-9/*", "0-9/100"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
