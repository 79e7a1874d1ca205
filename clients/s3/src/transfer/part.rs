//! A part: a stretch of a file or object, the unit of repetition. File I/O is positional and runs
//! on the blocking pool, in steps as large as a part: a thread hop per small step costs the most.

use crate::S3Failure;
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};
use std::{fs::File, io, sync::Arc};

/// The length of a part, the last one apart.
pub(crate) const PART: u64 = 8 * 1024 * 1024;
/// Parts of one transfer on their way at once; each is held in memory.
pub(crate) const IN_FLIGHT: usize = 4;
/// S3 takes no more parts than this.
const MAX_PARTS: u64 = 10_000;
const MIB: u64 = 1024 * 1024;

/// A stretch of bytes; `number` counts from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) number: i32,
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// The parts of `length` bytes from `from` on, each of `size` bytes.
pub(crate) fn parts(from: u64, length: u64, size: u64) -> impl Iterator<Item = Part> {
    let mut start = from;
    (1..).map_while(move |number| {
        let part = Part { number, start, length: size.min(length.checked_sub(start)?) };
        start += part.length;
        (part.length > 0).then_some(part)
    })
}

/// The part size for a file of this length: S3 limits their number.
pub(crate) fn size_for(length: u64) -> u64 {
    PART.max(length.div_ceil(MAX_PARTS).next_multiple_of(MIB))
}

/// All bytes of a body, which must be as many as announced.
pub(crate) async fn collect(
    mut body: ByteStream,
    announced: Option<u64>,
) -> Result<Bytes, S3Failure> {
    // What a server announces is not worth more memory than this before it has come.
    let room = announced.unwrap_or_default().min(PART);
    let mut bytes = BytesMut::with_capacity(usize::try_from(room).unwrap_or_default());
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.map_err(S3Failure::body)?);
    }
    match announced {
        Some(length) if length != bytes.len() as u64 => Err(S3Failure::short()),
        _ => Ok(bytes.freeze()),
    }
}

/// Runs file I/O where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

pub(crate) async fn read(file: Arc<File>, start: u64, length: u64) -> io::Result<Bytes> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    blocking(move || {
        let mut bytes = vec![0; length];
        read_exact_at(&file, &mut bytes, start)?;
        Ok(bytes.into())
    })
    .await
}

pub(crate) async fn write(file: Arc<File>, start: u64, bytes: Bytes) -> io::Result<()> {
    blocking(move || write_all_at(&file, &bytes, start)).await
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, start)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, start)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut start: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, start)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[n..];
        start += n as u64;
    }
    Ok(())
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut start: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, start)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        start += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_byte_once() {
        for (from, length) in [(0, 0), (0, 1), (0, PART), (0, PART + 1), (PART, 3 * PART - 1)] {
            let mut at = from;
            for (n, part) in parts(from, length, PART).enumerate() {
                assert_eq!((part.start, part.number), (at, n as i32 + 1));
                at += part.length;
            }
            assert_eq!(at, length.max(from));
        }
        assert_eq!(parts(PART, 1, PART).count(), 0);
    }

    #[test]
    fn a_huge_file_still_has_no_more_parts_than_s3_takes() {
        assert_eq!(size_for(20 * MIB), PART);
        let length = 5 * MIB * MIB;
        assert!(length.div_ceil(size_for(length)) <= MAX_PARTS);
    }
}
