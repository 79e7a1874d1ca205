//! What the `metrics` facade hears.

use crate::{bytes, client};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Sums},
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};
use tempfile::TempDir;

const PART: usize = 64 * 1024;

#[test]
fn bytes_parts_and_retries_are_counted_each_way() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let (store, _) = S3::in_memory(Sums::Full).await;
            let (s3, dir) = (client(&store), TempDir::new().unwrap());
            let file = dir.path().join("file");
            fs::write(&file, bytes(3 * PART)).unwrap();
            // The second answer in each direction is lost.
            let count = [AtomicU32::new(0), AtomicU32::new(0)];
            store.front(move |line| {
                let n = usize::from(line.starts_with("GET"));
                let moves = line.starts_with("PUT") || n == 1;
                match moves && count[n].fetch_add(1, SeqCst) == 1 {
                    true => Answer::Status(500, "InternalError"),
                    false => Answer::Pass,
                }
            });
            s3.upload_file(&file, BUCKET, "k").part_size(PART as u64).await.unwrap();
            s3.put(BUCKET, "small", vec![0; 100]).await.unwrap();
            s3.download_file(BUCKET, "k", &file).part_size(PART as u64).await.unwrap();
            s3.get(BUCKET, "small").await.unwrap();
            s3.copy((BUCKET, "small"), (BUCKET, "copy")).await.unwrap();
            let mut stream = s3.get(BUCKET, "small").stream().await.unwrap();
            while stream.chunk().await.unwrap().is_some() {}
        });
    });
    let all = seen.snapshot().into_vec();
    let value = |name: &str, direction: &str| {
        let found = all.iter().find(|(key, ..)| {
            key.key().name() == name && key.key().labels().any(|label| label.value() == direction)
        });
        match found.map(|(.., value)| value) {
            Some(DebugValue::Counter(n)) => *n,
            other => panic!("{name} {direction}: {other:?}"),
        }
    };
    let moved = 3 * PART as u64;
    assert_eq!(value("mainstay.s3.transfer.bytes", "upload"), moved + 100);
    assert_eq!(value("mainstay.s3.transfer.bytes", "download"), moved + 2 * 100);
    assert_eq!(value("mainstay.s3.transfer.bytes", "copy"), 100);
    for direction in ["upload", "download"] {
        assert_eq!(value("mainstay.s3.transfer.parts", direction), 3);
        assert_eq!(value("mainstay.s3.transfer.retries", direction), 1);
    }
}
