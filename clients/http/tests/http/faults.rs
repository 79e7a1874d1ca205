//! What can go wrong between two sockets, row by row: what the client makes of it, and how often the
//! server saw the request.

use crate::server::{Server, Step, answer, builder};
use mainstay_http::{ErrorResponse, HttpClient};
use mainstay_policy::{BreakerState, Effect, Error, PolicyBuilder, report};
use mainstay_test_support::{
    Port, Proxy,
    proxy::{Accept, Direction, End},
};
use std::{future::IntoFuture, time::Duration};

const MS: Duration = Duration::from_millis(1);

/// A POST that fails: its effect, its attempts, what it says.
async fn post(client: &HttpClient) -> (Effect, u32, String) {
    let error = client.post("x").json(&1).await.unwrap_err();
    let text = report(&error).to_string();
    (error.effect(), error.attempts(), text)
}

#[tokio::test]
async fn what_was_never_sent_is_repeated_whatever_the_method() {
    let nowhere = Port::reserve();
    let http = builder(&format!("http://{}", nowhere.address())).build().unwrap();
    let (effect, attempts, text) = post(&http).await;
    assert_eq!((effect, attempts), (Effect::NeverSent, 3));
    assert!(text.contains("could not be reached") && text.contains("refused"), "{text}");
    // A label of 64 letters is no name, so no resolver is asked.
    let name = builder(&format!("http://{}.test", "a".repeat(64))).build().unwrap();
    let (effect, attempts, text) = post(&name).await;
    assert_eq!((effect, attempts), (Effect::NeverSent, 3));
    assert!(text.contains("could not be looked up"), "{text}");
    // A peer that ends TLS before it has begun.
    let proxy = Proxy::in_front_of(nowhere.address());
    for accept in [Accept::Close, Accept::Reset] {
        proxy.set(|faults| faults.accept = accept);
        let tls = builder(&format!("https://{}", proxy.addr())).build().unwrap();
        let (effect, attempts, _) = post(&tls).await;
        assert_eq!((effect, attempts), (Effect::NeverSent, 3));
    }
    // A peer that says nothing while TLS waits for it.
    let proxy = Proxy::in_front_of(nowhere.address());
    proxy.set(|faults| faults.accept = Accept::Silent);
    let silent = builder(&format!("https://{}", proxy.addr())).connect_timeout(100 * MS);
    let (effect, attempts, text) = post(&silent.build().unwrap()).await;
    // The kernel connects before the proxy knows of it.
    proxy.until("all were accepted", |proxy| proxy.accepted() >= 3).await;
    assert_eq!((effect, attempts, proxy.accepted()), (Effect::NeverSent, 3, 3));
    assert!(text.contains("no connection in time"), "{text}");
    // Nor where an attempt may take less than a connection usually may.
    let brief = builder(&format!("https://{}", proxy.addr()))
        .policy(|p| p.timeout(400 * MS).deadline(10_000 * MS).max_attempts(2).base_delay(MS));
    let (effect, attempts, text) = post(&brief.build().unwrap()).await;
    proxy.until("all were accepted", |proxy| proxy.accepted() >= 5).await;
    assert_eq!((effect, attempts, proxy.accepted()), (Effect::NeverSent, 2, 5), "{text}");
}

#[tokio::test]
async fn a_requests_own_limit_holds_where_the_clients_are_off() {
    let server = Server::always(Step::Stall(Vec::new())).await;
    let client = server.builder().policy(|p| p.enable_timeout(false).base_delay(MS));
    let request = client.build().unwrap().get("x").timeout(100 * MS);
    let end = tokio::time::timeout(Duration::from_secs(60), request.into_future()).await;
    let error = end.expect("the request has a limit").unwrap_err();
    assert!(error.is_timeout(), "{}", report(&error));
}

