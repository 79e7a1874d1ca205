//! What is not there is named, once, and nothing else is touched.

use crate::{MIB, bytes, client, files};
use mainstay_policy::{BreakerState, ErrorKind, report};
use mainstay_s3::S3Failure;
use mainstay_test_support::{S3, s3::BUCKET};
use std::fs;
use tempfile::TempDir;

#[tokio::test]
async fn what_is_missing_is_named_and_not_asked_for_again() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let file = dir.path().join("file");
    fs::write(&file, bytes(10)).unwrap();
    let large = dir.path().join("large");
    fs::write(&large, bytes(16 * MIB)).unwrap();

    let missing_file = s3.upload_file(dir.path().join("none.csv"), BUCKET, "k").await.unwrap_err();
    assert_eq!(missing_file.kind(), ErrorKind::InvalidInput);
    assert!(missing_file.to_string().contains("none.csv` does not exist"), "{missing_file}");
    let directory = s3.upload_file(dir.path(), BUCKET, "k").await.unwrap_err();
    assert!(directory.to_string().contains("it is not a file"), "{directory}");
    let nowhere = s3.download_file(BUCKET, "k", dir.path().join("no/file")).await.unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::InvalidInput);
    assert!(nowhere.to_string().contains("no/file` cannot be written"), "{nowhere}");
    assert!(s3.put("", "k", "v").await.unwrap_err().to_string().contains("bucket's name is empty"));
    assert!(s3.put(BUCKET, "", "v").await.unwrap_err().to_string().contains("key is empty"));

    let no_bucket = "there is no bucket `none`; create it or check the name";
    let no_object = "there is no such object in bucket `bucket`";
    for (words, error) in [
        (no_bucket, s3.put("none", "k", "v").await.unwrap_err()),
        (no_bucket, s3.list("none", "").await.unwrap_err()),
        (no_bucket, s3.delete("none", "k").await.unwrap_err()),
        (no_bucket, s3.get("none", "k").await.unwrap_err()),
        (no_bucket, s3.upload_file(&file, "none", "k").await.unwrap_err()),
        (no_bucket, s3.upload_file(&large, "none", "k").await.unwrap_err()),
        (no_bucket, s3.download_file("none", "k", &file).await.unwrap_err()),
        (no_object, s3.get(BUCKET, "no/key").await.unwrap_err()),
        (no_object, s3.head(BUCKET, "no/key").await.unwrap_err()),
        (no_object, s3.download_file(BUCKET, "no/key", &file).await.unwrap_err()),
    ] {
        let told = report(&error).to_string();
        assert!(told.contains(words), "{told}");
        assert_eq!((error.kind(), error.attempts()), (ErrorKind::Backend, 1), "{told}");
        assert!(error.downcast_ref::<S3Failure>().unwrap().is_not_found(), "{told}");
    }
    assert_eq!(fs::read(&file).unwrap(), bytes(10), "a failed download touched its target");
    assert_eq!(files(dir.path()), ["file", "large"]);
    assert_eq!(s3.policy().breaker().state(), BreakerState::Closed);
}
