//! Files into objects.

use crate::{MIB, bytes, client, eventually};
use mainstay_policy::{Kind, Policy, report};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Sums},
};
use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};
use tempfile::TempDir;
use tokio::runtime::Builder;

#[tokio::test]
async fn a_part_is_repeated_alone() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let (file, back) = (dir.path().join("file"), dir.path().join("back"));
    let data = bytes(20 * MIB);
    fs::write(&file, &data).unwrap();
    let (up, down) = (AtomicUsize::new(0), AtomicUsize::new(0));
    store.front(move |request| {
        let first = |n: &AtomicUsize| n.fetch_add(1, Ordering::Relaxed) == 0;
        if request.contains("partNumber=2") && first(&up) {
            return Answer::Status(500, "InternalError");
        }
        if request.contains("bytes=8388608-") && first(&down) {
            return Answer::Close;
        }
        Answer::Pass
    });
    s3.upload_file(&file, BUCKET, "k").await.unwrap();
    s3.download_file(BUCKET, "k", &back).await.unwrap();
    assert!(fs::read(&back).unwrap() == data);
    assert_eq!(store.seen(|r| r.contains("partNumber=")), 4);
    assert_eq!(store.seen(|r| r.starts_with("GET")), 4);
}

#[tokio::test]
async fn a_failed_upload_is_aborted() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let file = dir.path().join("file");
    fs::write(&file, bytes(20 * MIB)).unwrap();
    store.front(|request| match request.contains("partNumber=2") {
        true => Answer::Status(403, "AccessDenied"),
        false => Answer::Pass,
    });
    let error = s3.upload_file(&file, BUCKET, "k").await.unwrap_err();
    let told = report(&error).to_string();
    assert!(told.contains("upload_part") && told.contains("AccessDenied"), "{told}");
    assert_eq!(store.seen(|r| r.starts_with("DELETE") && r.contains("uploadId=")), 1);
    assert!(!s3.exists(BUCKET, "k").await.unwrap());
}

#[tokio::test]
async fn a_dropped_upload_is_aborted() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let file = dir.path().join("file");
    fs::write(&file, bytes(20 * MIB)).unwrap();
    store.front(|request| match request.contains("partNumber=3") {
        true => Answer::Hang,
        false => Answer::Pass,
    });
    let upload = tokio::spawn(async move { s3.upload_file(&file, BUCKET, "k").await });
    eventually("part 3 was sent", || store.seen(|r| r.contains("partNumber=3")) == 1).await;
    upload.abort();
    let aborted = |r: &str| r.starts_with("DELETE") && r.contains("uploadId=");
    eventually("the upload was aborted", || store.seen(aborted) == 1).await;
}

#[tokio::test]
async fn a_completion_that_was_not_acknowledged_is_looked_into() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let file = dir.path().join("file");
    let data = bytes(17 * MIB);
    fs::write(&file, &data).unwrap();
    let completions = AtomicUsize::new(0);
    store.front(move |request| {
        let completes = request.starts_with("POST") && request.contains("uploadId=");
        match completes && completions.fetch_add(1, Ordering::Relaxed) == 0 {
            true => Answer::ApplyThenClose,
            false => Answer::Pass,
        }
    });
    s3.upload_file(&file, BUCKET, "k").await.unwrap();
    assert!(s3.get(BUCKET, "k").await.unwrap() == data);
    assert_eq!(store.seen(|r| r.starts_with("DELETE")), 0);
}

/// The object is another one than before, whatever is wrong with it; where the answer was lost, too.
#[tokio::test]
async fn what_was_completed_with_other_bytes_is_no_success_and_not_undone() {
    const OTHER: &str = "<CompleteMultipartUploadResult><ChecksumCRC32>AQIDBA==</ChecksumCRC32>\
                         </CompleteMultipartUploadResult>";
    for lost in [false, true] {
        let (store, memory) = S3::in_memory(Sums::Full).await;
        let (s3, dir) = (client(&store), TempDir::new().unwrap());
        let file = dir.path().join("file");
        fs::write(&file, bytes(200_000)).unwrap();
        let completions = AtomicUsize::new(0);
        store.front(move |line| {
            let completes = line.starts_with("POST") && line.contains("uploadId=");
            match completes && completions.fetch_add(1, Ordering::Relaxed) == 0 {
                true if lost => Answer::ApplyThenClose,
                true => Answer::Reply(200, &[], OTHER),
                false => {
                    memory.damage("k");
                    Answer::Pass
                }
            }
        });
        let upload = || s3.upload_file(&file, BUCKET, "k").part_size(64 * 1024);
        let around = Policy::builder(Kind::Custom, "around-other-bytes").build().unwrap();
        let end = around.call(|| async { upload().await.map_err(|e| report(&e).to_string()) });
        let error = end.await.unwrap_err();
        let told = error.last().unwrap();
        assert!(told.contains("it may have happened"), "{lost}: {told}");
        assert!(told.contains("is not what its checksum says"), "{lost}: {told}");
        // Of the completion, whoever found it out.
        let attempts = if lost { "2 attempts" } else { "1 attempt" };
        assert!(told.contains("complete_upload") && told.contains(attempts), "{lost}: {told}");
        assert!(error.is_outcome_unknown() && error.attempts() == 1, "{lost}: {error:?}");
        assert_eq!(store.seen(|r| r.starts_with("DELETE")), 0, "{lost}");
    }
}

