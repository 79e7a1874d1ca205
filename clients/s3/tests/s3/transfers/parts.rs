//! One part that goes wrong, and an object that is another by then.

use super::{PART, begun};
use crate::{builder, bytes, files};
use mainstay_policy::report;
use mainstay_s3::S3Failure;
use mainstay_test_support::s3::{Answer, BUCKET, Sums};
use std::{
    fs,
    sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed},
};

const LENGTH: usize = 5 * PART as usize + 9;

#[tokio::test]
async fn a_part_that_arrives_damaged_is_sent_again() {
    let (store, memory, s3, dir) = begun(Sums::Full).await;
    let file = dir.path().join("file");
    fs::write(&file, bytes(LENGTH)).unwrap();
    let sent = AtomicUsize::new(0);
    store.front(move |line| {
        match line.contains("partNumber=2") && sent.fetch_add(1, Relaxed) == 0 {
            true => Answer::FlipUp(1_000),
            false => Answer::Pass,
        }
    });
    s3.upload_file(&file, BUCKET, "k").part_size(PART).await.unwrap();
    assert!(memory.object("k").unwrap() == bytes(LENGTH));
    assert_eq!(store.seen(|line| line.contains("partNumber=")), 6 + 1);
}

#[tokio::test]
async fn a_range_that_is_cut_goes_on_at_the_byte_where_it_broke_off() {
    let (store, memory, s3, dir) = begun(Sums::Full).await;
    let to = dir.path().join("to");
    memory.put("k", bytes(LENGTH));
    store.front(|line| match line.contains("bytes=65536-131071") {
        true => Answer::Cut(30_000),
        false => Answer::Pass,
    });
    s3.download_file(BUCKET, "k", &to).part_size(PART).await.unwrap();
    assert!(fs::read(&to).unwrap() == bytes(LENGTH));
    let rest = store.seen(|line| {
        let range = line.split("range bytes=").nth(1).unwrap_or_default();
        let (first, last) = range.split_once('-').unwrap_or_default();
        first.parse().is_ok_and(|first: u64| (65_537..131_071).contains(&first))
            && last.starts_with("131071")
    });
    assert_eq!(rest, 1);
    assert_eq!(store.seen(|line| line.starts_with("GET")), 6 + 1);
}

/// Versions of one length: nothing but the ETag tells them apart.
#[tokio::test]
async fn an_object_replaced_during_a_download_never_becomes_a_mixture() {
    for replacements in [1, u8::MAX] {
        let (store, memory, s3, dir) = begun(Sums::Full).await;
        let target = dir.path().join("target");
        fs::write(&target, "before").unwrap();
        memory.put("k", bytes(LENGTH));
        let (times, other) = (AtomicU8::new(1), memory.clone());
        store.front(move |line| {
            if line.contains("bytes=131072-") && times.load(Relaxed) <= replacements {
                let version = times.fetch_add(1, Relaxed);
                other.put("k", vec![version; LENGTH]);
            }
            Answer::Pass
        });
        let end = s3.download_file(BUCKET, "k", &target).part_size(PART).await;
        if replacements == 1 {
            end.unwrap();
            assert!(fs::read(&target).unwrap() == vec![1; LENGTH], "begun anew, it is the new one");
        } else {
            let error = end.unwrap_err();
            let told = report(&error).to_string();
            assert!(told.contains("changed meanwhile; start again"), "{told}");
            assert!(error.downcast_ref::<S3Failure>().unwrap().is_precondition_failed());
            assert_eq!(fs::read(&target).unwrap(), b"before");
        }
        assert_eq!(files(dir.path()), ["target"]);
        // What is asked for after the first range names its version.
        let unpinned = |line: &str| line.starts_with("GET") && !line.contains("bytes=0-");
        let pinned = store.sent("if-match").iter().filter(|etag| !etag.is_empty()).count();
        assert!(store.seen(unpinned) <= pinned);
    }
}

#[tokio::test]
async fn credentials_that_expire_in_the_middle_are_renewed_and_no_part_is_lost() {
    let (store, memory, _, dir) = begun(Sums::Full).await;
    let provider = crate::credentials::Renewed::default();
    let s3 = builder(store.endpoint()).credentials_provider(provider.clone()).build().unwrap();
    let (file, to) = (dir.path().join("file"), dir.path().join("to"));
    fs::write(&file, bytes(LENGTH)).unwrap();
    let (up, down) = (AtomicUsize::new(0), AtomicUsize::new(0));
    store.front(move |line| {
        let third = |n: &AtomicUsize| n.fetch_add(1, Relaxed) == 2;
        let expired = match line {
            part if part.contains("partNumber=") => third(&up),
            range if range.contains("range bytes=") => third(&down),
            _ => false,
        };
        if expired { Answer::Status(400, "ExpiredToken") } else { Answer::Pass }
    });
    s3.upload_file(&file, BUCKET, "k").part_size(PART).await.unwrap();
    s3.download_file(BUCKET, "k", &to).part_size(PART).await.unwrap();
    assert!(
        fs::read(&to).unwrap() == bytes(LENGTH) && memory.object("k").unwrap() == bytes(LENGTH)
    );
    assert_eq!(provider.given(), 3, "at first, and once each way");
}
