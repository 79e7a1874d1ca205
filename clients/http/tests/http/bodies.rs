//! Bodies, both ways: streamed, resumed, compressed, over the limit, there once.

use crate::server::{Server, Step, answer};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::{StreamExt, stream};
use mainstay_http::{Download, ErrorResponse, HttpDouble, Multipart, Reply, RequestBody};
use mainstay_policy::{BreakerState, Deadline, get_resilience_health, report};
use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

const MS: Duration = Duration::from_millis(1);

async fn rest(download: &mut Download) -> (Vec<u8>, Option<String>) {
    let mut bytes = Vec::new();
    loop {
        match download.chunk().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => return (bytes, None),
            Err(error) => {
                assert!(download.chunk().await.unwrap().is_none(), "an error is the end");
                return (bytes, Some(report(&error).to_string()));
            }
        }
    }
}

#[tokio::test]
async fn a_streamed_body_comes_piece_by_piece_and_its_end_is_told_to_the_breaker() {
    let server = Server::always(Step::Close(answer("200 OK", "x: y\r\n", "hello"))).await;
    let client = server.client();
    let download = client.get("x").stream().await.unwrap();
    assert_eq!(
        (download.status().as_u16(), &download.headers()["x"]),
        (200, &"y".parse().unwrap())
    );
    let pieces: Vec<_> = download.collect().await;
    assert_eq!(pieces.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat(), b"hello");
    // A failing status is an error, repeated as ever.
    let server = Server::start(&["HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"]).await;
    let error = server.client().get("x").stream().await.unwrap_err();
    assert_eq!((error.attempts(), server.seen()), (3, 3));
    // Five broken bodies in a row, though each had a good head.
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello".to_vec();
    let whole = answer("200 OK", "", "hello");
    let steps = [cut.clone(), cut.clone(), cut.clone(), cut.clone(), whole];
    let server =
        Server::scripted(move |n, _| Step::Close(steps.get(n - 1).unwrap_or(&cut).clone())).await;
    let client = server.client();
    for n in 1..=10 {
        assert_eq!(client.policy().breaker().state(), BreakerState::Closed, "{n}");
        let mut download = client.get("x").stream().await.unwrap();
        let (bytes, error) = rest(&mut download).await;
        assert_eq!((&*bytes, download.received()), (&b"hello"[..], 5));
        // The fifth is whole: it begins the count anew.
        assert!(error.map_or(n == 5, |error| error.contains("cut off")));
    }
    assert_eq!(client.policy().breaker().state(), BreakerState::Open);
    assert!(client.get("x").stream().await.unwrap_err().is_circuit_open());
}

/// A host that went without a word: its old connections stall long after it is back.
#[tokio::test(start_paused = true)]
async fn a_body_from_before_an_outage_says_nothing_of_the_server_that_is_back() {
    let down = Arc::new(AtomicBool::new(false));
    let is_down = Arc::clone(&down);
    let double = HttpDouble::new(move |r| match r.url.ends_with("export") {
        true => Reply::body("half").cut_off(),
        false => Reply::status(if is_down.load(SeqCst) { 500 } else { 200 }),
    });
    let client = crate::server::builder("http://reboots.example").double(&double);
    let client = client.policy(|p| p.failure_threshold(1).max_attempts(1)).build().unwrap();
    let begin = async || {
        let mut download = client.get("export").stream().await.unwrap();
        assert_eq!(download.chunk().await.unwrap().unwrap(), "half");
        download
    };
    let breaks = async |mut download: Download| {
        download.chunk().await.unwrap_err();
        client.policy().breaker().state()
    };
    let (first, second, third) = (begin().await, begin().await, begin().await);
    down.store(true, SeqCst);
    client.get("x").await.unwrap_err();
    assert_eq!(breaks(first).await, BreakerState::Open);
    tokio::time::advance(2_000 * MS).await;
    assert_eq!(breaks(second).await, BreakerState::HalfOpen, "it is no probe");
    down.store(false, SeqCst);
    client.get("x").await.unwrap();
    assert_eq!(breaks(third).await, BreakerState::Closed);
    let health = get_resilience_health();
    assert_eq!(health.circuit_breakers[client.policy().name()].blocked_calls, 0);
    // Of a probe, too, the body counts: it is from after the outage.
    let fourth = begin().await;
    assert_eq!(breaks(fourth).await, BreakerState::Open);
    tokio::time::advance(5_000 * MS).await;
    let probe = begin().await;
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
    assert_eq!(breaks(probe).await, BreakerState::Open);
}

