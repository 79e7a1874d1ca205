//! Consecutive parts of an object, asked for at once: hashed and written as they come. Each part is a call of its
//! own, which reads on in the answer that the one before it left open. What has come stays when an attempt
//! breaks off; the next asks for the rest, of the same version.

use super::{Job, sums::Sums};
use crate::{
    Checksums, S3Failure,
    checksum::{Sum, Told},
    encryption::with_key,
    get::{content_range, length},
    numbers::{Direction, count_bytes},
    stall::within,
    transfer::part::{self, Part},
};
use aws_sdk_s3::{
    Client, operation::get_object::GetObjectOutput, primitives::ByteStream, types::ChecksumMode,
};
use bytes::Bytes;
use std::{
    io,
    mem::take,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::task::{self, JoinHandle};

/// What is written at once: a hop to another thread per network read costs more than the write.
const GATHER: usize = 1024 * 1024;

/// A frame as long as this comes from what was queued in the kernel, of which the driver reads up to 400 KiB at once
/// (seen over TLS too); what has just come in is some packets.
const QUEUED: usize = 128 * 1024;

/// What ties ranges together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) total: u64,
    pub(crate) etag: Option<String>,
}

/// A range of which some may be there.
pub(super) struct Range {
    pub(super) parts: Vec<Part>,
    /// The end of the last one, which may be past the object's.
    end: u64,
    /// The bytes before this place are written.
    at: u64,
    /// Of what is written.
    sums: Sums,
    /// So many of these are noted.
    noted: usize,
    /// It is waited for before the next write.
    writing: Option<Writing>,
    /// What is left of an answer.
    open: Option<Open>,
    pub(super) version: Option<Version>,
    /// What the store said of the whole, if this is the whole.
    pub(super) whole: Option<Told>,
}

/// A write on its way.
struct Writing {
    length: u64,
    /// As they are when that is written.
    sums: Sums,
    end: JoinHandle<io::Result<()>>,
}

/// The last write of any range.
pub(super) struct LastWrite {
    took: Duration,
    end: Instant,
}

impl Default for LastWrite {
    fn default() -> Self {
        Self { took: Duration::ZERO, end: Instant::now() }
    }
}

/// An answer that is being read.
struct Open {
    body: ByteStream,
    /// So many bytes are still to come.
    left: u64,
    /// Come and not yet on their way to the disk.
    frames: Vec<Bytes>,
    gathered: usize,
    /// Of all that has come.
    sums: Sums,
    /// It is the whole object: the range was ignored.
    is_whole: bool,
}

impl Range {
    pub(super) fn new(parts: Vec<Part>, version: Option<Version>) -> Self {
        let at = parts.first().map_or(0, |part| part.start);
        let end = parts.last().map_or(0, |part| part.start + part.length);
        Self {
            parts,
            end,
            at,
            sums: Sums::default(),
            noted: 0,
            writing: None,
            open: None,
            version,
            whole: None,
        }
    }

    pub(super) fn into_sums(self) -> impl Iterator<Item = (Part, Option<Sum>)> {
        self.parts.into_iter().zip(self.sums.done)
    }

    fn start(&self) -> u64 {
        self.parts.first().map_or(0, |part| part.start)
    }

    /// The end of what there is of it, as far as that is known.
    fn stop(&self) -> u64 {
        self.version.as_ref().map_or(self.end, |version| version.total.min(self.end))
    }

    /// Waits for the write on its way.
    async fn settle(&mut self, job: &Job<'_>) -> Result<(), S3Failure> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        let written = (&mut writing.end).await.map_err(io::Error::other).flatten();
        let (length, sums) = (writing.length, take(&mut writing.sums));
        self.writing = None;
        written.map_err(|error| job.failure(error))?;
        self.sums = sums;
        self.at += length;
        match &job.tracker {
            Some(tracker) => tracker.moved(length),
            // The first range: the total is known when it is done.
            None => count_bytes(Direction::Download, length),
        }
        self.note(job).await
    }

