//! What an object carries: types, metadata, tags, encryption.

use crate::{bytes, client};
use mainstay_policy::{ErrorKind, report};
use mainstay_s3::{CustomerKey, Encryption, PutOptions, S3Failure};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Sums},
};
use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, UNIX_EPOCH},
};

#[tokio::test]
async fn what_was_put_with_an_object_comes_back() {
    let (store, _) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    let written = s3
        .put(BUCKET, "k", "bytes")
        .content_language("de")
        .expires(UNIX_EPOCH + Duration::from_secs(9))
        .content_type("text/x-own")
        .cache_control("max-age=60")
        .content_disposition("attachment; filename=\"a.csv\"")
        .content_encoding("identity")
        .metadata("owner", "a b=c")
        .tag("größe", "1 & 2")
        .storage_class("STANDARD_IA")
        .encryption(Encryption::kms_with("alias/mine"))
        .await
        .unwrap();
    let head = s3.head(BUCKET, "k").await.unwrap();
    assert_eq!((head.size, &head.etag), (5, &written.etag));
    assert_eq!(head.content_type.as_deref(), Some("text/x-own"));
    assert_eq!(head.cache_control.as_deref(), Some("max-age=60"));
    assert_eq!(head.content_disposition.as_deref(), Some("attachment; filename=\"a.csv\""));
    assert_eq!(head.content_encoding.as_deref(), Some("identity"));
    assert_eq!(head.content_language.as_deref(), Some("de"));
    assert_eq!(head.expires, Some(UNIX_EPOCH + Duration::from_secs(9)));
    assert_eq!(head.metadata.get("owner").map(String::as_str), Some("a b=c"));
    assert_eq!(head.metadata.len(), 1);
    assert_eq!(head.storage_class.as_deref(), Some("STANDARD_IA"));
    assert_eq!(head.encryption.as_deref(), Some("aws:kms"));
    let key = "x-amz-server-side-encryption-aws-kms-key-id";
    assert_eq!(store.sent(key)[0], "alias/mine");
    let tags = s3.tags(BUCKET, "k").await.unwrap();
    assert_eq!(tags.into_iter().collect::<Vec<_>>(), [("größe".to_owned(), "1 & 2".to_owned())]);
}

/// In one request and in parts, of which the first completion is not answered: it is looked for with the key.
#[tokio::test]
async fn a_file_carries_what_bytes_do() {
    const PART: u64 = 64 * 1024;
    let (store, _) = S3::in_memory(Sums::Full).await;
    let (s3, dir) = (client(&store), tempfile::tempdir().unwrap());
    let (file, to) = (dir.path().join("report.csv"), dir.path().join("to"));
    for length in [9, 3 * PART as usize] {
        fs::write(&file, bytes(length)).unwrap();
        let options = PutOptions::new()
            .cache_control("max-age=60")
            .content_disposition("attachment; filename=\"a.csv\"")
            .content_encoding("identity")
            .content_language("de")
            .expires(UNIX_EPOCH + Duration::from_secs(9))
            .metadata("owner", "a b=c")
            .tag("größe", "1 & 2")
            .storage_class("STANDARD_IA");
        let upload = || s3.upload_file(&file, BUCKET, "k").part_size(PART).options(options.clone());
        let lost = AtomicBool::new(false);
        store.front(move |line| {
            let completes = line.starts_with("POST") && line.contains("uploadId=");
            match completes && !lost.swap(true, Relaxed) {
                true => Answer::ApplyThenClose,
                false => Answer::Pass,
            }
        });
        let key = CustomerKey::new([7; 32]);
        upload().encryption(Encryption::Customer(key.clone())).await.unwrap();
        let head = s3.get(BUCKET, "k").customer_key(key.clone()).head().await.unwrap();
        assert_eq!(head.size, length as u64);
        assert_eq!(head.content_type.as_deref(), Some("text/csv"), "by the local file's name");
        assert_eq!(head.cache_control.as_deref(), Some("max-age=60"));
        assert_eq!(head.content_disposition.as_deref(), Some("attachment; filename=\"a.csv\""));
        assert_eq!(head.content_encoding.as_deref(), Some("identity"));
        assert_eq!(head.content_language.as_deref(), Some("de"));
        assert_eq!(head.expires, Some(UNIX_EPOCH + Duration::from_secs(9)));
        assert_eq!(head.metadata.get("owner").map(String::as_str), Some("a b=c"));
        assert_eq!(head.storage_class.as_deref(), Some("STANDARD_IA"));
        let tags = s3.tags(BUCKET, "k").await.unwrap();
        assert_eq!(tags.into_iter().collect::<Vec<_>>(), [("größe".into(), "1 & 2".into())]);
        let download = || s3.download_file(BUCKET, "k", &to).part_size(PART);
        download().await.unwrap_err();
        download().customer_key(key).await.unwrap();
        assert!(fs::read(&to).unwrap() == bytes(length));
        upload().encryption(Encryption::Store).await.unwrap();
        let head = s3.head(BUCKET, "k").await.unwrap();
        assert_eq!(head.encryption.as_deref(), Some("AES256"));
    }
}

#[tokio::test]
async fn a_type_is_guessed_from_the_key_and_from_nothing_else() {
    let (store, _) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    for (key, expected) in [("a/report.csv", Some("text/csv")), ("a.csv/report", None)] {
        s3.put(BUCKET, key, "").await.unwrap();
        let seen = s3.head(BUCKET, key).await.unwrap().content_type;
        // The SDK says `application/octet-stream` for bytes of which nothing is known.
        let seen = seen.filter(|seen| seen != "application/octet-stream");
        assert_eq!(seen.as_deref(), expected, "{key}");
    }
}