#[tokio::test]
async fn a_streamed_body_has_an_idle_limit_a_deadline_and_a_size() {
    let stalls = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello".to_vec();
    let server = Server::always(Step::Stall(stalls)).await;
    let client = server.builder().body_idle(100 * MS).build().unwrap();
    let (bytes, error) = rest(&mut client.get("x").stream().await.unwrap()).await;
    assert_eq!(bytes, b"hello");
    assert!(error.unwrap().contains("no more of the body came within 100ms"));
    let client = server.client();
    let begin = client.get("x").deadline(1_500 * MS).stream().await;
    let (_, error) = rest(&mut begin.unwrap()).await;
    assert!(error.unwrap().contains("not over by the deadline"));
    let begin = Deadline::within(1_500 * MS).scope(client.get("x").stream()).await;
    let (_, error) = rest(&mut begin.unwrap()).await;
    assert!(error.unwrap().contains("not over by the deadline"));
    let (bytes, error) = rest(&mut client.get("x").max_body(4).stream().await.unwrap()).await;
    assert!(bytes.is_empty() && error.unwrap().contains("limit of 4 bytes"));
    // For ever is a limit like any other.
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n".to_vec();
    let server = Server::always(Step::Drip(head, b"xyz".to_vec(), MS)).await;
    let client = server.builder().body_idle(Duration::MAX).keep_idle(Duration::MAX, 1);
    let client = client.build().unwrap();
    assert_eq!(client.get("x").await.unwrap().text(), "xyz");
    let begin = client.get("x").deadline(Duration::from_secs(60)).stream().await;
    assert_eq!(rest(&mut begin.unwrap()).await, (b"xyz".to_vec(), None));
    // The pieces may take longer than an attempt, as long as they come.
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n".to_vec();
    let server = Server::always(Step::Drip(head, vec![b'x'; 30], 50 * MS)).await;
    let begin = server.client().get("x").timeout(1_000 * MS).stream().await;
    let started = std::time::Instant::now();
    assert_eq!(rest(&mut begin.unwrap()).await.0.len(), 30);
    assert!(started.elapsed() > 1_000 * MS);
}

