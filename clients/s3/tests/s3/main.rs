//! The client against a store in this process, behind a front that counts, refuses and breaks.
//! One binary, a file per idea.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod answers;
mod conditions;
mod copy;
mod credentials;
mod download;
mod failures;
mod health;
mod keys;
mod many;
mod missing;
#[cfg(feature = "metrics")]
mod numbers;
mod objects;
mod options;
mod presign;
mod settings;
mod stream;
mod surface;
mod transfers;
mod upload;

use mainstay_policy::PolicyBuilder;
use mainstay_s3::{S3Client, S3ClientBuilder};
use mainstay_test_support::{
    S3,
    s3::{KEY, SECRET},
};
use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

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
