//! Writes that are done only if, and what a repeat of one means.

use crate::{builder, bytes, client, quick};
use mainstay_policy::{Effect, Error, Hedge, Kind, Policy, report};
use mainstay_s3::S3Failure;
use mainstay_test_support::{
    S3,
    s3::{Answer, BUCKET, Memory, Sums},
};
use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};
use tempfile::TempDir;

fn failed_precondition(error: &Error) {
    let failure = error.downcast_ref::<S3Failure>().unwrap();
    assert!(failure.is_precondition_failed(), "{error:?}");
    let told = report(error).to_string();
    assert!(told.contains("not as the condition of the request says"), "{told}");
}

/// Does this to the first PUT, and to it alone.
fn first_put(store: &S3, answer: impl Fn() -> Answer + Send + 'static) {
    let puts = AtomicU32::new(0);
    store.front(move |line| match line.starts_with("PUT") && puts.fetch_add(1, SeqCst) == 0 {
        true => answer(),
        false => Answer::Pass,
    });
}

/// The answer to the first request that makes an object is lost, and nobody may look for it.
fn lost_and_hidden(store: &S3) {
    lost(store, 1, Answer::Status(403, ""));
}

/// The same of so many, where this is what comes of a look.
fn lost(store: &S3, times: u32, look: Answer) {
    let writes = AtomicU32::new(0);
    store.front(move |line| {
        let puts = line.starts_with("PUT") && !line.contains("partNumber=");
        let completes = line.starts_with("POST") && line.contains("uploadId=");
        match line {
            _ if line.starts_with("HEAD") => look,
            _ if (puts || completes) && writes.fetch_add(1, SeqCst) < times => {
                Answer::ApplyThenClose
            }
            _ => Answer::Pass,
        }
    });
}

const PART: u64 = 64 * 1024;

async fn with_store() -> (S3, Memory, mainstay_s3::S3Client) {
    let (store, memory) = S3::in_memory(Sums::Full).await;
    let s3 = client(&store);
    (store, memory, s3)
}

#[tokio::test]
async fn only_the_first_takes_what_is_absent() {
    let (store, _, s3) = with_store().await;
    let first = s3.put(BUCKET, "lock", "a").if_absent().await.unwrap();
    let error = s3.put(BUCKET, "lock", "b").if_absent().await.unwrap_err();
    failed_precondition(&error);
    assert_eq!((error.attempts(), error.effect()), (1, Effect::Permanent));
    let etag = first.etag.unwrap();
    let second = s3.put(BUCKET, "lock", "c").if_match(&etag).await.unwrap();
    failed_precondition(&s3.put(BUCKET, "lock", "d").if_match(&etag).await.unwrap_err());
    failed_precondition(&s3.get(BUCKET, "lock").if_match(&etag).await.unwrap_err());
    let read = s3.get(BUCKET, "lock").if_match(second.etag.unwrap()).await.unwrap();
    assert_eq!(read, "c");
    assert_eq!(store.seen(|r| r.starts_with("PUT")), 4);
}

#[tokio::test]
async fn the_echo_of_ones_own_write_is_a_success() {
    let (store, memory, s3) = with_store().await;
    first_put(&store, || Answer::ApplyThenClose);
    let written = s3.put(BUCKET, "lock", "mine").if_absent().await.unwrap();
    assert_eq!(memory.object("lock").unwrap(), "mine");
    assert_eq!(written.etag, s3.head(BUCKET, "lock").await.unwrap().etag);
    // Sent twice, then looked at.
    assert_eq!(store.seen(|r| r.starts_with("PUT")), 2);
}

#[tokio::test]
async fn somebody_elses_object_after_an_unanswered_write_is_an_unknown_outcome() {
    let (store, memory, s3) = with_store().await;
    let other = memory.clone();
    first_put(&store, move || {
        other.put("lock", "theirs");
        Answer::Close
    });
    let error = s3.put(BUCKET, "lock", "mine").if_absent().await.unwrap_err();
    failed_precondition(&error);
    assert!(error.is_outcome_unknown(), "{error}");
    assert_eq!(error.attempts(), 2);
    assert!(error.to_string().contains("look before repeating it"), "{error}");
    assert_eq!(memory.object("lock").unwrap(), "theirs");
}