    /// Notes the parts that have become whole, once it is known of what.
    async fn note(&mut self, job: &Job<'_>) -> Result<(), S3Failure> {
        if job.version.is_some() {
            for (part, sum) in self.parts.iter().zip(&self.sums.done).skip(self.noted) {
                let noted = job.temporary.note(part.number, *sum).await;
                noted.map_err(|error| job.failure(error))?;
            }
            self.noted = self.sums.done.len();
        }
        Ok(())
    }

    /// Begins to write what has come, after which the checksums are these.
    async fn write(
        &mut self,
        job: &Job<'_>,
        frames: Vec<Bytes>,
        sums: Sums,
    ) -> Result<(), S3Failure> {
        if frames.is_empty() {
            return Ok(());
        }
        let length = frames.iter().map(Bytes::len).sum::<usize>();
        if length >= GATHER {
            job.queued.store(frames.iter().any(|frame| frame.len() >= QUEUED), Relaxed);
        }
        if job.turn.try_lock().is_ok_and(|last| last.end.elapsed() > last.took) {
            job.starved.store(true, Relaxed);
        }
        self.settle(job).await?;
        let (file, mut at) = (Arc::clone(job.temporary.file()), self.at);
        // The kernel lets one at a time write to a file: more threads would wait for each other.
        let mut turn = Arc::clone(job.turn).lock_owned().await;
        let end = task::spawn_blocking(move || {
            let begun = Instant::now();
            let written = frames.into_iter().try_for_each(|frame| {
                part::write_all_at(&file, &frame, at)?;
                at += frame.len() as u64;
                Ok(())
            });
            // Whose turn is next may be waiting for the file's lock.
            drop(file);
            *turn = LastWrite { took: begun.elapsed(), end: Instant::now() };
            written
        });
        self.writing = Some(Writing { length: length as u64, sums, end });
        Ok(())
    }

    /// Forgets what came: it is not what it should be.
    fn forget(&mut self) {
        self.at = self.start();
        self.sums = Sums::default();
        self.noted = 0;
    }

