//! A file into an object: whole in one request, or in parts that are repeated one by one.

use crate::{
    PutOptions, S3Client, S3Failure,
    call::{ABORT_UPLOAD, COMPLETE_UPLOAD, CREATE_UPLOAD, HEAD, Target, UPLOAD, UPLOAD_PART},
    transfer::part::{self, IN_FLIGHT, Part},
};
use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use mainstay_policy::{Deadline, Error};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{runtime::Handle, task::JoinHandle};

/// From this length on a file goes in parts.
const IN_PARTS: u64 = 16 * 1024 * 1024;
/// The store joins the parts while it answers: time as for so many bytes at most.
const JOIN: u64 = 64 * 1024 * 1024;
/// An upload's mark in the object's metadata: it tells whether a completion that was not
/// acknowledged took place.
const MARK: &str = "mainstay-upload";
/// How long a failed upload waits for its abort, which goes on by itself; no longer than its caller
/// may.
const ABORT_WAIT: Duration = Duration::from_secs(2);
const ABORT_LIMIT: Duration = Duration::from_secs(30);

impl S3Client {
    /// Uploads a file, replacing an object that is there.
    ///
    /// From 16 MiB on it goes in parts of 8 MiB or more, four at once, each repeated on its own; the
    /// object then carries the metadata `mainstay-upload`, a random mark of this upload.
    ///
    /// # Errors
    /// A missing local file, a missing bucket, a file that changed while it was read, or what kept
    /// it from being written. The object is then as it was, unless the outcome is unknown.
    ///
    /// # Cancel safety
    /// Dropping the future aborts an upload in parts from a task of its own. What a killed process
    /// leaves behind holds storage: give the bucket a lifecycle rule for incomplete uploads.
    pub async fn upload_file(
        &self,
        path: impl AsRef<Path>,
        bucket: &str,
        key: &str,
    ) -> Result<(), Error> {
        let path = path.as_ref().to_owned();
        let target = Target::object(bucket, key)?;
        let source = Source::open(path).await?;
        if source.length >= IN_PARTS {
            return self.upload_in_parts(&source, target).await;
        }
        let bytes = source.read(self, 0, source.length).await?;
        source.unchanged(self).await?;
        let options = PutOptions::new().with_type_of(key, Some(&source.path));
        self.put_as(&UPLOAD, target, bytes, &options).await.map(drop)
    }

    async fn upload_in_parts(&self, source: &Source, target: Target<'_>) -> Result<(), Error> {
        let key = target.key.unwrap_or_default();
        let mark = format!("{:032x}", fastrand::u128(..));
        let id = self
            .call(&CREATE_UPLOAD, target, 0, |sdk, attempt| {
                let create = sdk
                    .create_multipart_upload()
                    .bucket(target.bucket)
                    .key(key)
                    .metadata(MARK, &mark)
                    .checksum_algorithm(ChecksumAlgorithm::Crc32)
                    .send();
                async move {
                    let created = create.await.map_err(|e| S3Failure::sdk(e, attempt))?;
                    created.upload_id.ok_or_else(S3Failure::garbled)
                }
            })
            .await?;
        let mut pending = Pending {
            client: self.clone(),
            bucket: target.bucket.to_owned(),
            key: key.to_owned(),
            id: Some(id.clone()),
            runtime: Handle::current(),
        };
        match self.send_and_complete(source, target, &id, &mark).await {
            Ok(()) => {
                pending.id = None;
                Ok(())
            }
            Err(error) => {
                if let Some(abort) = pending.abort() {
                    let left = Deadline::current().map_or(ABORT_WAIT, Deadline::left);
                    let _ = tokio::time::timeout(left.min(ABORT_WAIT), abort).await;
                }
                Err(error)
            }
        }
    }

    async fn send_and_complete(
        &self,
        source: &Source,
        target: Target<'_>,
        id: &str,
        mark: &str,
    ) -> Result<(), Error> {
        let parts = part::parts(0, source.length, part::size_for(source.length));
        let mut sent: Vec<CompletedPart> =
            stream::iter(parts.map(|part| self.send_part(source, target, id, part)))
                .buffer_unordered(IN_FLIGHT)
                .try_collect()
                .await?;
        source.unchanged(self).await?;
        sent.sort_by_key(|part| part.part_number);
        let upload = CompletedMultipartUpload::builder().set_parts(Some(sent)).build();
        let key = target.key.unwrap_or_default();
        let end = self
            .call(&COMPLETE_UPLOAD, target, source.length.min(JOIN), |sdk, attempt| {
                let complete = sdk
                    .complete_multipart_upload()
                    .bucket(target.bucket)
                    .key(key)
                    .upload_id(id)
                    .multipart_upload(upload.clone())
                    .send();
                async move { complete.await.map(drop).map_err(|e| S3Failure::sdk(e, attempt)) }
            })
            .await;
        match end {
            // A completion that went unacknowledged makes its repeat fail: look.
            Err(e)
                if (e.is_outcome_unknown() || e.attempts() > 1)
                    && self.landed(target, source.length, mark).await =>
            {
                Ok(())
            }
            end => end,
        }
    }

