//! A key is a name in a store and never a path here: what is written is the target that the caller
//! gave, whatever the key.

use crate::{builder, bytes, client, files};
use mainstay_test_support::{S3, s3::BUCKET};
use std::fs;
use tempfile::TempDir;

/// Keys that would lead out of a directory, or name something else, if they were paths.
const KEYS: &[&str] = &[
    "../escaped",
    "../../../../../../tmp/mainstay-escaped",
    "/tmp/mainstay-escaped",
    "a/../../escaped",
    "..\\escaped",
    "%2e%2e%2fescaped",
    ".",
    "..",
    "a//b",
    "~/escaped",
    "target\r\nx-amz-acl: public-read",
    "k?versionId=1&x=2#y",
];

#[tokio::test]
async fn a_download_writes_to_the_given_path_and_nowhere_else() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let mut kept = 0;
    for (n, key) in KEYS.iter().enumerate() {
        let content = bytes(100 + n);
        let target = inside.join("target");
        // A store may refuse such a key; one that is taken comes back under it.
        if s3.put(BUCKET, key, content.clone()).await.is_ok() {
            s3.download_file(BUCKET, key, &target).await.unwrap_or_else(|e| panic!("{key}: {e}"));
            assert_eq!(fs::read(&target).unwrap(), content, "{key}");
            assert_eq!(s3.get(BUCKET, key).await.unwrap().as_ref(), content, "{key}");
            kept += 1;
        }
        assert!(files(&inside).iter().all(|name| name == "target"), "{key}: {:?}", files(&inside));
        assert_eq!(files(dir.path()), ["inside"], "{key}");
        assert!(!fs::exists("/tmp/mainstay-escaped").unwrap(), "{key}");
    }
    assert!(kept >= 8, "of {} keys the store took {kept}", KEYS.len());
}

/// Each key is one object: none is taken for another, and none becomes a header or a query.
#[tokio::test]
async fn a_key_changes_no_request_but_by_its_own_name() {
    let store = S3::start().await;
    let s3 = builder(store.endpoint()).build().unwrap();
    for key in KEYS {
        let _ = s3.head(BUCKET, key).await;
    }
    assert!(store.sent("x-amz-acl").iter().all(String::is_empty));
    assert_eq!(store.seen(|line| line.contains("?versionId=")), 0);
    assert_eq!(store.seen(|line| !line.starts_with("HEAD /bucket")), 0);
}
