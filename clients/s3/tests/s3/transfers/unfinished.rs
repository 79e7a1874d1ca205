//! What an upload in parts finds of an earlier one, and what it leaves when it ends.

use super::{PART, begun};
use crate::{builder, bytes, eventually, quick};
use aws_sdk_s3::types::{ChecksumAlgorithm, StorageClass};
use mainstay_policy::{Kind, Policy};
use mainstay_s3::{CustomerKey, Encryption, S3Client, Upload};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Memory, Sums},
};
use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};
use tempfile::TempDir;

const LENGTH: usize = 3 * PART as usize;

/// A store, a client, and a file of three parts.
struct Files {
    store: S3,
    memory: Memory,
    s3: S3Client,
    file: PathBuf,
    _dir: TempDir,
}

impl Files {
    async fn begun() -> Self {
        let (store, memory, s3, dir) = begun(Sums::Full).await;
        let file = dir.path().join("file");
        fs::write(&file, bytes(LENGTH)).unwrap();
        Self { store, memory, s3, file, _dir: dir }
    }

    fn upload(&self) -> Upload {
        self.s3.upload_file(&self.file, BUCKET, "k").part_size(PART)
    }

    /// Answers so whatever has this method and this in its line.
    fn front(&self, method: &'static str, like: &'static str, answer: Answer) {
        self.store.front(move |line| match line.starts_with(method) && line.contains(like) {
            true => answer,
            false => Answer::Pass,
        });
    }
}

/// A client that does not wait for long.
fn hasty(store: &S3, attempts: u32) -> S3Client {
    let policy =
        move |policy| quick(policy).timeout(Duration::from_millis(400)).max_attempts(attempts);
    builder(store.endpoint()).policy(policy).build().unwrap()
}

fn is_creation(line: &str) -> bool {
    line.starts_with("POST") && line.contains("?uploads")
}

#[tokio::test]
async fn a_lost_creation_leaves_no_upload() {
    let customer = Encryption::Customer(CustomerKey::new([7; 32]));
    let kinds: [fn(Upload, Encryption) -> Upload; 3] =
        [|upload, _| upload, |upload, _| upload.resume(), |upload, key| upload.encryption(key)];
    for (kind, options) in kinds.into_iter().enumerate() {
        for lost in [Answer::ApplyThenClose, Answer::ApplyThenHang] {
            let Files { store, memory, file, _dir, .. } = Files::begun().await;
            let s3 = hasty(&store, 3);
            let asked = AtomicUsize::new(0);
            store.front(move |line| match is_creation(line) {
                true if asked.fetch_add(1, Relaxed) == 0 => lost,
                _ => Answer::Pass,
            });
            let upload = s3.upload_file(&file, BUCKET, "k").part_size(PART);
            options(upload, customer.clone()).await.unwrap();
            assert_eq!(memory.object("k").unwrap(), bytes(LENGTH), "{kind} {lost:?}");
            eventually("the first is aborted", || memory.uploads() == 0).await;
        }
    }
}

/// It began this one itself, so that nothing was there to be listed before.
#[tokio::test]
async fn the_first_upload_to_a_store_that_lists_no_parts_is_not_kept() {
    let files = Files::begun().await;
    files.store.front(|line| match line {
        _ if line.starts_with("GET") && line.contains("uploadId=") => {
            Answer::Status(501, "NotImplemented")
        }
        _ if line.contains("partNumber=2") => Answer::Status(403, "AccessDenied"),
        _ => Answer::Pass,
    });
    files.upload().resume().await.unwrap_err();
    eventually("it is aborted", || files.memory.uploads() == 0).await;
}

/// What was there before it has the same bytes, and not what this one says of them.
#[tokio::test]
async fn a_refused_completion_is_an_error_though_the_same_bytes_are_there() {
    let files = Files::begun().await;
    files.upload().metadata("v", "1").await.unwrap();
    files.front("POST", "uploadId=", Answer::Status(503, "SlowDown"));
    for resumes in [false, true] {
        let upload = files.upload().metadata("v", "2");
        let end = if resumes { upload.resume() } else { upload }.await;
        let error = end.unwrap_err();
        assert!(error.attempts() > 1 && !error.is_outcome_unknown(), "{error:?}");
        let kept = usize::from(resumes);
        eventually("it is aborted, or kept", || files.memory.uploads() == kept).await;
    }
    // It goes on, and nobody knows what came of its end: the bytes are there, and its parts are not kept.
    files.front("POST", "uploadId=", Answer::Close);
    let written = files.upload().resume().await.unwrap();
    let head = files.s3.head(BUCKET, "k").await.unwrap();
    assert_eq!((written.etag, head.metadata["v"].as_str()), (head.etag, "1"));
    eventually("it is aborted", || files.memory.uploads() == 0).await;
}

#[tokio::test]
async fn an_upload_that_cannot_become_what_is_asked_for_is_left_alone() {
    let files = Files::begun().await;
    let sdk = files.s3.sdk().unwrap();
    let create = || sdk.create_multipart_upload().bucket(BUCKET).key("k");
    create().storage_class(StorageClass::StandardIa).send().await.unwrap();
    create().checksum_algorithm(ChecksumAlgorithm::Sha256).send().await.unwrap();
    files.upload().storage_class("GLACIER_IR").resume().await.unwrap();
    let head = files.s3.head(BUCKET, "k").await.unwrap();
    assert_eq!((head.storage_class.as_deref(), files.memory.uploads()), (Some("GLACIER_IR"), 2));
    // One of the class that is asked for will do, and where none is, any.
    for class in [Some("STANDARD_IA"), None] {
        let left = files.memory.uploads();
        let upload = files.upload().resume();
        match class {
            Some(class) => upload.storage_class(class),
            None => {
                create().storage_class(StorageClass::StandardIa).send().await.unwrap();
                upload
            }
        }
        .await
        .unwrap();
        let head = files.s3.head(BUCKET, "k").await.unwrap();
        assert_eq!(head.storage_class.as_deref(), Some("STANDARD_IA"), "{class:?}");
        assert_eq!(files.memory.uploads(), left - usize::from(class.is_some()), "{class:?}");
    }
}

