//! The client against a store in this process, behind a front that counts, refuses and breaks.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mainstay_policy::{BreakerState, ErrorKind, HealthStatus, PolicyBuilder, report};
use mainstay_s3::{S3Client, S3ClientBuilder, S3Failure, get_s3_client};
use mainstay_test_support::{
    Port, S3,
    s3::{Answer, BUCKET, KEY, SECRET},
};
use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const MIB: usize = 1024 * 1024;

fn quick(policy: PolicyBuilder) -> PolicyBuilder {
    policy.base_delay(Duration::from_millis(1)).max_delay(Duration::from_millis(5))
}

fn builder(endpoint: &str) -> S3ClientBuilder {
    S3Client::builder().endpoint_url(endpoint).credentials(KEY, SECRET).policy(quick)
}

fn client(store: &S3) -> S3Client {
    builder(store.endpoint()).build().unwrap()
}

/// Bytes without a period that a lost or swapped part could hide in.
fn bytes(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

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

#[tokio::test]
async fn wrong_credentials_are_refused_once_and_never_shown() {
    let store = S3::start().await;
    for (access, secret) in [(KEY, "wrong-secret"), ("unknown-key", SECRET)] {
        let s3 = builder(store.endpoint()).credentials(access, secret).build().unwrap();
        let error = s3.get(BUCKET, "k").await.unwrap_err();
        let told = format!("{} {error:?} {s3:?}", report(&error));
        assert!(told.contains("the credentials are not accepted"), "{told}");
        assert!(!told.contains("wrong-secret") && !told.contains(SECRET), "{told}");
        assert_eq!(error.attempts(), 1);
    }
    assert_eq!(store.seen(|_| true), 2);
}

#[tokio::test]
async fn an_unreachable_server_is_known_in_under_a_second_with_its_cause() {
    // The defaults' own delays, on purpose.
    let closed = Port::reserve();
    let endpoint = format!("http://{}", closed.address());
    let s3 = S3Client::builder().endpoint_url(&endpoint).credentials(KEY, SECRET).build().unwrap();
    let started = Instant::now();
    let error = s3.get(BUCKET, "k").await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let told = report(&error).to_string();
    assert!(told.contains(&endpoint), "{told}");
    assert!(told.contains("could not be reached") && told.contains("connection refused"), "{told}");
    assert!(error.is_exhausted() && !error.is_outcome_unknown(), "{error:?}");
    assert_eq!(error.attempts(), 3);
    assert_eq!(s3.health_check().await.status, HealthStatus::Unhealthy);
}

#[tokio::test]
async fn a_server_that_fails_is_sent_each_attempt_once() {
    let store = S3::start().await;
    let s3 = client(&store);
    store.front(|_| Answer::Status(503, "ServiceUnavailable"));
    for calls in 1..=3 {
        let error = s3.put(BUCKET, "k", "v").await.unwrap_err();
        assert_eq!(error.attempts(), 3, "{error:?}");
        assert_eq!(store.seen(|_| true), 3 * calls);
    }
    let refused = s3.put(BUCKET, "k", "v").await.unwrap_err();
    assert!(refused.is_circuit_open() && refused.is_rejected(), "{refused:?}");
    assert_eq!(store.seen(|_| true), 9);
    // A health check asks all the same, and says nothing to the breaker.
    store.front(|_| Answer::Pass);
    assert_eq!(s3.health_check_at(BUCKET).await.status, HealthStatus::Healthy);
    assert_eq!(s3.policy().breaker().state(), BreakerState::Open);
}

#[tokio::test]
async fn a_part_is_repeated_alone() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let (file, back) = (dir.path().join("file"), dir.path().join("back"));
    let data = bytes(20 * MIB);
    fs::write(&file, &data).unwrap();
    let (up, down) = (AtomicUsize::new(0), AtomicUsize::new(0));
    store.front(move |request| {
        let first = |n: &AtomicUsize| n.fetch_add(1, Ordering::Relaxed) == 0;
        if request.contains("partNumber=2") && first(&up) {
            return Answer::Status(500, "InternalError");
        }
        if request.contains("bytes=8388608-") && first(&down) {
            return Answer::Close;
        }
        Answer::Pass
    });
    s3.upload_file(&file, BUCKET, "k").await.unwrap();
    s3.download_file(BUCKET, "k", &back).await.unwrap();
    assert!(fs::read(&back).unwrap() == data);
    assert_eq!(store.seen(|r| r.contains("partNumber=")), 4);
    assert_eq!(store.seen(|r| r.starts_with("GET")), 4);
}

