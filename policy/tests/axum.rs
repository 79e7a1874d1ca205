//! Attributes on handlers of a real router, and what a client of it sees when a policy decides.
#![cfg(all(feature = "axum", feature = "macros"))]
#![allow(missing_docs, clippy::unwrap_used)]

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Path, Query, State},
    http::{HeaderMap, Request, StatusCode, header::RETRY_AFTER},
    response::IntoResponse,
    routing::{get, post},
};
use mainstay_policy::{
    CallError, Deadline, Decider, Error, Kind, Policy, api_resilient, breaker, database_resilient,
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};
use tower::ServiceExt;

const SECRET: &str = "hunter2";

#[derive(Clone, Default)]
struct Backend {
    calls: Arc<AtomicU32>,
    failures: u32,
}

impl Backend {
    /// Fails so many times, as its settings say.
    fn ask(&self) -> io::Result<u32> {
        let made = self.calls.fetch_add(1, SeqCst) + 1;
        if made <= self.failures {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, SECRET));
        }
        Ok(made)
    }
}

#[derive(Clone, Deserialize)]
struct Page {
    page: u32,
}

#[derive(Clone, Serialize, Deserialize)]
struct Order {
    item: String,
}

#[api_resilient(operation_name = "axum_rates", base_delay = 0.0, max_attempts = 3)]
async fn rates(
    State(backend): State<Backend>,
    Path(day): Path<String>,
    Query(Page { page }): Query<Page>,
) -> Result<String, CallError<io::Error>> {
    let made = backend.ask()?;
    Ok(format!("{day}, page {page}, attempt {made}"))
}

#[database_resilient(operation_name = "axum_orders", idempotent = false, timeout_seconds = 1)]
async fn order(
    State(backend): State<Backend>,
    headers: HeaderMap,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<Order>), CallError<io::Error>> {
    backend.ask()?;
    if headers.contains_key("x-hang") {
        std::future::pending::<()>().await;
    }
    Ok((StatusCode::CREATED, Json(order)))
}

fn router(failures: u32) -> (Router, Backend) {
    let backend = Backend { failures, ..Backend::default() };
    let router = Router::new()
        .route("/rates/{day}", get(rates))
        .route("/orders", post(order))
        .with_state(backend.clone());
    (router, backend)
}

async fn ask(router: &Router, request: Request<Body>) -> (StatusCode, Option<String>, String) {
    let answer = router.clone().oneshot(request).await.unwrap();
    seen(answer).await
}

async fn seen(answer: axum::response::Response) -> (StatusCode, Option<String>, String) {
    let retry_after = answer.headers().get(RETRY_AFTER);
    let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
    let status = answer.status();
    let body = to_bytes(answer.into_body(), 1024).await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(!body.contains(SECRET) && !body.contains("axum_"), "{body}");
    (status, retry_after, body)
}

fn get_rates() -> Request<Body> {
    Request::get("/rates/monday?page=7").body(Body::empty()).unwrap()
}

fn post_order(hang: bool) -> Request<Body> {
    let request = Request::post("/orders").header("content-type", "application/json");
    let request = if hang { request.header("x-hang", "1") } else { request };
    request.body(Body::from(r#"{"item":"tea"}"#)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_repeated_with_its_extractors_and_refused_when_its_breaker_is_open() {
    let (router_, backend) = router(2);
    let (status, _, body) = ask(&router_, get_rates()).await;
    assert_eq!((status, &*body), (StatusCode::OK, "monday, page 7, attempt 3"));
    assert_eq!(backend.calls.load(SeqCst), 3);

    let (router_, backend) = router(3);
    let (status, retry_after, _) = ask(&router_, get_rates()).await;
    assert_eq!((status, retry_after.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    assert_eq!(backend.calls.load(SeqCst), 3);

    breaker("api:axum_rates").unwrap().isolate();
    let (status, retry_after, body) = ask(&router_, get_rates()).await;
    assert_eq!((status, retry_after.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    assert_eq!(body, "not available now; try again later\n");
    assert_eq!(backend.calls.load(SeqCst), 3, "refused without a call");
}

#[tokio::test(start_paused = true)]
async fn what_takes_too_long_is_a_504_that_says_whether_it_may_have_happened() {
    let (router, _) = router(0);
    let (status, _, body) = ask(&router, post_order(false)).await;
    assert_eq!((status, &*body), (StatusCode::CREATED, r#"{"item":"tea"}"#));
    let (status, retry_after, body) = ask(&router, post_order(true)).await;
    assert_eq!((status, retry_after), (StatusCode::GATEWAY_TIMEOUT, None));
    assert_eq!(body, "no answer in time; it may have happened, so look before repeating it\n");
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_says_when_to_come_again_rounded_up() {
    const S: Duration = Duration::from_secs(1);
    let policy = Policy::builder(Kind::Custom, "axum_open")
        .failure_threshold(1)
        .enable_retry(false)
        .recovery_timeout(10 * S)
        .build()
        .unwrap();
    let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, SECRET);
    let failed = policy.call(|| async { Err::<(), _>(refused()) }).await.unwrap_err();
    assert_eq!(failed.decider(), Some(Decider::Retry));
    assert_eq!(failed.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
    let refusal = || async { policy.call(|| async { Err::<(), _>(refused()) }).await.unwrap_err() };
    let (error, own) = (refusal().await, Error::from(refusal().await));
    assert_eq!(own.cause().map(|cause| cause.reason), Some("failures in a row"));
    let wait = error.retry_after().unwrap();
    assert!(!wait.is_zero() && wait < 2 * S, "{wait:?}");
    let whole = wait.as_secs_f64().ceil().to_string();
    for answer in [error.into_response(), own.into_response()] {
        let (status, retry_after, _) = seen(answer).await;
        assert_eq!((status, retry_after), (StatusCode::SERVICE_UNAVAILABLE, Some(whole.clone())));
    }
}

#[tokio::test(start_paused = true)]
async fn each_end_has_its_status() {
    let policy = Policy::custom("axum_ends");
    let status = |error: CallError<io::Error>| error.into_response().status();
    let late = Deadline::within(Duration::ZERO);
    let error = late.scope(policy.call(|| async { Ok::<(), io::Error>(()) })).await.unwrap_err();
    assert_eq!((error.is_rejected(), status(error)), (true, StatusCode::GATEWAY_TIMEOUT));
    let missing = || async { Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)) };
    assert_eq!(status(policy.call(missing).await.unwrap_err()), StatusCode::BAD_GATEWAY);
    // A client called in the operation has decided.
    let inner = || async { Err::<(), _>(Error::invalid("no such table")) };
    let error = policy.call(inner).await.unwrap_err();
    assert_eq!(error.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
    let error = Error::from(policy.call(missing).await.unwrap_err());
    assert_eq!(error.into_response().status(), StatusCode::BAD_GATEWAY);
    let unusable = Error::unusable("the body is not JSON", None);
    assert_eq!(unusable.into_response().status(), StatusCode::BAD_GATEWAY);
}
