//! Who signs, who does not, and what is said of it.

use crate::{again, builder, client, inner};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, future},
};
use mainstay_policy::{BreakerState, report};
use mainstay_s3::{S3Client, get_s3_client};
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, KEY, SECRET, Sums},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
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
        // The search itself asks again when its own second is over.
        let asked = metadata.seen(|_| true);
        assert!((1..4).contains(&asked), "{asked}: one search for all callers, then remembered");
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

/// Gives new credentials each time: those of the first are not the store's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Renewed(Arc<AtomicU32>);

impl Renewed {
    pub(crate) fn given(&self) -> u32 {
        self.0.load(SeqCst)
    }
}

impl ProvideCredentials for Renewed {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let token = format!("token-{}", self.0.fetch_add(1, SeqCst));
        let found = Credentials::new(KEY, SECRET, Some(token), None, "test");
        future::ProvideCredentials::ready(Ok(found))
    }
}

#[tokio::test]
async fn credentials_that_the_store_calls_expired_are_renewed_once() {
    const EXPIRED: &str = "<Error><Code>ExpiredToken</Code></Error>";
    let (store, memory) = S3::in_memory(Sums::Full).await;
    memory.put("k", "bytes");
    for head in [false, true] {
        let provider = Renewed::default();
        let s3 = builder(store.endpoint()).credentials_provider(provider.clone()).build().unwrap();
        let requests = AtomicU32::new(0);
        store.front(move |_| match requests.fetch_add(1, SeqCst) {
            // To HEAD there is no reason given.
            0 => Answer::Reply(400, &[], if head { "" } else { EXPIRED }),
            _ => Answer::Pass,
        });
        match head {
            true => drop(s3.head(BUCKET, "k").await.unwrap()),
            false => drop(s3.get(BUCKET, "k").await.unwrap()),
        }
        s3.get(BUCKET, "k").await.unwrap();
        assert_eq!(provider.0.load(SeqCst), 2);
        let sent = store.sent("x-amz-security-token");
        let last: Vec<_> = sent.iter().rev().take(3).map(String::as_str).collect();
        assert_eq!(last, ["token-1", "token-1", "token-0"]);
    }
    // Renewed to no avail: that is all.
    let provider = Renewed::default();
    let s3 = builder(store.endpoint()).credentials_provider(provider.clone()).build().unwrap();
    store.front(|_| Answer::Status(400, "ExpiredToken"));
    let error = s3.get(BUCKET, "k").await.unwrap_err();
    assert_eq!((error.attempts(), provider.0.load(SeqCst)), (2, 2));
    assert!(report(&error).to_string().contains("not accepted (ExpiredToken)"), "{error:?}");
}

#[tokio::test]
async fn a_session_token_is_sent_along() {
    let (store, _) = S3::in_memory(Sums::Full).await;
    let s3 = builder(store.endpoint()).session_token("t0ken").build().unwrap();
    s3.put(BUCKET, "k", "v").await.unwrap();
    assert_eq!(store.sent("x-amz-security-token"), ["t0ken"]);
}

#[test]
fn bad_credentials_are_refused_by_the_builder_and_not_shown() {
    let new = || S3Client::builder().endpoint_url("http://127.0.0.1:1");
    for (bad, words) in [
        (new().credentials("", "s3cr3t"), "access key is empty"),
        (new().credentials("s3cr3t\n", "x"), "access key is empty or holds spaces or line breaks"),
        (new().credentials("x", "s3cr3t\r\n"), "secret is empty or holds"),
        (new().credentials("x", "y").session_token("s3 cr3t"), "session token is empty or holds"),
        (new().session_token("s3cr3t"), "without credentials"),
        (new().anonymous().session_token("s3cr3t"), "without credentials"),
        (new().region("eu west"), "S3 region holds other than"),
    ] {
        let shown = format!("{bad:?}");
        let error = bad.build().unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(!error.contains("cr3t") && !shown.contains("cr3t"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metadata_service_that_hangs_is_waited_for_once() {
    const NAME: &str = "credentials::a_metadata_service_that_hangs_is_waited_for_once";
    if !inner() {
        let (store, metadata) = (S3::start().await, S3::start().await);
        metadata.front(|_| Answer::Hang);
        let nowhere = TempDir::new().unwrap();
        let environment = [
            ("MAINSTAY_S3_ENDPOINT_URL", store.endpoint()),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint()),
            ("HOME", nowhere.path().to_str().unwrap()),
        ];
        tokio::task::block_in_place(|| again(NAME, &environment));
        assert_eq!(store.seen(|_| true), 0);
        return;
    }
    let s3 = get_s3_client().unwrap();
    let first = s3.get(BUCKET, "k").await.unwrap_err();
    // 5 s are the limit of the search; the attempt would have 10.
    assert!(first.elapsed() < Duration::from_secs(8), "{first:?}");
    assert!(report(&first).to_string().contains("EC2 metadata ("), "{}", report(&first));
    assert!(!first.is_timeout() && first.attempts() == 1, "{first:?}");
    let second = s3.get(BUCKET, "k").await.unwrap_err();
    assert!(second.elapsed() < Duration::from_secs(4), "{second:?}");
}