/// Without a part, and with all of them: then nothing but the end would be left to send.
#[tokio::test]
async fn an_upload_without_the_encryption_that_is_asked_for_is_not_gone_on_with() {
    let files = Files::begun().await;
    let encrypted = || files.upload().encryption(Encryption::Store).resume();
    for whole in [false, true] {
        if whole {
            files.front("POST", "uploadId=", Answer::Status(403, "AccessDenied"));
            files.upload().resume().await.unwrap_err();
            assert_eq!(files.memory.parts(), 3);
        } else {
            let create = files.s3.sdk().unwrap().create_multipart_upload();
            create.bucket(BUCKET).key("k").send().await.unwrap();
        }
        files.store.front(|_| Answer::Pass);
        let error = encrypted().await.unwrap_err().to_string();
        assert!(error.contains("does not tell to have this encryption; abort it"), "{error}");
        assert_eq!((files.memory.uploads(), files.memory.object("k")), (1, None));
        assert_eq!(files.s3.abort_uploads(BUCKET, "k", Duration::ZERO).await.unwrap(), 1);
    }
    files.front("PUT", "partNumber=2", Answer::Status(403, "AccessDenied"));
    encrypted().await.unwrap_err();
    files.store.front(|_| Answer::Pass);
    encrypted().await.unwrap();
    let head = files.s3.head(BUCKET, "k").await.unwrap();
    assert_eq!((head.encryption.as_deref(), files.memory.uploads()), (Some("AES256"), 0));
}

#[tokio::test]
async fn an_upload_to_a_store_that_tells_of_no_encryption_is_not_kept() {
    let files = Files::begun().await;
    files.memory.tell_no_encryption();
    files.front("PUT", "partNumber=2", Answer::Status(403, "AccessDenied"));
    let upload = || files.upload().parallel(1).encryption(Encryption::Store).resume();
    upload().await.unwrap_err();
    eventually("nothing is kept", || files.memory.uploads() == 0).await;
    files.store.front(|_| Answer::Pass);
    upload().await.unwrap();
}

/// Such as by one that was dropped, whose abort was on its way.
#[tokio::test]
async fn an_upload_that_goes_while_it_is_looked_at_is_begun_anew() {
    let files = Files::begun().await;
    let create = files.s3.sdk().unwrap().create_multipart_upload();
    create.bucket(BUCKET).key("k").send().await.unwrap();
    files.store.front(|line| match line.starts_with("GET") && line.contains("uploadId=") {
        true => Answer::Status(404, "NoSuchUpload"),
        false => Answer::Pass,
    });
    files.upload().resume().await.unwrap();
    assert_eq!(files.memory.object("k").unwrap(), bytes(LENGTH));
}

/// Stores without classes tell the usual one of all.
#[tokio::test]
async fn an_upload_of_the_usual_class_is_gone_on_with() {
    let files = Files::begun().await;
    let create = files.s3.sdk().unwrap().create_multipart_upload().bucket(BUCKET).key("k");
    create.storage_class(StorageClass::Standard).send().await.unwrap();
    files.upload().storage_class("GLACIER_IR").resume().await.unwrap();
    assert_eq!(files.memory.uploads(), 0);
}

#[tokio::test]
async fn an_upload_with_a_customers_key_is_gone_on_with() {
    let files = Files::begun().await;
    let key = CustomerKey::new([7; 32]);
    let upload = || files.upload().parallel(1).encryption(Encryption::Customer(key.clone()));
    files.front("PUT", "partNumber=3", Answer::Status(403, "AccessDenied"));
    upload().resume().await.unwrap_err();
    assert_eq!(files.memory.parts(), 2);
    files.store.forget();
    files.store.front(|_| Answer::Pass);
    upload().resume().await.unwrap();
    assert_eq!(files.store.seen(|line| line.contains("partNumber=")), 1);
    let read = files.s3.get(BUCKET, "k").customer_key(key).await.unwrap();
    assert!(read == bytes(LENGTH) && files.memory.uploads() == 0);
}

/// Nothing but a completion makes an object, and none was sent.
#[tokio::test]
async fn an_upload_that_fails_before_its_end_has_certainly_not_happened() {
    let around = Policy::builder(Kind::Custom, "around-a-part").enable_circuit_breaker(false);
    let around = around.build().unwrap();
    for (method, like) in [("PUT", "partNumber=2"), ("POST", "?uploads"), ("GET", "?uploads")] {
        let files = Files::begun().await;
        files.front(method, like, Answer::Close);
        let error = files.upload().resume().await.unwrap_err();
        assert!(error.attempts() > 1 && !error.is_outcome_unknown(), "{like}: {error:?}");
        let end = around.call(|| async { files.upload().resume().await.map_err(|_| "no") });
        let error = end.await.unwrap_err();
        assert!(error.attempts() == 1 && !error.is_outcome_unknown(), "{like}: {error:?}");
        assert!(files.memory.object("k").is_none());
    }
    // An attempt without an answer is one, too.
    let files = Files::begun().await;
    files.front("PUT", "partNumber=2", Answer::Hang);
    let s3 = hasty(&files.store, 1);
    let upload = s3.upload_file(&files.file, BUCKET, "k").part_size(PART);
    let error = upload.idle_timeout(Duration::from_secs(9)).await.unwrap_err();
    assert!(error.is_timeout() && !error.is_outcome_unknown(), "{error:?}");
}
