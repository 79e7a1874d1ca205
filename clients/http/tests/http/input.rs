//! What cannot work: an error before anything is sent, that says what to write instead and shows no
//! secret.

use crate::server::{Server, Step, answer, builder};
use mainstay_http::{
    ErrorResponse, HttpClient, HttpClientBuilder, HttpDouble, Reply, Request, get_http_client_named,
};
use mainstay_policy::{Effect, Error, ErrorKind, HealthStatus, report};

fn invalid(error: &Error, why: &str) {
    said(error, ErrorKind::InvalidInput, why);
}

/// The server answered: whoever sends again what was never sent must not send this again.
fn unusable(error: &Error, why: &str) {
    said(error, ErrorKind::Backend, why);
    assert_eq!((error.effect(), error.attempts()), (Effect::Permanent, 1));
}

fn said(error: &Error, kind: ErrorKind, why: &str) {
    let text = report(error).to_string();
    println!("{text}");
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(why), "{text}");
    assert!(!text.contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn clients_that_cannot_work_are_refused() {
    let build = |base: &str, change: fn(HttpClientBuilder) -> HttpClientBuilder| {
        change(HttpClient::builder(base)).build().unwrap_err()
    };
    let same = |builder| builder;
    let api = "https://api.example.com";
    invalid(&build("", same), "is empty; write it as https://host/path");
    invalid(&build("api.example.com", same), "has no scheme; write it as https://host/path");
    invalid(&build("/v1", same), "has no scheme");
    invalid(&build("https://", same), "has no host");
    invalid(&build("https:///v1", same), "has no host");
    invalid(&build("ftp://user:hunter2@host", same), "must start with http:// or https://");
    invalid(&build("https://user:hunter2@ho st", same), "is not a URL");
    invalid(&build("https://host#hunter2", same), "has a fragment");
    let crlf = |b: HttpClientBuilder| b.default_header("x-key", "hunter2\r\nhost: evil");
    invalid(&build(api, crlf), "the default header x-key holds characters that HTTP forbids");
    let name = |b: HttpClientBuilder| b.default_header("hunter2 hunter2", "x");
    invalid(&build(api, name), "the name of a default header");
    let token = |b: HttpClientBuilder| b.bearer_auth("hunter2\n");
    invalid(&build(api, token), "the default header authorization");
    let proxy = |b: HttpClientBuilder| b.proxy("http://user:hunter2@");
    invalid(&build(api, proxy), "the proxy's URL cannot be used");
    let proxy = |b: HttpClientBuilder| b.proxy("socks5://user:hunter2@host:1080");
    invalid(&build(api, proxy), "write it as http://host:port");
    let header = |b: HttpClientBuilder| b.deadline_header("x y");
    invalid(&build(api, header), "deadline header's name");
    let policy = |b: HttpClientBuilder| b.policy(|p| p.max_attempts(0));
    let error = build(api, policy);
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("max_attempts is 0"), "{error}");
    let error = get_http_client_named("billing").unwrap_err();
    assert!(error.to_string().contains("MAINSTAY_HTTP_BILLING_BASE_URL is not set"), "{error}");
}

#[tokio::test]
async fn requests_that_cannot_work_are_not_sent() {
    let double = HttpDouble::new(|_| Reply::status(200));
    let client = HttpClient::builder("https://user:hunter2@input.example/v1?key=hunter2")
        .double(&double)
        .build()
        .unwrap();
    let refused = async |request: Request, why: &str| invalid(&request.await.unwrap_err(), why);
    let elsewhere = "names another host; give a path below the base URL";
    refused(client.get("https://evil.example/hunter2"), elsewhere).await;
    refused(client.get("//evil.example/hunter2"), elsewhere).await;
    refused(client.get("../hunter2"), "leaves the base URL's path; remove the `..`").await;
    refused(client.get("%2e%2e/hunter2"), "leaves the base URL's path").await;
    refused(client.get("hunter2\r\nhost: evil"), "a control character").await;
    refused(client.get("\\hunter2"), "a backslash").await;
    let get = || client.get("x");
    refused(get().header("x-key", "hunter2\r\nhost: evil"), "header x-key holds").await;
    refused(get().header("hunter2: ", "x"), "a header's name holds").await;
    refused(get().bearer_auth("hunter2\n"), "the token holds").await;
    refused(get().idempotency_key("hunter2\""), "letters and digits").await;
    refused(get().idempotency_key(""), "is empty").await;
    refused(get().traceparent("hunter2"), "00-{32 hex}-{16 hex}-{2 hex}").await;
    refused(get().query("hunter2"), "the query cannot be written as pairs").await;
    refused(get().query(&[("nested", vec!["hunter2"])]), "the query cannot be written").await;
    refused(get().form(&7), "the form cannot be written as pairs").await;
    let map = std::collections::HashMap::from([((1, "hunter2"), 1)]);
    refused(get().json(&map), "the value cannot be written as JSON").await;
    let bare = HttpClient::builder_without_base().double(&double).build().unwrap();
    refused(bare.get("users/hunter2"), "has no base URL; set MAINSTAY_HTTP_BASE_URL").await;
    refused(bare.get("https://user:hunter2@host/"), "holds credentials; leave them out").await;
    refused(bare.get("https:///hunter2"), "has no host").await;
    refused(bare.get("https://hunter2:99999"), "is not a URL (invalid port number)").await;
    let long = "hunter2".repeat(10_000);
    refused(client.get(&long), "longer than 65534 bytes; send what is long in the body").await;
    refused(get().query(&[("q", long)]), "longer than 65534 bytes").await;
    refused(bare.get("ftp://hunter2/"), "must start with http:// or https://").await;
    refused(bare.get("https://hunter2:port/"), "is not a URL").await;
    assert_eq!(bare.health_check().await.status, HealthStatus::Unhealthy);
    assert!(double.requests().is_empty());
    assert!(!format!("{client:?} {:?}", client.get("hunter2").body("hunter2")).contains("hunter2"));
}

