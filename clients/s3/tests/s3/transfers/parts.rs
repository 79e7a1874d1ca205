//! One part that goes wrong, and an object that is another by then.

use super::{PART, begun};
use crate::{builder, bytes, eventually, files, quick};
use futures_util::future::join_all;
use mainstay_policy::report;
use mainstay_s3::S3Failure;
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Sums},
};
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
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

/// The first and last byte of each range that was asked for, in the order of the object.
fn ranges(store: &S3) -> Vec<(u64, u64)> {
    let ranges = store.sent("range");
    let ends = ranges.iter().filter_map(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let mut ends: Vec<_> =
        ends.map(|(first, last)| (first.parse().unwrap(), last.parse().unwrap())).collect();
    ends.sort_unstable();
    ends
}

/// The first part is asked for alone, those that are left together.
const LONG: &str = "bytes=65536-327688";

#[tokio::test]
async fn the_checksum_of_each_part_in_a_long_range_is_compared() {
    for sums in [Sums::Composite, Sums::Full] {
        let (store, _memory, s3, dir) = begun(sums).await;
        let (file, to) = (dir.path().join("file"), dir.path().join("to"));
        fs::write(&file, bytes(LENGTH)).unwrap();
        s3.upload_file(&file, BUCKET, "k").part_size(PART).await.unwrap();
        let download = || s3.download_file(BUCKET, "k", &to).part_size(PART).parallel(1);
        download().await.unwrap();
        assert!(fs::read(&to).unwrap() == bytes(LENGTH));
        assert_eq!(ranges(&store), [(0, 65_535), (65_536, 327_688)]);
        // Nothing is asked of the store but the checksum of the whole: the parts' are known from the bytes.
        assert_eq!(store.seen(|line| line.starts_with("HEAD")), 1);
        fs::write(&to, "before").unwrap();
        let times = Arc::new(AtomicUsize::new(0));
        for (at, damaged) in [(65_535, 1), (65_536, 1), (2 * 65_536 + 9, usize::MAX)] {
            let asked = Arc::clone(&times);
            asked.store(0, Relaxed);
            store.front(move |line| {
                match line.contains(LONG) && asked.fetch_add(1, Relaxed) < damaged {
                    true => Answer::Flip(at),
                    false => Answer::Pass,
                }
            });
            let end = download().await;
            assert_eq!(times.load(Relaxed), 2, "it begins again once");
            if damaged == 1 {
                end.unwrap();
                assert!(fs::read(&to).unwrap() == bytes(LENGTH));
                fs::write(&to, "before").unwrap();
            } else {
                let told = report(&end.unwrap_err()).to_string();
                assert!(told.contains("is not what its checksum says"), "{told}");
                assert_eq!(fs::read(&to).unwrap(), b"before");
            }
        }
        assert_eq!(files(dir.path()), ["file", "to"]);
    }
}

#[tokio::test]
async fn what_breaks_off_after_its_last_byte_is_not_asked_for_again() {
    for (length, expected) in [(LENGTH, &[(0, 65_535), (65_536, 327_688)][..]), (9, &[(0, 65_535)])]
    {
        let (store, memory, s3, dir) = begun(Sums::Full).await;
        let to = dir.path().join("to");
        memory.put("k", bytes(length));
        store.front(|line| match line.starts_with("GET") {
            true => Answer::CutEnd,
            false => Answer::Pass,
        });
        s3.download_file(BUCKET, "k", &to).part_size(PART).parallel(1).await.unwrap();
        assert!(fs::read(&to).unwrap() == bytes(length));
        assert_eq!(ranges(&store), expected);
    }
}

/// With three attempts a range of five parts is cut eight times: each part has attempts of its own.
#[tokio::test]
async fn a_long_range_that_is_cut_in_each_of_its_parts_goes_on_each_time() {
    let (store, memory, _, dir) = begun(Sums::Composite).await;
    let to = dir.path().join("to");
    memory.put("k", bytes(LENGTH));
    let policy = |policy| quick(policy).max_attempts(3).enable_budget(false);
    let s3 = builder(store.endpoint()).policy(policy).build().unwrap();
    let cut = 32_000;
    store.front(move |line| match line.contains("-327688") {
        true => Answer::Cut(cut),
        false => Answer::Pass,
    });
    s3.download_file(BUCKET, "k", &to).part_size(PART).parallel(1).await.unwrap();
    assert!(fs::read(&to).unwrap() == bytes(LENGTH));
    let asked = ranges(&store);
    let rest: Vec<_> = asked.into_iter().filter(|(_, last)| *last == 327_688).collect();
    let expected: Vec<_> = (0..=8).map(|n| (65_536 + n * cut as u64, 327_688)).collect();
    assert_eq!(rest, expected);
}

/// All transfers of a client share sixteen places: the seventeenth is not asked for before one of them is done.
#[tokio::test]
async fn no_more_answers_are_open_than_there_are_places() {
    let (store, memory, s3, dir) = begun(Sums::Full).await;
    memory.put("k", bytes(LENGTH));
    store.front(|line| match line.contains(LONG) {
        true => Answer::Stall(65_536 + 9),
        false => Answer::Pass,
    });
    let downloads = (0..17).map(|n| {
        let to = dir.path().join(n.to_string());
        let download = s3.download_file(BUCKET, "k", to).part_size(PART).parallel(1);
        download.idle_timeout(Duration::from_millis(300)).into_future()
    });
    for end in join_all(downloads).await {
        end.unwrap();
    }
    let asked = store.sent("range");
    let mut longs = asked.iter().enumerate().filter(|(_, range)| *range == LONG);
    let (last, _) = longs.nth(16).unwrap();
    let is_rest = |range: &String| range.ends_with("-327688") && range != LONG;
    assert!(asked.iter().position(is_rest).unwrap() < last, "{asked:?}");
}

#[tokio::test]
async fn as_many_parts_as_allowed_are_asked_for_at_once() {
    let (store, memory, s3, dir) = begun(Sums::Full).await;
    memory.put("k", bytes(20 * PART as usize));
    store.front(|line| match line.contains("bytes=0-") {
        true => Answer::Pass,
        false => Answer::Hang,
    });
    let download = s3.download_file(BUCKET, "k", dir.path().join("to")).part_size(PART);
    let download = tokio::spawn(download.idle_timeout(Duration::from_secs(60)).into_future());
    let asked = || store.seen(|line| line.starts_with("GET"));
    eventually("eight are asked for, after the first", || asked() == 1 + 8).await;
    // Each takes an eighth of what is left, in whole parts.
    let lengths = ranges(&store).into_iter().map(|(first, last)| (last + 1 - first) / PART);
    assert!(lengths.eq([1, 2, 2, 1, 1, 1, 1, 1, 1]));
    download.abort();
}

/// Versions of one length: nothing but the ETag tells them apart.
#[tokio::test]
async fn an_object_replaced_during_a_download_never_becomes_a_mixture() {
    for (replacements, resumes) in [(1, false), (u8::MAX, false), (1, true)] {
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
        let download = s3.download_file(BUCKET, "k", &target).part_size(PART);
        let end = if resumes { download.resume() } else { download }.await;
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