/// It says so, or its answer is not S3's.
#[tokio::test]
async fn a_store_that_cannot_list_what_is_there_gets_all_of_it_again() {
    for (list, answer) in [
        ("uploads", Answer::Status(501, "NotImplemented")),
        ("uploadId=", Answer::Status(501, "NotImplemented")),
        ("uploadId=", Answer::Reply(200, &[], "<AnotherResult/>")),
    ] {
        let (store, memory) = S3::in_memory(Sums::Full).await;
        let (s3, dir) = (client(&store), TempDir::new().unwrap());
        let (file, data) = (dir.path().join("file"), bytes(200_000));
        fs::write(&file, &data).unwrap();
        let sdk = s3.sdk().unwrap();
        sdk.create_multipart_upload().bucket(BUCKET).key("k").send().await.unwrap();
        store.front(move |line| match line.starts_with("GET") && line.contains(list) {
            true => answer,
            false => Answer::Pass,
        });
        s3.upload_file(&file, BUCKET, "k").part_size(64 * 1024).resume().await.unwrap();
        assert_eq!(memory.object("k").unwrap(), data, "{list} {answer:?}");
        // Nobody could go on with what one that fails would leave.
        store.front(move |line| match line {
            _ if line.starts_with("GET") && line.contains(list) => answer,
            _ if line.contains("partNumber=2") => Answer::Status(403, "AccessDenied"),
            _ => Answer::Pass,
        });
        s3.upload_file(&file, BUCKET, "k").part_size(64 * 1024).resume().await.unwrap_err();
        eventually("the other's alone is left", || memory.uploads() == 1).await;
    }
}

/// It says nothing of the store: what is there is gone on with when there is an answer.
#[tokio::test]
async fn a_list_that_breaks_off_each_time_is_no_reason_to_begin_anew() {
    for list in ["uploads", "uploadId="] {
        let (store, memory) = S3::in_memory(Sums::Full).await;
        let (s3, dir) = (client(&store), TempDir::new().unwrap());
        let file = dir.path().join("file");
        fs::write(&file, bytes(200_000)).unwrap();
        let sdk = s3.sdk().unwrap();
        sdk.create_multipart_upload().bucket(BUCKET).key("k").send().await.unwrap();
        store.front(move |line| match line.starts_with("GET") && line.contains(list) {
            true => Answer::Cut(50),
            false => Answer::Pass,
        });
        let upload = || s3.upload_file(&file, BUCKET, "k").part_size(64 * 1024).resume();
        let error = upload().await.unwrap_err();
        assert_eq!((error.attempts(), memory.uploads()), (3, 1), "{list} {error:?}");
        store.front(|_| Answer::Pass);
        upload().await.unwrap();
        assert_eq!(memory.uploads(), 0, "{list}");
    }
}

/// A debug build copies futures by way of the stack, of which a thread has 2 MiB for all that it polls.
#[tokio::test(flavor = "multi_thread")]
async fn a_third_of_a_threads_stack_is_enough() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let file = dir.path().join("file");
    fs::write(&file, bytes(20 * MIB)).unwrap();
    let calls = move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            s3.upload_file(&file, BUCKET, "k").await.unwrap();
            s3.download_file(BUCKET, "k", &file).await.unwrap();
        });
    };
    let small = thread::Builder::new().stack_size(640 * 1024).spawn(calls).unwrap();
    tokio::task::spawn_blocking(|| small.join().unwrap()).await.unwrap();
}