    /// One attempt at what is missing of the bytes before `until`.
    pub(super) async fn fill(
        &mut self,
        job: &Job<'_>,
        sdk: Client,
        attempt: u32,
        until: u64,
    ) -> Result<(), S3Failure> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                self.settle(job).await?;
                match self.ask(job, sdk, attempt, until).await? {
                    Some(open) => open,
                    // An attempt before this one brought the last byte, and did not live to its end.
                    None if self.at == self.stop() => return self.finish(job).await,
                    None => return Ok(()),
                }
            }
        };
        match self.read(job, &mut open, until).await {
            // The SDK compares a whole answer's checksum, after the bytes: which was wrong is not known.
            Err(error) if open.is_whole => {
                self.settle(job).await?;
                self.forget();
                Err(error)
            }
            Err(error) => Err(error),
            Ok(()) if open.left > 0 => {
                self.open = Some(open);
                Ok(())
            }
            Ok(()) => self.finish(job).await,
        }
    }

    /// All of it has come.
    async fn finish(&mut self, job: &Job<'_>) -> Result<(), S3Failure> {
        self.sums.finish();
        self.note(job).await?;
        self.compare()
    }

    /// Asks for all that is missing; nothing if that is not needed.
    async fn ask(
        &mut self,
        job: &Job<'_>,
        sdk: Client,
        attempt: u32,
        until: u64,
    ) -> Result<Option<Open>, S3Failure> {
        let (first, end) = (self.at, self.stop());
        if first >= end.min(until) {
            return Ok(None);
        }
        let checked = job.client().checksums() == Checksums::On;
        let answer = with_key!(sdk.get_object(), job.download.customer.as_ref())
            .bucket(job.target.bucket)
            .key(job.target.key.unwrap_or_default())
            .range(format!("bytes={first}-{}", end - 1))
            .set_if_match(self.version.as_ref().and_then(|version| version.etag.clone()))
            .set_checksum_mode(checked.then_some(ChecksumMode::Enabled))
            .send()
            .await;
        let got = match answer.map_err(|e| S3Failure::sdk(e, attempt)) {
            Ok(got) => got,
            // No byte at 0: the object is empty.
            Err(e) if e.status() == Some(416) && first == 0 && self.version.is_none() => {
                self.version = Some(Version::default());
                return Ok(None);
            }
            Err(error) => return Err(error.of_a_version()),
        };
        let left = self.expect(&got, first, end)?;
        let is_whole = got.content_range().is_none();
        let (body, sums) = (got.body, self.sums.clone());
        Ok(Some(Open { body, left, frames: Vec::new(), gathered: 0, sums, is_whole }))
    }

    /// Whether the answer is what was asked for: how many bytes follow.
    fn expect(&mut self, got: &GetObjectOutput, first: u64, end: u64) -> Result<u64, S3Failure> {
        let (held, total) = match (got.content_range(), length(got.content_length)) {
            (Some(text), _) => content_range(text).ok_or_else(S3Failure::garbled)?,
            // The whole object, ranges ignored; good enough if it is no longer than a part.
            (None, Some(length)) if first == 0 && length <= end => (0..length, length),
            _ => return Err(S3Failure::garbled()),
        };
        let version = Version { total, etag: got.e_tag().map(str::to_owned) };
        // Some stores ignore If-Match.
        if self.version.as_ref().is_some_and(|known| *known != version) {
            return Err(S3Failure::changed());
        }
        if held != (first..total.min(end)) {
            return Err(S3Failure::garbled());
        }
        self.version = Some(version);
        if total == held.end && self.start() == 0 {
            let (crc32, c) = (got.checksum_crc32(), got.checksum_crc32_c());
            let told = Told::read(crc32, c, got.checksum_crc64_nvme());
            self.whole = told.filter(|told| told.parts.is_none());
        }
        Ok(held.end - held.start)
    }

    /// Reads on until these bytes have come; of the last ones also the answer's end.
    async fn read(&mut self, job: &Job<'_>, open: &mut Open, until: u64) -> Result<(), S3Failure> {
        let idle = job.download.tuning.idle.or(job.client().policy().timeout());
        let stop = self.stop();
        let broken = loop {
            if open.gathered >= GATHER {
                open.gathered = 0;
                self.write(job, take(&mut open.frames), open.sums.clone()).await?;
            }
            if stop - open.left >= until && open.left > 0 {
                return Ok(());
            }
            match within(idle, open.body.next()).await {
                Ok(Some(Ok(frame))) if frame.len() as u64 <= open.left => {
                    open.left -= frame.len() as u64;
                    open.gathered += frame.len();
                    // While it is in the processor's cache: twice as quick as when it is written.
                    open.sums.update(&frame, job.size, job.hashed());
                    open.frames.push(frame);
                }
                Ok(Some(Ok(_))) => return Err(S3Failure::garbled()),
                Ok(Some(Err(error))) => break Some(S3Failure::body(error)),
                Ok(None) if open.left > 0 => break Some(S3Failure::short()),
                Ok(None) => break None,
                Err(stalled) => break Some(stalled),
            }
        };
        self.write(job, take(&mut open.frames), open.sums.clone()).await?;
        self.settle(job).await?;
        broken.map_or(Ok(()), Err)
    }

    /// A whole object in one range is compared at once, and fetched again by the next attempt.
    fn compare(&mut self) -> Result<(), S3Failure> {
        match (self.whole, &self.sums.done[..]) {
            (Some(told), [Some(sum)]) if told.crc == sum.crc && !told.is_of(&[*sum]) => {
                self.forget();
                Err(S3Failure::short())
            }
            _ => Ok(()),
        }
    }
}
