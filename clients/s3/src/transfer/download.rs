//! An object into a file: the target is whole or untouched.
//!
//! The bytes go to a temporary file beside the target, in ranges pinned to the version that the
//! first one showed; the length is verified, the file synced and renamed.

use crate::{
    S3Client, S3Failure,
    call::{DOWNLOAD, Target},
    transfer::part::{self, IN_FLIGHT, PART, Part},
};
use aws_sdk_s3::Client;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use mainstay_policy::Error;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One range of an object, and what it says about the whole.
struct Range {
    bytes: Bytes,
    total: u64,
    etag: Option<String>,
}

impl S3Client {
    /// Downloads an object into a file, replacing one that is there.
    ///
    /// The directory must exist. If the object is replaced meanwhile, the download starts again,
    /// once.
    ///
    /// # Errors
    /// A missing object or bucket, a target that cannot be written, or what kept the object from
    /// being read. The target is then as it was.
    ///
    /// # Cancel safety
    /// Dropping the future removes the temporary file; the target is as it was, or whole if the
    /// rename was on its way.
    pub async fn download_file(
        &self,
        bucket: &str,
        key: &str,
        path: impl AsRef<Path>,
    ) -> Result<(), Error> {
        let target = Target::object(bucket, key)?;
        let path = path.as_ref().to_owned();
        match self.download(target, &path).await {
            Err(e) if e.downcast_ref().is_some_and(S3Failure::is_changed) => {
                self.download(target, &path).await
            }
            end => end,
        }
    }

    async fn download(&self, target: Target<'_>, path: &Path) -> Result<(), Error> {
        let failed =
            |error| self.local(&DOWNLOAD, S3Failure::local("written", path.to_owned(), error));
        let to = path.to_owned();
        let temporary = part::blocking(move || Ok(Temporary::create(&to))).await;
        let temporary = temporary.map_err(failed)??;
        let start = Part { number: 1, start: 0, length: PART };
        let first = self.range(target, start, None).await?;
        let (total, etag) = (first.total, first.etag);
        let write = |start, bytes| {
            let file = Arc::clone(&temporary.file);
            async move { part::write(file, start, bytes).await.map_err(failed) }
        };
        let done = first.bytes.len() as u64;
        write(0, first.bytes).await?;
        let version = Some((total, etag.as_deref()));
        stream::iter(part::parts(done, total, PART).map(|part| async move {
            let range = self.range(target, part, version).await?;
            write(part.start, range.bytes).await
        }))
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<()>()
        .await?;
        let to = path.to_owned();
        part::blocking(move || temporary.finish(&to, total)).await.map_err(failed)
    }

    /// Fetches one range; of a known version, if one is given.
    async fn range(
        &self,
        target: Target<'_>,
        part: Part,
        version: Option<(u64, Option<&str>)>,
    ) -> Result<Range, Error> {
        self.call(&DOWNLOAD, target, part.length, |sdk, attempt| {
            fetch(sdk, attempt, target, part, version)
        })
        .await
    }
}

async fn fetch(
    sdk: Client,
    attempt: u32,
    target: Target<'_>,
    part: Part,
    version: Option<(u64, Option<&str>)>,
) -> Result<Range, S3Failure> {
    let last = part.start + part.length - 1;
    let answer = sdk
        .get_object()
        .bucket(target.bucket)
        .key(target.key.unwrap_or_default())
        .range(format!("bytes={}-{last}", part.start))
        .set_if_match(version.and_then(|(_, etag)| etag).map(str::to_owned))
        .send()
        .await;
    let got = match answer.map_err(|e| S3Failure::sdk(e, attempt)) {
        Ok(got) => got,
        // No byte at 0: the object is empty.
        Err(e) if e.status() == Some(416) && version.is_none() => {
            return Ok(Range { bytes: Bytes::new(), total: 0, etag: None });
        }
        Err(error) => return Err(error),
    };
    let length = got.content_length().and_then(|n| u64::try_from(n).ok());
    let (start, end, total) = match (got.content_range(), length) {
        (Some(text), _) => content_range(text).ok_or_else(S3Failure::garbled)?,
        // The whole object, ranges ignored; good enough if it is no longer than a part.
        (None, Some(length)) if part.start == 0 && length <= part.length => (0, length, length),
        _ => return Err(S3Failure::garbled()),
    };
    let etag = got.e_tag().map(str::to_owned);
    // Some stores ignore If-Match.
    if version.is_some_and(|known| known != (total, etag.as_deref())) {
        return Err(S3Failure::changed());
    }
    if start != part.start || end != total.min(part.start + part.length) {
        return Err(S3Failure::garbled());
    }
    let bytes = part::collect(got.body, Some(end - start)).await?;
    Ok(Range { bytes, total, etag })
}

/// Start, end (exclusive) and total of `bytes 0-9/100`.
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, end) = (start.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
    let total = total.parse().ok()?;
    (start < end && end <= total).then_some((start, end, total))
}

/// A file beside the target that is gone unless it becomes the target.
struct Temporary {
    file: Arc<File>,
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn create(target: &Path) -> Result<Self, Error> {
        let refuse = |why: &dyn std::fmt::Display| {
            let target = target.display();
            Error::invalid(format!("local file `{target}` cannot be written: {why}"))
        };
        if target.file_name().is_none() || target.is_dir() {
            return Err(refuse(&"it is a directory; give the name of a file"));
        }
        let path = target.with_file_name(format!(".mainstay-{:016x}.part", fastrand::u64(..)));
        match File::create_new(&path) {
            Ok(file) => Ok(Self { file: Arc::new(file), path, renamed: false }),
            Err(error) => Err(refuse(&format!("{error}; check its directory"))),
        }
    }

    fn finish(mut self, target: &Path, length: u64) -> io::Result<()> {
        if self.file.metadata()?.len() != length {
            return Err(io::Error::other("its length is not the object's"));
        }
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        self.renamed = true;
        // The rename itself is on disk once the directory is; not every platform can do it.
        #[cfg(unix)]
        if let Some(directory) = target.parent() {
            let directory =
                if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            let _ = File::open(directory).and_then(|d| d.sync_all());
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
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
