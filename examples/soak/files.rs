//! Files up and down: what succeeds is the same byte for byte, what fails leaves no trace.

use crate::{
    Shift,
    tally::{Claims, Shared, Tally},
};
use mainstay::S3Client;
use mainstay_test_support::s3::{BUCKET, Memory};
use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    fs,
    task::JoinSet,
    time::{sleep, timeout},
};

const WORKERS: u64 = 3;
const PAUSE: Duration = Duration::from_millis(100);
const OLD: &[u8] = b"what was there before";

/// What was wrong.
#[derive(Default)]
pub(crate) struct Books(Mutex<Vec<String>>);

impl Books {
    /// Also, clean-up finds what faults that outlived an abort have left.
    pub(crate) async fn check(&self, s3: &S3Client, objects: &Memory, claims: &mut Claims) {
        {
            let wrong = self.0.lock().unwrap();
            let claim = format!("s3: {} files differ {:?}", wrong.len(), wrong.first());
            claims.check(wrong.is_empty(), &claim);
        }
        let left = objects.uploads();
        let aborted = s3.abort_uploads(BUCKET, "", Duration::ZERO).await;
        claims.check(
            objects.uploads() == 0,
            &format!(
                "s3: of {left} uploads that faults left behind, clean-up took back {aborted:?}"
            ),
        );
    }
}

pub(crate) fn work(
    s3: &S3Client,
    objects: &Memory,
    shift: &Shift,
    workers: &mut JoinSet<()>,
) -> io::Result<(Arc<Books>, Shared)> {
    let (books, tally) = (Arc::new(Books::default()), Shared::new(Tally::default()));
    for worker in 0..WORKERS {
        let directory = tempfile::tempdir()?;
        let (s3, objects, shift) = (s3.clone(), objects.clone(), shift.clone());
        let (books, tally) = (Arc::clone(&books), Arc::clone(&tally));
        workers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(worker);
            let (from, to) = (directory.path().join("from"), directory.path().join("to"));
            // A key is written once: an upload whose outcome is unknown may arrive at any time.
            for n in 0.. {
                let Some(round) = shift.round().await else { break };
                let key = format!("file-{worker}-{n}");
                let wrong = |what: &str| books.0.lock().unwrap().push(format!("{key}: {what}"));
                // One in three goes in parts.
                let length = if random.u8(0..3) == 0 { 17 << 20 } else { random.usize(1..300_000) };
                let mut bytes = vec![0; length];
                random.fill(&mut bytes);
                fs::write(&from, &bytes).await.expect("there is room");
                let up = async { s3.upload_file(&from, BUCKET, &key).await.map(drop) };
                let up = tally.count(up).await;
                if up.is_ok() && objects.object(&key).as_deref() != Some(&bytes[..]) {
                    wrong("an upload that succeeded is not there");
                }
                fs::write(&to, OLD).await.expect("there is room");
                let down = async { s3.download_file(BUCKET, &key, &to).await.map(drop) };
                let down = tally.count(down).await;
                let got = fs::read(&to).await.expect("it is there");
                match down {
                    Ok(()) if got != bytes => wrong("a download that succeeded differs"),
                    Err(error) if got != OLD && !error.is_outcome_unknown() => {
                        wrong("a download that failed changed its target");
                    }
                    _ => {}
                }
                let _ = tally.count(async { s3.delete(BUCKET, &key).await.map(drop) }).await;
                // Memory is measured between rounds.
                drop((bytes, got));
                drop(round);
                sleep(PAUSE).await;
            }
            // A disk that was too slow for the last download may still be at it.
            let cleaned = async {
                while files_in(directory.path()).await > 2 {
                    sleep(PAUSE).await;
                }
            };
            if timeout(Duration::from_secs(60), cleaned).await.is_err() {
                books.0.lock().unwrap().push("a temporary file was left behind".to_owned());
            }
        });
    }
    Ok((books, tally))
}

async fn files_in(directory: &Path) -> usize {
    let mut entries = fs::read_dir(directory).await.expect("it is there");
    let mut files = 0;
    while entries.next_entry().await.expect("it is there").is_some() {
        files += 1;
    }
    files
}
