//! URLs for those who have no credentials.

use crate::{builder, client};
use aws_credential_types::provider::{ProvideCredentials, future};
use mainstay_policy::{Deadline, ErrorKind, report};
use mainstay_s3::Presigned;
use mainstay_test_support::{
    S3,
    s3::{BUCKET, SECRET, Sums},
};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Sends it as somebody else would: nothing but the URL and its headers.
async fn send(request: &Presigned, body: &str) -> String {
    let rest = request.url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut text = format!("{} /{path} HTTP/1.1\r\nhost: {host}\r\n", request.method);
    for (name, value) in &request.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()));
    let mut socket = TcpStream::connect(host).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn whoever_has_the_url_may_read_and_write_that_object() {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    let minute = Duration::from_secs(60);
    let put = s3.presign_put(BUCKET, "a b.csv", minute).content_type("text/csv").await.unwrap();
    assert_eq!(put.method, "PUT");
    let answer = send(&put, "a,b").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(memory.object("a b.csv").unwrap(), "a,b");
    assert_eq!(s3.head(BUCKET, "a b.csv").await.unwrap().content_type.unwrap(), "text/csv");

    let get = s3.presign_get(BUCKET, "a b.csv", minute).await.unwrap();
    let answer = send(&get, "").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("a,b"), "{answer}");
    // Of that object only, and of that method.
    let other = Presigned::clone(&get);
    let mut changed = other.clone();
    changed.url = changed.url.replace("a%20b.csv", "other.csv");
    assert!(send(&changed, "").await.starts_with("HTTP/1.1 403"));
    let mut changed = other;
    changed.method = "DELETE".to_owned();
    assert!(send(&changed, "").await.starts_with("HTTP/1.1 403"));
    assert!(!format!("{get:?}").contains("ignature") && !get.url.contains(SECRET));
}

#[tokio::test]
async fn a_time_out_of_range_and_a_client_without_keys_are_refused() {
    let (store, _) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    for bad in [0, 7 * 24 * 3_600 + 1, u64::MAX].map(Duration::from_secs) {
        for error in [
            s3.presign_get(BUCKET, "k", bad).await.unwrap_err(),
            s3.presign_put(BUCKET, "k", bad).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("give 1 s to 7 days"), "{error}");
        }
    }
    s3.presign_get(BUCKET, "k", Duration::from_secs(7 * 24 * 3_600)).await.unwrap();
    let anonymous = builder(store.endpoint()).anonymous().build().unwrap();
    let error = anonymous.presign_get(BUCKET, "k", Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().contains("nothing to sign"), "{}", report(&error));
    assert_eq!(store.seen(|_| true), 0);
}

#[derive(Debug)]
struct Never;

impl ProvideCredentials for Never {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(std::future::pending())
    }
}

#[tokio::test]
async fn credentials_that_do_not_come_are_waited_for_until_the_deadline() {
    let (store, _) = S3::in_memory(Sums::Full).await;
    let s3 = builder(store.endpoint()).credentials_provider(Never).build().unwrap();
    let (started, minute) = (Instant::now(), Duration::from_secs(60));
    let deadline = || Deadline::within(Duration::from_millis(100));
    for error in [
        deadline().scope(s3.presign_get(BUCKET, "k", minute)).await.unwrap_err(),
        deadline().scope(s3.presign_put(BUCKET, "k", minute)).await.unwrap_err(),
    ] {
        assert!(error.is_timeout() && !error.is_outcome_unknown(), "{error:?}");
    }
    // The search alone would have 5 s.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}
