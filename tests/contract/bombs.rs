//! An answer that says it is huge costs what has come of it, not what it says; HTTP's are in its own tests.

use crate::alone::alone;
use mainstay::{
    Deadline, Decider, Error, FallbackConfig, HttpClient, PgDatabase, RedisClient, S3Client, sqlx,
};
use std::{
    future::Future,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const MIB: usize = 1 << 20;
/// What a client may take for an answer of which a mebibyte has come.
const ROOM: usize = 32 * MIB;

/// The mebibyte was taken. Each test has a process of its own.
static WENT_OFF: AtomicBool = AtomicBool::new(false);

/// Greets, announces, sends a mebibyte, and then says nothing more.
async fn server(greeting: &'static [u8], announcement: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move |mut socket: TcpStream| async move {
        let mut seen = [0; 4_096];
        for answer in [greeting, announcement] {
            if !answer.is_empty() && socket.read(&mut seen).await? > 0 {
                socket.write_all(answer).await?;
            }
        }
        socket.write_all(&vec![b'x'; MIB]).await?;
        WENT_OFF.store(true, Relaxed);
        while socket.read(&mut seen).await? > 0 {}
        std::io::Result::Ok(())
    };
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    address
}

/// In a process of its own: the call fails, if it has understood the announcement by its deadline, and has
/// taken no more than that.
fn is_bounded<F: Future<Output = Result<(), Error>>>(
    name: &str,
    ends: &[Decider],
    call: impl FnOnce() -> F,
) {
    if alone(&format!("bombs::{name}"), &[]).is_some() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let before = resident();
        let error = Deadline::within(Duration::from_secs(6)).scope(call()).await.unwrap_err();
        let grown = resident().saturating_sub(before);
        println!("{name}: {} KiB for {error}", grown / 1_024);
        assert!(WENT_OFF.load(Relaxed), "it was not taken: {error}");
        assert!(error.decider().is_some_and(|end| ends.contains(&end)), "{error}");
        assert!(grown < ROOM, "{grown} bytes for an answer of one mebibyte: {error}");
    });
}

/// The most that this process has had in memory so far.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1_024
}

/// A row of two gigabytes.
#[test]
fn postgres() {
    is_bounded("postgres", &[Decider::Retry, Decider::Deadline], || async {
        let greeting = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
        let address = server(greeting, b"D\x7f\xff\xff\xff").await;
        let url = format!("postgres://user@{address}/db?sslmode=disable");
        let db = PgDatabase::builder().name("bomb").url(url).build()?;
        sqlx::query("select 1").execute(&db).await?;
        Ok(())
    });
}

/// A value of a tebibyte, to whatever is asked first: the link's own PING, so that it is never up.
#[test]
fn redis() {
    is_bounded("redis", &[Decider::Retry, Decider::Deadline], || async {
        let address = server(b"", b"$1099511627776\r\n").await;
        let cache = RedisClient::builder().name("bomb").url(format!("redis://{address}"));
        cache.fallback(FallbackConfig::off()).build()?.get::<String>("key").await?;
        Ok(())
    });
}

/// An object of a tebibyte.
#[test]
fn s3() {
    is_bounded("s3", &[Decider::Deadline], || async {
        let address =
            server(b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1099511627776\r\n\r\n").await;
        let s3 = S3Client::builder().endpoint_url(format!("http://{address}"));
        let s3 = s3.region("us-east-1").credentials("key", "secret").build()?;
        s3.get("bucket", "key").limit(u64::MAX).await?;
        Ok(())
    });
}

/// A body of a tebibyte, of which one would be taken.
#[test]
fn http() {
    is_bounded("http", &[Decider::Deadline], || async {
        let address =
            server(b"", b"HTTP/1.1 200 OK\r\ncontent-length: 1099511627776\r\n\r\n").await;
        let api = HttpClient::builder(&format!("http://{address}")).build()?;
        api.get("/").max_body(usize::MAX).await?;
        Ok(())
    });
}
