//! The client against scripted servers on real sockets, which count what they were sent, behind the
//! fault proxy, and with a double in the driver's place.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod bodies;
mod faults;
mod http2;
mod input;
mod load;
mod redirects;
mod server;
mod statuses;
mod throttling;
mod tls;

use mainstay_http::{
    HttpClient, HttpFailure, get_http_client, get_http_client_for, set_http_client,
};
use mainstay_policy::{BreakGrowth, BreakerState, Error, HealthStatus, PolicyBuilder, report};
use mainstay_test_support::Port;
use server::{Server, Step, answer, quick};
use std::{
    future::IntoFuture,
    net::SocketAddr,
    time::{Duration, Instant},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n[\"Jo\"]";
const BUSY: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const LATER: &str =
    "HTTP/1.1 429 Later\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const SEE_OTHER: &str = "HTTP/1.1 303 See\r\nlocation: /v1/done\r\ncontent-length: 0\r\n\
                         connection: close\r\n\r\n";
const CUT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n[\"";
const NOTHING: &str = "";

fn client(
    address: SocketAddr,
    policy: impl FnOnce(PolicyBuilder) -> PolicyBuilder + Send + 'static,
) -> HttpClient {
    HttpClient::builder(&format!("http://{address}/v1")).policy(policy).build().unwrap()
}

#[tokio::test]
async fn get_is_repeated_until_it_is_answered() {
    let server = Server::start(&[BUSY, NOTHING, OK]).await;
    let names: Vec<String> = server.client().get("users").await.unwrap().json().unwrap();
    assert_eq!((names, server.seen()), (vec!["Jo".to_owned()], 3));
    assert!(server.seen.lock().unwrap()[0].starts_with("get /v1/users "));
}

#[tokio::test]
async fn a_cut_body_is_repeated_like_any_failure() {
    let server = Server::start(&[CUT, OK]).await;
    assert_eq!(server.client().get("users").await.unwrap().bytes().len(), 6);
    assert_eq!(server.seen(), 2);
}

#[tokio::test]
async fn post_is_sent_once_when_its_outcome_is_unknown() {
    for answer in [&[NOTHING], &[BUSY], &[CUT]] {
        let server = Server::start(answer).await;
        let error = server.client().post("users").json("Jo").await.unwrap_err();
        assert!(error.is_outcome_unknown(), "{error}");
        assert_eq!((server.seen(), error.attempts()), (1, 1));
    }
}

#[tokio::test]
async fn post_is_repeated_when_refused_before_work_or_keyed() {
    let server = Server::start(&[LATER, OK]).await;
    server.client().post("users").json("Jo").await.unwrap();
    assert_eq!(server.seen(), 2);
    let server = Server::start(&[NOTHING, BUSY, OK]).await;
    server.client().post("users").json("Jo").idempotency_key("k1").await.unwrap();
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|r| r.contains("idempotency-key: \"k1\"") && r.ends_with("\"jo\"")));
}

#[tokio::test]
async fn a_redirected_post_is_not_sent_again_when_the_next_hop_refuses() {
    let server = Server::start(&[SEE_OTHER, LATER, OK]).await;
    let answer = server.client().post("users").json("Jo").await.unwrap();
    let posts = server.seen.lock().unwrap().iter().filter(|r| r.starts_with("post ")).count();
    assert_eq!(posts, 1, "the first hop may have done the work");
    assert_eq!(answer.status(), 303, "the redirect is the answer: the caller decides");
}

#[tokio::test]
async fn a_get_follows_redirects_on_its_origin_only() {
    let server = Server::start(&[SEE_OTHER, OK]).await;
    assert_eq!(server.client().get("users").await.unwrap().status(), 200);
    assert!(server.seen.lock().unwrap()[1].starts_with("get /v1/done "));
    let elsewhere = "HTTP/1.1 302 Go\r\nlocation: http://127.0.0.1:9/x\r\ncontent-length: 0\r\n\
                     connection: close\r\n\r\n";
    let server = Server::start(&[elsewhere]).await;
    assert_eq!(server.client().get("users").await.unwrap().status(), 302);
    assert_eq!(server.seen(), 1);
}

#[tokio::test]
async fn a_failure_with_a_body_over_the_limit_is_still_that_failure() {
    let long = "HTTP/1.1 503 Busy\r\ncontent-length: 6\r\nconnection: close\r\n\r\nsorry!";
    let server = Server::start(&[long]).await;
    let client = HttpClient::builder(&format!("http://{}", server.address))
        .policy(|p| quick(p).failure_threshold(1))
        .max_body(3)
        .build()
        .unwrap();
    let error = client.get("users").await.unwrap_err();
    let response = error.downcast_ref::<HttpFailure>().unwrap().response().unwrap();
    assert_eq!((response.status().as_u16(), response.bytes().len()), (503, 3));
    assert_eq!(client.policy().breaker().state(), BreakerState::Open);
}

#[test]
fn an_empty_base_url_is_refused_even_beside_a_default_client() {
    set_http_client(HttpClient::builder("http://127.0.0.1:9").policy(quick).build().unwrap());
    assert!(get_http_client().is_ok());
    assert!(get_http_client_for("").is_err());
}

#[tokio::test]
async fn an_error_carries_the_response_and_other_statuses_are_answers() {
    let server = Server::start(&[BUSY]).await;
    let error = server.client().get("users").await.unwrap_err();
    let failure = error.downcast_ref::<HttpFailure>().unwrap();
    assert_eq!(failure.response().unwrap().status(), 503);
    assert_eq!((error.attempts(), server.seen()), (3, 3));
    let missing = "HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let server = Server::start(&[missing]).await;
    assert_eq!(server.client().get("users").await.unwrap().status(), 404);
    assert_eq!(server.seen(), 1);
}

#[tokio::test]
async fn a_refused_connection_is_named_at_once_and_opens_the_breaker() {
    let nowhere = Port::reserve();
    let client = client(nowhere.address(), |p| quick(p).failure_threshold(2));
    let started = Instant::now();
    let error = client.post("users").header("x", "y").await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(2_900));
    assert_eq!(error.attempts(), 3, "nothing was sent, so even a POST is repeated");
    let text = report(&error).to_string();
    assert!(text.contains("could not be reached") && text.contains("refused"), "{text}");
    client.get("users").await.unwrap_err();
    assert_eq!(client.policy().breaker().state(), BreakerState::Open);
    assert!(client.get("users").await.unwrap_err().is_rejected());
    assert_eq!(client.health_check().await.status, HealthStatus::Unhealthy);
}