/// Serves `content`, `piece` bytes at a time, then breaks off; by Range if it is asked to.
async fn breaks_off(
    content: impl Into<Bytes>,
    piece: usize,
    headers: &'static str,
    etag: fn(usize) -> String,
) -> Server {
    let content = content.into();
    Server::scripted(move |n, request| {
        let from = request.split("range: bytes=").nth(1);
        let from = from.map_or(0, |from| from.split('-').next().unwrap().parse().unwrap());
        let tag = etag(n);
        let asked = request.split("if-range: ").nth(1).and_then(|t| t.split("\r\n").next());
        let partial = from > 0 && asked == Some(&*tag.to_lowercase());
        let (last, length) = (content.len() - 1, content.len());
        let (status, body) = match partial {
            true => {
                let range = format!("content-range: bytes {from}-{last}/{length}");
                (format!("206 Partial\r\n{range}"), &content[from..])
            }
            false => ("200 OK".to_owned(), &content[..]),
        };
        let bytes = answer(&status, &format!("etag: {tag}\r\n{headers}"), body);
        let end = bytes.len() - body.len() + piece.min(body.len());
        Step::Close(bytes[..end].to_vec())
    })
    .await
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let server = breaks_off(&b"0123456789"[..], 3, "", |_| "\"v1\"".to_owned()).await;
    let client = server.client();
    let mut download = client.get("x").resume_by_range().stream().await.unwrap();
    assert_eq!(rest(&mut download).await, (b"0123456789".to_vec(), None));
    assert_eq!(server.seen(), 4);
    assert!(server.request(1).contains("accept-encoding: identity"));
    // Not without being asked to, nor for what may be something else by now.
    let (bytes, error) = rest(&mut client.get("x").stream().await.unwrap()).await;
    assert!(bytes == b"012" && error.unwrap().contains("cut off"));
    // Nor is a part of the rest taken for all of it.
    let part = "etag: \"v1\"\r\ncontent-range: bytes 3-5/10\r\n";
    let part = answer("206 Partial", part, "345");
    let cut = answer("200 OK", "etag: \"v1\"\r\n", "0123456789");
    let cut = cut[..cut.len() - 7].to_vec();
    let steps = [cut, part];
    let server = Server::scripted(move |n, _| Step::Close(steps[(n - 1).min(1)].clone())).await;
    let begin = server.client().get("x").resume_by_range().stream().await;
    let (bytes, error) = rest(&mut begin.unwrap()).await;
    assert!(bytes == b"012" && error.unwrap().contains("not sent as a whole; begin anew"));
    for etag in [|_| "W/\"v1\"".to_owned(), |n| format!("\"v{n}\"")] as [fn(usize) -> String; 2] {
        let server = breaks_off(&b"0123456789"[..], 3, "", etag).await;
        let begin = server.client().get("x").resume_by_range().stream().await;
        let (bytes, error) = rest(&mut begin.unwrap()).await;
        assert!(bytes == b"012" && error.is_some());
    }
    // A server that gives less and less of a body without end is not asked for ever.
    let server = breaks_off(&b"0123456789"[..], 1, "", |_| "\"v1\"".to_owned()).await;
    let client = server.builder().policy(|p| p.failure_threshold(9)).build().unwrap();
    let begin = client.get("x").resume_by_range().stream().await;
    let (bytes, error) = rest(&mut begin.unwrap()).await;
    assert_eq!((bytes.len(), server.seen(), error.is_some()), (6, 6, true));
}

#[tokio::test]
async fn the_rest_of_a_download_is_of_the_version_that_was_begun_or_it_is_an_error_that_says_why() {
    let range = "content-range: bytes 3-11/12\r\n";
    for (status, headers, told) in [
        // Of another version, from a server that does not say so.
        ("206 Partial", range.to_owned(), "begin anew"),
        ("206 Partial", format!("{range}etag: \"v2\"\r\n"), "begin anew"),
        ("412 Changed", String::new(), "begin anew"),
        ("416 Shorter", "content-range: bytes */2\r\n".to_owned(), "begin anew"),
        // A token that has expired meanwhile.
        ("401 Who", String::new(), "status 401"),
        ("404 Gone", String::new(), "status 404"),
    ] {
        let cut = answer("200 OK", "etag: \"v1\"\r\n", "0123456789");
        let cut = cut[..cut.len() - 7].to_vec();
        let steps = [cut, answer(status, &headers, "DEFGHIJKL")];
        let server = Server::scripted(move |n, _| Step::Close(steps[n - 1].clone())).await;
        let begin = server.client().get("x").resume_by_range().stream().await;
        let mut download = begin.unwrap();
        assert_eq!(download.chunk().await.unwrap().unwrap(), "012", "{status}");
        let error = download.chunk().await.unwrap_err();
        let text = report(&error).to_string();
        assert!(text.contains(told), "{status}: {text}");
        assert_eq!(text.contains("has changed"), told == "begin anew", "{status}: {text}");
        let answered = error.response().map(|r| (r.status().as_u16(), r.text().into_owned()));
        let expected =
            (told != "begin anew").then(|| (status[..3].parse().unwrap(), "DEFGHIJKL".to_owned()));
        assert_eq!(answered, expected, "{status}");
    }
}

