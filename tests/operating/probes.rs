//! The routes for probes, and the header.

use crate::ask::{get, health};
use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    middleware, routing,
};
use futures_util::StreamExt;
use mainstay::{HealthStatus, Policy, Readiness, web};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tower::ServiceExt;

fn router(readiness: &Readiness) -> Router {
    web::Routes::new(readiness.clone()).router()
}

#[tokio::test]
async fn liveness_depends_on_nothing_and_readiness_on_the_critical() {
    let status = Arc::new(Mutex::new(HealthStatus::Healthy));
    let readiness = Readiness::builder()
        .interval(Duration::ZERO)
        .critical(
            "db",
            Arc::clone(&status),
            |status| async move { health(*status.lock().unwrap()) },
        )
        .optional("mail", (), |()| async { health(HealthStatus::Unhealthy) })
        .build();
    let router = router(&readiness);
    for (status_of_db, code, overall) in [
        (HealthStatus::Healthy, StatusCode::OK, "degraded"),
        (HealthStatus::Degraded, StatusCode::OK, "degraded"),
        (HealthStatus::Unhealthy, StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
    ] {
        *status.lock().unwrap() = status_of_db;
        let ready = get(&router, "/health/ready").await;
        assert_eq!(ready.status, code, "{}", ready.body);
        assert_eq!(ready.json()["ready"], code == StatusCode::OK);
        let everything = get(&router, "/health").await;
        assert_eq!(everything.status, StatusCode::OK);
        assert_eq!(everything.json()["status"], overall, "{}", everything.body);
        assert_eq!(everything.json()["clients"]["mail"]["status"], "unhealthy");
        let live = get(&router, "/health/live").await;
        assert_eq!((live.status, &*live.body), (StatusCode::OK, r#"{"status":"alive"}"#));
        assert_eq!(live.headers["cache-control"], "no-store");
    }
    *status.lock().unwrap() = HealthStatus::Healthy;
    readiness.drain();
    let ready = get(&router, "/health/ready").await;
    assert_eq!(
        (ready.status, &ready.json()["phase"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"draining".into())
    );
}

/// As many as a machine can send, until the third check.
#[tokio::test]
async fn thousands_of_probes_cause_one_check_in_an_interval() {
    const INTERVAL: Duration = Duration::from_millis(300);
    let asked = Arc::new(AtomicU32::new(0));
    let readiness = Readiness::builder()
        .interval(INTERVAL)
        .critical("db", Arc::clone(&asked), |asked| async move {
            asked.fetch_add(1, SeqCst);
            health(HealthStatus::Healthy)
        })
        .build();
    let router = router(&readiness);
    let (began, mut probes) = (Instant::now(), 0);
    while asked.load(SeqCst) < 3 || probes < 3_000 {
        for path in ["/health/ready", "/health"] {
            assert_eq!(get(&router, path).await.status, StatusCode::OK);
            probes += 1;
        }
    }
    let intervals = began.elapsed().as_nanos().div_ceil(INTERVAL.as_nanos());
    let asked = u128::from(asked.load(SeqCst));
    assert!(asked <= intervals, "{asked} checks in {intervals} intervals, {probes} probes");
}

/// A breaker that opens is told of in the header, and is not an outage of the service.
#[tokio::test]
async fn the_header_and_the_health_tell_of_an_open_breaker() {
    let readiness = Readiness::builder().build();
    let app: Router = Router::new()
        .route("/", routing::get(async || "hello"))
        .layer(middleware::from_fn(web::resilience_status))
        .merge(router(&readiness));
    let policy = Policy::api("t-header");
    policy.breaker().isolate();
    let began = Instant::now();
    loop {
        let answer = get(&app, "/").await;
        let told = answer.headers["x-resilience-status"].to_str().unwrap().to_owned();
        if told != "healthy" {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{told}");
    }
    let everything = get(&app, "/health").await.json();
    assert_eq!(everything["status"], "degraded");
    assert_eq!(everything["resilience"]["circuit_breakers"]["api:t-header"]["state"], "isolated");
    assert_eq!(get(&app, "/health/ready").await.status, StatusCode::OK);
    policy.breaker().reset();
}

/// ```text
/// runtime A: a page opens, then nobody waits there | B: its page ends, asks again, and is told
/// ```
#[test]
fn a_page_is_told_though_the_runtime_of_the_first_stands_still() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let router = router(&Readiness::builder().build());
    let open = async || {
        let request = Request::get("/resilience/events").body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().into_body().into_data_stream()
    };
    let first = runtime();
    let mut page = first.block_on(open());
    assert!(first.block_on(page.next()).is_some());
    let told = runtime().block_on(async {
        timeout(Duration::from_secs(60), async {
            let mut page = open().await;
            while page.next().await.is_some() {}
            let mut page = open().await;
            (page.next().await.is_some(), page.next().await.is_some())
        })
        .await
    });
    assert_eq!(told, Ok((true, true)));
}
