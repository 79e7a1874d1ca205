//! What transfers left that were neither finished nor undone: a process was killed, or the store was away.

use super::{
    download::remove_abandoned,
    part,
    upload::pending::{abort, list},
};
use crate::{S3Client, client::check_runtime};
use mainstay_policy::Error;
use std::{
    path::Path,
    time::{Duration, SystemTime},
};

impl S3Client {
    /// Aborts uploads in parts that were begun longer ago than this, to keys that begin with `prefix` (an empty
    /// one means all): how many they were. Their parts hold storage until then.
    ///
    /// Another process may be at work on a younger one: an hour is a good `age`.
    ///
    /// # Errors
    /// A missing bucket, or what kept one from being aborted; those before it are.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn run(s3: mainstay_s3::S3Client) -> Result<(), mainstay_policy::Error> {
    /// use std::time::Duration;
    ///
    /// let aborted = s3.abort_uploads("bucket", "backups/", Duration::from_secs(3600)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn abort_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        age: Duration,
    ) -> Result<usize, Error> {
        let before = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut aborted = 0;
        for upload in list(self, bucket, prefix).await? {
            let initiated = upload.initiated().and_then(|t| SystemTime::try_from(*t).ok());
            let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
            if initiated.is_some_and(|initiated| initiated <= before) {
                abort(self, bucket, key, id).await?;
                aborted += 1;
            }
        }
        Ok(aborted)
    }
}

/// Removes the temporary files that downloads left in this directory: how many they were. One that a process is
/// at work on is locked and stays; one that was to be [resumed](crate::Download::resume) goes.
///
/// # Errors
/// A directory that cannot be read, or a file that cannot be removed.
pub async fn remove_partial_downloads(directory: impl AsRef<Path>) -> Result<usize, Error> {
    check_runtime()?;
    let directory = directory.as_ref().to_owned();
    let shown = directory.display().to_string();
    let removed = part::blocking(move || remove_abandoned(&directory)).await;
    removed.map_err(|error| {
        Error::invalid(format!("partial downloads in `{shown}` cannot be removed: {error}"))
    })
}