#[tokio::test]
async fn after_a_refusal_the_outcome_is_known() {
    let (store, memory, s3) = with_store().await;
    let other = memory.clone();
    first_put(&store, move || {
        other.put("lock", "theirs");
        Answer::Status(503, "SlowDown")
    });
    let error = s3.put(BUCKET, "lock", "mine").if_absent().await.unwrap_err();
    failed_precondition(&error);
    assert_eq!((error.attempts(), error.effect()), (2, Effect::Permanent));
}

#[tokio::test]
async fn what_may_have_been_written_and_may_not_be_looked_at_is_an_unknown_outcome() {
    let (store, memory, s3) = with_store().await;
    let (dir, large) = (TempDir::new().unwrap(), bytes(3 * PART as usize));
    let file = dir.path().join("file");
    lost_and_hidden(&store);
    let error = s3.put(BUCKET, "put", "mine").if_absent().await.unwrap_err();
    failed_precondition(&error);
    assert!(error.is_outcome_unknown(), "{error:?}");
    for (key, data) in [("small", &large[..9]), ("large", &large)] {
        fs::write(&file, data).unwrap();
        lost_and_hidden(&store);
        let upload = s3.upload_file(&file, BUCKET, key).part_size(PART).if_absent();
        let error = upload.await.unwrap_err();
        failed_precondition(&error);
        assert!(error.is_outcome_unknown(), "{error:?}");
        assert_eq!(memory.object(key).unwrap(), data);
    }
    // Without a condition it is the upload in parts that is gone.
    lost_and_hidden(&store);
    let error = s3.upload_file(&file, BUCKET, "k").part_size(PART).await.unwrap_err();
    let code = error.downcast_ref().and_then(S3Failure::code);
    assert_eq!((code, error.effect()), (Some("NoSuchUpload"), Effect::Unknown));
    assert_eq!(memory.object("k").unwrap(), large);
}

/// Which cannot read it in an error of the caller's own.
#[tokio::test]
async fn a_policy_around_it_is_told_of_what_may_have_been_written() {
    let (store, memory, s3) = with_store().await;
    let around = Policy::builder(Kind::Custom, "around-a-refused-write");
    let around = around.enable_circuit_breaker(false).build().unwrap();
    lost_and_hidden(&store);
    let put = || async { s3.put(BUCKET, "k", "mine").if_absent().await.map_err(|_| "not mine") };
    let error = around.call(put).await.unwrap_err();
    assert!(error.is_outcome_unknown() && error.attempts() == 1, "{error:?}");
    assert_eq!(memory.object("k").unwrap(), "mine");
    // It was there before: that is known.
    let error = around.call(put).await.unwrap_err();
    assert!(!error.is_outcome_unknown(), "{error:?}");
    let (dir, large) = (TempDir::new().unwrap(), bytes(3 * PART as usize));
    let file = &dir.path().join("file");
    let (seen, hidden) = (Answer::Pass, Answer::Status(403, ""));
    for (times, look, unknown) in [(1, hidden, true), (1, seen, false), (u32::MAX, seen, false)] {
        for length in [9, large.len()] {
            fs::write(file, &large[..length]).unwrap();
            lost(&store, times, look);
            let key = &format!("{length} {times} {unknown}");
            let upload = || s3.upload_file(file, BUCKET, key).part_size(PART).if_absent();
            let steps = || async {
                upload().await.map_err(|_| "not mine")?;
                Err::<(), _>("of the next step")
            };
            let error = around.call(steps).await.unwrap_err();
            let step = if unknown { "not mine" } else { "of the next step" };
            assert_eq!(error.last(), Some(&step), "{key}: {error:?}");
            assert_eq!(error.is_outcome_unknown(), unknown, "{key}: {error:?}");
            assert!(memory.object(key).is_some(), "{key}");
        }
    }
}

#[tokio::test]
async fn of_a_file_it_is_known_or_not_as_of_bytes() {
    let (store, memory, s3) = with_store().await;
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    for (key, answer, effect) in [
        ("a", Answer::Close, Effect::Unknown),
        ("b", Answer::Status(503, "SlowDown"), Effect::Permanent),
    ] {
        let other = memory.clone();
        first_put(&store, move || {
            other.put(key, "theirs");
            answer
        });
        let error = s3.upload_file(&file, BUCKET, key).if_absent().await.unwrap_err();
        failed_precondition(&error);
        assert_eq!((error.attempts(), error.effect()), (2, effect));
    }
}

