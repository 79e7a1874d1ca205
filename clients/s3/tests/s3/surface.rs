//! How the client may be held: spawned, shared by runtimes, over an SDK that exists.

use crate::{builder, client, quick};
use mainstay_policy::ErrorKind;
use mainstay_s3::{S3Client, remove_partial_downloads};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET},
};
use std::{
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

#[test]
fn one_client_serves_two_runtimes() {
    let server = tokio::runtime::Runtime::new().unwrap();
    let store = server.block_on(S3::start());
    let s3 = client(&store);
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(s3.put(BUCKET, "k", "v").into_future()).unwrap();
        assert_eq!(runtime.block_on(s3.get(BUCKET, "k").into_future()).unwrap(), "v");
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
async fn a_client_of_the_sdk_is_all_it_needs() {
    let store = S3::start().await;
    let s3 = S3Client::from_sdk(client(&store).sdk().unwrap()).unwrap();
    s3.put(BUCKET, "k", "v").await.unwrap();
    assert_eq!(s3.get(BUCKET, "k").await.unwrap(), "v");
    assert_eq!(s3.policy().name(), "s3:https://s3.us-east-1.amazonaws.com");
}

#[test]
fn a_transfer_outside_a_runtime_is_an_error_and_no_panic() {
    fn ends<T>(transfer: impl IntoFuture<Output = Result<T, mainstay_policy::Error>>) {
        let mut transfer = pin!(transfer.into_future());
        match transfer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.to_string().contains("needs a tokio runtime around it"), "{error}");
            }
            _ => panic!("there is nothing to wait for"),
        }
    }
    let s3 = builder("http://localhost:1").build().unwrap();
    ends(s3.upload_file("f", "b", "k"));
    ends(s3.download_file("b", "k", "f"));
    ends(remove_partial_downloads("."));
}

#[test]
fn every_call_can_be_spawned() {
    fn spawns(_: impl Send) {}
    let s3 = builder("http://localhost:1").build().unwrap();
    spawns(s3.put("b", "k", "v").into_future());
    spawns(s3.get("b", "k").into_future());
    spawns(s3.get("b", "k").stream());
    spawns(s3.list("b", "p").into_future());
    spawns(s3.list("b", "p").stream());
    spawns(s3.copy(("b", "k"), ("b", "l")).into_future());
    spawns(s3.delete_many("b", ["k"]));
    spawns(s3.tags("b", "k"));
    spawns(s3.set_tags("b", "k", [("n", "v")]));
    spawns(s3.presign_get("b", "k", Duration::from_secs(1)));
    spawns(s3.presign_put("b", "k", Duration::from_secs(1)).into_future());
    spawns(s3.head("b", "k"));
    spawns(s3.exists("b", "k"));
    spawns(s3.delete("b", "k"));
    spawns(s3.upload_file("f", "b", "k"));
    spawns(s3.download_file("b", "k", "f"));
    spawns(s3.health_check());
}
