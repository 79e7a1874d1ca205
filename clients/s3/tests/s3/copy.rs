//! Copies inside the store.

use crate::client;
use mainstay_policy::report;
use mainstay_s3::S3Failure;
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Sums},
};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

#[tokio::test]
async fn what_is_not_set_goes_along() {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    let key = "a b/ü+%.csv";
    let put = s3.put(BUCKET, key, "bytes").metadata("owner", "me").cache_control("no-store");
    put.tag("team", "x").await.unwrap();

    let copied = s3.copy((BUCKET, key), (BUCKET, "plain")).await.unwrap();
    let plain = s3.head(BUCKET, "plain").await.unwrap();
    assert_eq!(copied.etag, plain.etag);
    assert_eq!(memory.object("plain").unwrap(), "bytes");
    assert_eq!(plain.content_type.as_deref(), Some("text/csv"));
    assert_eq!(plain.metadata["owner"], "me");
    assert_eq!(s3.tags(BUCKET, "plain").await.unwrap()["team"], "x");

    // Onto itself: new metadata, the rest as it was.
    s3.copy((BUCKET, key), (BUCKET, key)).metadata("checked", "yes").tag("n", "1").await.unwrap();
    let own = s3.head(BUCKET, key).await.unwrap();
    assert_eq!(own.metadata.into_iter().collect::<Vec<_>>(), [("checked".into(), "yes".into())]);
    assert_eq!(own.content_type.as_deref(), Some("text/csv"));
    assert_eq!(own.cache_control.as_deref(), Some("no-store"));
    let tags = s3.tags(BUCKET, key).await.unwrap();
    assert_eq!(tags.into_iter().collect::<Vec<_>>(), [("n".into(), "1".into())]);
}

#[tokio::test]
async fn a_copy_is_of_one_version_and_may_be_repeated() {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    memory.put("from", "old");
    let (puts, other) = (AtomicU32::new(0), memory.clone());
    store.front(move |line| match line.starts_with("PUT") && puts.fetch_add(1, SeqCst) == 0 {
        true => Answer::ApplyThenClose,
        false => Answer::Pass,
    });
    s3.copy((BUCKET, "from"), (BUCKET, "to")).await.unwrap();
    assert_eq!(store.seen(|r| r.starts_with("PUT")), 2);
    assert_eq!(memory.object("to").unwrap(), "old");

    store.front(move |line| {
        if line.starts_with("PUT") {
            other.put("from", "new");
        }
        Answer::Pass
    });
    let error = s3.copy((BUCKET, "from"), (BUCKET, "to")).await.unwrap_err();
    assert!(error.downcast_ref::<S3Failure>().unwrap().is_precondition_failed());
    assert!(report(&error).to_string().contains("changed meanwhile"), "{}", report(&error));
    assert_eq!(memory.object("to").unwrap(), "old");
}

#[tokio::test]
async fn a_copy_may_be_of_a_version_that_is_no_longer_the_newest() {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    memory.put("from", "old");
    memory.keep("from", "1+a/b");
    memory.put("from", "new");
    let copy = || s3.copy((BUCKET, "from"), (BUCKET, "to"));
    copy().source_version_id("1+a/b").await.unwrap();
    assert_eq!(memory.object("to").unwrap(), "old");
    copy().await.unwrap();
    assert_eq!(memory.object("to").unwrap(), "new");
    let missing = copy().source_version_id("2").await.unwrap_err();
    assert!(missing.downcast_ref::<S3Failure>().unwrap().is_not_found());
}

#[tokio::test]
async fn an_error_inside_a_200_is_an_error() {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    memory.put("from", "bytes");
    let puts = AtomicU32::new(0);
    store.front(move |line| match line.starts_with("PUT") && puts.fetch_add(1, SeqCst) == 0 {
        true => Answer::Status(200, "InternalError"),
        false => Answer::Pass,
    });
    s3.copy((BUCKET, "from"), (BUCKET, "to")).await.unwrap();
    assert_eq!(store.seen(|r| r.starts_with("PUT")), 2);
    assert_eq!(memory.object("to").unwrap(), "bytes");
}

#[tokio::test]
async fn what_cannot_be_copied_is_said_before_it_is_tried() {
    let (store, _) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    let missing = s3.copy((BUCKET, "none"), (BUCKET, "to")).await.unwrap_err();
    assert!(missing.downcast_ref::<S3Failure>().unwrap().is_not_found());
    assert_eq!(store.seen(|r| r.starts_with("PUT")), 0);
}
