//! Files up and down: what succeeds is the same byte for byte, what fails leaves no trace.

use crate::{
    Stop,
    tally::{Claims, Shared, Tally},
};
use mainstay::S3Client;
use mainstay_test_support::s3::{BUCKET, Memory};
use std::{
    fs, io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{task::JoinSet, time::sleep};

const WORKERS: u64 = 3;
const PAUSE: Duration = Duration::from_millis(100);
const OLD: &[u8] = b"what was there before";

/// What was wrong.
#[derive(Default)]
pub(crate) struct Books(Mutex<Vec<String>>);

impl Books {
    pub(crate) fn check(&self, objects: &Memory, claims: &mut Claims) {
        let wrong = self.0.lock().unwrap();
        claims.check(
            wrong.is_empty(),
            &format!("s3: {} files differ {:?}", wrong.len(), wrong.first()),
        );
        // Those whose abort the network kept from the store are for clean-up to find.
        println!(
            "{} uploads were left in the store by faults that outlived their aborts",
            objects.uploads()
        );
    }
}

pub(crate) fn work(
    s3: &S3Client,
    objects: &Memory,
    stop: &Stop,
    workers: &mut JoinSet<()>,
) -> io::Result<(Arc<Books>, Shared)> {
    let (books, tally) = (Arc::new(Books::default()), Shared::new(Tally::default()));
    for worker in 0..WORKERS {
        let directory = tempfile::tempdir()?;
        let (s3, objects, stop) = (s3.clone(), objects.clone(), stop.clone());
        let (books, tally) = (Arc::clone(&books), Arc::clone(&tally));
        workers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(worker);
            let (from, to) = (directory.path().join("from"), directory.path().join("to"));
            let key = format!("file-{worker}");
            let wrong = |what: &str| books.0.lock().unwrap().push(format!("{key}: {what}"));
            while !stop.is_set() {
                // One in three goes in parts.
                let length = if random.u8(0..3) == 0 { 17 << 20 } else { random.usize(1..300_000) };
                let mut bytes = vec![0; length];
                random.fill(&mut bytes);
                fs::write(&from, &bytes).expect("there is room");
                let up = async { s3.upload_file(&from, BUCKET, &key).await.map(drop) };
                let up = tally.count(up).await;
                let there = objects.object(&key);
                if up.is_ok() && there.as_deref() != Some(&bytes[..]) {
                    wrong("an upload that succeeded is not there");
                }
                fs::write(&to, OLD).expect("there is room");
                let down = async { s3.download_file(BUCKET, &key, &to).await.map(drop) };
                let down = tally.count(down).await;
                let got = fs::read(&to).expect("it is there");
                match down {
                    Ok(())
                        if there.as_deref() != Some(&got[..])
                            && objects.object(&key).as_deref() != Some(&got[..]) =>
                    {
                        wrong("a download that succeeded differs");
                    }
                    Err(_) if got != OLD => wrong("a download that failed changed its target"),
                    _ => {}
                }
                let left = fs::read_dir(directory.path()).expect("it is there").count();
                if left != 2 {
                    wrong("a temporary file was left behind");
                }
                sleep(PAUSE).await;
            }
        });
    }
    Ok((books, tally))
}
