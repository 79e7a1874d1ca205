//! A file into an object: whole in one request, or in parts that are repeated one by one.

pub(crate) mod pending;
mod resume;
mod source;

use crate::{
    Checksums, CustomerKey, S3Client, S3Failure, Written,
    call::{COMPLETE_UPLOAD, Doubt, LOOK, Target, UPLOAD, UPLOAD_PART},
    checksum::{Crc, Sum, Told, fold},
    client::check_runtime,
    encryption::{Encryption, with_key},
    numbers::Direction,
    options::{PutOptions, put_options},
    stall::watched,
    transfer::{
        OutOfTime,
        part::{self, Part},
        progress::Tracker,
        tuning::{Tuning, tuning},
    },
};
use aws_sdk_s3::{
    Client,
    primitives::ByteStream,
    types::{
        ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart,
    },
};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use mainstay_policy::{CallError, Deadline, Effect, Error, Operation};
use pending::Pending;
use resume::Earlier;
use source::{Block, Source, unreadable};
use std::{
    fmt,
    future::IntoFuture,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::OnceCell;

/// The store joins the parts while it answers: time as for so many bytes at most.
const JOIN: u64 = 64 * 1024 * 1024;
/// An upload's mark in the object's metadata: it tells whether a completion that was not
/// acknowledged took place.
pub(crate) const MARK: &str = "mainstay-upload";
/// How long a failed upload waits for its abort, which goes on by itself; no longer than its caller
/// may.
const ABORT_WAIT: Duration = Duration::from_secs(2);

impl S3Client {
    /// Uploads a file, replacing an object that is there, when awaited.
    pub fn upload_file(&self, path: impl AsRef<Path>, bucket: &str, key: &str) -> Upload {
        Upload {
            client: self.clone(),
            path: path.as_ref().to_owned(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            tuning: Tuning::default(),
            options: PutOptions::new(),
        }
    }
}

/// An upload to be awaited.
///
/// From twice the part size on (16 MiB), and from over 5 GiB in any case, a file goes in parts, each repeated on its
/// own, and the object carries the metadata `mainstay-upload`, a random mark of this upload. Bytes carry a CRC-32,
/// unless [`Checksums::Off`]; the whole object's is compared at the end, as far as the store tells one. A store that
/// throttles gets fewer parts at once.
///
/// It holds at most part size times [`parallel`](Self::parallel) of the file in memory, 64 MiB by default, and some
/// 4 MiB beside; with `parallel(1)` up to two parts' length, which goes in one request. A file of over 78 GiB has
/// longer parts, of which fewer are held, but two at least: from 312 GiB on that is a five-thousandth of the file.
///
/// # Errors
/// A missing local file, a missing bucket, a file that changed while it was read, or what kept
/// it from being written. The object is then as it was, unless the outcome is unknown, and the upload
/// is aborted. It is unknown too if the store, having joined the parts, tells a checksum of other bytes than the
/// file's: the object is then replaced.
///
/// # Cancel safety
/// Dropping the future aborts an upload in parts from a task of its own. What a killed process
/// leaves behind holds storage: [`resume`](Self::resume) it, or
/// [abort it](S3Client::abort_uploads), or give the bucket a lifecycle rule for incomplete uploads.
///
/// # Examples
/// ```no_run
/// # async fn run(s3: mainstay_s3::S3Client) -> Result<(), mainstay_policy::Error> {
/// s3.upload_file("backup.tar", "bucket", "2026/backup.tar")
///     .on_progress(|p| println!("{} of {}", p.done, p.total))
///     .resume()
///     .await?;
/// # Ok(()) }
/// ```
#[must_use = "an upload begins when it is awaited"]
pub struct Upload {
    client: S3Client,
    path: PathBuf,
    bucket: String,
    key: String,
    tuning: Tuning,
    options: PutOptions,
}

put_options!(Upload);
tuning!(Upload);

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl Upload {
    /// Goes on with the latest unfinished upload to this key, if there is one, and is not aborted when it
    /// fails or is dropped, so that it can be gone on with.
    ///
    /// A part that is there is kept if its checksum is that of the file, so the file may have changed; a
    /// store that lists no parts or no checksums gets all of them again. Where it is found to list none, or
    /// does not tell that parts have the encryption that was asked for, the upload could not be gone on with, and is
    /// aborted as without this. Two resumed uploads to one key at once disturb each
    /// other.
    ///
    /// Type, metadata and tags are then those that the upload was begun with, and so are storage class and
    /// encryption where none is given here. One of another class than the usual one is left alone; one with another encryption is an
    /// error, as [it](S3Client::abort_uploads) is to be aborted first.
    pub fn resume(mut self) -> Self {
        self.tuning.resume = true;
        self
    }

    async fn run(mut self) -> Result<Written, Error> {
        check_runtime()?;
        self.tuning.check()?;
        self.options = self.options.with_type_of(&self.key, Some(&self.path));
        self.options.check()?;
        let target = Target::object(&self.bucket, &self.key)?;
        let crc = (self.client.checksums() == Checksums::On).then_some(Crc::Crc32);
        part::check_path(&self.path)?;
        let source = Source::open(self.path.clone(), crc).await;
        let source = source.map_err(|error| self.unreadable(error))?;
        let tracker = Tracker::new(Direction::Upload, source.length, self.tuning.listener.clone());
        let size = part::size_for(self.tuning.part_size, source.length);
        let in_one = part::goes_in_one(source.length, size);
        if !in_one || self.options.condition.is_some() {
            self.options.check_room(MARK)?;
        }
        let job = Job { upload: &self, target, source: &source, tracker: &tracker, size };
        let end = match in_one {
            true => job.in_one().await,
            false => job.in_parts().await,
        };
        self.client.tell(end)
    }

    fn unreadable(&self, error: io::Error) -> Error {
        if OutOfTime::of(&error).is_some() {
            let failure = S3Failure::local("read", self.path.clone(), error);
            return self.client.local(&UPLOAD, failure);
        }
        unreadable(&self.path, &error)
    }
}

impl IntoFuture for Upload {
    type Output = Result<Written, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// What all steps of an upload need.
#[derive(Clone, Copy)]
struct Job<'a> {
    upload: &'a Upload,
    target: Target<'a>,
    source: &'a Source,
    tracker: &'a Tracker,
    size: u64,
}

/// A part that is with the store.
struct Sent {
    part: CompletedPart,
    sum: Option<Sum>,
}

/// An upload in parts that was begun.
struct Begun {
    id: String,
    /// Whether the store keeps the checksum of the whole, and not one of checksums.
    whole: bool,
    /// Empty of an upload that was found: its mark is not known.
    mark: String,
    earlier: Earlier,
    /// The store does not tell that a part has the encryption that was asked for.
    untold: AtomicBool,
}

impl Begun {
    fn is_resumed(&self) -> bool {
        self.mark.is_empty()
    }
}

impl<'a> Job<'a> {
    fn client(&self) -> &'a S3Client {
        &self.upload.client
    }

    fn idle(&self) -> Option<Duration> {
        self.upload.tuning.idle.or(self.client().policy().timeout())
    }

    fn key(&self) -> &'a str {
        self.target.key.unwrap_or_default()
    }

    fn encryption(&self) -> Option<&'a Encryption> {
        self.upload.options.encryption.as_ref()
    }

    /// The caller's key, which every request needs that touches bytes.
    fn customer(&self) -> Option<&'a CustomerKey> {
        self.upload.options.customer()
    }

    /// Reads within the attempt: an open breaker refuses before the file is touched.
    async fn block(&self, read: &OnceCell<Block>, part: Part) -> Result<Block, S3Failure> {
        read.get_or_try_init(|| self.source.read(part)).await.cloned()
    }

    async fn in_one(&self) -> Result<Written, Error> {
        let length = self.source.length;
        let (read, doubt) = (&OnceCell::new(), &Doubt::default());
        let mark = self.upload.options.condition.is_some().then(mark);
        let mark = mark.as_deref();
        let send = |sdk: Client, attempt| async move {
            doubt.sent();
            self.put(sdk, attempt, read, mark).await.map_err(|e| doubt.of(e))
        };
        let client = self.client();
        let sent = client.move_part(Direction::Upload, &UPLOAD, self.target, length, send).await;
        let sums = || read.get().and_then(|block: &Block| block.sum);
        let written = match (sent, mark) {
            // A condition that a repeat meets may be its own first attempt's doing: look.
            (Err(error), Some(mark)) if error.attempts() > 1 => {
                self.landed(&UPLOAD, mark, sums().as_slice(), error).await?
            }
            (sent, _) => sent?,
        };
        self.tracker.moved(length);
        Ok(written)
    }

    /// One attempt at the whole file in one request.
    async fn put(
        &self,
        sdk: Client,
        attempt: u32,
        read: &OnceCell<Block>,
        mark: Option<&str>,
    ) -> Result<Written, S3Failure> {
        let whole = Part { number: 1, start: 0, length: self.source.length };
        let block = self.block(read, whole).await?;
        self.source.unchanged().await?;
        let put = self.upload.options.put(sdk.put_object());
        let mut put = put.bucket(self.target.bucket).key(self.key());
        if let Some(mark) = mark {
            put = put.metadata(MARK, mark);
        }
        let put = put
            .set_checksum_crc32(block.sum.map(|sum| sum.crc.text(sum.value)))
            .body(ByteStream::from(block.bytes))
            .customize()
            .disable_payload_signing();
        let put = watched(self.idle(), |watch| async {
            let put = put.interceptor(watch).send();
            put.await.map_err(|e| S3Failure::of_write(e, attempt))
        });
        let put = put.await?;
        Ok(Written { etag: put.e_tag, version_id: put.version_id })
    }

    async fn in_parts(&self) -> Result<Written, Error> {
        let keep = self.upload.tuning.resume;
        let mut pending = Pending::new(self.client(), self.target, keep, self.customer());
        let found = if keep { self.find_earlier(&mut pending).await? } else { None };
        let begun = match found {
            Some(begun) => {
                pending.begun(&begun.id);
                begun
            }
            None => {
                let begun = self.create(&mut pending).await?;
                pending.begun(&begun.id);
                if pending.is_kept() {
                    self.keep_if_listed(&begun.id, &mut pending).await;
                }
                begun
            }
        };
        match self.send_and_complete(&begun, &mut pending).await {
            Ok(written) => {
                pending.completed();
                Ok(written)
            }
            Err(error) => {
                if is_damaged(&error) {
                    // It is completed, if not with these bytes.
                    pending.completed();
                }
                if begun.untold.load(Relaxed) {
                    // It could not be gone on with.
                    pending.leave_nothing();
                }
                if let Some(abort) = pending.abort() {
                    let left = Deadline::current().map_or(ABORT_WAIT, Deadline::left);
                    let _ = tokio::time::timeout(left.min(ABORT_WAIT), abort).await;
                }
                Err(error)
            }
        }
    }

    async fn create(&self, pending: &mut Pending) -> Result<Begun, Error> {
        let mark = mark();
        let created = pending.create(self.target, |sdk, attempt| {
            let create = self.upload.options.create(sdk.create_multipart_upload());
            let create = create.bucket(self.target.bucket).key(self.key());
            let mut create = create.metadata(MARK, &mark);
            if self.source.crc.is_some() {
                create = create
                    .checksum_algorithm(ChecksumAlgorithm::Crc32)
                    .checksum_type(ChecksumType::FullObject);
            }
            async move {
                let created = create.send().await.map_err(|e| S3Failure::sdk(e, attempt))?;
                let whole = created.checksum_type() == Some(&ChecksumType::FullObject);
                Ok((created.upload_id.ok_or_else(S3Failure::garbled)?, whole))
            }
        });
        let (id, whole) = created.await?;
        let (earlier, untold) = (Earlier::default(), AtomicBool::new(false));
        Ok(Begun { id, whole, mark, earlier, untold })
    }

    async fn send_and_complete(
        &self,
        begun: &Begun,
        pending: &mut Pending,
    ) -> Result<Written, Error> {
        let Tuning { part_size, parallel, .. } = self.upload.tuning;
        let parts = part::parts(0, self.source.length, self.size);
        let mut sent: Vec<Sent> = stream::iter(parts.map(|part| self.send_part(begun, part)))
            .buffer_unordered(part::parallel_for(part_size, parallel, self.size))
            .try_collect()
            .await?;
        let unchanged = self.source.unchanged().await;
        unchanged.map_err(|failure| self.client().local(&UPLOAD, failure))?;
        sent.sort_by_key(|sent| sent.part.part_number);
        let sums: Option<Vec<Sum>> = sent.iter().map(|sent| sent.sum).collect();
        let sums = sums.as_deref();
        match self.complete(begun, sent, sums).await {
            Err(error) if is_damaged(&error) => Err(error),
            // A completion that went unacknowledged makes its repeat fail: look.
            Err(error)
                if error.is_outcome_unknown() || (error.attempts() > 1 && !begun.is_resumed()) =>
            {
                let sums = sums.unwrap_or_default();
                let written = self.landed(&COMPLETE_UPLOAD, &begun.mark, sums, error).await?;
                if begun.is_resumed() {
                    // Known by its bytes, it may be an earlier one: then the upload is there still.
                    pending.leave_nothing();
                    let _ = pending.abort();
                }
                Ok(written)
            }
            end => end,
        }
    }

    async fn complete(
        &self,
        begun: &Begun,
        sent: Vec<Sent>,
        sums: Option<&[Sum]>,
    ) -> Result<Written, Error> {
        let parts = Some(sent.into_iter().map(|sent| sent.part).collect());
        let upload = CompletedMultipartUpload::builder().set_parts(parts).build();
        let (length, doubt) = (self.source.length, &Doubt::default());
        let sum = sums.filter(|_| begun.whole).map(|sums| {
            let value = fold(Crc::Crc32, sums.iter().copied());
            Crc::Crc32.text(value)
        });
        let sums = sums.unwrap_or_default();
        self.client()
            .call_untold(&COMPLETE_UPLOAD, self.target, length.min(JOIN), |sdk, attempt| {
                let complete = self.upload.options.complete(sdk.complete_multipart_upload());
                let complete = complete
                    .bucket(self.target.bucket)
                    .key(self.key())
                    .upload_id(&begun.id)
                    .set_checksum_type(sum.is_some().then_some(ChecksumType::FullObject))
                    .set_checksum_crc32(sum.clone())
                    .set_mpu_object_size(sum.is_some().then_some(length.try_into().unwrap_or(0)))
                    .multipart_upload(upload.clone())
                    .send();
                async move {
                    doubt.sent();
                    let done = complete.await;
                    let done = done.map_err(|e| doubt.of(S3Failure::of_write(e, attempt)))?;
                    these_bytes(Told::read(done.checksum_crc32(), None, None), sums)?;
                    Ok(Written { etag: done.e_tag, version_id: done.version_id })
                }
            })
            .await
    }

    async fn send_part(&self, begun: &Begun, part: Part) -> Result<Sent, Error> {
        let read = &OnceCell::new();
        if let Some(sent) = self.keep_part(begun, read, part).await? {
            self.tracker.there(part.length);
            return Ok(sent);
        }
        let customer = self.customer();
        let send = |sdk: Client, attempt| async move {
            let block = self.block(read, part).await?;
            let text = block.sum.map(|sum| sum.crc.text(sum.value));
            let send = with_key!(sdk.upload_part(), customer)
                .bucket(self.target.bucket)
                .key(self.key())
                .upload_id(&begun.id)
                .part_number(part.number)
                .set_checksum_crc32(text.clone())
                .body(ByteStream::from(block.bytes))
                .customize()
                .disable_payload_signing();
            let sent = watched(self.idle(), |watch| async {
                let send = send.interceptor(watch).send();
                send.await.map_err(|e| S3Failure::sdk(e, attempt))
            });
            let sent = sent.await?;
            // A store that keeps checksums and has another one got other bytes.
            if sent.checksum_crc32.is_some() && sent.checksum_crc32 != text && text.is_some() {
                return Err(S3Failure::short());
            }
            let (by, key) = (sent.server_side_encryption(), sent.ssekms_key_id());
            let as_wanted = self.encryption().is_none_or(|wanted| wanted.is_told(by, key));
            let part = CompletedPart::builder()
                .part_number(part.number)
                .set_e_tag(sent.e_tag)
                .set_checksum_crc32(sent.checksum_crc32)
                .build();
            Ok((Sent { part, sum: block.sum }, as_wanted))
        };
        let (client, length) = (self.client(), part.length);
        let sent = client.move_part(Direction::Upload, &UPLOAD_PART, self.target, length, send);
        let (sent, as_wanted) = sent.await?;
        if begun.is_resumed() && !as_wanted {
            return Err(Error::invalid(
                "an unfinished upload is there that the store does not tell to have this encryption; abort it, \
                 such as with abort_uploads(), or upload without resume()",
            ));
        }
        if !as_wanted {
            begun.untold.store(true, Relaxed);
        }
        self.tracker.moved(length);
        Ok(sent)
    }

    /// What was written, if the object is the one of this upload, by its mark, or where that is not known by its
    /// checksum; this error of the write if not.
    async fn landed(
        &self,
        write: &Operation,
        mark: &str,
        sums: &[Sum],
        error: Error,
    ) -> Result<Written, Error> {
        let mode = self.source.crc.map(|_| ChecksumMode::Enabled);
        let customer = self.customer();
        let head = self.client().call_untold(&LOOK, self.target, 0, |sdk, attempt| {
            let head = with_key!(sdk.head_object(), customer)
                .bucket(self.target.bucket)
                .key(self.key())
                .set_checksum_mode(mode.clone())
                .send();
            async move {
                let head = head.await.map_err(|e| S3Failure::sdk(e, attempt))?;
                let marked = head.metadata().and_then(|m| m.get(MARK)).is_some_and(|m| m == mark);
                let told = Told::read(head.checksum_crc32(), None, None);
                if marked {
                    these_bytes(told, sums)?;
                }
                // One that was there before cannot meet a condition that it be absent or another.
                let free = mark.is_empty() && self.upload.options.condition.is_none();
                let same = free && !sums.is_empty() && told.is_some_and(|told| told.is_of(sums));
                let length = head.content_length().and_then(|n| u64::try_from(n).ok());
                let ours = (marked || same) && length == Some(self.source.length);
                Ok(ours.then_some(Written { etag: head.e_tag, version_id: head.version_id }))
            }
        });
        match head.await {
            Ok(Some(written)) => Ok(written),
            Err(look) if is_damaged(&look) => {
                let (attempts, effect) = (error.attempts(), Effect::Unknown);
                let elapsed = error.elapsed().saturating_add(look.elapsed());
                let error = S3Failure::other_bytes().about(self.target.bucket, true);
                let error = CallError::Backend { attempts, elapsed, effect, error };
                Err(Error::from_call(self.client().policy().name(), write.name(), error))
            }
            _ => Err(error),
        }
    }
}

/// # Errors
/// The object is there, and the store tells a checksum of other bytes than these.
fn these_bytes(told: Option<Told>, sums: &[Sum]) -> Result<(), S3Failure> {
    match told {
        Some(told) if !sums.is_empty() && !told.is_of(sums) => {
            Err(S3Failure::other_bytes().in_doubt())
        }
        _ => Ok(()),
    }
}

fn is_damaged(error: &Error) -> bool {
    error.downcast_ref().is_some_and(S3Failure::is_damaged)
}

pub(crate) fn mark() -> String {
    format!("{:032x}", fastrand::u128(..))
}
