//! A part: a stretch of a file or object, the unit of repetition. File I/O is positional and runs
//! on the blocking pool, in steps as large as a part: a thread hop per small step costs the most.

use crate::checksum::{Crc, Sum};
use crc_fast::Digest;
use mainstay_policy::{Deadline, Error};
use std::{fmt, fs::File, io, path::Path};

/// The length of a part unless the caller or the file's length says otherwise, the last one apart.
pub(crate) const PART: u64 = 8 * MIB;
/// S3 takes no more parts than this.
pub(crate) const MAX_PARTS: u64 = 10_000;
/// What S3 takes, or copies, in one request.
pub(crate) const LONGEST: u64 = 5 * 1024 * MIB;
const MIB: u64 = 1024 * 1024;
/// What is read from a file at once.
const STEP: usize = 256 * 1024;

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

/// Whether a file of this length goes in one request, rather than in parts of this size.
pub(crate) fn goes_in_one(length: u64, size: u64) -> bool {
    length < size.saturating_mul(2) && length <= LONGEST
}

/// The part size for a file of this length: S3 limits their number.
pub(crate) fn size_for(wanted: Option<u64>, length: u64) -> u64 {
    let (wanted, least) = (wanted.unwrap_or(PART), length.div_ceil(MAX_PARTS));
    if wanted >= least { wanted } else { least.next_multiple_of(MIB) }
}

/// How many parts of this size are held at once: what the wanted ones would take, but two at least.
pub(crate) fn parallel_for(wanted: Option<u64>, parallel: usize, size: u64) -> usize {
    let memory = wanted.unwrap_or(PART).saturating_mul(parallel as u64);
    let fit = usize::try_from(memory / size.max(1)).unwrap_or(usize::MAX);
    fit.clamp(parallel.min(2), parallel)
}

/// # Errors
/// A path that names nothing.
pub(crate) fn check_path(path: &Path) -> Result<(), Error> {
    match path.as_os_str().is_empty() {
        true => Err(Error::invalid("the path of the local file is empty; give the name of a file")),
        false => Ok(()),
    }
}

/// Runs file I/O where it may block, and waits for it until the deadline around it at most: a disk may
/// hang as a server does. What was begun goes on to its end.
///
/// # Errors
/// [`OutOfTime`] at the deadline.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let work = tokio::task::spawn_blocking(work);
    let end = match Deadline::current() {
        Some(deadline) => match tokio::time::timeout(deadline.left(), work).await {
            Ok(end) => end,
            Err(_) => return Err(io::Error::other(OutOfTime { may_have_happened: false })),
        },
        None => work.await,
    };
    end.map_err(io::Error::other)?
}

/// The deadline passed before the disk had done its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutOfTime {
    pub(crate) may_have_happened: bool,
}

impl OutOfTime {
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl fmt::Display for OutOfTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the deadline passed before the disk had done it")
    }
}

impl std::error::Error for OutOfTime {}

/// Fills the buffer from the file, and hashes each step of it while it is in the processor's cache.
pub(crate) fn read_and_hash(
    file: &File,
    bytes: &mut [u8],
    start: u64,
    crc: Option<Crc>,
) -> io::Result<u64> {
    let mut digest = crc.map(|crc| Digest::new(crc.algorithm()));
    let mut at = start;
    for step in bytes.chunks_mut(STEP) {
        read_exact_at(file, step, at)?;
        if let Some(digest) = &mut digest {
            digest.update(step);
        }
        at += step.len() as u64;
    }
    Ok(digest.map(|digest| digest.finalize()).unwrap_or_default())
}

/// The checksum of a stretch of a file.
pub(crate) fn hash(file: &File, start: u64, length: u64, crc: Crc) -> io::Result<Sum> {
    let mut digest = Digest::new(crc.algorithm());
    let mut step = vec![0; STEP];
    let mut left = length;
    while left > 0 {
        let step = match usize::try_from(left) {
            Ok(left) if left < STEP => &mut step[..left],
            _ => &mut step[..],
        };
        read_exact_at(file, step, start + length - left)?;
        digest.update(step);
        left -= step.len() as u64;
    }
    Ok(Sum { crc, value: digest.finalize(), length })
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, start)
}

#[cfg(unix)]
pub(crate) fn write_all_at(file: &File, bytes: &[u8], start: u64) -> io::Result<()> {
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
pub(crate) fn write_all_at(file: &File, mut bytes: &[u8], mut start: u64) -> io::Result<()> {
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
        assert_eq!(size_for(None, 20 * MIB), PART);
        assert_eq!(size_for(Some(64 * 1024), 20 * MIB), 64 * 1024);
        for (wanted, length) in [(None, 5 * MIB * MIB), (Some(64 * 1024), 10 * 1024 * MIB)] {
            assert!(length.div_ceil(size_for(wanted, length)) <= MAX_PARTS);
        }
    }

    #[test]
    fn one_request_is_no_longer_than_two_parts_and_than_s3_takes() {
        assert!(goes_in_one(0, PART) && goes_in_one(2 * PART - 1, PART));
        assert!(!goes_in_one(2 * PART, PART));
        let long = 4 * 1024 * MIB;
        assert!(goes_in_one(LONGEST, long) && !goes_in_one(LONGEST + 1, long));
    }

    #[test]
    fn longer_parts_are_fewer_at_once() {
        let held = |length| {
            let size = size_for(None, length);
            size * parallel_for(None, 8, size) as u64
        };
        for length in [0, 1, 20 * MIB, MAX_PARTS * PART] {
            assert_eq!(held(length), 64 * MIB, "{length}");
        }
        for length in (0..).map(|n| MAX_PARTS * PART + (n << 34) + 1).take_while(|n| *n < 5 << 40) {
            assert!(held(length) <= (64 * MIB).max(length / 5_000 + 2 * MIB), "{length}");
        }
        assert_eq!((parallel_for(None, 1, 512 * MIB), parallel_for(Some(MIB), 3, MIB)), (1, 3));
    }
}
