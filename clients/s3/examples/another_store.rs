//! Does it work with a store that others wrote? With moto, Python's double of AWS, behind a network that fails.
//!
//! Give the path of `moto_server` as an argument: `pip install 'moto[s3]' flask flask-cors` brings it. What moto
//! does not do as AWS does is left out here: conditions of copies, lists of parts, an empty set of tags.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures_util::TryStreamExt;
use mainstay_policy::{Error, HealthStatus, PolicyBuilder};
use mainstay_s3::{Presigned, S3Client, S3Failure};
use mainstay_test_support::{Proxy, proxy::End};
use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const BUCKET: &str = "bucket";
const PART: u64 = 64 * 1024;
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    let program = std::env::args().nth(1).expect("the path of moto_server as an argument");
    let moto = Moto::start(&program).await;
    let proxy = Arc::new(Proxy::in_front_of(moto.address));
    let s3 = S3Client::builder()
        .endpoint_url(format!("http://{}", proxy.addr()))
        .credentials("key", "secret")
        .bucket(BUCKET)
        .policy(|policy: PolicyBuilder| {
            let policy =
                policy.timeout(Duration::from_secs(5)).base_delay(Duration::from_millis(5));
            policy.enable_budget(false).enable_circuit_breaker(false)
        })
        .build()
        .unwrap();
    assert_eq!(s3.health_check().await.status, HealthStatus::Unhealthy);
    s3.sdk().unwrap().create_bucket().bucket(BUCKET).send().await.unwrap();
    assert_eq!(s3.health_check().await.status, HealthStatus::Healthy);
    bytes(&s3, &proxy).await;
    conditions(&s3, &proxy).await;
    files(&s3, &proxy).await;
    many(&s3, &proxy).await;
    links(&s3).await;
    println!("moto and this client agree about bytes, conditions, files, lists and links");
}

async fn bytes(s3: &S3Client, proxy: &Proxy) {
    let put = s3.put(BUCKET, "a/b c.txt", "hello").metadata("owner", "me").tag("team", "a + b");
    put.content_language("de").await.unwrap();
    assert_eq!(s3.get(BUCKET, "a/b c.txt").range(1..3).await.unwrap(), "el");
    refused(s3.get(BUCKET, "none").await, S3Failure::is_not_found);
    refused(s3.put("none", "k", "v").await, S3Failure::is_not_found);
    s3.copy((BUCKET, "a/b c.txt"), (BUCKET, "copy")).await.unwrap();
    assert_eq!(s3.tags(BUCKET, "copy").await.unwrap()["team"], "a + b");
    s3.copy((BUCKET, "copy"), (BUCKET, "copy")).metadata("checked", "yes").await.unwrap();
    let head = s3.head(BUCKET, "copy").await.unwrap();
    assert_eq!(
        (head.content_language.as_deref(), head.content_type.as_deref()),
        (Some("de"), Some("text/plain"))
    );
    assert_eq!(head.metadata.into_iter().collect::<Vec<_>>(), [("checked".into(), "yes".into())]);
    s3.set_tags(BUCKET, "copy", [("x", "y")]).await.unwrap();
    assert_eq!(s3.tags(BUCKET, "copy").await.unwrap()["x"], "y");
    proxy.lose_next_reply();
    s3.put(BUCKET, "lost", "bytes").await.unwrap();
    proxy.lose_next_reply();
    s3.delete(BUCKET, "lost").await.unwrap();
    assert!(!s3.exists(BUCKET, "lost").await.unwrap());
    assert_eq!(proxy.lost(), 2);
}

async fn conditions(s3: &S3Client, proxy: &Proxy) {
    let lost = proxy.lost();
    proxy.lose_next_reply();
    let first = s3.put(BUCKET, "lock", "a").if_absent().await.unwrap();
    assert_eq!(proxy.lost() - lost, 1, "its own first attempt is a success");
    refused(s3.put(BUCKET, "lock", "b").if_absent().await, S3Failure::is_precondition_failed);
    let etag = first.etag.unwrap();
    s3.put(BUCKET, "lock", "c").if_match(&etag).await.unwrap();
    refused(s3.put(BUCKET, "lock", "d").if_match(&etag).await, S3Failure::is_precondition_failed);
    refused(s3.get(BUCKET, "lock").if_match(&etag).await, S3Failure::is_precondition_failed);
    assert_eq!(s3.get(BUCKET, "lock").await.unwrap(), "c");
}

