//! Redirects: where they are followed, and what goes along.

use crate::server::{Server, Step, answer};
use mainstay_http::{HttpClient, HttpClientBuilder, HttpDouble, Reply, RequestBody};
use mainstay_policy::{BreakerState, report};
use std::time::Duration;

fn builder(double: &HttpDouble) -> HttpClientBuilder {
    HttpClient::builder("https://own.example/v1")
        .double(double)
        .bearer_auth("s3cret")
        .default_header("x-api-key", "s3cret")
}

/// Redirects everything but what ends with `/end`.
fn to(status: u16, location: &str) -> HttpDouble {
    let location = location.to_owned();
    HttpDouble::new(move |r| match r.url.ends_with("/end") {
        true => Reply::body("the end"),
        false => Reply::status(status).with_header("location", &location),
    })
}

#[tokio::test]
async fn on_the_same_origin_methods_change_as_rfc_9110_says() {
    for (status, sent, then) in [
        (301, "GET", "GET"),
        (302, "PUT", "PUT"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
        (303, "DELETE", "GET"),
        (307, "PUT", "PUT"),
        (308, "PUT", "PUT"),
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
    ] {
        let double = to(status, "/elsewhere/end?x=1#y/end");
        let client = builder(&double).build().unwrap();
        let request = client.request(sent.parse().unwrap(), "x").json(&1);
        let response = request.with_idempotency_key().await.unwrap();
        let seen = double.requests();
        assert_eq!((response.status().as_u16(), seen.len()), (200, 2), "{status} {sent}");
        assert_eq!(seen[1].method, then, "{status} {sent}");
        assert!(seen[1].url.starts_with("https://own.example/elsewhere/end?x=1"));
        assert_eq!(seen[1].headers["x-api-key"], "s3cret");
        let body = if then == sent { &b"1"[..] } else { b"" };
        assert_eq!(seen[1].body.as_deref(), Some(body), "{status} {sent}");
        assert_eq!(seen[1].headers.contains_key("content-type"), then == sent, "{status} {sent}");
    }
    // Without a key the first hop may have done the work.
    for method in ["POST", "PATCH"] {
        let double = to(303, "/end");
        let client = builder(&double).build().unwrap();
        let response = client.request(method.parse().unwrap(), "x").await.unwrap();
        assert_eq!((response.status().as_u16(), double.requests().len()), (303, 1));
    }
}

#[tokio::test]
async fn elsewhere_they_are_the_response_unless_allowed() {
    for location in [
        "https://other.example/end",
        "https://own.example:8443/end",
        "//other.example/end",
        "http://own.example/end",
        "https://user:pass@own.example/end",
        "ftp://own.example/end",
        "https://",
    ] {
        let double = to(302, location);
        let response = builder(&double).build().unwrap().get("x/y").await.unwrap();
        assert_eq!((response.status().as_u16(), double.requests().len()), (302, 1), "{location}");
    }
}

#[tokio::test]
async fn where_allowed_nothing_secret_goes_along_and_tls_stays() {
    let double = to(307, "https://other.example/end");
    let client = builder(&double).follow_redirects_elsewhere().build().unwrap();
    let request = client.put("x").body("data").header("cookie", "s3cret").header("x-mine", "1");
    let request = request.header("host", "tenant.own.example");
    assert_eq!(request.bearer_auth("mine").await.unwrap().text(), "the end");
    let seen = double.requests();
    assert_eq!(seen[0].headers["authorization"], "Bearer mine");
    assert_eq!(seen[1].headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["x-mine"]);
    assert_eq!(seen[1].body.as_deref(), Some(&b"data"[..]));
    // Nor what a request sends in a default's place.
    let double = to(302, "https://other.example/end");
    let client = builder(&double).follow_redirects_elsewhere().build().unwrap();
    client.get("x").header("x-api-key", "s3cret too").await.unwrap();
    let seen = double.requests();
    assert_eq!(seen[0].headers["x-api-key"], "s3cret too");
    assert!(seen[1].headers.is_empty(), "{:?}", seen[1].headers.keys());
    // And they do not come back on the way home.
    let double = HttpDouble::new(|r| match r.number {
        1 => Reply::status(302).with_header("location", "https://other.example/"),
        2 => Reply::status(302).with_header("location", "https://own.example/v1/end"),
        _ => Reply::status(200),
    });
    builder(&double).follow_redirects_elsewhere().build().unwrap().get("x").await.unwrap();
    assert!(double.requests()[2].headers.is_empty());
    let double = to(302, "http://own.example/end");
    let client = builder(&double).follow_redirects_elsewhere().build().unwrap();
    assert_eq!(client.get("x").await.unwrap().status(), 302, "never from https to http");
}

/// One that comes at once, and one that is waited for.
#[tokio::test]
async fn a_body_that_breaks_elsewhere_is_no_fault_of_the_server_that_sent_us_there() {
    let double = HttpDouble::new(|r| match r.url.contains("other.example") {
        true => Reply::body("x").cut_off(),
        false => Reply::status(302).with_header("location", "https://other.example/"),
    });
    let stalls = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello".to_vec();
    let other = Server::always(Step::Stall(stalls)).await;
    let location = format!("location: {}/end\r\n", other.url());
    let own = Server::always(Step::Keep(answer("302 Found", &location, ""))).await;
    for (name, client) in
        [("cut", builder(&double)), ("stalls", own.builder().body_idle(Duration::from_millis(50)))]
    {
        let client = client
            .follow_redirects_elsewhere()
            .name(format!("body elsewhere {name}"))
            .policy(|p| p.failure_threshold(1).max_attempts(1))
            .build()
            .unwrap();
        let error = client.get("x").await.unwrap_err();
        assert!(error.is_outcome_unknown(), "{name}: {}", report(&error));
        assert_eq!(client.policy().breaker().state(), BreakerState::Closed, "{name}");
        let mut download = client.get("x").stream().await.unwrap();
        download.chunk().await.unwrap();
        let error = download.chunk().await.unwrap_err();
        assert!(report(&error).to_string().contains("body"), "{name}: {}", report(&error));
        assert_eq!(client.policy().breaker().state(), BreakerState::Closed, "{name}");
    }
}

#[tokio::test]
async fn circles_end_after_five_and_are_not_repeated() {
    let double = to(302, "/v1/x");
    let client = builder(&double).policy(|p| p.failure_threshold(1)).build().unwrap();
    let error = client.get("x").await.unwrap_err();
    assert_eq!((double.requests().len(), error.attempts()), (6, 1));
    assert!(report(&error).to_string().contains("more than 5 redirects"), "{}", report(&error));
    assert!(!error.is_circuit_open() && client.get("end").await.is_ok());
}

#[tokio::test]
async fn a_body_that_is_there_once_is_not_redirected() {
    let double = to(307, "/end");
    let client = builder(&double).build().unwrap();
    let body = futures_util::stream::iter([Ok("x".into())]);
    let response = client.put("x").body(RequestBody::streamed_once(body)).await.unwrap();
    assert_eq!((response.status().as_u16(), double.requests().len()), (307, 1));
}

/// Whoever a redirect leads to has another breaker, and another pace.
#[tokio::test]
async fn what_fails_elsewhere_is_no_fault_of_the_server_that_sent_us_there() {
    for status in [503, 429] {
        let double = HttpDouble::new(move |r| match r.url.contains("other.example") {
            true => Reply::status(status).with_header("retry-after", "20"),
            false => Reply::status(302).with_header("location", "https://other.example/"),
        });
        let client = builder(&double)
            .follow_redirects_elsewhere()
            .name(format!("elsewhere-{status}"))
            .policy(|p| p.failure_threshold(1).max_attempts(1))
            .build()
            .unwrap();
        let error = client.get("x").await.unwrap_err();
        assert_eq!(error.attempts(), 1, "{}", report(&error));
        assert_eq!(client.policy().breaker().state(), BreakerState::Closed, "{status}");
        assert_eq!(client.slowed_for(), None, "{status}");
        client.get("x").await.unwrap_err();
        assert_eq!(double.requests().len(), 4, "nobody was held back");
    }
}
