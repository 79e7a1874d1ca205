//! An object into a file: the target is whole or untouched.
//!
//! The bytes go to a temporary file beside the target, in ranges pinned to the version that the first one
//! showed; length and checksum are verified, the file synced and renamed.

mod range;
mod temporary;
mod verify;

pub(crate) use temporary::remove_abandoned;

use crate::{
    Checksums, CustomerKey, S3Client, S3Failure,
    call::{DOWNLOAD, Target},
    checksum::{Crc, Sum, Told},
    numbers::Direction,
    transfer::{
        part::{self, PART, Part},
        progress::Tracker,
        tuning::{Tuning, tuning},
    },
};
use futures_util::{
    future,
    stream::{self, StreamExt, TryStreamExt},
};
use mainstay_policy::Error;
use range::{Piece, Version};
use std::{
    fmt,
    future::IntoFuture,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, OnceLock},
};
use temporary::Temporary;
use tokio::sync::Mutex;

impl S3Client {
    /// Downloads an object into a file, replacing one that is there, when awaited.
    pub fn download_file(&self, bucket: &str, key: &str, path: impl AsRef<Path>) -> Download {
        Download {
            client: self.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            path: path.as_ref().to_owned(),
            tuning: Tuning::default(),
            customer: None,
        }
    }
}

/// A download to be awaited.
///
/// The bytes come in ranges, several at once, each repeated on its own from where it broke off. They go to a
/// temporary file beside the target, whose directory must exist. Its length and the checksum that the store
/// tells (CRC-32, CRC-32C or CRC-64/NVME, of the whole or of its parts) are compared; then it is synced to
/// disk and takes the target's name. If the object is replaced meanwhile or its bytes turn out damaged, the
/// download starts again, once.
///
/// It holds at most 3 MiB times [`parallel`](Self::parallel) in memory, 24 MiB by default, whatever the
/// length of the object.
///
/// # Errors
/// A missing object or bucket, a target that cannot be written, or what kept the object from
/// being read. The target is then as it was; only if the deadline passed while it was being renamed,
/// nobody knows, and [`is_outcome_unknown`](mainstay_policy::Error::is_outcome_unknown) says so.
///
/// # Cancel safety
/// Dropping the future removes the temporary file, unless it is to be [resumed](Self::resume); the target is
/// as it was, or whole if the rename was on its way. What a killed process leaves behind is found by
/// [`remove_partial_downloads`](crate::remove_partial_downloads).
///
/// # Examples
/// ```no_run
/// # async fn run(s3: mainstay_s3::S3Client) -> Result<(), mainstay_policy::Error> {
/// s3.download_file("bucket", "2026/backup.tar", "backup.tar")
///     .on_progress(|p| println!("{} of {}", p.done, p.total))
///     .resume()
///     .await?;
/// # Ok(()) }
/// ```
#[must_use = "a download begins when it is awaited"]
pub struct Download {
    client: S3Client,
    bucket: String,
    key: String,
    path: PathBuf,
    tuning: Tuning,
    customer: Option<CustomerKey>,
}