#[tokio::test]
async fn a_failed_upload_is_aborted() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let file = dir.path().join("file");
    fs::write(&file, bytes(20 * MIB)).unwrap();
    store.front(|request| match request.contains("partNumber=2") {
        true => Answer::Status(403, "AccessDenied"),
        false => Answer::Pass,
    });
    let error = s3.upload_file(&file, BUCKET, "k").await.unwrap_err();
    let told = report(&error).to_string();
    assert!(told.contains("upload_part") && told.contains("AccessDenied"), "{told}");
    assert_eq!(store.seen(|r| r.starts_with("DELETE") && r.contains("uploadId=")), 1);
    assert!(!s3.exists(BUCKET, "k").await.unwrap());
}

#[tokio::test]
async fn a_dropped_upload_is_aborted() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let file = dir.path().join("file");
    fs::write(&file, bytes(20 * MIB)).unwrap();
    store.front(|request| match request.contains("partNumber=3") {
        true => Answer::Hang,
        false => Answer::Pass,
    });
    let upload = tokio::spawn(async move { s3.upload_file(&file, BUCKET, "k").await });
    eventually("part 3 was sent", || store.seen(|r| r.contains("partNumber=3")) == 1).await;
    upload.abort();
    let aborted = |r: &str| r.starts_with("DELETE") && r.contains("uploadId=");
    eventually("the upload was aborted", || store.seen(aborted) == 1).await;
}

#[tokio::test]
async fn a_completion_that_was_not_acknowledged_is_looked_into() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let file = dir.path().join("file");
    let data = bytes(17 * MIB);
    fs::write(&file, &data).unwrap();
    let completions = AtomicUsize::new(0);
    store.front(move |request| {
        let completes = request.starts_with("POST") && request.contains("uploadId=");
        match completes && completions.fetch_add(1, Ordering::Relaxed) == 0 {
            true => Answer::ApplyThenClose,
            false => Answer::Pass,
        }
    });
    s3.upload_file(&file, BUCKET, "k").await.unwrap();
    assert!(s3.get(BUCKET, "k").await.unwrap() == data);
    assert_eq!(store.seen(|r| r.starts_with("DELETE")), 0);
}

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

#[tokio::test]
async fn a_download_never_mixes_two_versions() {
    let store = S3::start().await;
    let (s3, dir) = (client(&store), TempDir::new().unwrap());
    let target = dir.path().join("target");
    store.write("k", &bytes(20 * MIB));
    let new = vec![7; 18 * MIB];
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

#[tokio::test]
async fn health_tells_missing_from_forbidden_and_feeds_no_breaker() {
    let store = S3::start().await;
    let s3 = builder(store.endpoint()).bucket(BUCKET).build().unwrap();
    assert_eq!(s3.health_check().await.status, HealthStatus::Healthy);
    assert_eq!(client(&store).health_check().await.status, HealthStatus::Healthy);
    let missing = s3.health_check_at("none").await;
    assert_eq!(missing.status, HealthStatus::Unhealthy);
    assert!(missing.detail.contains("bucket `none`"), "{}", missing.detail);
    for (status, health) in [
        (301, HealthStatus::Unhealthy),
        (403, HealthStatus::Degraded),
        (500, HealthStatus::Unhealthy),
    ] {
        store.front(move |_| Answer::Status(status, ""));
        for _ in 0..4 {
            let seen = s3.health_check().await;
            assert_eq!(seen.status, health, "{status}: {}", seen.detail);
        }
    }
    store.front(|_| Answer::Hang);
    let started = Instant::now();
    assert_eq!(s3.health_check().await.status, HealthStatus::Unhealthy);
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(s3.policy().breaker().state(), BreakerState::Closed);
}

#[test]
fn one_client_serves_two_runtimes() {
    let server = tokio::runtime::Runtime::new().unwrap();
    let store = server.block_on(S3::start());
    let s3 = client(&store);
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(s3.put(BUCKET, "k", "v")).unwrap();
        assert_eq!(runtime.block_on(s3.get(BUCKET, "k")).unwrap(), "v");
    }
}

#[tokio::test]
async fn an_adopted_client_repeats_nothing_by_itself() {
    let store = S3::start().await;
    let sdk = client(&store).sdk().unwrap();
    let retrying = aws_sdk_s3::config::retry::RetryConfig::standard();
    let config = sdk.config().to_builder().retry_config(retrying).build();
    let sdk = aws_sdk_s3::Client::from_conf(config);
    let builder = S3Client::builder().sdk(sdk).endpoint_url(store.endpoint());
    let s3 = builder.policy(|p| quick(p).max_attempts(2)).build().unwrap();
    s3.put(BUCKET, "k", "v").await.unwrap();
    store.front(|_| Answer::Status(503, "ServiceUnavailable"));
    assert_eq!(s3.get(BUCKET, "k").await.unwrap_err().attempts(), 2);
    assert_eq!(store.seen(|_| true), 1 + 2);
}

