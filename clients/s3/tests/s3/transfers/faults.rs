//! Transfers in great number with faults drawn from a seed: what succeeds is byte-identical, what fails or is
//! dropped leaves nothing.

use super::{PART, begun};
use crate::{bytes, eventually, files};
use mainstay_s3::S3Client;
use mainstay_test_support::s3::{Answer, BUCKET, Memory, Sums};
use std::{fs, path::Path, time::Duration};

/// Rounds of an upload and a download, eight at once.
const ROUNDS: u64 = 84;

#[derive(Default, Debug)]
pub(super) struct Tally {
    pub(super) good: usize,
    pub(super) failed: usize,
    pub(super) dropped: usize,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.good += other.good;
        self.failed += other.failed;
        self.dropped += other.dropped;
    }
}

/// One fault in seven requests; aborts and what looks for orphans get through.
fn fault(draw: &mut fastrand::Rng, line: &str, sums: Sums) -> Answer {
    if line.starts_with("DELETE") || (line.starts_with("GET") && line.contains("upload")) {
        return Answer::Pass;
    }
    let at = draw.usize(..PART as usize);
    let (up, down) = (line.starts_with("PUT"), line.starts_with("GET"));
    match draw.u8(..49) {
        0 => Answer::Status(503, "SlowDown"),
        1 => Answer::Status(500, "InternalError"),
        2 | 3 => Answer::Close,
        4 => Answer::ApplyThenClose,
        5 if down => Answer::Stall(at),
        5 | 6 if up => Answer::FlipUp(draw.usize(..10)),
        6 if down => Answer::Cut(at),
        // Without a checksum nobody can know.
        7 if down && sums != Sums::Without => Answer::Flip(at),
        _ => Answer::Pass,
    }
}

/// How a transfer ended.
#[derive(Debug, PartialEq)]
enum End {
    Well,
    Failed,
    /// It was dropped, or its error says that nobody knows.
    Unknown,
}

/// The transfer, or so much of it as the draw allows.
async fn perhaps<T>(
    drop_after: Option<u64>,
    tally: &mut Tally,
    transfer: impl IntoFuture<Output = Result<T, mainstay_policy::Error>>,
) -> End {
    let transfer = transfer.into_future();
    let end = match drop_after {
        Some(ms) => tokio::time::timeout(Duration::from_millis(ms), transfer).await,
        None => Ok(transfer.await),
    };
    let (count, end) = match end {
        Ok(Ok(_)) => (&mut tally.good, End::Well),
        Ok(Err(e)) if e.is_outcome_unknown() => (&mut tally.failed, End::Unknown),
        Ok(Err(_)) => (&mut tally.failed, End::Failed),
        Err(_) => (&mut tally.dropped, End::Unknown),
    };
    *count += 1;
    end
}

/// Whether what is there now, new or as before, is what was said.
fn is_as_said(end: &End, (new, before): (bool, bool)) -> bool {
    match end {
        End::Well => new,
        End::Failed => before,
        End::Unknown => new || before,
    }
}

pub(super) async fn round(s3: S3Client, memory: Memory, root: &Path, seed: u64) -> Tally {
    let mut draw = fastrand::Rng::with_seed(seed);
    let (mut tally, key) = (Tally::default(), format!("k{seed}"));
    let dir = root.join(&key);
    fs::create_dir(&dir).unwrap();
    let (from, to) = (dir.join("from"), dir.join("to"));
    let data = bytes(draw.usize(..6 * PART as usize));
    fs::write(&from, &data).unwrap();
    fs::write(&to, "before").unwrap();
    memory.put(&key, "before");
    let mut drops = || (draw.u8(..8) == 0).then(|| draw.u64(..30));
    let upload = s3.upload_file(&from, BUCKET, &key).part_size(PART);
    let uploaded = perhaps(drops(), &mut tally, upload).await;
    let old = memory.object(&key).unwrap();
    let whole = (old == data, old == "before");
    // Where nobody answered, it may have been written: whole.
    assert!(is_as_said(&uploaded, whole), "upload {seed}: {uploaded:?}");
    let download = s3.download_file(BUCKET, &key, &to).part_size(PART);
    let downloaded = perhaps(drops(), &mut tally, download).await;
    let object = memory.object(&key).unwrap();
    let file = fs::read(&to).unwrap();
    // An upload that was dropped may have come between.
    let whole = (file == object || file == old, file == b"before");
    assert!(is_as_said(&downloaded, whole), "download {seed}: {downloaded:?}");
    eventually("no temporary file is left", || files(&dir) == ["from", "to"]).await;
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_transfers_end_whole_or_leave_nothing() {
    let mut all = Tally::default();
    for (seed, sums) in [(1, Sums::Full), (2, Sums::Composite), (3, Sums::Without)] {
        let (store, memory, s3, dir) = begun(sums).await;
        let draw = std::sync::Mutex::new(fastrand::Rng::with_seed(seed));
        store.front(move |line| fault(&mut draw.lock().unwrap(), line, sums));
        for group in 0..ROUNDS.div_ceil(8) {
            let rounds = (0..8).map(|n| {
                let seed = seed * 1_000 + group * 8 + n;
                round(s3.clone(), memory.clone(), dir.path(), seed)
            });
            for tally in futures_util::future::join_all(rounds).await {
                all.add(&tally);
            }
        }
        eventually("no upload is left", || memory.uploads() == 0).await;
    }
    println!("{all:?}");
    let count = all.good + all.failed + all.dropped;
    assert!(count >= 500 && all.good > count / 2 && all.dropped > 10, "{all:?}");
}
