//! Processes that end in the middle of a transfer, and disks that are full: this test binary runs itself.

use super::{PART, begun, patient};
use crate::{bytes, eventually, files, inner};
use mainstay_s3::{S3Client, remove_partial_downloads};
use mainstay_test_support::s3::{Answer, BUCKET, KEY, SECRET, Sums};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Runs one test of this binary again, with these words in its environment.
fn child(mut command: Command, test: &str, endpoint: &str, file: &Path) -> Child {
    command.args(["--exact", test, "--nocapture"]).env("INNER", "1");
    command.env("ENDPOINT", endpoint).env("FILE", file);
    // Of a process that may write no large file, coverage would be half a file.
    command.env("LLVM_PROFILE_FILE", "/dev/null");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn this() -> Command {
    Command::new(env::current_exe().unwrap())
}

fn told() -> (S3Client, PathBuf) {
    let builder = S3Client::builder().endpoint_url(env::var("ENDPOINT").unwrap());
    let s3 = builder.credentials(KEY, SECRET).build().unwrap();
    (s3, env::var_os("FILE").unwrap().into())
}

#[tokio::test]
async fn a_killed_upload_is_gone_on_with_or_cleaned_up() {
    const NAME: &str = "transfers::killed::a_killed_upload_is_gone_on_with_or_cleaned_up";
    if inner() {
        let (s3, file) = told();
        s3.upload_file(file, BUCKET, "k").part_size(PART).parallel(1).await.unwrap();
        return;
    }
    let (store, memory, s3, dir) = begun(Sums::Full).await;
    let (file, data) = (dir.path().join("file"), bytes(6 * 65_536 + 5));
    fs::write(&file, &data).unwrap();
    let sent = || store.seen(|line| line.contains("partNumber="));
    for resumes in [true, false] {
        let before = sent();
        store.front(|line| match line.contains("partNumber=3") {
            true => Answer::Hang,
            false => Answer::Pass,
        });
        let mut process = child(this(), NAME, store.endpoint(), &file);
        eventually("its third part is on the way", || sent() == before + 3).await;
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!((memory.uploads(), memory.parts()), (1, 2));
        store.front(|_| Answer::Pass);
        if resumes {
            assert!(memory.object("k").is_none());
            let before = sent();
            s3.upload_file(&file, BUCKET, "k").part_size(PART).resume().await.unwrap();
            assert_eq!(sent() - before, 5, "two of seven were there");
            assert_eq!(memory.object("k").unwrap(), data);
        } else {
            assert_eq!(memory.object("k").unwrap(), data, "an older object is touched");
            assert_eq!(s3.abort_uploads(BUCKET, "k", Duration::from_secs(60)).await.unwrap(), 0);
            assert_eq!(s3.abort_uploads(BUCKET, "k", Duration::ZERO).await.unwrap(), 1);
        }
        assert_eq!(memory.uploads(), 0);
    }
}

#[tokio::test]
async fn a_killed_download_is_gone_on_with_or_cleaned_up() {
    const NAME: &str = "transfers::killed::a_killed_download_is_gone_on_with_or_cleaned_up";
    if inner() {
        let (s3, file) = told();
        let download = s3.download_file(BUCKET, "k", &file).part_size(PART).parallel(1);
        let download = if file.ends_with("resumed") { download.resume() } else { download };
        download.await.unwrap();
        return;
    }
    let (store, memory, s3, dir) = begun(Sums::Full).await;
    let data = bytes(6 * 65_536 + 5);
    memory.put("k", data.clone());
    let sent = || store.seen(|line| line.starts_with("GET"));
    for name in ["resumed", "plain"] {
        let target = dir.path().join(name);
        fs::write(&target, "before").unwrap();
        store.front(|line| match line {
            _ if line.contains("bytes=65536-") => Answer::Cut(65_536),
            _ if line.contains("bytes=131072-") => Answer::Hang,
            _ => Answer::Pass,
        });
        let before = sent();
        let mut process = child(this(), NAME, store.endpoint(), &target);
        eventually("its third part is asked for", || sent() == before + 3).await;
        // One that a process is at work on stays.
        assert_eq!(remove_partial_downloads(dir.path()).await.unwrap(), 0);
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"before");
        store.front(|_| Answer::Pass);
        if name == "resumed" {
            let before = sent();
            // Its own endpoint is the name under which the rest is found.
            patient(&store).download_file(BUCKET, "k", &target).resume().await.unwrap();
            assert_eq!(sent() - before, 5, "two of seven were there");
            assert!(fs::read(&target).unwrap() == data);
        } else {
            assert_eq!(remove_partial_downloads(dir.path()).await.unwrap(), 1);
        }
    }
    assert_eq!(files(dir.path()), ["plain", "resumed"]);
    // A version that was replaced since is not mixed with the rest.
    let target = dir.path().join("plain");
    store.front(|line| match line.contains("bytes=131072-") {
        true => Answer::Status(403, "AccessDenied"),
        false => Answer::Pass,
    });
    let download = || s3.download_file(BUCKET, "k", &target).part_size(PART).resume();
    download().await.unwrap_err();
    store.front(|_| Answer::Pass);
    memory.put("k", vec![7; 150_000]);
    download().await.unwrap();
    assert!(fs::read(&target).unwrap() == vec![7; 150_000]);
    assert_eq!(files(dir.path()), ["plain", "resumed"]);
}

#[tokio::test]
async fn a_disk_that_takes_no_more_is_said_and_leaves_nothing() {
    const NAME: &str = "transfers::killed::a_disk_that_takes_no_more_is_said_and_leaves_nothing";
    if inner() {
        let (s3, file) = told();
        let error = s3.download_file(BUCKET, "k", &file).part_size(PART).await.unwrap_err();
        let told = mainstay_policy::report(&error).to_string();
        assert!(told.contains("cannot be written: File too large"), "{told}");
        return;
    }
    let (store, memory, _, dir) = begun(Sums::Full).await;
    memory.put("k", bytes(400_000));
    let target = dir.path().join("target");
    fs::write(&target, "before").unwrap();
    // A file of this process may have 200 blocks of 512 bytes; the signal for more is ignored, so that the
    // write fails, as it does on a full disk.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""]);
    shell.arg(env::current_exe().unwrap());
    let process = child(shell, NAME, store.endpoint(), &target);
    let output = tokio::task::spawn_blocking(|| process.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(&target).unwrap(), b"before");
    assert_eq!(files(dir.path()), ["target"]);
}