#[tokio::test]
async fn open_breaker_does_no_io_while_health_still_measures() {
    let server = Server::start(&[BUSY, BUSY, BUSY, OK]).await;
    let client =
        client(server.address, |p| quick(p).failure_threshold(1).break_growth(BreakGrowth::Fixed));
    client.get("users").await.unwrap_err();
    let before = server.seen();
    assert!(client.get("users").await.unwrap_err().is_circuit_open());
    assert_eq!(server.seen(), before);
    let health = client.health_check_at("health").await;
    assert_eq!((health.status, server.seen()), (HealthStatus::Healthy, before + 1));
    assert_eq!(client.policy().breaker().state(), BreakerState::Open);
}

#[tokio::test]
async fn bodies_over_the_limit_and_bad_input_are_clear_errors() {
    let server = Server::start(&[OK]).await;
    let client = HttpClient::builder(&format!("http://{}", server.address))
        .policy(quick)
        .max_body(3)
        .build()
        .unwrap();
    let error = client.get("users").await.unwrap_err();
    assert!(report(&error).to_string().contains("limit of 3 bytes"));
    assert_eq!(server.seen(), 1);
    let refused = async |request| -> Error { HttpClient::get(&client, request).await.unwrap_err() };
    assert!(refused("https://evil/x").await.to_string().contains("another host"));
    let error = client.get("users").header("x", "a\r\nb: secret").await.unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
    assert_eq!(server.seen(), 1);
}

#[test]
fn one_client_works_from_a_second_runtime_after_the_first_is_gone() {
    for _ in 0..2 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let server = Server::start(&[OK]).await;
            server.client().get("users").await.unwrap();
        });
    }
    let client = get_http_client_for("http://127.0.0.1:9/").unwrap();
    for _ in 0..2 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        assert!(runtime.block_on(async { client.reqwest() }).is_ok());
    }
    assert!(client.reqwest().is_err(), "no runtime here, and no panic");
}

#[tokio::test]
async fn requests_go_through_the_proxy_that_is_named_with_its_credentials() {
    let server = Server::start(&[OK]).await;
    let client = HttpClient::builder("http://api.example/v1")
        .proxy(&format!("http://user:pass@{}", server.address))
        .bearer_auth("t")
        .build()
        .unwrap();
    client.get("users").await.unwrap();
    let seen = server.request(1);
    assert!(seen.starts_with("get http://api.example/v1/users http/1.1"), "{seen}");
    assert!(seen.contains("proxy-authorization: basic dxnlcjpwyxnz"), "{seen}");
    // A proxy that opens no tunnel: nothing was sent.
    let refusal = "HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n";
    let server = Server::start(&[refusal]).await;
    let client = HttpClient::builder("https://api.example")
        .proxy(&format!("http://{}", server.address))
        .policy(quick)
        .build()
        .unwrap();
    let error = client.post("users").await.unwrap_err();
    assert_eq!((error.effect(), server.seen()), (mainstay_policy::Effect::NeverSent, 3));
    assert!(server.request(1).starts_with("connect api.example:443"));
    assert!(report(&error).to_string().contains("proxy"), "{}", report(&error));
}

