//! Files up and down through a store and a network that fail, and what is left when they do.

mod faults;
mod killed;
mod network;
mod parts;
mod stalls;
mod unfinished;

use crate::{builder, bytes, eventually, files, quick};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use mainstay_policy::{BreakGrowth, PolicyBuilder, report};
use mainstay_s3::{Checksums, S3Client};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Memory, Sums},
};
use std::{
    collections::HashSet,
    fs::{self, File},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

/// What the builders take least, so that small files have many parts.
const PART: u64 = 64 * 1024;

fn patient(store: &S3) -> S3Client {
    let policy = |policy| {
        quick(policy)
            .timeout(Duration::from_millis(1_500))
            .max_attempts(4)
            .enable_circuit_breaker(false)
            .enable_budget(false)
    };
    builder(store.endpoint()).policy(policy).build().unwrap()
}

async fn begun(sums: Sums) -> (S3, Memory, S3Client, TempDir) {
    let (store, memory) = S3::in_memory(sums).await;
    let s3 = patient(&store);
    (store, memory, s3, TempDir::new().unwrap())
}

#[tokio::test]
async fn progress_counts_each_byte_once_and_reaches_the_total() {
    let (store, memory, s3, dir) = begun(Sums::Full).await;
    let (file, data) = (dir.path().join("file"), bytes(10 * 65_536 + 7));
    fs::write(&file, &data).unwrap();
    let times = AtomicUsize::new(0);
    store.front(move |_| match times.fetch_add(1, Relaxed) % 3 {
        2 => Answer::Status(500, "InternalError"),
        _ => Answer::Pass,
    });
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |seen: &Arc<Mutex<Vec<_>>>| {
        let seen = Arc::clone(seen);
        move |p: mainstay_s3::Progress| seen.lock().unwrap().push((p.done, p.total))
    };
    s3.upload_file(&file, BUCKET, "k").part_size(PART).on_progress(note(&seen)).await.unwrap();
    s3.download_file(BUCKET, "k", dir.path().join("to"))
        .part_size(PART)
        .on_progress(note(&seen))
        .await
        .unwrap();
    let seen = seen.lock().unwrap();
    let total = data.len() as u64;
    let ends = seen.iter().filter(|(done, _)| *done == total).count();
    assert!(seen.iter().all(|(_, all)| *all == total), "{seen:?}");
    assert_eq!(ends, 2, "{seen:?}");
    for pair in seen.windows(2) {
        assert!(pair[0].0 < pair[1].0 || pair[0].0 == total, "{seen:?}");
    }
    assert_eq!(memory.object("k").unwrap(), data);
    assert_eq!(memory.uploads(), 0);
}

#[tokio::test]
async fn an_object_whose_bytes_are_not_its_checksums_never_becomes_the_target() {
    let (_store, memory, s3, dir) = begun(Sums::Full).await;
    let target = dir.path().join("target");
    fs::write(&target, "before").unwrap();
    for length in [1_000, 300_000] {
        memory.put_damaged("k", bytes(length));
        let error = s3.download_file(BUCKET, "k", &target).part_size(PART).await.unwrap_err();
        let told = report(&error).to_string();
        assert!(told.contains("is not what its checksum says"), "{told}");
        assert_eq!(fs::read(&target).unwrap(), b"before");
        assert_eq!(files(dir.path()), ["target"]);
    }
}

#[tokio::test]
async fn checksums_of_parts_are_compared_whatever_the_ranges() {
    let (store, memory, s3, dir) = begun(Sums::Composite).await;
    let (file, data) = (dir.path().join("file"), bytes(5 * 65_536 + 1));
    fs::write(&file, &data).unwrap();
    s3.upload_file(&file, BUCKET, "k").part_size(PART).await.unwrap();
    // As the parts were, and across them; then with a byte of a range turned, each time it is sent.
    for size in [PART, 100_000, 1_000_000] {
        let to = dir.path().join("to");
        s3.download_file(BUCKET, "k", &to).part_size(size).await.unwrap();
        assert!(fs::read(&to).unwrap() == data);
        store.front(|line| match line.starts_with("GET") && line.contains("bytes=0-") {
            true => Answer::Flip(9),
            false => Answer::Pass,
        });
        let error = s3.download_file(BUCKET, "k", &to).part_size(size).await.unwrap_err();
        assert!(report(&error).to_string().contains("checksum"), "{}", report(&error));
        store.front(|_| Answer::Pass);
    }
    assert_eq!(memory.uploads(), 0);
}

/// As other clients write them, who compress or stream: as many as equal parts would be, or not.
#[tokio::test]
async fn an_object_in_parts_of_unequal_length_is_not_called_damaged() {
    let (_store, memory, s3, dir) = begun(Sums::Composite).await;
    let (sdk, to) = (s3.sdk().unwrap(), dir.path().join("to"));
    for lengths in
        [[100_000, 80_000, 120_000], [100_000, 120_000, 80_000], [80_000, 200_000, 20_000]]
    {
        let data = bytes(300_000);
        let created = sdk.create_multipart_upload().bucket(BUCKET).key("k").send().await.unwrap();
        let (mut start, mut parts) = (0, Vec::new());
        for (number, length) in (1..).zip(lengths) {
            let part = data[start..start + length].to_vec();
            let sent = sdk.upload_part().bucket(BUCKET).key("k").part_number(number);
            let sent = sent.set_upload_id(created.upload_id.clone()).body(part.into());
            let etag = sent.send().await.unwrap().e_tag;
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(etag).build());
            start += length;
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = sdk.complete_multipart_upload().bucket(BUCKET).key("k");
        let complete = complete.set_upload_id(created.upload_id).multipart_upload(parts);
        complete.send().await.unwrap();
        s3.download_file(BUCKET, "k", &to).part_size(PART).await.unwrap();
        assert!(fs::read(&to).unwrap() == data && memory.object("k").unwrap() == data);
    }
}

#[tokio::test]
async fn without_checksums_none_is_sent_asked_for_or_compared() {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let s3 = builder(store.endpoint()).checksums(Checksums::Off).build().unwrap();
    let dir = TempDir::new().unwrap();
    let (file, to) = (dir.path().join("file"), dir.path().join("to"));
    for length in [1_000, 3 * PART as usize] {
        let data = bytes(length);
        fs::write(&file, &data).unwrap();
        s3.upload_file(&file, BUCKET, "k").part_size(PART).await.unwrap();
        s3.put(BUCKET, "put", data.clone()).await.unwrap();
        memory.put_damaged("k", data.clone());
        s3.download_file(BUCKET, "k", &to).part_size(PART).await.unwrap();
        assert!(fs::read(&to).unwrap() == data && memory.object("put").unwrap() == data);
        assert!(s3.get(BUCKET, "k").await.unwrap() == data);
    }
    for header in ["x-amz-checksum-crc32", "x-amz-checksum-mode", "x-amz-sdk-checksum-algorithm"] {
        assert!(store.sent(header).iter().all(String::is_empty), "{header}");
    }
    assert_eq!(store.seen(|line| line.starts_with("HEAD")), 0);
}

/// All of it was there, and then it could not take the target's name.
#[tokio::test]
async fn what_was_whole_before_it_was_resumed_is_of_the_version_that_is_there_now() {
    for checksums in [Checksums::On, Checksums::Off] {
        let (store, memory) = S3::in_memory(Sums::Full).await;
        let s3 = builder(store.endpoint()).checksums(checksums).build().unwrap();
        let dir = TempDir::new().unwrap();
        let to = dir.path().join("to");
        let fails = || {
            let to = to.clone();
            let download = s3.download_file(BUCKET, "k", &to).part_size(PART).resume();
            download.on_progress(move |progress| {
                if progress.done == progress.total {
                    fs::create_dir(&to).unwrap();
                }
            })
        };
        memory.put("k", bytes(3 * PART as usize));
        for replaced in [false, true] {
            fails().await.unwrap_err();
            fs::remove_dir(&to).unwrap();
            if replaced {
                memory.put("k", vec![7; 3 * PART as usize]);
            }
            store.forget();
            s3.download_file(BUCKET, "k", &to).resume().await.unwrap();
            assert!(fs::read(&to).unwrap() == memory.object("k").unwrap());
            assert_eq!(store.seen(|line| line.starts_with("GET")) > 0, replaced);
            assert!(
                store.sent("x-amz-checksum-mode").iter().all(String::is_empty)
                    == (checksums == Checksums::Off)
            );
            fs::remove_file(&to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_store_that_asks_for_less_load_gets_it_and_the_upload_ends_well() {
    let (store, memory, s3, dir) = begun(Sums::Full).await;
    let (file, data) = (dir.path().join("file"), bytes(40 * 65_536));
    fs::write(&file, &data).unwrap();
    let asked = AtomicUsize::new(0);
    store.front(move |line| {
        match line.contains("partNumber=") && asked.fetch_add(1, Relaxed) < 12 {
            true => Answer::Status(503, "SlowDown"),
            false => Answer::Pass,
        }
    });
    s3.upload_file(&file, BUCKET, "k").part_size(PART).await.unwrap();
    assert_eq!(memory.object("k").unwrap(), data);
    assert_eq!(store.seen(|line| line.contains("partNumber=")), 40 + 12);
}

/// Sixteen parts may be on their way. All sixteen are asked for less load, once, and then arrive: eight places are
/// left, and one more for what went well.
#[tokio::test]
async fn a_store_that_asked_for_less_load_has_fewer_parts_at_once() {
    let (store, _memory) = S3::in_memory(Sums::Full).await;
    let policy = |policy| quick(policy).enable_budget(false);
    let s3 = builder(store.endpoint()).policy(policy).build().unwrap();
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, bytes(40 * 65_536)).unwrap();
    let part = |line: &str| -> Option<u32> {
        let number = line.split("partNumber=").nth(1)?.split(['&', ' ']).next()?;
        number.parse().ok()
    };
    let asked = Mutex::new(HashSet::new());
    store.front(move |line| match part(line) {
        Some(number) if number > 16 => Answer::Hang,
        Some(number) if asked.lock().unwrap().insert(number) => Answer::Status(503, "SlowDown"),
        _ => Answer::Pass,
    });
    let upload = s3.upload_file(&file, BUCKET, "k").part_size(PART).parallel(20);
    let upload = tokio::spawn(upload.into_future());
    let on_their_way = || store.seen(|line| part(line).is_some_and(|number| number > 16));
    eventually("nine are on their way", || on_their_way() >= 9).await;
    // Time for others, if there were any.
    for _ in 0..50 {
        s3.sdk().unwrap().head_bucket().bucket(BUCKET).send().await.unwrap();
    }
    assert_eq!(on_their_way(), 9);
    upload.abort();
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_is_refused() {
    let (store, memory, s3, dir) = begun(Sums::Full).await;
    let file = dir.path().join("file");
    // Also to as many other bytes. The last is short, and goes in one request: it changes before its repeat.
    for (before, after) in [(393_216, 500_000), (393_216, 10), (393_216, 393_216), (9, 9)] {
        fs::write(&file, bytes(before)).unwrap();
        // Long enough ago for any clock of a disk.
        let written = SystemTime::now() - Duration::from_secs(60);
        File::options().append(true).open(&file).unwrap().set_modified(written).unwrap();
        let path = file.clone();
        store.front(move |line| {
            let in_one = line.starts_with("PUT") && !line.contains("partNumber=");
            if in_one || line.contains("partNumber=3") {
                fs::write(&path, vec![1; after]).unwrap();
            }
            if in_one { Answer::Status(503, "SlowDown") } else { Answer::Pass }
        });
        let error = s3.upload_file(&file, BUCKET, "k").part_size(PART).parallel(1).await;
        let told = report(&error.unwrap_err()).to_string();
        assert!(told.contains("it changed while it was read"), "{before} {after}: {told}");
        assert!(memory.object("k").is_none());
        eventually("it is aborted", || memory.uploads() == 0).await;
    }
}

#[tokio::test]
async fn an_open_breaker_refuses_before_the_file_is_read() {
    let (store, _memory, _, dir) = begun(Sums::Full).await;
    let s3 = builder(store.endpoint()).build().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, bytes(1_000)).unwrap();
    s3.policy().breaker().isolate();
    // Reading it would find that it is not what it was when it was opened.
    let refused = s3.upload_file(&file, BUCKET, "k").await.unwrap_err();
    assert!(refused.is_rejected(), "{refused:?}");
    assert_eq!(store.seen(|_| true), 0);
}

#[tokio::test]
async fn a_clean_up_does_not_wait_for_the_breaker() {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let policy = |policy: PolicyBuilder| {
        let policy = policy.failure_threshold(1).recovery_timeout(Duration::from_secs(30));
        policy.break_growth(BreakGrowth::Fixed).max_attempts(1)
    };
    let s3 = builder(store.endpoint()).policy(policy).build().unwrap();
    let sdk = s3.sdk().unwrap();
    sdk.create_multipart_upload().bucket(BUCKET).key("k").send().await.unwrap();
    let listed = |line: &str| line.starts_with("GET") && line.contains("uploads");
    store.front(move |line| match line {
        _ if listed(line) => Answer::AfterAnother,
        _ if line.contains("/fails") => Answer::Status(500, "InternalError"),
        _ => Answer::Pass,
    });
    // It opens while the list is on its way.
    let opens = async {
        eventually("the list is asked for", || store.seen(listed) == 1).await;
        s3.get(BUCKET, "fails").await.unwrap_err();
        sdk.head_bucket().bucket(BUCKET).send().await.unwrap();
    };
    let cleans = s3.abort_uploads(BUCKET, "", Duration::ZERO);
    let both = async { tokio::join!(cleans, opens).0 };
    let ended = tokio::time::timeout(Duration::from_secs(10), both).await;
    let refused = ended.unwrap().unwrap_err();
    assert!(refused.is_circuit_open(), "{refused:?}");
    assert!(refused.retry_after().unwrap() > Duration::from_secs(10), "{refused:?}");
    assert_eq!(memory.uploads(), 1);
}

#[tokio::test]
async fn what_cannot_work_is_said_at_once() {
    let (store, _memory, s3, dir) = begun(Sums::Full).await;
    let at = |name: &str| dir.path().join(name);
    let directory = s3.upload_file(dir.path(), BUCKET, "k").await.unwrap_err().to_string();
    assert!(directory.contains("it is not a file; give a regular file"), "{directory}");
    let device = s3.download_file(BUCKET, "k", "/dev/full").await.unwrap_err().to_string();
    assert!(device.contains("it is not a file"), "{device}");
    let into = s3.download_file(BUCKET, "k", dir.path()).await.unwrap_err().to_string();
    assert!(into.contains("it is a directory; give the name of a file"), "{into}");
    let none = s3.download_file(BUCKET, "k", at("no/file")).await.unwrap_err().to_string();
    assert!(none.contains("check its directory"), "{none}");
    let slash = s3.download_file(BUCKET, "k", at("new/")).await.unwrap_err().to_string();
    assert!(slash.contains("it is a directory; give the name of a file"), "{slash}");
    let long = s3.download_file(BUCKET, "k", at(&"n".repeat(300))).await.unwrap_err().to_string();
    assert!(long.contains("File name too long"), "{long}");
    for empty in [
        s3.upload_file("", BUCKET, "k").await.map(drop).unwrap_err(),
        s3.download_file(BUCKET, "k", "").await.unwrap_err(),
    ] {
        assert!(empty.to_string().contains("path of the local file is empty"), "{empty}");
    }
    fs::write(at("file"), "x").unwrap();
    for error in [
        s3.upload_file(at("file"), BUCKET, "k").part_size(10).await.unwrap_err(),
        s3.upload_file(at("file"), BUCKET, "k").parallel(0).await.unwrap_err(),
        s3.download_file(BUCKET, "k", at("file")).part_size(10).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), mainstay_policy::ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(store.seen(|_| true), 0);
}
