//! HTTP/2: what the peer says of a stream decides whether it was sent.

use crate::server::quick;
use bytes::Bytes;
use h2::{
    Reason,
    server::{Connection, SendResponse},
};
use mainstay_http::HttpClient;
use mainstay_policy::{BreakerState, Effect, report};
use mainstay_test_support::Port;
use std::{
    collections::HashMap,
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[derive(Clone, Copy)]
enum Then {
    Ok,
    Reset(Reason),
    /// GOAWAY for everything after this stream, which itself gets no answer.
    GoAway(Reason),
    /// The stream is answered, and the connection says that it takes no more.
    OkAndGoAway,
    /// The connection is dropped in the middle of the body.
    CutBody,
    /// Five bytes of ten, and the stream is reset as if all was well.
    Short,
    /// This status, and a length of what is not sent.
    NoBody(u16),
}

/// Does `script` of the number of the request; counts requests.
async fn server(
    script: impl Fn(usize) -> Then + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    server_of_paths(move |n, _| script(n)).await
}

/// As [`server`], of the number and the path.
async fn server_of_paths(
    script: impl Fn(usize, &str) -> Then + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let port = Port::reserve();
    let (listener, address) = (port.listen(), port.address());
    let seen = Arc::new(AtomicUsize::new(0));
    let (count, script) = (Arc::clone(&seen), Arc::new(script));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (count, script) = (Arc::clone(&count), Arc::clone(&script));
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let then = script(count.fetch_add(1, SeqCst) + 1, request.uri().path());
                    match then {
                        Then::GoAway(reason) => connection.abrupt_shutdown(reason),
                        Then::OkAndGoAway => connection.graceful_shutdown(),
                        Then::CutBody => {
                            let mut body = head(respond, ok(), false);
                            body.send_data(Bytes::from("half"), false).unwrap();
                            flush(&mut connection).await;
                            return;
                        }
                        Then::Short => {
                            let mut body = head(respond, with_length(200, 10), false);
                            body.send_data(Bytes::from("short"), false).unwrap();
                            flush(&mut connection).await;
                            body.send_reset(Reason::NO_ERROR);
                            continue;
                        }
                        _ => {}
                    }
                    answer(respond, then);
                }
            });
        }
    });
    (address, seen)
}

/// What is written goes out.
async fn flush(connection: &mut Connection<TcpStream, Bytes>) {
    for _ in 0..10 {
        poll_fn(|cx| {
            let _ = connection.poll_accept(cx);
            Poll::Ready(())
        })
        .await;
        tokio::task::yield_now().await;
    }
}

fn ok() -> http::Response<()> {
    http::Response::new(())
}

fn with_length(status: u16, length: u64) -> http::Response<()> {
    let head = http::Response::builder().status(status).header("content-length", length);
    head.body(()).unwrap()
}

fn head(
    mut respond: SendResponse<Bytes>,
    head: http::Response<()>,
    end: bool,
) -> h2::SendStream<Bytes> {
    respond.send_response(head, end).unwrap()
}

fn answer(mut respond: SendResponse<Bytes>, then: Then) {
    match then {
        Then::Ok | Then::OkAndGoAway => {
            head(respond, ok(), false).send_data(Bytes::from("ok"), true).unwrap();
        }
        Then::NoBody(status) => {
            head(respond, with_length(status, 20_000_000), true);
        }
        Then::Reset(reason) => respond.send_reset(reason),
        Then::GoAway(_) | Then::CutBody | Then::Short => {}
    }
}

