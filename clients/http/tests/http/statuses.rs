//! What each status means for a repeat, for the breaker, and for the wait; time is paused, and a
//! double stands in the server's place.

use mainstay_http::{ErrorResponse, HttpClient, HttpDouble, Reply};
use mainstay_policy::{BreakerState, Decider, PolicyBuilder};
use std::{future::IntoFuture, sync::Arc, time::Duration};
use tokio::time::Instant;

const S: Duration = Duration::from_secs(1);

/// One failure opens its breaker; without jitter it waits 1, 2 and 4 s.
fn client(
    double: &HttpDouble,
    name: &str,
    change: impl FnOnce(PolicyBuilder) -> PolicyBuilder + Send + 'static,
) -> HttpClient {
    HttpClient::builder("http://api.example.com")
        .name(name)
        .double(double)
        .policy(|p| {
            change(
                p.max_attempts(4)
                    .jitter(mainstay_policy::Jitter::None)
                    .failure_threshold(1)
                    .without_slow_rate(),
            )
        })
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_status_is_repeated_and_counted_by_the_table() {
    // Attempts of a method that may be repeated, and of one that may not; whether it opens a
    // breaker; whether it is a response.
    let table: [(u16, usize, usize, bool, bool); 22] = [
        (200, 1, 1, false, true),
        (204, 1, 1, false, true),
        (300, 1, 1, false, true),
        (304, 1, 1, false, true),
        (400, 1, 1, false, true),
        (401, 1, 1, false, true),
        (403, 1, 1, false, true),
        (404, 1, 1, false, true),
        (408, 4, 1, false, false),
        (409, 1, 1, false, true),
        (413, 1, 1, false, true),
        (422, 1, 1, false, true),
        (425, 2, 2, false, false),
        (429, 4, 4, false, false),
        (499, 1, 1, false, true),
        (500, 4, 1, true, false),
        (501, 1, 1, false, true),
        (502, 4, 1, true, false),
        (503, 4, 1, true, false),
        (504, 4, 1, true, false),
        (505, 1, 1, false, true),
        (511, 1, 1, false, true),
    ];
    for (status, safe, unsafe_, opens, answers) in table {
        for (method, attempts) in [
            ("GET", safe),
            ("HEAD", safe),
            ("OPTIONS", safe),
            ("PUT", safe),
            ("DELETE", safe),
            ("POST", unsafe_),
            ("PATCH", unsafe_),
            ("PURGE", unsafe_),
            ("POST with a key", safe),
            ("POST said to be idempotent", safe),
            ("PUT said not to be", unsafe_),
        ] {
            let what = format!("{status} to {method}");
            let double = HttpDouble::new(move |_| Reply::status(status));
            let client = client(&double, &format!("table {what}"), |p| p);
            let verb = method.split(' ').next().unwrap().parse().unwrap();
            let mut request = client.request(verb, "x");
            if method.ends_with("a key") {
                request = request.with_idempotency_key();
            }
            if method.contains("said") {
                request = request.idempotent(!method.ends_with("not to be"));
            }
            let end = request.await;
            assert_eq!(double.requests().len(), attempts, "{what}");
            let state = client.policy().breaker().state();
            let expected = if opens { BreakerState::Open } else { BreakerState::Closed };
            assert_eq!(state, expected, "{what}");
            match end {
                Ok(response) => assert!(answers && response.status() == status, "{what}"),
                Err(error) => {
                    assert!(!answers, "{what}: {error}");
                    assert_eq!(error.response().unwrap().status(), status, "{what}");
                    assert_eq!(error.attempts() as usize, attempts, "{what}");
                    let lost = !matches!(status, 425 | 429 | 503) && attempts == 1;
                    assert!(!lost || error.is_outcome_unknown(), "{what}: {error}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_key_is_generated_once_and_is_the_same_on_every_attempt() {
    let double = HttpDouble::new(|r| Reply::status(if r.number < 3 { 500 } else { 201 }));
    let client = client(&double, "keys", |p| p);
    client.post("x").json(&1).with_idempotency_key().await.unwrap();
    client.post("x").json(&1).with_idempotency_key().await.unwrap();
    let keys: Vec<_> = double
        .requests()
        .iter()
        .map(|r| r.headers["idempotency-key"].to_str().unwrap().to_owned())
        .collect();
    assert_eq!((&keys[0], &keys[0]), (&keys[1], &keys[2]));
    assert_ne!(keys[2], keys[3]);
    assert!(keys[0].len() == 34 && keys[0].starts_with('"') && keys[0].ends_with('"'));
    assert!(double.requests().iter().all(|r| r.body.as_deref() == Some(b"1")));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_the_least_that_is_waited() {
    for (name, header, least, most) in [
        ("seconds", "7", 7 * S, 8 * S),
        ("less than our own wait", "0", S, S),
        ("a date", "Sun, 06 Nov 1994 08:49:47 GMT", 10 * S, 12 * S),
        ("a date that has passed", "Sun, 06 Nov 1994 08:00:00 GMT", S, S),
        ("no sense", "soon", S, S),
    ] {
        for status in [408, 425, 429, 500, 502, 503, 504] {
            let header = header.to_owned();
            let double = HttpDouble::new(move |r| match r.number {
                1 => Reply::status(status)
                    .with_header("date", "Sun, 06 Nov 1994 08:49:37 GMT")
                    .with_header("retry-after", &header),
                _ => Reply::status(200),
            });
            let client = client(&double, &format!("floor {name} {status}"), |p| p);
            let started = Instant::now();
            client.get("x").await.unwrap();
            let waited = started.elapsed();
            assert!((least..=most).contains(&waited), "{name}, {status}: {waited:?}");
        }
    }
}

/// A server that says when to come again has not said that it did nothing, unless the status does.
#[tokio::test(start_paused = true)]
async fn a_hint_makes_no_refusal_of_a_failure_and_slows_nobody_else_down() {
    for status in [408, 500, 502, 504] {
        let double =
            HttpDouble::new(move |_| Reply::status(status).with_header("retry-after", "3"));
        let client =
            client(&double, &format!("hinted {status}"), |p| p.failure_threshold(9).seed(7));
        let started = Instant::now();
        for (method, attempts) in [("PUT", 4), ("POST", 1)] {
            let error = client.request(method.parse().unwrap(), "x").await.unwrap_err();
            assert_eq!(error.attempts(), attempts, "{status} {method}");
            assert!(error.is_outcome_unknown(), "{status} {method}: {error}");
            assert_eq!(error.retry_after(), Some(3 * S), "{status} {method}: {error}");
        }
        // Our own third wait is 4 s.
        let waited = started.elapsed();
        assert!(waited >= 10 * S && waited < 11 * S, "{status}: {waited:?}");
        assert_eq!(client.slowed_for(), None, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_the_deadline_ends_the_call_now_and_says_when_to_come_again() {
    let double = HttpDouble::new(|_| Reply::status(429).with_header("retry-after", "600"));
    let client = client(&double, "beyond", |p| p);
    let started = Instant::now();
    let error = client.post("x").await.unwrap_err();
    assert!(started.elapsed() < S);
    assert_eq!(error.decider(), Some(Decider::Deadline));
    assert_eq!(error.retry_after(), Some(600 * S));
    assert!(error.to_string().ends_with("; try again in 600.0s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_post_that_meets_503_is_not_repeated_and_keeps_the_hint() {
    let double = HttpDouble::new(|_| Reply::status(503).with_header("retry-after", "30"));
    let error = client(&double, "hint", |p| p).post("x").await.unwrap_err();
    assert_eq!((error.attempts(), double.requests().len()), (1, 1));
    assert!(error.is_outcome_unknown());
    assert_eq!(error.retry_after(), Some(30 * S));
}

#[tokio::test(start_paused = true)]
async fn the_timeout_and_deadline_of_a_request_are_its_own() {
    let double = HttpDouble::new(|_| Reply::silent());
    let client = client(&double, "times", |p| p.timeout(60 * S).failure_threshold(100));
    let started = Instant::now();
    let error = client.get("x").timeout(2 * S).await.unwrap_err();
    // Twice the timeout: one attempt, a wait of 1 s, and what is left.
    assert!(error.is_timeout() && started.elapsed() == 4 * S, "{error} {:?}", started.elapsed());
    let started = Instant::now();
    let error = client.get("x").deadline(3 * S).await.unwrap_err();
    assert!(error.is_timeout() && started.elapsed() == 3 * S, "{error} {:?}", started.elapsed());
    let error = client.post("x").timeout(S).await.unwrap_err();
    assert!(error.is_outcome_unknown() && error.attempts() == 1, "{error}");
}

#[tokio::test(start_paused = true)]
async fn deadline_and_trace_travel_with_each_attempt() {
    let double = HttpDouble::new(|r| Reply::status(if r.number == 1 { 500 } else { 200 }));
    let now = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let client = HttpClient::builder("http://api.example.com")
        .name("travels")
        .double(&double)
        .deadline_header("x-request-timeout-ms")
        .trace_context(|| None)
        .policy(|p| p.jitter(mainstay_policy::Jitter::None))
        .build()
        .unwrap();
    client.get("x").timeout(5 * S).deadline(4 * S).await.unwrap();
    client.get("x").traceparent(now).await.unwrap();
    let header =
        |n: usize, name: &str| double.requests()[n].headers[name].to_str().unwrap().to_owned();
    assert_eq!(header(0, "x-request-timeout-ms"), "4000");
    assert_eq!(header(1, "x-request-timeout-ms"), "3000", "after a wait of 1 s");
    assert_eq!(header(0, "traceparent"), header(1, "traceparent"));
    assert_eq!(header(2, "traceparent"), now);
    let error = client.get("x").traceparent("1-2-3").await.unwrap_err();
    assert!(error.to_string().contains("traceparent"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_get_is_hedged_and_a_slow_post_is_not() {
    let double = HttpDouble::new(|r| match r.number {
        1 | 3 => Reply::body("late").after(10 * S),
        _ => Reply::body("soon"),
    });
    let client = client(&double, "hedge", |p| p.hedge(mainstay_policy::Hedge::After(S)));
    assert_eq!(client.get("x").await.unwrap().text(), "soon");
    assert_eq!(client.post("x").await.unwrap().text(), "late");
    assert_eq!(double.requests().len(), 3);
}

/// The copy that lost may arrive after the next write.
#[tokio::test(start_paused = true)]
async fn a_slow_write_is_not_hedged_though_it_may_be_repeated() {
    let double = HttpDouble::new(|_| Reply::body("late").after(10 * S));
    let client = client(&double, "hedge-writes", |p| p.hedge(mainstay_policy::Hedge::After(S)));
    client.put("x").await.unwrap();
    client.delete("x").await.unwrap();
    client.post("x").idempotency_key("k").await.unwrap();
    client.post("x").idempotent(true).await.unwrap();
    assert_eq!(double.requests().len(), 4);
    client.head("x").await.unwrap();
    assert_eq!(double.requests().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_host_has_so_many_places_and_another_host_its_own() {
    let double = HttpDouble::new(|_| Reply::status(200).after(S));
    let client = HttpClient::builder_without_base()
        .double(&double)
        .policy(|p| p.max_concurrent(1))
        .build()
        .unwrap();
    let (one, two, other) = tokio::join!(
        client.get("http://bulkhead-a.example/").into_future(),
        client.get("http://bulkhead-a.example/").into_future(),
        client.get("http://bulkhead-b.example/").into_future(),
    );
    assert!(one.is_ok() && other.is_ok());
    assert_eq!(two.unwrap_err().decider(), Some(Decider::Bulkhead));
    assert!(mainstay_policy::breaker("http:http://bulkhead-b.example").is_some());
}

#[tokio::test(start_paused = true)]
async fn origins_have_breakers_of_their_own_and_none_of_the_others_headers() {
    let double = HttpDouble::new(|r| {
        Reply::status(if r.url.contains("//broken.example") { 500 } else { 200 })
    });
    let client = HttpClient::builder("http://own.example/v1?tenant=1")
        .double(&double)
        .allow_absolute_urls()
        .bearer_auth("s3cret")
        .default_header("x-api-key", "s3cret")
        .policy(|p| p.failure_threshold(1).max_attempts(1))
        .build()
        .unwrap();
    client.get("http://broken.example/x").await.unwrap_err();
    assert!(client.get("http://broken.example/y").await.unwrap_err().is_circuit_open());
    client.get("http://other.example/").header("x-mine", "1").await.unwrap();
    client.get("users").await.unwrap();
    client.get("http://own.example/elsewhere").await.unwrap();
    let requests = double.requests();
    assert_eq!(requests.len(), 4);
    for elsewhere in &requests[..2] {
        assert!(!elsewhere.headers.contains_key("authorization"), "{}", elsewhere.url);
        assert!(!elsewhere.headers.contains_key("x-api-key"), "{}", elsewhere.url);
    }
    assert_eq!(requests[1].headers["x-mine"], "1");
    assert_eq!(requests[2].url, "http://own.example/v1/users?tenant=1");
    for own in &requests[2..] {
        assert_eq!(own.headers["authorization"], "Bearer s3cret");
        assert!(own.headers["x-api-key"].is_sensitive());
    }
}

#[tokio::test(start_paused = true)]
async fn queries_forms_and_authorization_are_written_as_servers_read_them() {
    #[derive(serde::Serialize)]
    struct Page {
        page: u32,
        name: &'static str,
    }
    let double = HttpDouble::new(|_| Reply::status(200));
    let client = HttpClient::builder("http://user:pass@api.example.com/v1?k=1")
        .name("writes")
        .double(&double)
        .build()
        .unwrap();
    client.get("users?a=b").query(&Page { page: 2, name: "a&b=c d/é" }).await.unwrap();
    client.post("x").form(&[("a", "1 2"), ("b", "&")]).bearer_auth("t").await.unwrap();
    client.post("x").header("content-type", "application/vnd.api+json").json(&[1]).await.unwrap();
    client.post("x").body("text").basic_auth("me", "").await.unwrap();
    let sent = double.requests();
    assert_eq!(
        sent[0].url,
        "http://api.example.com/v1/users?k=1&a=b&page=2&name=a%26b%3Dc+d%2F%C3%A9"
    );
    assert_eq!(sent[0].headers["authorization"], "Basic dXNlcjpwYXNz");
    assert_eq!(sent[1].body.as_deref(), Some(&b"a=1+2&b=%26"[..]));
    assert_eq!(sent[1].headers["content-type"], "application/x-www-form-urlencoded");
    assert_eq!(sent[1].headers["authorization"], "Bearer t");
    assert_eq!(sent[2].headers["content-type"], "application/vnd.api+json");
    assert_eq!(sent[3].headers["authorization"], "Basic bWU6");
}

#[tokio::test(start_paused = true)]
async fn a_double_can_refuse_lose_and_cut() {
    let script: Arc<[Reply]> =
        [Reply::refused(), Reply::lost(), Reply::body("half").cut_off(), Reply::json(&[1])].into();
    let double = HttpDouble::new(move |r| script[r.number - 1].clone());
    let client = client(&double, "double", |p| p);
    let numbers: Vec<u8> = client.get("x").await.unwrap().json().unwrap();
    assert_eq!((numbers, double.requests().len()), (vec![1], 4));
    assert!(client.reqwest().is_err());
}