async fn files(s3: &S3Client, proxy: &Arc<Proxy>) {
    let dir = tempfile::tempdir().unwrap();
    let (file, to) = (dir.path().join("file.csv"), dir.path().join("to"));
    let words = (0..400_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    let data: Vec<u8> = words.collect();
    fs::write(&file, &data).unwrap();
    let upload = || {
        let upload = s3.upload_file(&file, BUCKET, "file").part_size(PART).tag("team", "a");
        upload.idle_timeout(Duration::from_secs(2))
    };
    let download = || {
        let download = s3.download_file(BUCKET, "file", &to).part_size(PART);
        download.idle_timeout(Duration::from_secs(2))
    };
    // Connections are reset while parts are on them.
    let (network, moved) = (Arc::clone(proxy), AtomicUsize::new(0));
    let breaks = upload().on_progress(move |_| {
        if moved.fetch_add(1, Relaxed) % 8 == 4 {
            network.cut();
        }
    });
    breaks.await.unwrap();
    for end in [End::Reset, End::Close, End::Hang] {
        proxy.set(|faults| faults.replies.after = Some((300_000, end)));
        download().await.unwrap();
        proxy.heal();
        assert!(fs::read(&to).unwrap() == data, "{end:?}");
        fs::remove_file(&to).unwrap();
    }
    let head = s3.head(BUCKET, "file").await.unwrap();
    assert_eq!((head.size, head.content_type.as_deref()), (data.len() as u64, Some("text/csv")));
    assert_eq!(s3.tags(BUCKET, "file").await.unwrap()["team"], "a");
    // The last part is there; what is not answered next is that they are joined.
    let (lost, network) = (proxy.lost(), Arc::clone(proxy));
    let joins = upload().parallel(1).on_progress(move |progress| {
        if progress.done == progress.total {
            network.lose_next_reply();
        }
    });
    joins.await.unwrap();
    assert_eq!(proxy.lost() - lost, 1);
    refused(upload().if_absent().await, S3Failure::is_precondition_failed);
    // One that is dropped in the middle. moto lists no parts, so that it could not be gone on with: it is aborted.
    let (half, mut reached) = tokio::sync::mpsc::unbounded_channel();
    let drops = upload().parallel(1).resume().on_progress(move |progress| {
        if progress.done > progress.total / 2 {
            let _ = half.send(());
        }
    });
    tokio::select! {
        end = drops => panic!("it was to be dropped: {end:?}"),
        _ = reached.recv() => {}
    }
    upload().resume().await.unwrap();
    let end = Instant::now() + MINUTE;
    let left = || s3.sdk().unwrap().list_multipart_uploads().bucket(BUCKET).send();
    while !left().await.unwrap().uploads().is_empty() {
        assert!(Instant::now() < end, "it was to be aborted");
    }
    proxy.set(|faults| faults.replies.after = Some((500_000, End::Reset)));
    let mut stream = s3.get(BUCKET, "file").stream().await.unwrap();
    let mut got = Vec::new();
    while let Some(piece) = stream.chunk().await.unwrap() {
        got.extend_from_slice(&piece);
    }
    proxy.heal();
    assert!(got == data, "a stream goes on at the next byte");
}

async fn many(s3: &S3Client, proxy: &Proxy) {
    let mut keys: Vec<_> = (0..25).map(|n| format!("many/{n:02} ü+&%.txt")).collect();
    for key in &keys {
        s3.put(BUCKET, key, "x").await.unwrap();
    }
    let listed: Vec<_> =
        s3.list(BUCKET, "many/").page_size(7).stream().try_collect().await.unwrap();
    assert!(listed.into_iter().map(|object| object.key).eq(keys.clone()));
    let pages = s3.list(BUCKET, "").delimiter("/").page_size(3).pages();
    let pages: Vec<_> = pages.try_collect().await.unwrap();
    let folders: Vec<_> = pages.into_iter().flat_map(|page| page.prefixes).collect();
    assert_eq!(folders, ["a/", "many/"]);
    keys.push("many/none".to_owned());
    proxy.lose_next_reply();
    let end = s3.delete_many(BUCKET, keys).await.unwrap();
    assert_eq!((end.deleted, end.failed.len()), (26, 0));
    assert!(s3.list(BUCKET, "many/").await.unwrap().is_empty());
}

async fn links(s3: &S3Client) {
    let put = s3.presign_put(BUCKET, "a link", MINUTE).content_type("text/csv").await.unwrap();
    assert!(send(&put, "a,b").await.starts_with("HTTP/1.1 200"));
    let get = s3.presign_get(BUCKET, "a link", MINUTE).await.unwrap();
    assert!(send(&get, "").await.ends_with("a,b"));
}

/// Sends it as somebody else would: nothing but the URL and its headers.
async fn send(request: &Presigned, body: &str) -> String {
    let (host, path) = request.url.strip_prefix("http://").unwrap().split_once('/').unwrap();
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

/// What the store refused, once and for certain.
fn refused<T: std::fmt::Debug>(end: Result<T, Error>, why: fn(&S3Failure) -> bool) {
    let error = end.unwrap_err();
    assert!(error.downcast_ref().is_some_and(why) && !error.is_outcome_unknown(), "{error:?}");
}

/// Killed when it is dropped.
struct Moto {
    server: Child,
    address: SocketAddr,
}

impl Moto {
    async fn start(program: &str) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new(program);
        command.args(["-p", &address.port().to_string()]);
        command.env("S3_UPLOAD_PART_MIN_SIZE", PART.to_string());
        let server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut moto = Self { server, address };
        let end = Instant::now() + MINUTE;
        while TcpStream::connect(address).await.is_err() {
            assert!(moto.server.try_wait().unwrap().is_none(), "{program} has ended");
            assert!(Instant::now() < end, "{program} does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        moto
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