#[tokio::test]
async fn an_empty_lock_whose_answer_never_comes_is_ours() {
    let (store, _, _) = with_store().await;
    let policy = |policy| quick(policy).timeout(Duration::from_secs(2));
    let s3 = builder(store.endpoint()).policy(policy).build().unwrap();
    first_put(&store, || Answer::ApplyThenHang);
    s3.put(BUCKET, "lock", "").if_absent().await.unwrap();
    let seen = |method| store.seen(|line| line.starts_with(method));
    assert_eq!((seen("PUT"), seen("HEAD")), (2, 1));
}

#[tokio::test]
async fn a_slow_read_has_a_second_copy_and_a_slow_write_has_none() {
    let (store, memory, _) = with_store().await;
    memory.put("k", "bytes");
    let policy = |policy| {
        let policy = quick(policy).timeout(Duration::from_secs(2)).max_attempts(1);
        policy.hedge(Hedge::After(Duration::from_millis(20)))
    };
    let s3 = builder(store.endpoint()).policy(policy).build().unwrap();
    let first_hangs = || {
        let sent = AtomicU32::new(0);
        store.front(move |_| match sent.fetch_add(1, SeqCst) {
            0 => Answer::Hang,
            _ => Answer::Pass,
        });
    };
    first_hangs();
    assert_eq!(s3.get(BUCKET, "k").await.unwrap(), "bytes");
    first_hangs();
    s3.head(BUCKET, "k").await.unwrap();
    for (read, sent) in [("GET", 2), ("HEAD", 2)] {
        assert_eq!(store.seen(|line| line.starts_with(read)), sent, "{read}");
    }
    first_hangs();
    let put = s3.put(BUCKET, "k", "other").await.unwrap_err();
    first_hangs();
    let deleted = s3.delete(BUCKET, "k").await.unwrap_err();
    assert!(put.is_timeout() && deleted.is_timeout(), "{put} {deleted}");
    for write in ["PUT", "DELETE"] {
        assert_eq!(store.seen(|line| line.starts_with(write)), 1, "{write}");
    }
    assert_eq!(memory.object("k").unwrap(), "bytes");
}

#[tokio::test]
async fn a_conflict_is_tried_again() {
    let (store, memory, s3) = with_store().await;
    first_put(&store, || Answer::Status(409, "ConditionalRequestConflict"));
    s3.put(BUCKET, "lock", "mine").if_absent().await.unwrap();
    assert_eq!(memory.object("lock").unwrap(), "mine");
}

#[tokio::test]
async fn a_copy_that_is_repeated_on_a_condition_says_what_it_cannot_know() {
    let (store, memory, s3) = with_store().await;
    memory.put("from", "bytes");
    s3.copy((BUCKET, "from"), (BUCKET, "to")).if_absent().await.unwrap();
    let error = s3.copy((BUCKET, "from"), (BUCKET, "to")).if_absent().await.unwrap_err();
    failed_precondition(&error);
    assert!(!error.is_outcome_unknown());
    first_put(&store, || Answer::ApplyThenClose);
    let error = s3.copy((BUCKET, "from"), (BUCKET, "new")).if_absent().await.unwrap_err();
    failed_precondition(&error);
    assert!(error.is_outcome_unknown());
    assert_eq!(memory.object("new").unwrap(), "bytes");
}

#[tokio::test]
async fn what_a_lost_answer_may_have_done_a_refusal_does_not_undo() {
    let (store, memory, s3) = with_store().await;
    memory.put("k", "bytes");
    let begin = || {
        let sent = AtomicU32::new(0);
        store.front(move |_| match sent.fetch_add(1, SeqCst) {
            0 => Answer::ApplyThenClose,
            _ => Answer::Status(403, "AccessDenied"),
        });
    };
    begin();
    let tags = s3.set_tags(BUCKET, "k", [("a", "b")]).await.unwrap_err();
    begin();
    let deleted = s3.delete(BUCKET, "k").await.unwrap_err();
    for error in [tags, deleted] {
        assert!(error.is_outcome_unknown() && error.attempts() == 2, "{error:?}");
    }
    assert!(memory.object("k").is_none());
    store.front(|_| Answer::Status(403, "AccessDenied"));
    assert!(!s3.delete(BUCKET, "k").await.unwrap_err().is_outcome_unknown());
}
