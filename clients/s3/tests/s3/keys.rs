//! A key is a name in a store and never a path here: what is written is the target that the caller
//! gave, whatever the key.

use crate::{builder, bytes, client, files};
use mainstay_policy::{ErrorKind, report};
use mainstay_test_support::{
    S3,
    s3::{BUCKET, Sums},
};
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

/// S3 takes any UTF-8. Only what has to be in XML has to do without most control characters.
#[tokio::test]
async fn a_key_may_hold_control_characters() {
    const PART: u64 = 64 * 1024;
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let (file, to) = (dir.path().join("file"), dir.path().join("to"));
    for key in ["line\nbreak", "tab\tand\r", "nul\0", "bell\u{7}escape\u{1b}", "\u{85}\u{7f}"] {
        s3.put(BUCKET, key, "bytes").await.unwrap();
        assert_eq!(memory.object(key).unwrap(), "bytes", "{key:?}");
        assert_eq!(s3.get(BUCKET, key).await.unwrap(), "bytes");
        assert!(s3.exists(BUCKET, key).await.unwrap());
        assert_eq!(s3.list(BUCKET, key).await.unwrap()[0].key, key);
        s3.copy((BUCKET, key), (BUCKET, &format!("{key}2"))).await.unwrap();
        fs::write(&file, bytes(1_000)).unwrap();
        s3.upload_file(&file, BUCKET, key).await.unwrap();
        s3.download_file(BUCKET, key, &to).await.unwrap();
        assert_eq!(fs::read(&to).unwrap(), bytes(1_000));
        fs::write(&file, bytes(3 * PART as usize)).unwrap();
        let upload = s3.upload_file(&file, BUCKET, key).part_size(PART).await;
        if key.contains(['\0', '\u{7}']) {
            let error = upload.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(report(&error).to_string().contains("key holds a control"), "{error}");
        } else {
            upload.unwrap();
            assert_eq!(memory.object(key).unwrap(), bytes(3 * PART as usize), "{key:?}");
        }
        let end = s3.delete_many(BUCKET, [key, &format!("{key}2")]).await.unwrap();
        assert_eq!((end.deleted, end.failed.len()), (2, 0), "{key:?}");
    }
    assert!(s3.list(BUCKET, "").await.unwrap().is_empty());
    assert_eq!(memory.uploads(), 0);
}