/// Again in a process of its own, whose environment names a proxy.
#[tokio::test]
async fn requests_go_through_the_environments_proxy_unless_told_otherwise() {
    const NAME: &str = "requests_go_through_the_environments_proxy_unless_told_otherwise";
    // Where it would go without one: nobody is there.
    let (base, nowhere) = ("http://api.example/v1", Port::reserve());
    if std::env::var_os("THE_TEST_IN_IT").is_some() {
        let builder = || HttpClient::builder(base).policy(quick);
        builder().build().unwrap().get("users").await.unwrap();
        let direct = builder().without_proxy().resolve("api.example", nowhere.address());
        direct.build().unwrap().get("users").await.unwrap_err();
        return;
    }
    let server = Server::start(&[OK]).await;
    let mut again = tokio::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", NAME, "--nocapture"]).env("THE_TEST_IN_IT", "1").kill_on_drop(true);
    for name in ["NO_PROXY", "no_proxy", "http_proxy", "REQUEST_METHOD"] {
        again.env_remove(name);
    }
    again.env("HTTP_PROXY", format!("http://{}", server.address));
    let output = again.output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    assert_eq!(server.seen(), 1, "{told}");
    assert!(server.request(1).starts_with("get http://api.example/v1/users http/1.1"));
}

#[tokio::test]
async fn cookies_are_not_kept_and_those_of_the_caller_are_sent() {
    let server = Server::always(Step::Keep(answer("200 OK", "set-cookie: a=b\r\n", "1"))).await;
    let client = server.client();
    for _ in 0..2 {
        assert!(client.get("x").await.unwrap().headers().contains_key("set-cookie"));
        assert!(!server.request(server.seen()).contains("\r\ncookie:"));
    }
    client.get("x").header("cookie", "c=d").await.unwrap();
    assert!(server.request(3).contains("\r\ncookie: c=d\r\n"), "{}", server.request(3));
}

#[tokio::test]
async fn as_many_idle_connections_are_kept_as_were_asked_for() {
    let server = Server::always(Step::Keep(answer("200 OK", "", "1"))).await;
    for (most, connections) in [(1, 1), (0, 3)] {
        let before = server.accepted();
        let client = server.builder().keep_idle(Duration::from_secs(50), most).build().unwrap();
        for _ in 0..3 {
            client.get("x").await.unwrap();
        }
        assert_eq!(server.accepted() - before, connections, "{most}");
    }
}

#[tokio::test]
async fn a_reqwest_client_that_exists_is_used_as_it_is() {
    let server = Server::start(&[BUSY, OK]).await;
    let driver = reqwest::Client::builder()
        .no_proxy()
        .user_agent("mine")
        .retry(reqwest::retry::never())
        .redirect(reqwest::redirect::Policy::none());
    let client = HttpClient::builder(&server.url()).reqwest(driver.build().unwrap());
    let client = client.policy(quick).build().unwrap();
    client.get("users").await.unwrap();
    assert_eq!(server.seen(), 2);
    assert!(server.request(2).contains("user-agent: mine"));
    client.reqwest().unwrap().get(server.url()).send().await.unwrap();
    assert_eq!(server.seen(), 3);
    let plain = HttpClient::from_reqwest(&server.url(), client.reqwest().unwrap()).unwrap();
    assert_eq!(plain.get("users").await.unwrap().status(), 200);
}

#[tokio::test]
async fn health_is_measured_where_it_is_asked_for_and_feeds_nothing() {
    let server = Server::start(&[BUSY, SEE_OTHER, OK]).await;
    let client = client(server.address, |p| quick(p).failure_threshold(1));
    let health = client.health_check_at("/health?full=1").await;
    assert_eq!((health.status, &*health.detail), (HealthStatus::Unhealthy, "status 503"));
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
    assert_eq!(client.health_check().await.status, HealthStatus::Healthy);
    assert_eq!(server.seen(), 3);
    assert!(server.request(1).starts_with("get /v1/health?full=1 "));
    assert!(server.request(2).starts_with("get /v1 "), "{}", server.request(2));
    assert!(client.health_check_at("//evil").await.detail.contains("another host"));
}

/// What is not read of a body, of which only the beginning comes along with the head, costs the connection.
#[tokio::test]
async fn probes_share_one_connection() {
    let server = Server::always(Step::Keep(answer("200 OK", "", [b'x'; 48 * 1024]))).await;
    let client = server.client();
    for _ in 0..5 {
        assert_eq!(client.health_check_at("health").await.status, HealthStatus::Healthy);
    }
    // Twice only where this machine took a fifth of a second over one of them; else it would be five.
    assert_eq!(server.seen(), 5);
    assert!(server.accepted() <= 2, "{}", server.accepted());
}

#[test]
fn what_crosses_threads_can() {
    fn crosses<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>(_: T) {}
    crosses::<HttpClient>();
    crosses::<HttpFailure>();
    crosses::<mainstay_http::Response>();
    crosses::<mainstay_http::Request>();
    let client = HttpClient::builder("http://127.0.0.1:9").build().unwrap();
    sent(client.get("x").into_future());
    sent(client.get("x").stream());
    fn download<T: Send + Unpin>() {}
    download::<mainstay_http::Download>();
}
