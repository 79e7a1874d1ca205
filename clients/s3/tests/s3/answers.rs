//! The rows of the error table, as a store says them: what is repeated, what the breaker learns,
//! what the caller reads.

use crate::{builder, client, quick};
use mainstay_policy::{BreakerState, report};
use mainstay_s3::S3Failure;
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Sums},
};
use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

#[tokio::test]
async fn each_code_is_repeated_or_not_and_told_to_the_breaker_or_not() {
    use BreakerState::{Closed, Open};
    for (status, code, attempts, breaker) in [
        (503, "SlowDown", 3, Closed),
        (400, "ThrottlingException", 3, Closed),
        (429, "TooManyRequests", 3, Closed),
        (500, "InternalError", 3, Open),
        (502, "BadGateway", 3, Open),
        (503, "ServiceUnavailable", 3, Open),
        (504, "GatewayTimeout", 3, Open),
        (400, "RequestTimeout", 3, Closed),
        (409, "OperationAborted", 3, Closed),
        (403, "RequestTimeTooSkewed", 2, Closed),
        (400, "BadDigest", 2, Closed),
        (404, "NoSuchKey", 1, Closed),
        (404, "NoSuchBucket", 1, Closed),
        (403, "AccessDenied", 1, Closed),
        (403, "InvalidObjectState", 1, Closed),
        (301, "PermanentRedirect", 1, Closed),
        (400, "AuthorizationHeaderMalformed", 1, Closed),
        (400, "EntityTooSmall", 1, Closed),
        (501, "NotImplemented", 1, Closed),
        (403, "SignatureDoesNotMatch", 1, Open),
        (403, "InvalidAccessKeyId", 1, Open),
        (400, "ExpiredToken", 1, Open),
    ] {
        let store = S3::start().await;
        let s3 = client(&store);
        store.front(move |_| Answer::Status(status, code));
        for call in 1..=3 {
            let error = s3.put(BUCKET, "k", "v").await.unwrap_err();
            let failure = error.downcast_ref::<S3Failure>().unwrap();
            assert_eq!((failure.status(), failure.code()), (Some(status), Some(code)));
            assert_eq!(error.attempts(), attempts, "{code}");
            assert_eq!(store.seen(|_| true), (call * attempts) as usize, "{code}");
        }
        assert_eq!(s3.policy().breaker().state(), breaker, "{code}");
    }
}

#[tokio::test]
async fn a_wrong_region_names_the_right_one() {
    const MALFORMED: &str = "<Error><Code>AuthorizationHeaderMalformed</Code>\
        <Message>expecting 'eu-north-1'</Message><Region>eu-north-1</Region></Error>";
    const ODD: &str = "<Error><Code>AuthorizationHeaderMalformed</Code>\
        <Region>eu\n<b>evil</b></Region></Error>";
    let store = S3::start().await;
    let s3 = client(&store);
    for (answer, words) in [
        (
            Answer::Reply(301, &[("x-amz-bucket-region", "eu-west-3")], ""),
            "bucket `bucket` is in region eu-west-3; set MAINSTAY_S3_REGION",
        ),
        (Answer::Reply(400, &[], MALFORMED), "is in region eu-north-1; set"),
        (Answer::Reply(400, &[], ODD), "is in another region; check MAINSTAY_S3_REGION"),
    ] {
        store.front(move |_| answer);
        let error = s3.get(BUCKET, "k").await.unwrap_err();
        let told = report(&error).to_string();
        assert!(told.contains(words) && !told.contains("evil"), "{told}");
        assert_eq!(error.attempts(), 1);
    }
    store.front(|_| Answer::Reply(301, &[("x-amz-bucket-region", "eu-west-3")], ""));
    let health = s3.health_check_at(BUCKET).await;
    assert!(health.detail.contains("in region eu-west-3"), "{}", health.detail);
}

/// A 403 that is no matter of rights.
#[tokio::test]
async fn an_object_in_an_archive_is_to_be_restored() {
    let store = S3::start().await;
    store.front(|_| Answer::Status(403, "InvalidObjectState"));
    let error = client(&store).get(BUCKET, "k").await.unwrap_err();
    let told = report(&error).to_string();
    assert!(told.contains("is in an archive (InvalidObjectState); restore it"), "{told}");
    assert!(!told.contains("denied"), "{told}");
}

#[tokio::test]
async fn a_clock_that_is_off_is_learnt_from_the_answer() {
    const LATER: &[(&str, &str)] = &[("date", "Tue, 01 Jan 2047 00:00:00 GMT")];
    const SKEWED: &str = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
    for head in [false, true] {
        let (store, memory) = S3::in_memory(Sums::Full).await;
        memory.put("k", "bytes");
        let s3 = client(&store);
        store.front(move |_| Answer::Reply(403, LATER, if head { "" } else { SKEWED }));
        let error = match head {
            true => s3.head(BUCKET, "k").await.map(drop).unwrap_err(),
            false => s3.get(BUCKET, "k").await.map(drop).unwrap_err(),
        };
        assert_eq!(error.attempts(), 2, "{error}");
        // The second was signed with the server's time.
        let dates = store.sent("x-amz-date");
        assert!(!dates[0].starts_with("2047"), "{dates:?}");
        assert!(dates[1].starts_with("20470101T0000"), "{dates:?}");
        if !head {
            let told = report(&error).to_string();
            assert!(told.contains("clock and the server's differ"), "{told}");
        }
        assert_eq!(s3.policy().breaker().state(), BreakerState::Closed);
    }
}

#[tokio::test]
async fn a_throttled_call_waits_as_long_as_the_store_says() {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    memory.put("k", "bytes");
    let gets = AtomicU32::new(0);
    store.front(move |_| match gets.fetch_add(1, SeqCst) {
        0 => Answer::Reply(
            503,
            &[("x-amz-retry-after", "300")],
            "<Error><Code>SlowDown</Code></Error>",
        ),
        _ => Answer::Pass,
    });
    let started = std::time::Instant::now();
    assert_eq!(client(&store).get(BUCKET, "k").await.unwrap(), "bytes");
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    // Beyond the deadline it is not waited for.
    store.front(|_| Answer::Reply(503, &[("retry-after", "3600")], ""));
    let error = client(&store).get(BUCKET, "k").await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)), "{error:?}");
    assert_eq!(error.attempts(), 1);
}

#[tokio::test]
async fn what_is_not_s3_is_said_to_be_none() {
    let store = S3::start().await;
    let s3 = client(&store);
    store.front(|_| Answer::Reply(200, &[("content-type", "text/html")], "<html>hello</html>"));
    let error = s3.list(BUCKET, "").await.unwrap_err();
    let told = report(&error).to_string();
    assert!(told.contains("check that the endpoint speaks S3"), "{told}");
    // HEAD has no words: what it may mean is said.
    store.front(|_| Answer::Status(400, ""));
    let error = s3.head(BUCKET, "k").await.unwrap_err();
    let told = report(&error).to_string();
    assert!(told.contains("expired credentials"), "{told}");
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_not_waited_for() {
    let store = S3::start().await;
    let limit = Duration::from_millis(200);
    let s3 = builder(store.endpoint()).policy(move |p| quick(p).timeout(limit).max_attempts(2));
    let s3 = s3.build().unwrap();
    store.front(|_| Answer::Hang);
    let error = s3.put(BUCKET, "k", "v").await.unwrap_err();
    assert!(error.is_outcome_unknown() && error.attempts() == 2, "{error:?}");
    assert!(error.elapsed() < Duration::from_secs(5), "{error:?}");
}