tuning!(Download);

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl Download {
    /// Goes on with what an earlier download of this object to this target left, and leaves it when this
    /// one fails or is dropped.
    ///
    /// Each range that is there is read and compared with the checksum noted when it came; if the object
    /// was replaced meanwhile, the download begins anew.
    pub fn resume(mut self) -> Self {
        self.tuning.resume = true;
        self
    }

    /// The key that the object was encrypted with, if that was the caller's own.
    pub fn customer_key(mut self, key: CustomerKey) -> Self {
        self.customer = Some(key);
        self
    }

    async fn run(self) -> Result<(), Error> {
        self.tuning.check()?;
        let target = Target::object(&self.bucket, &self.key)?;
        match self.attempt(target, false).await {
            Err(e) if e.downcast_ref().is_some_and(S3Failure::begins_anew) => {
                self.attempt(target, true).await
            }
            end => end,
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        self.client.local(&DOWNLOAD, S3Failure::local("written", self.path.clone(), error))
    }

    /// One download of one version.
    async fn attempt(&self, target: Target<'_>, anew: bool) -> Result<(), Error> {
        let to = self.path.clone();
        let tag = self.tuning.resume.then(|| self.tag());
        let temporary = part::blocking(move || Ok(Temporary::create(&to, tag, anew))).await;
        let (temporary, earlier) = temporary.map_err(|error| self.failed(error))??;
        let mut job = Job {
            download: self,
            target,
            file: Arc::clone(temporary.file()),
            turn: Arc::default(),
            size: self.tuning.part_size.unwrap_or(PART),
            version: None,
            crc: OnceLock::new(),
            tracker: None,
        };
        let mut sums = Vec::new();
        let mut told = None;
        if let Some(earlier) = earlier {
            job.size = earlier.size;
            job.begin(earlier.version);
            for (part, sum) in earlier.sums {
                job.there(part.length);
                sums.push((part, Some(sum)));
            }
        } else {
            let first = Part { number: 1, start: 0, length: job.size };
            let (version, sum, whole) = job.first(first).await?;
            told = whole;
            let length = version.total.min(job.size);
            let note = (version.clone(), job.size);
            job.begin(version);
            job.there(length);
            if length > 0 {
                sums.push((Part { length, ..first }, sum));
            }
            temporary.note_version(note.0, note.1).await.map_err(|error| self.failed(error))?;
            temporary.note(first.number, sum).await.map_err(|error| self.failed(error))?;
        }
        let job = &job;
        let total = job.total();
        let there: Vec<i32> = sums.iter().map(|(part, _)| part.number).collect();
        let missing = part::parts(0, total, job.size).filter(|part| !there.contains(&part.number));
        let noted = &temporary;
        let ranges = stream::iter(missing.map(|part| async move {
            let sum = job.range(part).await?;
            noted.note(part.number, sum).await.map_err(|error| self.failed(error))?;
            Ok((part, sum))
        }))
        .buffer_unordered(self.tuning.parallel)
        .try_collect::<Vec<_>>();
        // What the store says of the whole comes while the ranges do.
        let asked = async {
            match told {
                Some(told) => Ok(Some(told)),
                None if total == 0 => Ok(None),
                None => job.ask(None).await.map(|head| head.told),
            }
        };
        let (ranges, told) = future::try_join(ranges, asked).await?;
        sums.extend(ranges);
        sums.sort_by_key(|(part, _)| part.number);
        if let Some(told) = told {
            job.verify(told, sums).await?;
        }
        temporary.finish(total).await.map_err(|error| self.failed(error))
    }

    /// Marks what an earlier download of the same object to the same target left.
    fn tag(&self) -> u64 {
        let policy = self.client.policy();
        let name = [policy.name(), &self.bucket, &self.key].join("\0");
        crc_fast::checksum(Crc::Crc64.algorithm(), name.as_bytes())
    }
}

impl IntoFuture for Download {
    type Output = Result<(), Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// What all steps of a download need.
struct Job<'a> {
    download: &'a Download,
    target: Target<'a>,
    file: Arc<std::fs::File>,
    /// Whose turn it is to write.
    turn: Arc<Mutex<()>>,
    size: u64,
    version: Option<Version>,
    /// What the store's checksum is, once that is known.
    crc: OnceLock<Crc>,
    tracker: Option<Tracker>,
}

impl Job<'_> {
    fn client(&self) -> &S3Client {
        &self.download.client
    }

    fn total(&self) -> u64 {
        self.version.as_ref().map_or(0, |version| version.total)
    }

    fn begin(&mut self, version: Version) {
        let listener = self.download.tuning.listener.clone();
        self.tracker = Some(Tracker::new(Direction::Download, version.total, listener));
        self.version = Some(version);
    }

    fn there(&self, bytes: u64) {
        if let Some(tracker) = &self.tracker {
            tracker.there(bytes);
        }
    }

    /// What ranges are hashed with; CRC-32 until the store has said what it has.
    fn hashed(&self) -> Option<Crc> {
        let wanted =
            self.download.client.checksums() == Checksums::On || self.download.tuning.resume;
        wanted.then(|| self.crc.get().copied().unwrap_or(Crc::Crc32))
    }

    async fn first(&self, part: Part) -> Result<(Version, Option<Sum>, Option<Told>), Error> {
        let piece = self.fetch(part).await?;
        let sum = piece.sum();
        let whole = piece.whole.filter(|_| self.client().checksums() == Checksums::On);
        // A range asked for at 0 always learns its version.
        let version = piece.version.unwrap_or_default();
        Ok((version, sum, whole))
    }

    async fn range(&self, part: Part) -> Result<Option<Sum>, Error> {
        self.fetch(part).await.map(|piece| piece.sum())
    }

    async fn fetch(&self, part: Part) -> Result<Piece, Error> {
        let piece = Piece::new(part, self.hashed(), self.version.clone());
        // Not a lock for threads: it hands the piece from one attempt to the next, also when hedged.
        let piece = Mutex::new(piece);
        let (client, held) = (self.client(), &piece);
        client
            .move_part(
                Direction::Download,
                &DOWNLOAD,
                self.target,
                part.length,
                |sdk, attempt| async move { held.lock().await.fill(self, sdk, attempt).await },
            )
            .await?;
        Ok(piece.into_inner())
    }
}