/// Stores serve what was stored compressed, whatever is asked for.
#[tokio::test]
async fn a_download_that_comes_compressed_is_not_resumed() {
    let mut noise = vec![0; 100_000];
    fastrand::Rng::with_seed(7).fill(&mut noise);
    let etag = |_| "\"v1\"".to_owned();
    let server = breaks_off(gzip(&noise), 60_000, "content-encoding: gzip\r\n", etag).await;
    let client = server.client();
    let mut download = client.get("x").resume_by_range().stream().await.unwrap();
    let (bytes, error) = rest(&mut download).await;
    assert!(!bytes.is_empty() && noise.starts_with(&bytes), "{} bytes", bytes.len());
    assert_eq!(server.seen(), 1);
    assert!(error.as_ref().unwrap().contains("cut off"), "{error:?}");
    // Nor is what was sent as it is gone on with by what is not.
    let cut = answer("200 OK", "etag: \"v1\"\r\n", "0123456789");
    let cut = cut[..cut.len() - 7].to_vec();
    let compressed = gzip(b"0123456789");
    let (last, length) = (compressed.len() - 1, compressed.len());
    let part = format!("content-range: bytes 3-{last}/{length}\r\ncontent-encoding: gzip\r\n");
    let steps = [cut, answer("206 Partial", &part, &compressed[3..])];
    let server = Server::scripted(move |n, _| Step::Close(steps[(n - 1).min(1)].clone())).await;
    let begin = server.client().get("x").resume_by_range().stream().await;
    let (bytes, error) = rest(&mut begin.unwrap()).await;
    assert_eq!((&*bytes, server.seen()), (&b"012"[..], 2));
    assert!(error.as_ref().unwrap().contains("begin anew"), "{error:?}");
}

#[tokio::test]
async fn a_part_is_asked_for_as_it_is() {
    let server = Server::scripted(|_, request| {
        let compressed = gzip(&[b'x'; 1000]);
        Step::Close(match request.contains("gzip") {
            true => answer("206 Partial", "content-encoding: gzip\r\n", &compressed[10..]),
            false => answer("206 Partial", "content-range: bytes 10-14/1000\r\n", "xxxxx"),
        })
    })
    .await;
    let response = server.client().get("x").header("range", "bytes=10-14").await.unwrap();
    assert_eq!((response.status().as_u16(), &*response.text(), server.seen()), (206, "xxxxx", 1));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A frame of RFC 8878 with a window of 128 KiB whose blocks repeat one byte, 128 KiB each.
fn zstd_bomb(blocks: u32) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    for n in 1..=blocks {
        let header = (0x20000 << 3) | (1 << 1) | u32::from(n == blocks);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b'x');
    }
    frame
}

#[tokio::test]
async fn compressed_bodies_are_undone_and_bombs_end_at_the_limit() {
    let brotli = [0x0b, 0x02, 0x80, b'h', b'e', b'l', b'l', b'o', 0x03];
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 5, 0x29, 0, 0][..], b"hello"].concat();
    for (coding, body) in [("gzip", gzip(b"hello")), ("br", brotli.into()), ("zstd", zstd)] {
        let headers = format!("content-encoding: {coding}\r\n");
        let server = Server::always(Step::Close(answer("200 OK", &headers, body))).await;
        let response = server.client().get("x").await.unwrap();
        assert_eq!(response.text(), "hello", "{coding}");
        assert!(server.request(1).contains(coding), "it is asked for");
        let plain = server.builder().without_compression().build().unwrap();
        assert_ne!(plain.get("x").await.unwrap().text(), "hello");
        assert!(!server.request(2).contains("accept-encoding"));
    }
    // 200 MB of one letter, in 200 KB and 6 KB.
    for (coding, bomb) in [("gzip", gzip(&vec![b'x'; 200_000_000])), ("zstd", zstd_bomb(1_600))] {
        assert!(bomb.len() < 400_000);
        for status in ["200 OK", "500 Broken"] {
            let headers = format!("content-encoding: {coding}\r\n");
            let server = Server::always(Step::Close(answer(status, &headers, &bomb))).await;
            let client = server.builder().max_body(1_000_000).build().unwrap();
            let error = client.post("x").await.unwrap_err();
            let text = report(&error).to_string();
            let expected = if status == "200 OK" { "limit of 1000000 bytes" } else { "status 500" };
            assert!(text.contains(expected), "{coding}: {text}");
            let download = client.get("x").max_body(1_000_000).stream().await;
            if status == "200 OK" {
                let (_, error) = rest(&mut download.unwrap()).await;
                assert!(error.unwrap().contains("limit of 1000000"), "{coding}");
                continue;
            }
            for error in [error, download.unwrap_err()] {
                assert_eq!(error.response().unwrap().bytes().len(), 64 * 1024, "{coding}");
            }
        }
    }
    // What is no gzip, or ends early, is a failure that may be repeated.
    let mut cut = gzip(&[7; 1000]);
    cut.truncate(cut.len() - 9);
    for body in [b"hello".to_vec(), cut] {
        let bad = Step::Close(answer("200 OK", "content-encoding: gzip\r\n", body));
        let steps = [bad, Step::Close(answer("200 OK", "", "ok"))];
        let server = Server::scripted(move |n, _| steps[n - 1].clone()).await;
        assert_eq!(server.client().get("x").await.unwrap().text(), "ok");
    }
}

