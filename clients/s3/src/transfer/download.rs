//! An object into a file: the target is whole or untouched.
//!
//! The bytes go to a temporary file beside the target, in ranges pinned to the version that the first one
//! showed; length and checksum are verified, the file synced and renamed.

mod range;
mod sums;
mod temporary;
mod verify;

pub(crate) use temporary::remove_abandoned;

use crate::{
    Checksums, CustomerKey, S3Client, S3Failure,
    call::{DOWNLOAD, Target},
    checksum::{Crc, Sum},
    client::check_runtime,
    numbers::Direction,
    transfer::{
        OutOfTime,
        part::{self, PART, Part},
        progress::Tracker,
        tuning::{Tuning, tuning},
    },
};
use futures_util::{
    future,
    stream::{FuturesUnordered, StreamExt},
};
use mainstay_policy::{Deadline, Error};
use range::{LastWrite, Range, Version};
use std::{
    collections::HashSet,
    fmt,
    future::IntoFuture,
    io,
    iter::Peekable,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Poll, ready},
    time::Duration,
};
use temporary::{Earlier, Temporary};
use tokio::{runtime::Handle, sync::Mutex, time::Instant};

/// Parts in one range at most: one slow connection holds up no more than these.
const MOST: u64 = 8;
/// How long a failed download that may be resumed waits for its last write, and one that resumes for that of one
/// that was dropped; no longer than its caller may.
const WRITE_WAIT: Duration = Duration::from_secs(2);
/// Between two looks whether it is over.
const LOOK: Duration = Duration::from_millis(10);

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
/// The bytes come in parts, several at once, each repeated on its own from where it broke off; parts that
/// follow each other may come in one answer. They go to a temporary file beside the target, whose directory
/// must exist. Its length and the checksum that the store tells (CRC-32, CRC-32C or CRC-64/NVME, of the whole
/// or of its parts) are compared; then it is synced to disk and takes the target's name and, on Unix, the permissions
/// of the target that is there. If the object is replaced meanwhile or its bytes turn out damaged, the download starts
/// again, once.
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
    /// Each part that is there is read and compared with the checksum noted when it came; if the object
    /// was replaced meanwhile, the download begins anew. While another one to this target is on its way, it is refused
    /// after 2 s.
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
        check_runtime()?;
        self.tuning.check()?;
        let target = Target::object(&self.bucket, &self.key)?;
        let turn = &Arc::default();
        match self.attempt(target, false, turn).await {
            Err(e) if e.downcast_ref().is_some_and(S3Failure::begins_anew) => {
                self.attempt(target, true, turn).await
            }
            end => end,
        }
    }

    /// One download of one version. When one that is resumed has failed its last write is over: until then the
    /// file is locked, and whoever begins anew or resumes wants it.
    async fn attempt(
        &self,
        target: Target<'_>,
        anew: bool,
        turn: &Arc<Mutex<LastWrite>>,
    ) -> Result<(), Error> {
        let end = self.bring(target, anew, turn).await;
        if end.is_err() && self.tuning.resume {
            let left = Deadline::current().map_or(WRITE_WAIT, Deadline::left);
            let _ = tokio::time::timeout(left.min(WRITE_WAIT), turn.lock()).await;
        }
        end
    }

    fn failed(&self, error: io::Error) -> Error {
        self.client.local(&DOWNLOAD, S3Failure::local("written", self.path.clone(), error))
    }

    /// The file beside the target, which the last write of a download that was dropped keeps locked for a moment.
    async fn temporary(&self, anew: bool) -> Result<(Temporary, Option<Earlier>), Error> {
        let left = Deadline::current().map_or(WRITE_WAIT, Deadline::left);
        let end = Instant::now() + left.min(WRITE_WAIT);
        let mut waited = false;
        loop {
            let (to, tag) = (self.path.clone(), self.tuning.resume.then(|| self.tag()));
            let created = part::blocking(move || Ok(Temporary::create(&to, tag, anew))).await;
            let late = created.as_ref().is_err_and(|error| OutOfTime::of(error).is_some());
            // The look that the deadline ended would have told what those before it did.
            if !(late && waited)
                && let Some(created) = created.map_err(|error| self.failed(error))??
            {
                return Ok(created);
            }
            if Instant::now() >= end {
                return Err(Error::invalid(format!(
                    "local file `{}` cannot be written: another download to it is on its way; wait for it \
                     to end",
                    self.path.display()
                )));
            }
            waited = true;
            tokio::time::sleep_until(end.min(Instant::now() + LOOK)).await;
        }
    }

    async fn bring(
        &self,
        target: Target<'_>,
        anew: bool,
        turn: &Arc<Mutex<LastWrite>>,
    ) -> Result<(), Error> {
        let (temporary, earlier) = self.temporary(anew).await?;
        let mut job = Job {
            download: self,
            target,
            temporary: &temporary,
            turn,
            queued: AtomicBool::new(false),
            starved: AtomicBool::new(false),
            size: self.tuning.part_size.unwrap_or(PART),
            version: None,
            crc: OnceLock::new(),
            tracker: None,
        };
        let checked = self.client.checksums() == Checksums::On;
        let mut sums = Vec::new();
        let mut told = None;
        let resumed = earlier.is_some();
        if let Some(earlier) = earlier {
            job.size = earlier.size;
            job.begin(earlier.version);
            for (part, sum) in earlier.sums {
                job.there(part.length);
                sums.push((part, Some(sum)));
            }
        } else {
            let first = Part { number: 1, start: 0, length: job.size };
            let mut range = job.range(vec![first]).await?;
            told = range.whole.filter(|_| checked);
            // A range asked for at 0 always learns its version.
            let version = range.version.take().unwrap_or_default();
            let length = version.total.min(job.size);
            let note = (version.clone(), job.size);
            job.begin(version);
            job.there(length);
            temporary.note_version(note.0, note.1).await.map_err(|error| self.failed(error))?;
            for (part, sum) in range.into_sums() {
                temporary.note(part.number, sum).await.map_err(|error| self.failed(error))?;
                sums.push((Part { length, ..part }, sum));
            }
        }
        let job = &job;
        let total = job.total();
        let there: HashSet<i32> = sums.iter().map(|(part, _)| part.number).collect();
        let missing = part::parts(0, total, job.size).filter(|part| !there.contains(&part.number));
        let count = total.div_ceil(job.size).saturating_sub(there.len() as u64);
        let ranges = job.ranges(missing, count);
        // Ranges show that the version is still that one; where all of them were there, nothing has.
        let unseen = resumed && count == 0;
        // What the store says of the whole comes while the ranges do.
        let asked = async {
            match told {
                None if unseen || (checked && total > 0) => {
                    job.ask(None).await.map(|head| head.told)
                }
                told => Ok(told),
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
    temporary: &'a Temporary,
    /// Whose turn it is to write.
    turn: &'a Arc<Mutex<LastWrite>>,
    /// At the last look what was sent was there before it was read: we are what is slow, not the network.
    queued: AtomicBool,
    /// The disk has waited for longer than it wrote.
    starved: AtomicBool,
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

    fn failure(&self, error: io::Error) -> S3Failure {
        S3Failure::local("written", self.download.path.clone(), error)
    }

    /// All that is missing: as many ranges at once as allowed where the network is what is slow. Where we are, two,
    /// so that one comes while the other is asked for, and another whenever the disk has to wait, up to one for each
    /// thread of the runtime, which reads them: more would only come from further than the processor's cache.
    ///
    /// A range is what is left divided by how many there are ("guided self-scheduling", Polychronopoulos and
    /// Kuck, 1987): few requests, and all of them end at about the same time.
    async fn ranges(
        &self,
        missing: impl Iterator<Item = Part>,
        mut count: u64,
    ) -> Result<Vec<(Part, Option<Sum>)>, Error> {
        let parallel = self.download.tuning.parallel;
        let workers = Handle::current().metrics().num_workers();
        let mut missing = missing.peekable();
        let (mut running, mut sums) = (FuturesUnordered::new(), Vec::new());
        future::poll_fn(|context| {
            loop {
                let (queued, starved) =
                    (self.queued.load(Relaxed), self.starved.swap(false, Relaxed));
                let wanted = wanted(queued, starved, running.len(), workers).min(parallel);
                while missing.peek().is_some() && running.len() < wanted {
                    let parts = next_run(&mut missing, (count / wanted as u64).clamp(1, MOST));
                    count = count.saturating_sub(parts.len() as u64);
                    running.push(self.range(parts));
                }
                match ready!(running.poll_next_unpin(context)) {
                    Some(Ok(range)) => sums.extend(range.into_sums()),
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Ok(std::mem::take(&mut sums))),
                }
            }
        })
        .await
    }

    async fn range(&self, parts: Vec<Part>) -> Result<Range, Error> {
        let ends: Vec<_> =
            parts.iter().map(|part| (part.length, part.start + part.length)).collect();
        // Not a lock for threads: it hands the range from one attempt to the next.
        let range = Mutex::new(Range::new(parts, self.version.clone()));
        let (client, held) = (self.client(), &range);
        // For all parts: an answer that is open does not wait for others that are not asked for yet.
        let _place = client.gate().enter().await;
        for (length, end) in ends {
            client
                .move_in_place(
                    Direction::Download,
                    &DOWNLOAD,
                    self.target,
                    length,
                    |sdk, attempt| async move {
                        held.lock().await.fill(self, sdk, attempt, end).await
                    },
                )
                .await?;
        }
        Ok(range.into_inner())
    }
}

/// How many ranges there should be, of which so many run, where so many threads read.
fn wanted(queued: bool, starved: bool, running: usize, workers: usize) -> usize {
    match (queued, starved) {
        (false, _) => usize::MAX,
        (true, true) => (running + 1).min(workers).max(2),
        (true, false) => 2,
    }
}

/// The next parts that follow each other, `most` of them at most.
fn next_run(parts: &mut Peekable<impl Iterator<Item = Part>>, most: u64) -> Vec<Part> {
    let mut run: Vec<Part> = Vec::new();
    while (run.len() as u64) < most {
        let last = run.last().map(|part| part.number);
        match parts.next_if(|next| last.is_none_or(|last| next.number == last + 1)) {
            Some(part) => run.push(part),
            None => break,
        }
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    #[test]
    fn a_slow_network_gets_all_streams_and_a_disk_that_waits_for_us_one_more() {
        let of = |queued, starved, running| wanted(queued, starved, running, 6);
        assert_eq!((of(false, false, 0), of(false, true, 7)), (usize::MAX, usize::MAX));
        assert_eq!((of(true, false, 0), of(true, false, 5)), (2, 2));
        assert_eq!((of(true, true, 0), of(true, true, 1)), (2, 2));
        assert_eq!((of(true, true, 2), of(true, true, 5)), (3, 6));
        // More of them than threads would be read by nobody.
        assert_eq!((of(true, true, 6), wanted(true, true, 2, 1)), (6, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_download_ends_when_its_last_write_has() {
        let directory = tempfile::tempdir().unwrap();
        let s3 = S3Client::builder().endpoint_url("http://last.write").credentials("key", "secret");
        let s3 = s3.build().unwrap();
        s3.policy().breaker().isolate();
        let download = s3.download_file("bucket", "k", directory.path().join("to")).resume();
        let target = Target::object("bucket", "k").unwrap();
        let turn = Arc::<Mutex<LastWrite>>::default();
        let write = Arc::clone(&turn).lock_owned().await;
        let mut attempt = pin!(download.attempt(target, false, &turn));
        let ended = tokio::time::timeout(WRITE_WAIT / 2, &mut attempt).await;
        assert!(ended.is_err(), "it left a write behind: {ended:?}");
        drop(write);
        assert!(attempt.await.unwrap_err().is_rejected());
    }

    fn resumed(directory: &tempfile::TempDir, host: &str) -> Download {
        let s3 = S3Client::builder().endpoint_url(format!("http://{host}"));
        let s3 = s3.credentials("key", "secret").build().unwrap();
        s3.download_file("bucket", "k", directory.path().join("to")).resume()
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_resumes_waits_for_the_last_write_of_one_that_was_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let download = resumed(&directory, "own.lock");
        let dropped = download.temporary(false).await.unwrap();
        let began = Instant::now();
        let refused = download.temporary(false).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("another download to it is on its way"), "{refused}");
        assert!(began.elapsed() >= WRITE_WAIT);
        let mut resumes = pin!(download.temporary(false));
        assert!(tokio::time::timeout(WRITE_WAIT / 2, &mut resumes).await.is_err());
        drop(dropped);
        resumes.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_does_not_hide_what_was_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let download = resumed(&directory, "short");
        let _held = download.temporary(false).await.unwrap();
        let (began, limit) = (Instant::now(), WRITE_WAIT / 4);
        let refused = Deadline::within(limit).scope(download.temporary(false)).await;
        let refused = refused.map(drop).unwrap_err().to_string();
        assert!(refused.contains("another download to it is on its way"), "{refused}");
        assert_eq!(began.elapsed(), limit);
    }
}