#[tokio::test]
async fn what_may_have_happened_is_repeated_only_for_methods_that_allow_it() {
    let half = b"HTTP/1.1 200 OK\r\ncontent-le".to_vec();
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n[\"".to_vec();
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let step =
        |text: &str, bytes: Vec<u8>, makes: fn(Vec<u8>) -> Step| (text.to_owned(), makes(bytes));
    for (name, step) in [
        step("closed before the head", Vec::new(), Step::Close),
        step("reset before the head", Vec::new(), Step::Reset),
        step("closed in the head", half.clone(), Step::Close),
        step("reset in the head", half, Step::Reset),
        step("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), Step::Close),
        step("a body cut off", cut.clone(), Step::Close),
        step("a body reset", cut.clone(), Step::Reset),
        step("a body that stalls", cut, Step::Stall),
        step("chunks that end early", format!("{chunks}5\r\nhel").into(), Step::Close),
        step("no last chunk", format!("{chunks}5\r\nhello\r\n").into(), Step::Close),
        step("a chunk of no size", format!("{chunks}zz\r\nhello\r\n0\r\n\r\n").into(), Step::Close),
        step(
            "a chunk of endless size",
            format!("{chunks}fffffffffffffffff\r\n").into(),
            Step::Close,
        ),
    ] {
        let server = Server::always(step.clone()).await;
        let client = server.builder().body_idle(100 * MS).build().unwrap();
        let (effect, attempts, text) = post(&client).await;
        assert_eq!((effect, attempts, server.seen()), (Effect::Unknown, 1, 1), "{name}: {text}");
        // A GET is made until it is answered.
        let ok = Step::Close(answer("200 OK", "", "[\"Jo\"]"));
        let steps = [step.clone(), step, ok];
        let server = Server::scripted(move |n, _| steps[n - 1].clone()).await;
        let client = server.builder().body_idle(100 * MS).build().unwrap();
        assert_eq!(client.get("x").await.unwrap().text(), "[\"Jo\"]", "{name}");
        assert_eq!(server.seen(), 3, "{name}");
    }
}

#[tokio::test]
async fn a_failing_status_is_heeded_though_its_body_stalls() {
    let stalls = |head: &str| format!("HTTP/1.1 {head}\r\ncontent-length: 9\r\n\r\nx").into_bytes();
    let server = Server::always(Step::Stall(stalls("429 Later\r\nretry-after: 20"))).await;
    let brief = |p: PolicyBuilder| p.timeout(3_000 * MS).max_attempts(1);
    let client = server.builder().policy(brief).build().unwrap();
    let error = client.post("x").await.unwrap_err();
    let response = error.response().expect("the status was there");
    assert_eq!((response.status().as_u16(), response.text().as_ref()), (429, "x"));
    assert!(!error.is_outcome_unknown(), "{}", report(&error));
    let wait = client.slowed_for().unwrap();
    assert!(wait > 10_000 * MS && wait <= 20_000 * MS, "{wait:?}");
    // Nor is the body of a redirect waited for until there is no time for what it leads to.
    let see = Step::Stall(stalls("303 See\r\nlocation: /v1/done"));
    let steps = [see, Step::Close(answer("200 OK", "", "done"))];
    let server = Server::scripted(move |n, _| steps[n - 1].clone()).await;
    let client = server.builder().policy(brief).build().unwrap();
    assert_eq!(client.get("x").await.unwrap().text(), "done");
}

#[tokio::test]
async fn a_reply_that_the_network_loses_is_unknown_and_a_held_one_times_out() {
    let server = Server::always(Step::Keep(answer("200 OK", "", "1"))).await;
    let proxy = Proxy::in_front_of(server.address);
    let client = builder(&format!("http://{}", proxy.addr()))
        .policy(|p| p.timeout(5_000 * MS).deadline(10_000 * MS).base_delay(MS).max_attempts(2))
        .build()
        .unwrap();
    proxy.lose_next_reply();
    let (effect, attempts, _) = post(&client).await;
    assert_eq!((effect, attempts, server.seen()), (Effect::Unknown, 1, 1));
    proxy.lose_next_reply();
    client.get("x").await.unwrap();
    assert_eq!(server.seen(), 3, "the lost one, and the one that was answered");
    proxy.set(|faults| faults.replies.hold = true);
    let error = client.post("x").timeout(1_000 * MS).await.unwrap_err();
    assert!(error.is_timeout() && error.is_outcome_unknown() && error.attempts() == 1, "{error}");
    proxy.until("it is there", |_| server.seen() == 4).await;
    proxy.heal();
    proxy.set(|faults| faults.accept = Accept::Reset);
    proxy.cut();
    let error = client.post("x").await.unwrap_err();
    assert!(matches!(error.effect(), Effect::Unknown | Effect::NeverSent), "{error}");
    assert_eq!(server.seen(), 4);
}

#[tokio::test]
async fn an_idle_connection_that_died_costs_no_one_anything() {
    let server = Server::always(Step::Keep(answer("200 OK", "", "1"))).await;
    let proxy = Proxy::in_front_of(server.address);
    let client = builder(&format!("http://{}", proxy.addr())).build().unwrap();
    for n in 1..=10 {
        client.get("x").await.unwrap();
        proxy.cut();
        proxy.until("the connection is gone", |proxy| proxy.live() == 0).await;
        assert_eq!(server.seen(), n);
    }
    assert_eq!(server.accepted(), 10);
}

#[tokio::test]
async fn connections_are_used_again_after_answers_of_every_kind() {
    let page = "x".repeat(60_000);
    let server = Server::scripted(move |n, _| {
        Step::Keep(match n % 4 {
            0 => answer("200 OK", "", "1"),
            1 => answer("503 Busy", "retry-after: 0\r\n", &page),
            2 => answer("302 Found", "location: /v1/y\r\n", &page),
            _ => answer("404 Not Found", "", &page),
        })
    })
    .await;
    let client = server.builder().policy(|p| p.max_attempts(2).base_delay(MS)).build().unwrap();
    for _ in 0..10 {
        // 503, then a redirect to 404.
        assert_eq!(client.get("x").await.unwrap().status(), 404);
        assert_eq!(client.get("x").await.unwrap().status(), 200);
    }
    // A second one only where this machine took a second over one of the bodies.
    assert_eq!(server.seen(), 40);
    assert!(server.accepted() <= 2, "{}", server.accepted());
}

#[tokio::test]
async fn slow_drips_are_read_within_the_limits_and_not_beyond_them() {
    let drip = |gap| Step::Drip(Vec::new(), answer("200 OK", "", "slow"), gap);
    let server = Server::always(drip(MS)).await;
    assert_eq!(server.client().get("x").await.unwrap().text(), "slow");
    let server = Server::always(drip(20 * MS)).await;
    let error = server.client().post("x").timeout(200 * MS).await.unwrap_err();
    assert!(error.is_timeout() && error.attempts() == 1, "{error}");
}

#[tokio::test]
async fn answers_before_the_answer_are_passed_over() {
    let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n\
                 HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let server = Server::start(&[early]).await;
    let response = server.client().get("x").await.unwrap();
    assert_eq!((response.status().as_u16(), &*response.text()), (200, "ok"));
    assert!(!response.headers().contains_key("link"));
    let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1_000);
    let server = Server::start(&[&endless]).await;
    server.client().post("x").await.unwrap_err();
    assert_eq!(server.seen(), 1);
}

#[tokio::test]
async fn heads_without_end_are_refused() {
    for head in [
        format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(2_000_000)),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(100_000)),
    ] {
        let server = Server::start(&[&head]).await;
        let (effect, attempts, text) = post(&server.client()).await;
        assert_eq!((effect, attempts, server.seen()), (Effect::Unknown, 1, 1));
        assert!(text.contains("headers are too long"), "{text}");
    }
    let long = format!("x-long: {}\r\n", "x".repeat(50_000));
    let server = Server::always(Step::Close(answer("200 OK", &long, "1"))).await;
    assert_eq!(server.client().get("x").await.unwrap().headers()["x-long"].len(), 50_000);
}