fn pieces() -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    stream::iter(["ab", "cd", "ef"].map(|piece| Ok(Bytes::from(piece))))
}

#[tokio::test]
async fn a_stream_that_can_be_made_again_is_repeated_and_one_that_cannot_is_not() {
    let busy = "HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let server = Server::start(&[busy, ok]).await;
    let body = RequestBody::streamed_by(pieces).with_length(6);
    server.client().put("x").body(body).await.unwrap();
    assert_eq!(server.seen(), 2);
    for n in 1..=2 {
        assert!(server.request(n).contains("content-length: 6"), "{}", server.request(n));
        assert!(server.request(n).ends_with("abcdef"));
    }
    for answer in [busy, ""] {
        let server = Server::start(&[answer, ok]).await;
        let body = RequestBody::streamed_once(pieces());
        let error = server.client().put("x").body(body).await.unwrap_err();
        assert_eq!((server.seen(), error.attempts()), (1, 1), "{error}");
        assert!(error.is_outcome_unknown(), "{error}");
        assert!(server.request(1).contains("transfer-encoding: chunked"));
    }
    // These say that it did not happen, but there is nothing left to send.
    for (status, hint) in [(429, Some(4)), (425, None)] {
        let headers = if status == 429 { "retry-after: 4\r\n" } else { "" };
        let later = format!("HTTP/1.1 {status} Later\r\n{headers}content-length: 0\r\n\r\n");
        let server = Server::start(&[&later, ok]).await;
        let body = RequestBody::streamed_once(pieces());
        let error = server.client().put("x").body(body).await.unwrap_err();
        assert_eq!((server.seen(), error.attempts()), (1, 1), "{}", report(&error));
        assert_eq!(error.response().unwrap().status(), status);
        assert_eq!(error.retry_after(), hint.map(Duration::from_secs));
        assert!(error.elapsed() < Duration::from_secs(4), "{}", report(&error));
    }
    // Nobody has begun to read it while there was no connection.
    let double = HttpDouble::new(|r| match r.number {
        1 => Reply::refused(),
        _ => Reply::status(200),
    });
    let client = crate::server::builder("http://once.example").double(&double).build().unwrap();
    client.post("x").body(RequestBody::streamed_once(pieces())).await.unwrap();
    assert_eq!(double.requests().len(), 2);
}

