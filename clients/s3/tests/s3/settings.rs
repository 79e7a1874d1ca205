//! Settings, the builder, and what it refuses.

use crate::{again, builder, inner};
use mainstay_policy::HealthStatus;
use mainstay_s3::{Addressing, S3Client, get_s3_client};
use mainstay_test_support::{
    S3,
    s3::{BUCKET, KEY, SECRET},
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_the_usual_variables_make_the_client() {
    const NAME: &str = "settings::settings_and_the_usual_variables_make_the_client";
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
    assert_eq!(other.policy().name(), "s3:other");
    let error = mainstay_s3::get_s3_client_named("third").unwrap_err();
    assert!(error.to_string().contains("MAINSTAY_S3_THIRD_ENDPOINT_URL"), "{error}");
}

#[test]
fn a_breaker_is_the_endpoints_or_of_the_name_that_was_given() {
    let aws = || S3Client::builder().region("eu-central-1");
    let own = || S3Client::builder().endpoint_url("http://store.example:9000/path");
    for (builder, name) in [
        (aws(), "s3:https://s3.eu-central-1.amazonaws.com"),
        (own(), "s3:http://store.example:9000"),
        (aws().name("tenant-a"), "s3:tenant-a"),
        (own().name("tenant-b").policy(|policy| policy.name("other")), "s3:tenant-b"),
    ] {
        assert_eq!(builder.build().unwrap().policy().name(), name);
    }
}

#[test]
fn bad_builders_say_what_to_write() {
    let error = S3Client::builder().endpoint_url("localhost:9000").build().unwrap_err();
    assert!(error.to_string().contains("http://host:port"), "{error}");
    let outside = builder("http://localhost:1").build().unwrap().sdk().unwrap_err();
    assert!(outside.to_string().contains("tokio runtime"), "{outside}");
}

#[tokio::test]
async fn a_bucket_goes_into_the_path_or_into_the_hosts_name() {
    let minute = Duration::from_secs(60);
    let own = || S3Client::builder().endpoint_url("http://store.example:9000");
    let aws = || S3Client::builder().region("eu-central-1");
    for (builder, begins) in [
        (own(), "http://store.example:9000/bucket/k?"),
        (own().addressing(Addressing::VirtualHost), "http://bucket.store.example:9000/k?"),
        (aws(), "https://bucket.s3.eu-central-1.amazonaws.com/k?"),
        (aws().addressing(Addressing::Path), "https://s3.eu-central-1.amazonaws.com/bucket/k?"),
    ] {
        let s3 = builder.credentials("key", "secret").build().unwrap();
        let url = s3.presign_get("bucket", "k", minute).await.unwrap().url;
        assert!(url.starts_with(begins), "{begins}: {url}");
    }
}
