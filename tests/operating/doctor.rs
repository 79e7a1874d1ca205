//! `mainstay doctor`, as an exec probe runs it.

use mainstay_test_support::{Port, Redis, S3, s3};
use serde_json::Value;
use std::process::Command;

/// Names and values.
type Pairs<'a> = &'a [(&'a str, &'a str)];

pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) text: String,
}

/// With this environment and no other.
pub(crate) fn doctor(arguments: &[&str], environment: Pairs<'_>) -> Said {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.arg("doctor").args(arguments).env_clear().current_dir(directory.path());
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    Said { code: output.status.code().unwrap(), text: String::from_utf8(text).unwrap() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_checks_what_the_settings_name_and_says_so_in_its_exit_code() {
    let (mut redis, s3) = (Redis::start(), S3::start().await);
    let (url, endpoint) = (redis.url(), s3.endpoint());
    let environment = [
        ("MAINSTAY_REDIS_URL", &*url),
        ("MAINSTAY_CACHE_TIMEOUT", "2.5"),
        ("MAINSTAY_S3_ENDPOINT_URL", endpoint),
        ("MAINSTAY_S3_BUCKET", s3::BUCKET),
        ("AWS_ACCESS_KEY_ID", s3::KEY),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET),
    ];
    let said = doctor(&[], &environment);
    assert_eq!(said.code, 0, "{}", said.text);
    let has = |text: &str, words: &[&str]| {
        text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().starts_with(words))
    };
    for words in [
        &["redis", "healthy"][..],
        &["s3", "healthy"],
        &["cache.timeout", "2.5", "MAINSTAY_CACHE_TIMEOUT"],
        &["cache.max_attempts", "2", "default"],
    ] {
        assert!(has(&said.text, words), "{words:?}: {}", said.text);
    }
    assert!(!said.text.contains("database."), "no default of what is not in use: {}", said.text);

    redis.kill();
    let said = doctor(&["--json"], &environment);
    assert_eq!(said.code, 1, "{}", said.text);
    let report: Value = serde_json::from_str(&said.text).unwrap();
    assert_eq!(report["ok"], false);
    let of = |name: &str| {
        let all = report["dependencies"].as_array().unwrap();
        all.iter().find(|it| it["name"] == name).unwrap().clone()
    };
    assert_eq!(
        (&of("redis")["status"], &of("s3")["status"]),
        (&"unhealthy".into(), &"healthy".into())
    );

    let said = doctor(&["--optional", "redis"], &environment);
    assert_eq!(said.code, 0, "{}", said.text);
    assert!(has(&said.text, &["redis", "(optional)", "unhealthy"]), "{}", said.text);
}

#[test]
fn a_named_client_is_a_dependency_of_its_own() {
    let refused = Port::reserve();
    let base = format!("http://{}", refused.address());
    let said = doctor(&["--json"], &[("MAINSTAY_HTTP_BILLING_BASE_URL", &base)]);
    assert_eq!(said.code, 1, "{}", said.text);
    let report: Value = serde_json::from_str(&said.text).unwrap();
    assert_eq!(report["dependencies"][0]["name"], "http:billing");
}

#[test]
fn what_cannot_be_used_ends_with_two_and_says_why() {
    let rows: &[(&[&str], Pairs, &str)] = &[
        (&[], &[], "The settings name no dependency"),
        (&[], &[("MAINSTAY_DATABASE_TIMEOUT", "soon")], "MAINSTAY_DATABASE_TIMEOUT is \"soon\""),
        (&["--json"], &[("MAINSTAY_DATABASE_TIMEOUT", "soon")], "\"ok\": false"),
        (&[], &[("MAINSTAY_DATABASE_URL", "oracle://u:s3cret@db")], "begins with none of"),
        (&[], &[("MAINSTAY_CONFIG", "/nowhere.toml")], "not a file"),
        (&["--optional", "mail"], &[("REDIS_URL", "redis://h")], "no such dependency"),
        (&["--fast"], &[], "there is no option `--fast`"),
        (&["--json", "--fast"], &[], "\"there is no option `--fast`\""),
        (&["--prefix", "PYNOMALY"], &[], "such as PYNOMALY_"),
        (&["--prefix", "SHOP_"], &[], "Set SHOP_DATABASE_URL"),
        // What is empty is not set.
        (
            &[],
            &[("MAINSTAY_REDIS_URL", ""), ("DATABASE_URL", "")],
            "The settings name no dependency",
        ),
        (&["--optional"], &[], "needs a value"),
    ];
    for (arguments, environment, words) in rows {
        let said = doctor(arguments, environment);
        assert_eq!(said.code, 2, "{}", said.text);
        assert!(said.text.contains(words), "{words}: {}", said.text);
        assert!(!said.text.contains("s3cret"), "{}", said.text);
    }
}

#[test]
fn every_client_that_cannot_be_built_is_named_at_once() {
    let environment = [
        ("MAINSTAY_DATABASE_URL", "oracle://db"),
        ("MAINSTAY_REDIS_SESSIONS_URL", "http://cache"),
        ("MAINSTAY_S3_BUCKET", "bucket"),
    ];
    let said = doctor(&["--json"], &environment);
    assert_eq!(said.code, 2, "{}", said.text);
    let report: Value = serde_json::from_str(&said.text).unwrap();
    let problems = report["problems"].as_array().unwrap();
    for name in ["database: ", "redis:sessions: ", "s3: "] {
        let names = |problem: &Value| problem.as_str().unwrap().starts_with(name);
        assert_eq!(problems.iter().filter(|problem| names(problem)).count(), 1, "{problems:?}");
    }
    assert_eq!(problems.len(), 3, "{problems:?}");
}
