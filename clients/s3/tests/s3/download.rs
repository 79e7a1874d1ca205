//! Objects into files: the target is whole or untouched.

use crate::{MIB, bytes, client, eventually, files};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET},
};
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};
use tempfile::TempDir;

#[tokio::test]
async fn a_failed_download_leaves_the_target_untouched() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let target = dir.path().join("target");
    fs::write(&target, "before").unwrap();
    store.write("k", &bytes(20 * MIB));
    for answer in [Answer::Status(403, "AccessDenied"), Answer::Close] {
        store.front(move |request| match request.contains("bytes=16777216-") {
            true => answer,
            false => Answer::Pass,
        });
        s3.download_file(BUCKET, "k", &target).await.unwrap_err();
        assert_eq!(fs::read(&target).unwrap(), b"before");
        assert_eq!(files(dir.path()), ["target"]);
    }
}

#[tokio::test]
async fn a_dropped_download_leaves_nothing_behind() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let target = dir.path().join("target");
    store.write("k", &bytes(10 * MIB));
    store.front(|request| match request.contains("bytes=8388608-") {
        true => Answer::Hang,
        false => Answer::Pass,
    });
    let to = target.clone();
    let download = tokio::spawn(async move { s3.download_file(BUCKET, "k", to).await });
    eventually("the second range was asked", || store.seen(|r| r.contains("bytes=8388608-")) == 1)
        .await;
    assert_eq!(files(dir.path()).len(), 1);
    download.abort();
    eventually("the temporary file is gone", || files(dir.path()).is_empty()).await;
}

/// Who may read what was there may read what comes in its place, and nobody else, at no time.
#[cfg(unix)]
#[tokio::test]
async fn a_private_target_stays_private() {
    use std::os::unix::fs::PermissionsExt;
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    store.write("k", b"secret");
    let usual = dir.path().join("usual");
    fs::write(&usual, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let usual = mode(&usual);
    for resumes in [false, true] {
        let (there, new) = (dir.path().join("there"), dir.path().join(format!("new-{resumes}")));
        for narrow in [0o600, 0o400, 0o640] {
            let _ = fs::remove_file(&there);
            fs::write(&there, "before").unwrap();
            fs::set_permissions(&there, fs::Permissions::from_mode(narrow)).unwrap();
            let seen = Arc::new(AtomicU32::new(0));
            let (sees, directory) = (Arc::clone(&seen), dir.path().to_owned());
            store.front(move |_| {
                let there = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
                for path in there.filter(|path| path.extension().is_some_and(|e| e == "part")) {
                    sees.fetch_or(mode(&path), Ordering::Relaxed);
                }
                Answer::Pass
            });
            let download = s3.download_file(BUCKET, "k", &there);
            if resumes { download.resume() } else { download }.await.unwrap();
            assert_eq!(fs::read(&there).unwrap(), b"secret");
            assert_eq!(mode(&there), narrow, "{narrow:o}");
            let seen = seen.load(Ordering::Relaxed);
            assert_eq!(seen & !(narrow | 0o600), 0, "{seen:o} on its way");
            assert_ne!(seen, 0);
        }
        let download = s3.download_file(BUCKET, "k", &new);
        if resumes { download.resume() } else { download }.await.unwrap();
        assert_eq!(mode(&new), usual);
    }
}

#[tokio::test]
async fn a_download_never_mixes_two_versions() {
    // Of the shorter one there is nothing left to ask for.
    for length in [18 * MIB, MIB] {
        let store = S3::start().await;
        let (s3, dir) = (client(&store), TempDir::new().unwrap());
        let target = dir.path().join("target");
        store.write("k", &bytes(20 * MIB));
        let new = vec![7; length];
        let (replaced, path) = (AtomicUsize::new(0), store.path("k"));
        let written = new.clone();
        store.front(move |request| {
            if request.contains("bytes=8388608-") && replaced.fetch_add(1, Ordering::Relaxed) == 0 {
                fs::write(&path, &written).unwrap();
            }
            Answer::Pass
        });
        s3.download_file(BUCKET, "k", &target).await.unwrap();
        assert!(fs::read(&target).unwrap() == new);
        assert_eq!(files(dir.path()), ["target"]);
    }
}