#[tokio::test]
async fn a_stream_that_fails_is_the_callers_fault_and_is_not_repeated() {
    let server = Server::start(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
    let client = server.builder().policy(|p| p.failure_threshold(1)).build().unwrap();
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let failing = move || {
        count.fetch_add(1, SeqCst);
        stream::iter([Ok(Bytes::from("ab")), Err(io::Error::other("disk"))])
    };
    let error = client.put("x").body(RequestBody::streamed_by(failing)).await.unwrap_err();
    let text = report(&error).to_string();
    assert!(text.contains("the stream that is the request's body failed"), "{text}");
    // Also where a piece ends at the length that was announced.
    for length in [0, 2, 4, 5, 7] {
        let body = RequestBody::streamed_by(pieces).with_length(length);
        let error = client.put("x").body(body).await.unwrap_err();
        let text = report(&error).to_string();
        assert!(text.contains("the request's body failed"), "{length}: {text}");
    }
    let broken = stream::iter([Ok(Bytes::new()), Err(io::Error::other("disk"))]);
    let body = RequestBody::streamed_once(broken).with_length(0);
    let error = client.put("x").body(body).await.unwrap_err();
    assert!(report(&error).to_string().contains("the request's body failed"));
    assert_eq!((made.load(SeqCst), server.seen()), (1, 0));
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test]
async fn a_stream_of_no_bytes_is_repeated_as_often_as_any() {
    let busy = "HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let empty = || stream::iter([Ok(Bytes::new())]);
    let server = Server::start(&[busy, ok]).await;
    let body = RequestBody::streamed_by(empty).with_length(0);
    server.client().put("x").body(body).await.unwrap();
    assert!(server.request(2).contains("content-length: 0"), "{}", server.request(2));
    // One that is there once, too, since nobody has read any of it.
    let double = HttpDouble::new(|r| match r.number {
        1 => Reply::refused(),
        _ => Reply::status(200),
    });
    let client = crate::server::builder("http://empty.example").double(&double).build().unwrap();
    let body = RequestBody::streamed_once(empty()).with_length(0);
    client.post("x").body(body).await.unwrap();
    assert_eq!(double.requests().len(), 2);
}

#[tokio::test]
async fn a_stream_of_no_bytes_is_sent_though_it_does_not_end() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let server = Server::start(&[ok, ok]).await;
    let client = server.builder().policy(|p| p.timeout(Duration::from_secs(5))).build().unwrap();
    for body in
        [RequestBody::streamed_once(stream::pending()), RequestBody::streamed_by(stream::pending)]
    {
        client.post("x").body(body.with_length(0)).await.unwrap();
    }
    assert!(server.request(2).contains("content-length: 0"), "{}", server.request(2));
}