#[tokio::test]
async fn an_early_refusal_of_a_long_upload_is_the_response() {
    let server = Server::scripted(|_, _| Step::Close(answer("200 OK", "", ""))).await;
    let port = Port::reserve();
    let (listener, address) = (port.listen(), port.address());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let _ = read.read(&mut [0; 1024]).await;
        let refusal = answer("413 Too Large", "connection: close\r\n", "too much");
        write.write_all(&refusal).await.unwrap();
        // What is still under way, so that closing is not a reset.
        let _ = tokio::io::copy(&mut read, &mut tokio::io::sink()).await;
    });
    let client = builder(&format!("http://{address}")).build().unwrap();
    let response = client.post("x").body(vec![0; 20_000_000]).await.unwrap();
    assert_eq!((response.status().as_u16(), &*response.text()), (413, "too much"));
    drop(server);
}

#[tokio::test]
async fn bytes_that_the_network_garbles_are_an_error_or_an_answer_and_never_a_panic() {
    let server = Server::always(Step::Close(answer("200 OK", "x: y\r\n", "[1,2,3]"))).await;
    let proxy = Proxy::in_front_of(server.address);
    let client = builder(&format!("http://{}", proxy.addr()))
        .policy(|p| p.enable_circuit_breaker(false).max_attempts(1).timeout(2_000 * MS))
        .body_idle(200 * MS)
        .build()
        .unwrap();
    for offset in 0..answer("200 OK", "x: y\r\n", "[1,2,3]").len() as u64 {
        proxy.set(|faults| faults.replies.flip = Some(offset));
        match client.get("x").await {
            Ok(response) => drop(response.json::<Vec<u8>>()),
            Err(error) => drop(report(&error).to_string()),
        }
    }
    for limit in [0, 1, 17, 40] {
        for end in [End::Reset, End::Close] {
            proxy.heal();
            proxy.set(|faults| faults.replies.after = Some((limit, end)));
            let error: Error = client.get("x").await.unwrap_err();
            assert!(error.is_outcome_unknown(), "{error}");
        }
    }
    assert!(proxy.bytes(Direction::Replies) > 0);
}

#[tokio::test]
async fn a_dropped_request_closes_its_connection_and_tells_the_breaker_nothing() {
    let server = Server::always(Step::Stall(Vec::new())).await;
    let proxy = Proxy::in_front_of(server.address);
    let client = builder(&format!("http://{}", proxy.addr()))
        .policy(|p| p.failure_threshold(1))
        .build()
        .unwrap();
    for _ in 0..5 {
        let so_far = server.seen();
        let request = tokio::spawn(client.get("x").into_future());
        // The server is on this runtime: it gets its turns.
        while server.seen() == so_far {
            tokio::task::yield_now().await;
        }
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
    }
    proxy.until("the connections are gone", |proxy| proxy.live() == 0).await;
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
}