    async fn send_part(
        &self,
        source: &Source,
        target: Target<'_>,
        id: &str,
        part: Part,
    ) -> Result<CompletedPart, Error> {
        let bytes = source.read(self, part.start, part.length).await?;
        let key = target.key.unwrap_or_default();
        self.call(&UPLOAD_PART, target, part.length, |sdk, attempt| {
            let send = sdk
                .upload_part()
                .bucket(target.bucket)
                .key(key)
                .upload_id(id)
                .part_number(part.number)
                .checksum_algorithm(ChecksumAlgorithm::Crc32)
                .body(ByteStream::from(bytes.clone()))
                .customize()
                .disable_payload_signing()
                .send();
            async move {
                let sent = send.await.map_err(|e| S3Failure::sdk(e, attempt))?;
                Ok(CompletedPart::builder()
                    .part_number(part.number)
                    .set_e_tag(sent.e_tag)
                    .set_checksum_crc32(sent.checksum_crc32)
                    .build())
            }
        })
        .await
    }

    /// Whether the object is the one of this upload.
    async fn landed(&self, target: Target<'_>, length: u64, mark: &str) -> bool {
        let head = self
            .call(&HEAD, target, 0, |sdk, attempt| {
                let key = target.key.unwrap_or_default();
                let head = sdk.head_object().bucket(target.bucket).key(key).send();
                async move { head.await.map_err(|e| S3Failure::sdk(e, attempt)) }
            })
            .await;
        head.is_ok_and(|head| {
            let marked = head.metadata().and_then(|m| m.get(MARK)).is_some_and(|m| m == mark);
            marked && head.content_length().is_some_and(|n| u64::try_from(n) == Ok(length))
        })
    }
}

/// A local file, and what it was like when it was opened.
struct Source {
    file: Arc<File>,
    path: PathBuf,
    length: u64,
    modified: Option<SystemTime>,
}

impl Source {
    async fn open(path: PathBuf) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let opened = part::blocking(move || {
            let file = File::open(&path)?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
            let (length, modified) = (metadata.len(), metadata.modified().ok());
            Ok(Self { file: Arc::new(file), path, length, modified })
        });
        opened.await.map_err(|error| {
            Error::invalid(match error.kind() {
                io::ErrorKind::NotFound => {
                    format!("local file `{shown}` does not exist; check the path")
                }
                _ => format!("local file `{shown}` cannot be read: {error}"),
            })
        })
    }

    async fn read(
        &self,
        client: &S3Client,
        start: u64,
        length: u64,
    ) -> Result<bytes::Bytes, Error> {
        let bytes = part::read(Arc::clone(&self.file), start, length).await;
        bytes.map_err(|e| self.failed(client, e))
    }

    /// # Errors
    /// If the file was written to since it was opened: what was read may be of two versions.
    async fn unchanged(&self, client: &S3Client) -> Result<(), Error> {
        let file = Arc::clone(&self.file);
        let metadata = part::blocking(move || file.metadata()).await;
        let metadata = metadata.map_err(|e| self.failed(client, e))?;
        if (metadata.len(), metadata.modified().ok()) == (self.length, self.modified) {
            return Ok(());
        }
        let changed = "it changed while it was read; upload it when nothing writes to it";
        Err(self.failed(client, io::Error::other(changed)))
    }

    fn failed(&self, client: &S3Client, error: io::Error) -> Error {
        client.local(&UPLOAD, S3Failure::local("read", self.path.clone(), error))
    }
}

/// An upload in parts that is aborted unless it was completed.
struct Pending {
    client: S3Client,
    bucket: String,
    key: String,
    id: Option<String>,
    runtime: Handle,
}

impl Pending {
    /// Starts the abort, which bounds itself: nobody need wait for it.
    fn abort(&mut self) -> Option<JoinHandle<()>> {
        let id = self.id.take()?;
        let client = self.client.clone();
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        Some(self.runtime.spawn(async move {
            let abort = abort(&client, &bucket, &key, &id);
            if !matches!(tokio::time::timeout(ABORT_LIMIT, abort).await, Ok(Ok(()))) {
                tracing::warn!(
                    mainstay.policy.name = client.policy().name(),
                    aws.s3.bucket = bucket,
                    "an unfinished upload could not be aborted; its parts hold storage"
                );
            }
        }))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let _ = self.abort();
    }
}

async fn abort(client: &S3Client, bucket: &str, key: &str, id: &str) -> Result<(), Error> {
    let target = Target { bucket, key: Some(key) };
    let send = || {
        client.call(&ABORT_UPLOAD, target, 0, |sdk, attempt| {
            let abort = sdk.abort_multipart_upload().bucket(bucket).key(key).upload_id(id).send();
            async move {
                match abort.await.map_err(|e| S3Failure::sdk(e, attempt)) {
                    Err(e) if e.code() != Some("NoSuchUpload") => Err(e),
                    _ => Ok(()),
                }
            }
        })
    };
    match send().await {
        // What failed the upload may have opened the breaker: come back when it lets a probe in.
        Err(e) if e.is_rejected() => {
            tokio::time::sleep(e.retry_after().unwrap_or_default()).await;
            send().await
        }
        end => end,
    }
}