#[tokio::test]
async fn a_call_outside_a_runtime_is_an_error_and_no_panic() {
    let error = std::thread::spawn(|| {
        let client = HttpClient::builder("http://127.0.0.1:9").build().unwrap();
        let mut call = std::pin::pin!(std::future::IntoFuture::into_future(client.get("x")));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match call.as_mut().poll(&mut context) {
            std::task::Poll::Ready(end) => end.unwrap_err(),
            std::task::Poll::Pending => panic!("there is nothing to wait for"),
        }
    });
    invalid(&error.join().unwrap(), "needs a tokio runtime around it");
}

#[tokio::test]
async fn of_a_body_that_is_not_what_was_expected_its_kind_is_shown_and_no_value() {
    let get = async |status: &str, headers: &str, body: &str| {
        let server = Server::always(Step::Close(answer(status, headers, body))).await;
        let response = server.client().get("x").await.unwrap();
        (response.json::<Vec<u32>>().unwrap_err(), server.seen())
    };
    let html = "content-type: text/html; charset=hunter2\r\n";
    let page = "\n<!doctype html>\n<title>hunter2</title>";
    let (error, seen) = get("404 Not Found", html, page).await;
    unusable(
        &error,
        "the 39-byte body of type text/html of a response with status 404 is not JSON",
    );
    unusable(&error, "(line 2, column 1); it begins with <!doctype>; text() has it");
    assert_eq!(seen, 1);
    for (body, tag) in [
        ("<html lang='hunter2'>", "<html>"),
        ("\u{feff}<?xml version='hunter2'?>", "<?xml>"),
        ("<input value='hunter2' />", "<input>"),
        ("<soap:Envelope>", "<soap:Envelope>"),
    ] {
        let (error, _) = get("200 OK", "", body).await;
        unusable(&error, &format!("it begins with {tag};"));
    }
    // Forms, tokens, cookies and text, in which a secret looks like any other word.
    for body in [
        "access_token=hunter2&scope=repo",
        "hunter2",
        "Bearer hunter2",
        "your password is hunter2",
        "\"hunter2",
        "{\"token\": hunter2",
        "{'token': 'hunter2'}",
        "<hunter2",
        "< hunter2",
        "\u{1}\u{fffd}",
    ] {
        let (error, _) = get("200 OK", "content-type: hunter2\r\n", body).await;
        unusable(&error, &format!("the {}-byte", body.len()));
    }
    let (error, _) = get("200 OK", html, r#"{"password": "hunter2"}"#).await;
    unusable(&error, "of another shape than the type asked for");
    let (error, _) = get("200 OK", html, "[1, 2").await;
    unusable(&error, "is not JSON (line 1, column 5); text() has it");
    let (error, _) = get("204 No Content", "", "").await;
    unusable(&error, "status 204 has no body where JSON was expected");
}

/// A refusal in the place of what was asked for, which may well be JSON.
#[tokio::test]
async fn a_status_of_refusal_is_an_error_where_the_caller_wants_it_to_be() {
    let double = HttpDouble::new(|r| {
        let status = r.url.rsplit('/').next().unwrap().parse().unwrap();
        let long = "hunter2".repeat(20_000);
        Reply::status(status).with_header("x-mine", "1").with_body(long)
    });
    let client = HttpClient::builder("http://api.example.com").double(&double).build().unwrap();
    for status in ["400", "401", "404", "451", "501", "599"] {
        let answer = client.get(status).await.unwrap();
        let error = answer.error_for_status().unwrap_err();
        unusable(&error, &format!("the server answered with status {status}"));
        let response = error.response().unwrap();
        assert_eq!(response.status().as_str(), status);
        assert_eq!(response.headers()["x-mine"], "1");
        assert_eq!(response.bytes().len(), 64 * 1024);
    }
    for status in ["200", "204", "304"] {
        let answer = client.get(status).await.unwrap().error_for_status().unwrap();
        assert_eq!((answer.status().as_str(), answer.bytes().len()), (status, 140_000));
    }
}

#[tokio::test]
async fn failures_name_the_origin_and_never_the_query() {
    let server = Server::start(&[""]).await;
    let client = builder(&format!("http://user:hunter2@{}?key=hunter2", server.address));
    let error = client.build().unwrap().get("hunter2?token=hunter2").await.unwrap_err();
    let (text, chain) = (report(&error).to_string(), format!("{error:?}"));
    assert!(text.contains(&format!("http:http://{}", server.address)), "{text}");
    assert!(!text.contains("hunter2") && !chain.contains("hunter2"), "{text} {chain}");
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        source = error.source();
    }
}
