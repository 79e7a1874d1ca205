//! Objects read piece by piece, through bodies that break off.

use crate::{MIB, builder, bytes, client, quick};
use mainstay_policy::{BreakerState, Deadline, report};
use mainstay_s3::{ObjectStream, S3Client, S3Failure};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Memory, Sums},
};
use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

async fn with_object(length: usize) -> (S3, Memory, S3Client, Vec<u8>) {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let (s3, data) = (client(&store), bytes(length));
    memory.put("k", data.clone());
    (store, memory, s3, data)
}

async fn rest(stream: &mut ObjectStream) -> Result<Vec<u8>, mainstay_policy::Error> {
    let mut all = Vec::new();
    while let Some(piece) = stream.chunk().await? {
        all.extend_from_slice(&piece);
    }
    assert_eq!(stream.chunk().await.unwrap(), None);
    Ok(all)
}

#[tokio::test]
async fn a_body_that_is_cut_goes_on_where_it_was() {
    let (store, _, s3, data) = with_object(3 * MIB).await;
    let gets = AtomicU32::new(0);
    store.front(move |_| match gets.fetch_add(1, SeqCst) {
        0 => Answer::Cut(1_200_000),
        // Without a byte, then with some, then refused.
        1 => Answer::Cut(0),
        2 => Answer::Cut(1_000),
        3 => Answer::Status(503, "SlowDown"),
        _ => Answer::Pass,
    });
    let mut stream = s3.get(BUCKET, "k").stream().await.unwrap();
    assert_eq!(stream.head().size, 3 * MIB as u64);
    assert!(rest(&mut stream).await.unwrap() == data);
    assert_eq!(stream.received(), 3 * MIB as u64);
    let ranges = store.sent("range");
    assert_eq!((ranges.len(), ranges[0].as_str()), (5, ""));
    assert_eq!(ranges[3], "bytes=1201000-3145727");
    // Pinned to the version that it began with.
    let etag = store.sent("if-match");
    assert!(etag[0].is_empty() && !etag[1].is_empty() && etag[1..].iter().all(|e| *e == etag[1]));
    assert_eq!(s3.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test]
async fn a_body_from_before_an_outage_says_nothing_of_the_store_that_is_back() {
    let (store, memory, _, data) = with_object(MIB).await;
    memory.put("left", data.clone());
    let s3 = builder(store.endpoint()).policy(|p| quick(p).failure_threshold(1).max_attempts(1));
    let s3 = s3.build().unwrap();
    let state = || s3.policy().breaker().state();
    // The one goes on where it broke off, of the other nothing is left but its damage.
    memory.put_damaged("damaged", data.clone());
    store.front(|line| match line.contains("/bucket/k") && !line.contains("range") {
        true => Answer::Cut(500_000),
        false => Answer::Pass,
    });
    let mut cut = s3.get(BUCKET, "k").stream().await.unwrap();
    let mut damaged = s3.get(BUCKET, "damaged").stream().await.unwrap();
    store.front(|_| Answer::Status(500, "InternalError"));
    s3.get(BUCKET, "left").await.unwrap_err();
    assert_eq!(state(), BreakerState::Open);
    s3.policy().breaker().reset();
    store.front(|_| Answer::Pass);
    assert!(rest(&mut cut).await.unwrap() == data);
    assert_eq!(state(), BreakerState::Closed);
    let error = rest(&mut damaged).await.unwrap_err();
    assert!(report(&error).to_string().contains("damaged"), "{}", report(&error));
    assert_eq!(state(), BreakerState::Closed);
}

#[tokio::test]
async fn a_range_and_an_empty_object_are_streamed_too() {
    let (store, memory, s3, data) = with_object(MIB).await;
    memory.put("empty", "");
    assert!(rest(&mut s3.get(BUCKET, "empty").stream().await.unwrap()).await.unwrap().is_empty());
    let gets = AtomicU32::new(0);
    store.front(move |_| match gets.fetch_add(1, SeqCst) {
        0 => Answer::Cut(100_000),
        _ => Answer::Pass,
    });
    let mut part = s3.get(BUCKET, "k").range(1_000..900_000).stream().await.unwrap();
    assert_eq!(part.head().size, MIB as u64);
    assert!(rest(&mut part).await.unwrap() == data[1_000..900_000]);
    assert_eq!(store.sent("range").last().unwrap(), "bytes=101000-899999");
    assert_eq!(s3.get(BUCKET, "k").range(10..20).await.unwrap(), data[10..20]);
}

#[tokio::test]
async fn other_bytes_than_were_asked_for_are_an_error() {
    const ELSEWHERE: &[(&str, &str)] = &[("etag", "\"a\""), ("content-range", "bytes 4-5/10")];
    let (store, _, s3, _) = with_object(10).await;
    let get = || s3.get(BUCKET, "k").range(2..4);
    for answer in [
        Answer::Reply(200, &[("etag", "\"a\"")], "0123456789"),
        Answer::Reply(206, ELSEWHERE, "45"),
    ] {
        store.front(move |_| answer);
        for error in [get().await.unwrap_err(), get().stream().await.unwrap_err()] {
            let told = report(&error).to_string();
            assert!(told.contains("check that the endpoint speaks S3, with byte ranges"), "{told}");
            assert_eq!(error.attempts(), 1);
        }
    }
    // Of what is shorter than the range, the whole is what was asked for.
    store.front(|_| Answer::Reply(200, &[("etag", "\"a\"")], "0123456789"));
    assert_eq!(s3.get(BUCKET, "k").range(0..99).await.unwrap(), "0123456789");
}

#[tokio::test]
async fn versions_are_never_mixed() {
    let (store, memory, s3, _) = with_object(MIB).await;
    store.front(|_| Answer::Cut(500_000));
    let mut stream = s3.get(BUCKET, "k").stream().await.unwrap();
    memory.put("k", vec![7; MIB]);
    let error = rest(&mut stream).await.unwrap_err();
    assert!(error.downcast_ref::<S3Failure>().unwrap().is_precondition_failed(), "{error:?}");
    assert!(report(&error).to_string().contains("changed meanwhile"), "{}", report(&error));
    assert_eq!(stream.received(), 500_000);
    // A store that ignores If-Match has no such bytes of the new one.
    store.front(|line| match line.contains(" range ") {
        true => Answer::Status(416, "InvalidRange"),
        false => Answer::Cut(500_000),
    });
    let error = rest(&mut s3.get(BUCKET, "k").stream().await.unwrap()).await.unwrap_err();
    assert!(report(&error).to_string().contains("changed meanwhile"), "{}", report(&error));
}

#[tokio::test]
async fn damage_is_told_at_the_end_after_a_break_too() {
    for breaks in [false, true] {
        let (store, memory, s3, data) = with_object(MIB).await;
        memory.put_damaged("k", data);
        let gets = AtomicU32::new(0);
        store.front(move |_| match breaks && gets.fetch_add(1, SeqCst) == 0 {
            true => Answer::Cut(500_000),
            false => Answer::Pass,
        });
        let mut stream = s3.get(BUCKET, "k").stream().await.unwrap();
        let error = rest(&mut stream).await.unwrap_err();
        let told = report(&error).to_string();
        assert!(told.contains("cut short or damaged"), "{told}");
        assert_eq!(stream.received(), MIB as u64);
    }
}

#[tokio::test]
async fn a_flipped_byte_is_damage() {
    let (store, _, s3, _) = with_object(MIB).await;
    store.front(|_| Answer::Flip(700_000));
    let error = rest(&mut s3.get(BUCKET, "k").stream().await.unwrap()).await.unwrap_err();
    assert!(report(&error).to_string().contains("damaged"), "{}", report(&error));
    // In memory it is asked for again before anybody sees it.
    let gets = AtomicU32::new(0);
    store.front(move |_| match gets.fetch_add(1, SeqCst) {
        0 => Answer::Flip(700_000),
        _ => Answer::Pass,
    });
    assert_eq!(s3.get(BUCKET, "k").await.unwrap().len(), MIB);
}

#[tokio::test]
async fn a_stall_is_a_break() {
    let (store, _, _, data) = with_object(MIB).await;
    let patience = Duration::from_secs(2);
    let s3 = builder(store.endpoint()).policy(move |p| quick(p).timeout(patience)).build().unwrap();
    let gets = AtomicU32::new(0);
    store.front(move |_| match gets.fetch_add(1, SeqCst) {
        0 => Answer::Stall(500_000),
        _ => Answer::Pass,
    });
    assert!(rest(&mut s3.get(BUCKET, "k").stream().await.unwrap()).await.unwrap() == data);
    assert_eq!(store.seen(|_| true), 2);
    // Nor does it wait beyond the deadline around it.
    store.front(|_| Answer::Stall(500_000));
    let mut stream = client(&store).get(BUCKET, "k").stream().await.unwrap();
    let error = Deadline::within(patience).scope(rest(&mut stream)).await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
}

#[tokio::test]
async fn breaks_without_end_end_the_stream_and_open_the_breaker() {
    let (store, _, s3, _) = with_object(MIB).await;
    store.front(|line| Answer::Cut(if line.contains(" range ") { 0 } else { 16_384 }));
    for _ in 0..3 {
        let mut stream = s3.get(BUCKET, "k").stream().await.unwrap();
        let error = rest(&mut stream).await.unwrap_err();
        assert!(error.is_exhausted(), "{error:?}");
        assert_eq!(error.attempts(), 3, "{error}");
    }
    // The break is one of the three.
    assert_eq!(store.seen(|_| true), 3 * 3);
    // Some bytes each time are no reason to go on for ever.
    s3.policy().breaker().reset();
    store.front(|_| Answer::Cut(100));
    let before = store.seen(|_| true);
    rest(&mut s3.get(BUCKET, "k").stream().await.unwrap()).await.unwrap_err();
    assert_eq!(store.seen(|_| true) - before, 1 + 5);
}

#[tokio::test]
async fn an_open_breaker_ends_a_broken_stream_with_what_broke_it() {
    let (store, _, s3, _) = with_object(MIB).await;
    store.front(|_| Answer::Cut(500_000));
    let mut stream = s3.get(BUCKET, "k").stream().await.unwrap();
    s3.policy().breaker().isolate();
    let error = rest(&mut stream).await.unwrap_err();
    assert!(error.is_circuit_open() && error.attempts() == 1, "{error:?}");
    assert!(report(&error).to_string().contains("cut short"), "{}", report(&error));
    assert_eq!(store.seen(|_| true), 1);
}

#[tokio::test]
async fn a_chunk_that_is_dropped_loses_nothing() {
    let (store, _, s3, data) = with_object(MIB).await;
    let gets = AtomicU32::new(0);
    store.front(move |_| match gets.fetch_add(1, SeqCst) {
        0 => Answer::Cut(500_000),
        1 => Answer::Hang,
        _ => Answer::Pass,
    });
    let mut stream = s3.get(BUCKET, "k").stream().await.unwrap();
    let mut all = Vec::new();
    while all.len() < 500_000 {
        all.extend_from_slice(&stream.chunk().await.unwrap().unwrap());
    }
    // Dropped while the rest is asked for.
    let asked = async {
        while store.seen(|_| true) < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = asked => {}
        end = stream.chunk() => panic!("{end:?}"),
    }
    all.extend(rest(&mut stream).await.unwrap());
    assert!(all == data);
}

#[tokio::test]
async fn more_than_the_limit_is_not_read_into_memory() {
    let (store, _, s3, data) = with_object(6 * MIB).await;
    let error = s3.get(BUCKET, "k").limit(5 * MIB as u64).await.unwrap_err();
    let told = report(&error).to_string();
    assert!(told.contains("6291456 bytes, over the limit of 5242880; raise limit()"), "{told}");
    let error = s3.get(BUCKET, "k").limit(100).await.unwrap_err();
    assert!(report(&error).to_string().contains("over the limit of 100"), "{}", report(&error));
    assert!(s3.get(BUCKET, "k").limit(6 * MIB as u64).await.unwrap() == data);
    assert_eq!(store.seen(|_| true), 1 + 1 + 2);
}

#[tokio::test]
async fn a_get_ends_by_its_deadline_also_where_the_length_was_learnt_first() {
    let (store, _, _, _) = with_object(6 * MIB).await;
    let all = Duration::from_secs(3);
    let policy = move |policy| quick(policy).timeout(all).deadline(all).max_attempts(9);
    let s3 = builder(store.endpoint()).policy(policy).build().unwrap();
    // Only in the second request for it, which has the time of its length, does it stall.
    let gets = AtomicU32::new(0);
    store.front(move |_| match gets.fetch_add(1, SeqCst) {
        0 => Answer::Pass,
        _ => Answer::Stall(100_000),
    });
    let error = s3.get(BUCKET, "k").await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(error.elapsed() <= Duration::from_secs(10), "{error:?}");
    assert_eq!(store.seen(|_| true), 2);
}
