//! What the `metrics` facade hears: bytes, parts and repeats, of files and of single objects, by direction.

/// Which way bytes go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    Upload,
    Download,
    /// Inside the store.
    Copy,
}

/// These bytes have come through.
pub(crate) fn count_bytes(direction: Direction, bytes: u64) {
    count("mainstay.s3.transfer.bytes", direction, bytes);
}

/// A part of a file or of a long copy has come through.
pub(crate) fn count_part(direction: Direction) {
    count("mainstay.s3.transfer.parts", direction, 1);
}

/// The attempt with this number, if it is not the first.
pub(crate) fn count_repeat(direction: Direction, attempt: u32) {
    if attempt > 1 {
        count("mainstay.s3.transfer.retries", direction, 1);
    }
}

#[cfg(feature = "metrics")]
fn count(name: &'static str, direction: Direction, by: u64) {
    let direction = match direction {
        Direction::Upload => "upload",
        Direction::Download => "download",
        Direction::Copy => "copy",
    };
    metrics::counter!(name, "direction" => direction).increment(by);
}

#[cfg(not(feature = "metrics"))]
const fn count(_: &'static str, _: Direction, _: u64) {}
