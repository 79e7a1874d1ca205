//! Bodies that stand still are noticed long before the timeout that allows for their length.

use super::begun;
use crate::{MIB, builder, bytes, eventually, quick};
use mainstay_policy::report;
use mainstay_s3::S3Client;
use mainstay_test_support::{
    Proxy, S3,
    proxy::End,
    s3::{Answer, BUCKET, Sums},
};
use std::{
    fs,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// More than the kernel's buffers hold of a connection that nobody reads.
const LENGTH: usize = 15 * MIB;
const IDLE: Duration = Duration::from_millis(1_500);

fn through(proxy: &Proxy, timeout: Duration) -> S3Client {
    let policy = move |policy| quick(policy).timeout(timeout);
    builder(&format!("http://{}", proxy.addr())).policy(policy).build().unwrap()
}

fn in_front(store: &S3) -> Proxy {
    Proxy::in_front_of(store.endpoint().strip_prefix("http://").unwrap().parse().unwrap())
}

fn hang(proxy: &Proxy) {
    proxy.set(|faults| faults.requests.after = Some((1_000_000, End::Hang)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_stands_still_is_sent_again_at_once() {
    let (store, memory, _, dir) = begun(Sums::Full).await;
    let (proxy, file) = (in_front(&store), dir.path().join("file"));
    fs::write(&file, bytes(LENGTH)).unwrap();
    // Three attempts, each of which may take over a minute.
    let s3 = through(&proxy, Duration::from_secs(60));
    let upload = || s3.upload_file(&file, BUCKET, "k").idle_timeout(IDLE);
    let started = Instant::now();
    hang(&proxy);
    let heal = async {
        eventually("a second connection", || proxy.accepted() >= 2).await;
        proxy.heal();
    };
    let (end, ()) = tokio::join!(upload(), heal);
    end.unwrap();
    assert!(memory.object("k").unwrap() == bytes(LENGTH));
    hang(&proxy);
    let error = upload().await.unwrap_err();
    let told = report(&error).to_string();
    assert!(told.contains("no byte moved for 1.5s, the idle timeout"), "{told}");
    assert_eq!(error.attempts(), 3, "{told}");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

/// Without a limit of its own: the policy's timeout, that of 0 bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_and_a_get_that_stand_still_end_by_the_plain_timeout() {
    let (store, memory, _, _dir) = begun(Sums::Full).await;
    let proxy = in_front(&store);
    let s3 = through(&proxy, IDLE);
    hang(&proxy);
    let started = Instant::now();
    let error = s3.put(BUCKET, "k", bytes(LENGTH)).await.unwrap_err();
    assert!(report(&error).to_string().contains("no byte moved"), "{}", report(&error));
    assert!(memory.object("k").is_none());
    proxy.heal();
    memory.put("k", bytes(LENGTH));
    store.front(|line| match line.starts_with("GET") {
        true => Answer::Stall(3 * MIB),
        false => Answer::Pass,
    });
    let error = s3.get(BUCKET, "k").await.unwrap_err();
    assert!(report(&error).to_string().contains("no byte moved"), "{}", report(&error));
    // 15 MiB alone would have been given a minute.
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_stream_and_a_download_wait_as_long_as_they_are_told() {
    let (store, memory, _, dir) = begun(Sums::Full).await;
    let data = bytes(MIB);
    memory.put("k", data.clone());
    let s3 = builder(store.endpoint()).build().unwrap();
    let stalls = AtomicU8::new(0);
    store.front(move |line| {
        let first = stalls.fetch_add(1, Relaxed).is_multiple_of(2);
        if first && line.starts_with("GET") { Answer::Stall(300_000) } else { Answer::Pass }
    });
    let started = Instant::now();
    let mut stream = s3.get(BUCKET, "k").idle_timeout(IDLE).stream().await.unwrap();
    let mut got = Vec::new();
    while let Some(piece) = stream.chunk().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    let to = dir.path().join("to");
    s3.download_file(BUCKET, "k", &to).idle_timeout(IDLE).await.unwrap();
    assert!(got == data && fs::read(&to).unwrap() == data);
    assert!(started.elapsed() >= 2 * IDLE, "nothing stood still");
    // The policy would have waited for 10 s, twice.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}