#[tokio::test]
async fn a_stream_of_known_length_is_sent_before_it_ends() {
    let server = Server::start(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
    let client = server.builder().policy(|p| p.timeout(Duration::from_secs(5))).build().unwrap();
    let body = RequestBody::streamed_once(pieces().chain(stream::pending())).with_length(6);
    client.put("x").body(body).await.unwrap();
    assert!(server.request(1).ends_with("abcdef"), "{}", server.request(1));
}

#[tokio::test]
async fn a_form_with_files_is_repeated_with_its_boundary() {
    let server = Server::start(&["", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
    let form = Multipart::new().text("title", "r").file("f", "r.csv", "text/csv", "a,b");
    server.client().put("x").multipart(form).await.unwrap();
    let [first, second] = [1, 2].map(|n| server.request(n));
    assert_eq!(first, second);
    assert!(first.contains("content-type: multipart/form-data; boundary="));
    assert!(
        first.contains("name=\"f\"; filename=\"r.csv\"\r\ncontent-type: text/csv\r\n\r\na,b\r\n--")
    );
}

#[tokio::test]
async fn a_long_body_is_read_whole_and_one_over_the_limit_is_not() {
    let body: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let server = Server::always(Step::Keep(answer("200 OK", "", &body))).await;
    assert_eq!(*server.client().get("x").await.unwrap().bytes(), body);
    let client = server.builder().max_body(999_999).build().unwrap();
    let error = client.get("x").await.unwrap_err();
    assert_eq!(error.attempts(), 1);
    assert_eq!(client.get("x").max_body(1_000_000).await.unwrap().bytes().len(), 1_000_000);
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned()
        + &"5\r\nhello\r\n".repeat(10)
        + "0\r\n\r\n";
    let server = Server::start(&[&chunked]).await;
    assert_eq!(server.client().get("x").max_body(50).await.unwrap().bytes().len(), 50);
    assert!(server.client().get("x").max_body(49).await.is_err());
}

#[tokio::test]
async fn of_a_failures_body_64_kib_are_kept() {
    let body: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let server = Server::always(Step::Keep(answer("500 Broken", "", &body))).await;
    let error = server.client().post("x").await.unwrap_err();
    assert_eq!(*error.response().unwrap().bytes(), body[..64 * 1024]);
}

#[tokio::test]
async fn a_form_with_a_file_or_stream_is_sent_piece_by_piece_and_again_if_it_can_be_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.csv");
    let content: Vec<u8> = (0..400_000).map(|n| b'a' + (n % 26) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let busy = "HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n";
    let server = Server::start(&[busy, ok]).await;
    let file = RequestBody::file(&path).await.unwrap();
    let form = Multipart::new().text("title", "r").file("f", "r.csv", "text/csv", file);
    let form =
        form.file("g", "g.txt", "text/plain", RequestBody::streamed_by(pieces).with_length(6));
    assert!(form.is_replayable());
    server.client().put("x").multipart(form).await.unwrap();
    let [first, second] = [1, 2].map(|n| server.request(n));
    assert!(first == second && server.seen() == 2);
    let (head, body) = first.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    let boundary = head.split_once("boundary=").unwrap().1.split("\r\n").next().unwrap();
    let content = String::from_utf8(content).unwrap();
    let expected = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"title\"\r\n\r\nr\r\n\
         --{boundary}\r\ncontent-disposition: form-data; name=\"f\"; filename=\"r.csv\"\r\n\
         content-type: text/csv\r\n\r\n{content}\r\n\
         --{boundary}\r\ncontent-disposition: form-data; name=\"g\"; filename=\"g.txt\"\r\n\
         content-type: text/plain\r\n\r\nabcdef\r\n--{boundary}--\r\n"
    );
    assert!(body == expected, "{} bytes for {}", body.len(), expected.len());
    // A part that is there once: sent once, in chunks where a length is not known.
    let server = Server::start(&[busy, ok]).await;
    let form = Multipart::new().file("f", "f", "text/plain", RequestBody::streamed_once(pieces()));
    assert!(!form.is_replayable());
    let error = server.client().put("x").multipart(form).await.unwrap_err();
    assert_eq!((server.seen(), error.attempts()), (1, 1), "{error}");
    assert!(error.is_outcome_unknown(), "{error}");
    let sent = server.request(1);
    assert!(sent.contains("transfer-encoding: chunked") && sent.contains("filename=\"f\""));
    // Unless nobody has begun to read it.
    let double = HttpDouble::new(|r| match r.number {
        1 => Reply::refused(),
        _ => Reply::status(200),
    });
    let client = crate::server::builder("http://form.example").double(&double).build().unwrap();
    let form = Multipart::new().file("f", "f", "text/plain", RequestBody::streamed_once(pieces()));
    client.post("x").multipart(form).await.unwrap();
    assert_eq!(double.requests().len(), 2);
}

#[tokio::test]
async fn a_file_that_is_missing_or_changes_is_the_callers_fault() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.csv");
    for (missing, why) in [(&*path, "entity not found"), (directory.path(), "is a directory")] {
        let text = RequestBody::file(missing).await.unwrap_err().to_string();
        assert!(text.contains(why) && text.contains("check the path"), "{text}");
    }
    std::fs::write(&path, b"12345").unwrap();
    let server = Server::start(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
    let client = server.builder().policy(|p| p.failure_threshold(1)).build().unwrap();
    client.put("x").body(RequestBody::file(&path).await.unwrap()).await.unwrap();
    assert!(server.request(1).ends_with("\r\n\r\n12345"));
    // Read in pieces of 128 KiB, one of which may end where the file did.
    let piece = vec![b'x'; 128 * 1024];
    for (before, after) in [
        (&b""[..], Some(&b"1234567"[..])),
        (b"12345", Some(b"1234567")),
        (b"12345", Some(b"1")),
        (b"12345", None),
        (&piece, Some(&[&piece[..], b"more"].concat())),
    ] {
        std::fs::write(&path, before).unwrap();
        let body = RequestBody::file(&path).await.unwrap();
        match after {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = client.put("x").body(body).await.unwrap_err();
        let text = report(&error).to_string();
        assert!(error.attempts() == 1 && text.contains("the request's body failed"), "{text}");
    }
    // One that has not changed is sent, whatever its length.
    std::fs::write(&path, &piece).unwrap();
    client.put("x").body(RequestBody::file(&path).await.unwrap()).await.unwrap();
    assert!(server.request(2).ends_with("xxx"));
    std::fs::write(&path, b"").unwrap();
    client.put("x").body(RequestBody::file(&path).await.unwrap()).await.unwrap();
    assert!(server.request(3).contains("content-length: 0"), "{}", server.request(3));
    assert_eq!((server.seen(), client.policy().breaker().state()), (3, BreakerState::Closed));
}
