//! Objects written, read, listed and deleted.

use crate::{MIB, bytes, client, files};
use mainstay_policy::report;
use mainstay_test_support::{S3, s3::BUCKET};
use std::fs;
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_come_back_as_they_went() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for length in [0, 1024, 20 * MIB] {
        let data = bytes(length);
        fs::write(&from, &data).unwrap();
        // s3s-fs keeps the checksum of an object that an upload in parts has replaced.
        let key = format!("file/{length}");
        s3.upload_file(&from, BUCKET, &key).await.unwrap();
        s3.download_file(BUCKET, &key, &to).await.unwrap();
        assert!(fs::read(&to).unwrap() == data, "file of {length} bytes");
        assert!(s3.get(BUCKET, &key).await.unwrap() == data, "get of {length} bytes");

        s3.put(BUCKET, "bytes", data.clone()).await.unwrap();
        assert!(s3.get(BUCKET, "bytes").await.unwrap() == data, "put of {length} bytes");
        assert_eq!(s3.head(BUCKET, "bytes").await.unwrap().size, length as u64);
    }
    assert_eq!(files(dir.path()), ["from", "to"]);
    // 20 MiB are three parts up and three ranges down, no more.
    assert_eq!(store.seen(|r| r.contains("partNumber=")), 3);
    assert_eq!(store.seen(|r| r.starts_with("GET") && r.contains(" range ")), 1 + 1 + 3);
    // Every payload carries its checksum, and is neither chunked nor hashed for the signature.
    let bodies = |r: &str| r.starts_with("PUT");
    assert_eq!(store.seen(bodies), store.seen(|r| bodies(r) && r.contains(" crc32 unsigned")));
}

#[tokio::test]
async fn damaged_bytes_are_never_returned() {
    let store = S3::start().await;
    let s3 = client(&store);
    s3.put(BUCKET, "k", "right").await.unwrap();
    store.write("k", b"wrong");
    let error = s3.get(BUCKET, "k").await.unwrap_err();
    assert!(report(&error).to_string().contains("damaged"), "{}", report(&error));
    assert_eq!(error.attempts(), 3);
}

#[tokio::test]
async fn what_was_put_is_listed_found_and_deleted() {
    let store = S3::start().await;
    let s3 = client(&store);
    for key in ["x/1", "x/2", "y/1"] {
        s3.put(BUCKET, key, key).await.unwrap();
    }
    let keys = |found: Vec<mainstay_s3::ObjectSummary>| {
        found.into_iter().map(|o| (o.key, o.size)).collect::<Vec<_>>()
    };
    assert_eq!(keys(s3.list(BUCKET, "x/").await.unwrap()), [("x/1".into(), 3), ("x/2".into(), 3)]);
    assert_eq!(s3.list(BUCKET, "").await.unwrap().len(), 3);
    assert!(s3.exists(BUCKET, "x/1").await.unwrap());
    s3.delete(BUCKET, "x/1").await.unwrap();
    s3.delete(BUCKET, "x/1").await.unwrap();
    assert!(!s3.exists(BUCKET, "x/1").await.unwrap());
    assert!(s3.list(BUCKET, "nothing/").await.unwrap().is_empty());
}

#[tokio::test]
async fn every_page_of_a_list_is_read() {
    let store = S3::start().await;
    for n in 0..1_100 {
        store.write(&format!("many/{n:04}"), b"");
    }
    assert_eq!(client(&store).list(BUCKET, "many/").await.unwrap().len(), 1_100);
    assert_eq!(store.seen(|r| r.contains("list-type=2")), 2);
}
