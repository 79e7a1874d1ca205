//! A local file, and what it was like when it was opened.

use crate::{
    S3Failure,
    checksum::{Crc, Sum},
    transfer::{
        buffers::Buffers,
        part::{self, Part},
    },
};
use bytes::Bytes;
use mainstay_policy::Error;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

pub(crate) struct Source {
    file: Arc<File>,
    path: PathBuf,
    pub(crate) length: u64,
    modified: Option<SystemTime>,
    pub(crate) crc: Option<Crc>,
    buffers: Buffers,
}

/// The bytes of a part, and their checksum.
#[derive(Clone)]
pub(crate) struct Block {
    pub(crate) bytes: Bytes,
    pub(crate) sum: Option<Sum>,
}

impl Source {
    pub(crate) async fn open(path: PathBuf, crc: Option<Crc>) -> io::Result<Self> {
        part::blocking(move || {
            // Looked at before it is opened: opening a pipe waits for a writer.
            if !std::fs::metadata(&path)?.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
            let file = File::open(&path)?;
            let metadata = file.metadata()?;
            let (length, modified) = (metadata.len(), metadata.modified().ok());
            let (file, buffers) = (Arc::new(file), Buffers::default());
            Ok(Self { file, path, length, modified, crc, buffers })
        })
        .await
    }

    pub(crate) async fn read(&self, part: Part) -> Result<Block, S3Failure> {
        let (file, buffers, crc) = (Arc::clone(&self.file), self.buffers.clone(), self.crc);
        let read = part::blocking(move || {
            let mut value = 0;
            let length = usize::try_from(part.length).map_err(io::Error::other)?;
            let bytes = buffers.filled(length, |bytes| {
                value = part::read_and_hash(&file, bytes, part.start, crc)?;
                Ok::<_, io::Error>(())
            })?;
            Ok(Block { bytes, sum: crc.map(|crc| Sum { crc, value, length: part.length }) })
        });
        read.await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.changed(),
            _ => self.failed(error),
        })
    }

    /// # Errors
    /// If the file was written to since it was opened: what was read may be of two versions.
    pub(crate) async fn unchanged(&self) -> Result<(), S3Failure> {
        let file = Arc::clone(&self.file);
        let metadata = part::blocking(move || file.metadata()).await;
        let metadata = metadata.map_err(|error| self.failed(error))?;
        match (metadata.len(), metadata.modified().ok()) == (self.length, self.modified) {
            true => Ok(()),
            false => Err(self.changed()),
        }
    }

    fn changed(&self) -> S3Failure {
        let changed = "it changed while it was read; upload it when nothing writes to it";
        self.failed(io::Error::other(changed))
    }

    fn failed(&self, error: io::Error) -> S3Failure {
        S3Failure::local("read", self.path.clone(), error)
    }
}

pub(crate) fn unreadable(path: &Path, error: &io::Error) -> Error {
    let shown = path.display();
    Error::invalid(match error.kind() {
        io::ErrorKind::NotFound => format!("local file `{shown}` does not exist; check the path"),
        io::ErrorKind::PermissionDenied => {
            format!("local file `{shown}` may not be read; check its permissions")
        }
        _ => format!("local file `{shown}` cannot be read: {error}; give a regular file"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // A test that runs as root may read everything.
    #[test]
    fn a_file_that_may_not_be_read_says_so() {
        let error =
            unreadable(Path::new("a/b"), &io::ErrorKind::PermissionDenied.into()).to_string();
        assert!(error.contains("`a/b` may not be read; check its permissions"), "{error}");
    }
}
