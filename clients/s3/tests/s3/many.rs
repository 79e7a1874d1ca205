//! Many objects: listed a page at a time, deleted a thousand at a time.

use crate::client;
use futures_util::{StreamExt, TryStreamExt};
use mainstay_policy::report;
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Memory, Sums},
};
use std::{
    pin::pin,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

async fn with_keys(count: usize) -> (S3, Memory, mainstay_s3::S3Client) {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    for n in 0..count {
        memory.put(&format!("k/{n:05}"), "");
    }
    let s3 = client(&store);
    (store, memory, s3)
}

#[tokio::test]
async fn a_page_is_asked_for_when_the_last_one_was_taken() {
    let (store, _, s3) = with_keys(2_500).await;
    let mut keys = pin!(s3.list(BUCKET, "k/").stream());
    for n in 0..2_500 {
        let key = keys.try_next().await.unwrap().unwrap().key;
        assert_eq!(key, format!("k/{n:05}"));
        assert_eq!(store.seen(|_| true), n / 1_000 + 1, "{n}");
    }
    assert!(keys.next().await.is_none());
    assert_eq!(store.seen(|_| true), 3);
}

/// XML holds no control characters, and an encoded key has to come back as it was.
#[tokio::test]
async fn any_key_is_listed_as_it_is() {
    let (store, memory, s3) = with_keys(0).await;
    let keys = ["a b+c%2B", "bell\u{7}", "cr\r\nlf", "d&<>\"'", "ü/\u{1F980}"];
    for key in keys {
        memory.put(key, "");
    }
    let found = s3.list(BUCKET, "").page_size(2).await.unwrap();
    assert_eq!(found.into_iter().map(|object| object.key).collect::<Vec<_>>(), keys);
    assert_eq!(store.seen(|line| line.contains("encoding-type=url")), 3);
    let pages: Vec<_> = s3.list(BUCKET, "").delimiter("/").pages().try_collect().await.unwrap();
    assert_eq!(pages[0].prefixes, ["ü/"]);
    // A store that does not know how says nothing of it, and means its keys literally.
    const PLAIN: &str =
        "<ListBucketResult><Contents><Key>a+b%20c</Key></Contents></ListBucketResult>";
    store.front(|_| Answer::Reply(200, &[], PLAIN));
    assert_eq!(s3.list(BUCKET, "").await.unwrap()[0].key, "a+b%20c");
}

/// A store that knows the first version of listings only says that there is more, and not how to ask for it; another
/// sends back what it was asked with.
#[tokio::test]
async fn a_listing_that_cannot_go_on_is_an_error_after_what_there_was() {
    const FIRST: &str = "<ListBucketResult><IsTruncated>true</IsTruncated>\
        <Contents><Key>a</Key></Contents></ListBucketResult>";
    const AGAIN: &str = "<ListBucketResult><IsTruncated>true</IsTruncated>\
        <NextContinuationToken>t</NextContinuationToken>\
        <Contents><Key>a</Key></Contents></ListBucketResult>";
    let (store, _, s3) = with_keys(0).await;
    for (answer, requests) in [(FIRST, 1), (AGAIN, 2)] {
        store.front(move |_| Answer::Reply(200, &[], answer));
        store.forget();
        let error = s3.list(BUCKET, "").await.unwrap_err();
        let told = report(&error).to_string();
        assert!(told.contains("check that the endpoint speaks S3"), "{told}");
        assert_eq!(store.seen(|_| true), requests);
        let mut keys = pin!(s3.list(BUCKET, "").stream());
        for _ in 0..requests {
            assert_eq!(keys.try_next().await.unwrap().unwrap().key, "a");
        }
        keys.try_next().await.unwrap_err();
        assert!(keys.next().await.is_none());
    }
}

#[tokio::test]
async fn a_listing_survives_faults_and_ends_after_an_error() {
    let (store, _, s3) = with_keys(2_500).await;
    let requests = AtomicU32::new(0);
    store.front(move |_| match requests.fetch_add(1, SeqCst) {
        0 => Answer::Status(503, "SlowDown"),
        1 => Answer::Cut(5_000),
        2 => Answer::Pass,
        3 => Answer::Close,
        _ => Answer::Pass,
    });
    assert_eq!(s3.list(BUCKET, "").await.unwrap().len(), 2_500);
    store.front(|line| match line.contains("continuation-token") {
        true => Answer::Status(403, "AccessDenied"),
        false => Answer::Pass,
    });
    let mut keys = pin!(s3.list(BUCKET, "").stream());
    for _ in 0..1_000 {
        keys.try_next().await.unwrap().unwrap();
    }
    let error = keys.try_next().await.unwrap_err();
    assert!(report(&error).to_string().contains("access to the bucket `bucket` is denied"));
    assert!(keys.next().await.is_none());
}

#[tokio::test]
async fn folders_and_places_to_go_on_from() {
    let (_store, memory, s3) = with_keys(0).await;
    for key in ["a/1", "a/2", "b/1", "c", "d"] {
        memory.put(key, "");
    }
    let list = s3.list(BUCKET, "").delimiter("/").page_size(2);
    let pages: Vec<_> = list.pages().try_collect().await.unwrap();
    assert_eq!(pages.len(), 2);
    assert_eq!(pages[0].prefixes, ["a/", "b/"]);
    let keys: Vec<_> = pages[1].objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(keys, ["c", "d"]);
    let after = s3.list(BUCKET, "").start_after("b/1").await.unwrap();
    assert_eq!(after.len(), 2);
}

#[tokio::test]
async fn many_are_deleted_a_thousand_at_a_time_and_refusals_are_named() {
    let (store, memory, s3) = with_keys(2_500).await;
    memory.put("locked/a", "");
    let keys = s3.list(BUCKET, "").await.unwrap().into_iter().map(|object| object.key);
    let before = store.seen(|_| true);
    let end = s3.delete_many(BUCKET, keys.chain(["not/there".to_owned()])).await.unwrap();
    assert_eq!(end.deleted, 2_501);
    let failed: Vec<_> = end.failed.iter().map(|f| (f.key.as_str(), f.code.as_str())).collect();
    assert_eq!(failed, [("locked/a", "AccessDenied")]);
    assert_eq!(store.seen(|_| true) - before, 3);
    assert_eq!(s3.list(BUCKET, "").await.unwrap().len(), 1);
    assert_eq!(s3.delete_many(BUCKET, [""; 0]).await.unwrap().deleted, 0);
}

#[tokio::test]
async fn keys_that_could_not_be_deleted_for_the_moment_are_asked_for_again() {
    const BUSY: &str = "<DeleteResult><Error><Key>k/00001</Key><Code>SlowDown</Code></Error>\
        <Error><Key>k/00002</Key><Code>AccessDenied</Code></Error></DeleteResult>";
    let (store, memory, s3) = with_keys(3).await;
    let keys = ["k/00000", "k/00001", "k/00002"];
    let requests = AtomicU32::new(0);
    store.front(move |_| match requests.fetch_add(1, SeqCst) {
        0 => Answer::Reply(200, &[], BUSY),
        _ => Answer::Pass,
    });
    let end = s3.delete_many(BUCKET, keys).await.unwrap();
    assert_eq!((end.deleted, end.failed.len()), (2, 1));
    assert_eq!(
        (end.failed[0].key.as_str(), end.failed[0].code.as_str()),
        ("k/00002", "AccessDenied")
    );
    // Only that one was sent again.
    assert!(memory.object("k/00001").is_none() && memory.object("k/00000").is_some());

    // To no avail: it is reported too.
    store.front(|_| Answer::Reply(200, &[], BUSY));
    let end = s3.delete_many(BUCKET, keys).await.unwrap();
    let codes: Vec<_> = end.failed.iter().map(|f| f.code.as_str()).collect();
    assert!(codes.contains(&"SlowDown"), "{codes:?}");
    assert!(!end.failed.iter().any(|f| f.key == "k/00000"));
    // A request that fails as a whole is an error.
    store.front(|_| Answer::Status(403, "AccessDenied"));
    s3.delete_many(BUCKET, keys).await.unwrap_err();
}