#[tokio::test]
async fn tags_are_replaced_as_a_whole() {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    memory.put("k", "bytes");
    assert!(s3.tags(BUCKET, "k").await.unwrap().is_empty());
    s3.set_tags(BUCKET, "k", [("a", "1"), ("b", "2")]).await.unwrap();
    s3.set_tags(BUCKET, "k", [("c", "3")]).await.unwrap();
    let tags = s3.tags(BUCKET, "k").await.unwrap();
    assert_eq!(tags.into_iter().collect::<Vec<_>>(), [("c".to_owned(), "3".to_owned())]);
    s3.set_tags(BUCKET, "k", [("", ""); 0]).await.unwrap();
    assert!(s3.tags(BUCKET, "k").await.unwrap().is_empty());
    let missing = s3.tags(BUCKET, "none").await.unwrap_err();
    assert!(missing.downcast_ref::<S3Failure>().unwrap().is_not_found());
}

#[tokio::test]
async fn an_object_with_a_customers_key_is_read_with_it_alone() {
    let (store, _) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    let key = CustomerKey::new([7; 32]);
    let put = s3.put(BUCKET, "k", "sealed").encryption(Encryption::Customer(key.clone()));
    put.await.unwrap();
    let get = s3.get(BUCKET, "k").customer_key(key.clone());
    assert_eq!(get.head().await.unwrap().size, 6);
    assert_eq!(get.clone().await.unwrap(), "sealed");
    assert_eq!(get.stream().await.unwrap().chunk().await.unwrap().unwrap(), "sealed");
    let copy = s3.copy((BUCKET, "k"), (BUCKET, "open")).source_customer_key(key);
    copy.await.unwrap();
    assert_eq!(s3.get(BUCKET, "open").await.unwrap(), "sealed");
    let without = s3.get(BUCKET, "k").await.unwrap_err();
    assert_eq!((without.kind(), without.attempts()), (ErrorKind::Backend, 1));
}

/// Of 2 KiB a mark takes 46 or 47 bytes.
#[tokio::test]
async fn metadata_that_leaves_no_room_for_a_mark_is_refused_where_one_is_added() {
    const PART: u64 = 64 * 1024;
    let (store, _) = S3::in_memory(Sums::Full).await;
    let (s3, dir) = (client(&store), tempfile::tempdir().unwrap());
    let file = dir.path().join("file");
    let with = |length: usize| PutOptions::new().metadata("n", "v".repeat(length - 1));
    let upload = |options| s3.upload_file(&file, BUCKET, "k").part_size(PART).options(options);
    for length in [9, 3 * PART as usize] {
        fs::write(&file, bytes(length)).unwrap();
        let in_parts = length > 9;
        for options in [with(2_002).if_absent(), with(if in_parts { 2_002 } else { 2_049 })] {
            let error = upload(options).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains("204"), "{error}");
        }
    }
    let put = |options| s3.put(BUCKET, "k", "v").options(options);
    for options in [with(2_003).if_absent(), with(2_049)] {
        assert_eq!(put(options).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(store.seen(|_| true), 0);
    upload(with(2_001)).await.unwrap();
    put(with(2_048)).await.unwrap();
    s3.put(BUCKET, "new", "v").options(with(2_002).if_absent()).await.unwrap();
}

#[tokio::test]
async fn bad_input_is_refused_at_once_and_not_repeated_in_words() {
    let (store, _) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    let (long, many) = ("k".repeat(1_025), "b".repeat(256));
    let refused = |error: mainstay_policy::Error, words: &str| {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let told = report(&error).to_string();
        assert!(told.contains(words), "{words}: {told}");
        assert!(!told.contains("s3cr3t") && !told.contains("kkkk"), "{told}");
    };
    refused(s3.put("", "k", "v").await.unwrap_err(), "bucket's name is empty");
    refused(s3.get("s3cr3t\n", "k").await.unwrap_err(), "bucket's name holds other than");
    refused(s3.get("a/s3cr3t", "k").await.unwrap_err(), "holds `/` or `:`");
    refused(s3.get("..", "k").await.unwrap_err(), "bucket's name is a path");
    refused(s3.delete(&many, "k").await.unwrap_err(), "256 characters");
    refused(s3.head(BUCKET, "").await.unwrap_err(), "key is empty");
    refused(s3.get(BUCKET, &long).await.unwrap_err(), "1025 bytes");
    let many = s3.delete_many(BUCKET, ["good", ""]).await.unwrap_err();
    refused(many, "key is empty");
    refused(
        s3.get(BUCKET, "k").idle_timeout(Duration::ZERO).await.unwrap_err(),
        "idle timeout of 0",
    );
    let metadata = s3.put(BUCKET, "k", "v").metadata("name", "s3cr3t\nx-amz-acl: public-read");
    refused(metadata.await.unwrap_err(), "metadata value of `name`");
    refused(s3.set_tags(BUCKET, "k", [("s3cr3t\n", "")]).await.unwrap_err(), "control character");
    #[allow(clippy::reversed_empty_ranges)]
    refused(s3.get(BUCKET, "k").range(5..5).await.unwrap_err(), "range is empty");
    refused(s3.list(BUCKET, "").page_size(0).await.unwrap_err(), "1 to 1,000");
    assert_eq!(store.seen(|_| true), 0);
}