#[tokio::test]
async fn only_anonymous_clients_send_unsigned() {
    let store = S3::start().await;
    let signed = |r: &str| r.contains(" signed");
    let _ = client(&store).get(BUCKET, "k").await;
    assert_eq!(store.seen(signed), 1);
    let error = builder(store.endpoint()).anonymous().build().unwrap().get(BUCKET, "k").await;
    let error = error.unwrap_err();
    assert!(report(&error).to_string().contains("is denied (AccessDenied)"), "{}", report(&error));
    assert_eq!((store.seen(signed), store.seen(|_| true)), (1, 2));
}

/// Environment of one process each: this test runs itself again with it.
fn again(test: &str, environment: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env_clear().env("INNER", "1");
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
}

fn inner() -> bool {
    std::env::var_os("INNER").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_without_credentials() {
    const NAME: &str = "nothing_is_sent_without_credentials";
    if !inner() {
        let (store, metadata) = (S3::start().await, S3::start().await);
        metadata.front(|_| Answer::Status(403, ""));
        let nowhere = TempDir::new().unwrap();
        let environment = [
            ("MAINSTAY_S3_ENDPOINT_URL", store.endpoint()),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint()),
            ("HOME", nowhere.path().to_str().unwrap()),
        ];
        tokio::task::block_in_place(|| again(NAME, &environment));
        assert_eq!(store.seen(|_| true), 0);
        assert_eq!(metadata.seen(|_| true), 1, "one search for all callers, then remembered");
        return;
    }
    let s3 = get_s3_client().unwrap();
    let one = || {
        let s3 = s3.clone();
        tokio::spawn(async move { s3.put(BUCKET, "k", "v").await.unwrap_err().attempts() })
    };
    for call in (0..20).map(|_| one()).collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), 1);
    }
    for _ in 0..5 {
        let error = s3.get(BUCKET, "k").await.unwrap_err();
        let told = report(&error).to_string();
        assert!(told.contains("no credentials were found; set AWS_ACCESS_KEY_ID"), "{told}");
        assert_eq!(error.attempts(), 1);
    }
    assert_eq!(s3.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_the_usual_variables_make_the_client() {
    const NAME: &str = "settings_and_the_usual_variables_make_the_client";
    if !inner() {
        let store = S3::start().await;
        let environment = [
            ("MAINSTAY_S3_ENDPOINT_URL", store.endpoint()),
            ("MAINSTAY_S3_BUCKET", BUCKET),
            ("MAINSTAY_S3_OTHER_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ];
        tokio::task::block_in_place(|| again(NAME, &environment));
        assert_eq!(store.seen(|r| r.starts_with("HEAD /bucket")), 1);
        return;
    }
    let s3 = get_s3_client().unwrap();
    let health = s3.health_check().await;
    assert_eq!(health.status, HealthStatus::Healthy, "{}", health.detail);
    let other = mainstay_s3::get_s3_client_named("other").unwrap();
    assert_eq!(other.policy().name(), "s3:https://s3.eu-central-1.amazonaws.com");
    let error = mainstay_s3::get_s3_client_named("third").unwrap_err();
    assert!(error.to_string().contains("MAINSTAY_S3_THIRD_ENDPOINT_URL"), "{error}");
}

#[test]
fn every_call_can_be_spawned() {
    fn spawns(_: impl Send) {}
    let s3 = builder("http://localhost:1").build().unwrap();
    spawns(s3.put("b", "k", "v"));
    spawns(s3.get("b", "k"));
    spawns(s3.list("b", "p"));
    spawns(s3.head("b", "k"));
    spawns(s3.exists("b", "k"));
    spawns(s3.delete("b", "k"));
    spawns(s3.upload_file("f", "b", "k"));
    spawns(s3.download_file("b", "k", "f"));
    spawns(s3.health_check());
}

#[test]
fn bad_builders_say_what_to_write() {
    let error = S3Client::builder().endpoint_url("localhost:9000").build().unwrap_err();
    assert!(error.to_string().contains("http://host:port"), "{error}");
    let outside = builder("http://localhost:1").build().unwrap().sdk().unwrap_err();
    assert!(outside.to_string().contains("tokio runtime"), "{outside}");
}