fn client(address: SocketAddr) -> HttpClient {
    HttpClient::builder(&format!("http://{address}"))
        .without_proxy()
        .http2_only()
        .policy(|p| quick(p).failure_threshold(100).without_failure_rate().without_slow_rate())
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_stream_that_the_peer_refused_was_never_sent() {
    let (address, seen) = server(|n| match n {
        1 | 2 => Then::Reset(Reason::REFUSED_STREAM),
        _ => Then::Ok,
    })
    .await;
    let client = client(address);
    assert_eq!(client.post("x").body("once").await.unwrap().text(), "ok");
    assert_eq!(seen.load(SeqCst), 3);
    let (address, seen) = server(|_| Then::Reset(Reason::REFUSED_STREAM)).await;
    let client = crate::http2::client(address);
    let error = client.post("x").await.unwrap_err();
    assert_eq!((error.effect(), error.attempts()), (Effect::NeverSent, 3));
    assert_eq!(seen.load(SeqCst), 3, "the driver repeats nothing by itself");
    assert!(report(&error).to_string().contains("gave the request up"), "{}", report(&error));
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test]
async fn other_resets_say_nothing_of_what_was_done() {
    for reason in [
        Reason::CANCEL,
        Reason::INTERNAL_ERROR,
        Reason::ENHANCE_YOUR_CALM,
        Reason::PROTOCOL_ERROR,
        Reason::NO_ERROR,
    ] {
        let (address, seen) = server(move |n| match n {
            1 | 2 => Then::Reset(reason),
            _ => Then::Ok,
        })
        .await;
        let client = client(address);
        let error = client.post("x").body("once").await.unwrap_err();
        assert_eq!((error.effect(), error.attempts()), (Effect::Unknown, 1), "{reason:?}");
        assert_eq!(client.get("x").await.unwrap().text(), "ok", "{reason:?}");
        assert_eq!(seen.load(SeqCst), 3, "{reason:?}");
    }
}

#[tokio::test]
async fn a_stream_that_the_peer_had_begun_is_unknown_when_the_connection_goes_away() {
    for reason in [Reason::NO_ERROR, Reason::INTERNAL_ERROR, Reason::ENHANCE_YOUR_CALM] {
        let (address, seen) = server(move |_| Then::GoAway(reason)).await;
        let error = client(address).post("x").body("once").await.unwrap_err();
        assert_eq!((error.effect(), error.attempts()), (Effect::Unknown, 1), "{reason:?}: {error}");
        assert_eq!(seen.load(SeqCst), 1, "{reason:?}");
    }
}

/// Frames of RFC 9113 by hand: h2's own server has begun every stream that it has read. The first
/// connection answers its first stream, and says of the next that it never began it.
async fn begins_one_stream(listener: TcpListener, requests: Arc<Mutex<Vec<(u32, u32)>>>) {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    for connection in 1.. {
        let (mut stream, _) = listener.accept().await.unwrap();
        let requests = Arc::clone(&requests);
        tokio::spawn(async move {
            let mut preface = [0; 24];
            stream.read_exact(&mut preface).await.unwrap();
            stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            let mut head = [0; 9];
            while stream.read_exact(&mut head).await.is_ok() {
                let [a, b, c, kind, flags, id @ ..] = head;
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                stream.read_exact(&mut vec![0; length]).await.unwrap();
                let id = u32::from_be_bytes(id);
                let answer = match kind {
                    SETTINGS if flags & 1 == 0 => frame(SETTINGS, 1, 0, &[]),
                    HEADERS => {
                        requests.lock().unwrap().push((connection, id));
                        match connection == 1 && id > 1 {
                            // The last stream that was begun, and NO_ERROR.
                            true => frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
                            // The end of the headers and of the stream; `:status: 200`.
                            false => frame(HEADERS, 5, id, &[0x88]),
                        }
                    }
                    _ => continue,
                };
                stream.write_all(&answer).await.unwrap();
            }
        });
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let head = [0, 0, payload.len() as u8, kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn a_stream_beyond_the_last_that_a_peer_going_away_has_begun_was_never_sent() {
    let port = Port::reserve();
    let (listener, client) = (port.listen(), client(port.address()));
    let requests: Arc<Mutex<Vec<(u32, u32)>>> = Arc::default();
    tokio::spawn(begins_one_stream(listener, Arc::clone(&requests)));
    for _ in 0..2 {
        assert_eq!(client.post("x").body("once").await.unwrap().status(), 200);
    }
    assert_eq!(*requests.lock().unwrap(), [(1, 1), (1, 3), (2, 1)]);
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graceful_shutdowns_cost_no_get_and_double_no_post() {
    let done: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let paths = Arc::clone(&done);
    let (address, seen) = server_of_paths(move |n, path| {
        *paths.lock().unwrap().entry(path.to_owned()).or_default() += 1;
        if n % 20 == 0 { Then::OkAndGoAway } else { Then::Ok }
    })
    .await;
    let client = client(address);
    let (mut tasks, mut unknown) = (tokio::task::JoinSet::new(), 0);
    for n in 0..8 {
        let client = client.clone();
        tasks.spawn(async move {
            let mut unknown = 0;
            for post in 0..100 {
                if n % 2 == 0 {
                    client.get("gets").await.unwrap();
                } else if let Err(error) = client.post(&format!("{n}-{post}")).body("once").await {
                    assert!(error.is_outcome_unknown(), "{error}");
                    unknown += 1;
                }
            }
            unknown
        });
    }
    while let Some(task) = tasks.join_next().await {
        unknown += task.unwrap();
    }
    assert!(unknown < 100 && seen.load(SeqCst) >= 800 - unknown, "{unknown}");
    let mut done = done.lock().unwrap();
    done.remove("/gets");
    assert!(done.len() >= 400 - unknown && done.values().all(|&times| times == 1), "{done:?}");
}

#[tokio::test]
async fn a_body_cut_off_with_its_connection_is_repeated_for_a_get_only() {
    let (address, seen) = server(|n| if n == 2 { Then::Ok } else { Then::CutBody }).await;
    let client = client(address);
    assert_eq!(client.get("x").await.unwrap().text(), "ok");
    assert_eq!(seen.load(SeqCst), 2);
    let error = client.post("x").await.unwrap_err();
    assert_eq!((error.effect(), seen.load(SeqCst)), (Effect::Unknown, 3));
    assert!(report(&error).to_string().contains("cut off"), "{}", report(&error));
}

#[tokio::test]
async fn the_length_of_a_body_that_is_not_sent_is_no_length() {
    for (method, status) in [("HEAD", 200), ("GET", 304)] {
        let (address, seen) = server(move |_| Then::NoBody(status)).await;
        let client = client(address);
        let request = || client.request(method.parse().unwrap(), "x");
        let response = request().await.unwrap();
        assert_eq!(response.headers()["content-length"], "20000000", "{method} {status}");
        assert_eq!((response.status().as_u16(), response.bytes().len()), (status, 0));
        let mut download = request().stream().await.unwrap();
        assert!(download.chunk().await.unwrap().is_none(), "{method} {status}");
        assert_eq!(seen.load(SeqCst), 2);
    }
}

/// RFC 9113 section 8.1 lets a server stop reading a request so; its own answer is no less cut off.
#[tokio::test]
async fn a_body_that_a_calm_reset_ends_before_its_length_is_cut_off() {
    let (address, seen) = server(|n| if n == 2 { Then::Ok } else { Then::Short }).await;
    let client = client(address);
    assert_eq!(client.get("x").await.unwrap().text(), "ok");
    assert_eq!(seen.load(SeqCst), 2);
    let error = client.post("x").await.unwrap_err();
    assert_eq!((error.effect(), seen.load(SeqCst)), (Effect::Unknown, 3));
    assert!(report(&error).to_string().contains("cut off"), "{}", report(&error));
}

#[tokio::test]
async fn a_streamed_body_that_a_calm_reset_ends_before_its_length_is_cut_off() {
    let (address, _) = server(|_| Then::Short).await;
    let client = client(address);
    let mut download = client.get("x").stream().await.unwrap();
    assert_eq!(download.chunk().await.unwrap().unwrap(), "short");
    let error = download.chunk().await.unwrap_err();
    assert!(report(&error).to_string().contains("cut off"), "{}", report(&error));
}
