//! Who signs, who does not, and what is said of it.

use crate::{again, builder, client, inner};
use mainstay_policy::{BreakerState, report};
use mainstay_s3::get_s3_client;
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, KEY, SECRET},
};
use tempfile::TempDir;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_without_credentials() {
    const NAME: &str = "credentials::nothing_is_sent_without_credentials";
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
        for words in [
            "no credentials were found, having asked environment (has none), profile (has none), \
             web identity token (has none), container (has none), EC2 metadata (failed)",
            "set AWS_ACCESS_KEY_ID",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert_eq!(error.attempts(), 1);
    }
    assert_eq!(s3.policy().breaker().state(), BreakerState::Closed);
}
