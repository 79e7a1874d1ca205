//! Secrets planted in every URL and setting are in none of what is shown: the routes, the page's
//! events, the metrics, the doctor.

use crate::{app::App, ask, doctor::doctor};
use axum::{body::Body, http::Request};
use futures_util::StreamExt;
use mainstay::{HttpClient, PgDatabase, PolicyBuilder, Readiness, RedisClient, S3Client};
use mainstay_test_support::{Port, Redis};
use serde_json::json;
use std::time::Duration;
use tower::ServiceExt;

const SECRET: &str = "s3cr3t";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_is_on_a_route_in_an_event_or_in_a_metric() {
    let refused = Port::reserve();
    let to = |scheme: &str, rest: &str| {
        format!("{scheme}://user-{SECRET}:word-{SECRET}@{}/{rest}", refused.address())
    };
    // This one answers, and refuses the password.
    let redis = Redis::start_with(&["--requirepass", "other"]);
    let quick = |policy: PolicyBuilder| {
        policy.max_attempts(2).base_delay(Duration::from_millis(1)).failure_threshold(1)
    };
    let query = format!("db-{SECRET}?application_name=a-{SECRET}");
    let db = PgDatabase::builder().name("secrets").url(to("postgres", &query)).policy(quick);
    let cache = RedisClient::builder().name("secrets").policy(quick);
    let redis_url = format!("redis://:word-{SECRET}@{}/1", redis.address());
    let base = to("http", &format!("path-{SECRET}?key=query-{SECRET}"));
    let store = S3Client::builder().endpoint_url(format!("http://{}", refused.address()));
    let app = App {
        db: db.build().unwrap(),
        cache: cache.url(&redis_url).build().unwrap(),
        rates: HttpClient::builder(&base).name("secrets").policy(quick).build().unwrap(),
        store: store
            .credentials(format!("key-{SECRET}"), format!("hidden-{SECRET}"))
            .bucket("bucket")
            .policy(quick)
            .build()
            .unwrap(),
        bucket: "bucket".to_owned(),
    };
    let readiness: Readiness = app.readiness();
    let router = app.router(readiness, Vec::new());
    let mut said = Vec::new();
    let order = json!({"item": format!("item-{SECRET}")}).to_string();
    for _ in 0..3 {
        for (method, path, body) in [
            ("POST", "/orders", &*order),
            ("GET", "/orders/1", ""),
            ("GET", "/rates", ""),
            ("PUT", "/orders/1/receipt", SECRET),
        ] {
            let request = Request::builder().method(method).uri(path);
            let request = request.header("content-type", "application/json");
            let answer =
                ask::send(&router, request.body(Body::from(body.to_owned())).unwrap()).await;
            said.push((path, format!("{:?} {}", answer.headers, answer.body)));
        }
    }
    for path in [
        "/health",
        "/health/live",
        "/health/ready",
        "/health/resilience",
        "/metrics/resilience",
        "/metrics",
        "/resilience",
    ] {
        said.push((path, ask::get(&router, path).await.body));
    }
    let events = Request::get("/resilience/events").body(Body::empty()).unwrap();
    let mut events = router.oneshot(events).await.unwrap().into_body().into_data_stream();
    // The second knows the checks of the first.
    for _ in 0..2 {
        let event = events.next().await.unwrap().unwrap();
        said.push(("/resilience/events", String::from_utf8(event.to_vec()).unwrap()));
    }
    // They were there to be told of.
    let whole: String = said.iter().map(|(_, text)| &**text).collect();
    for told in ["database:secrets", "redis:secrets", "unhealthy", "\"open\"", "last_error"] {
        assert!(whole.contains(told), "{told}");
    }
    for (path, text) in said {
        assert!(!text.contains(SECRET), "{path}: {text}");
    }
}

#[test]
fn none_is_said_by_the_doctor() {
    let refused = Port::reserve();
    let to = |scheme: &str, rest: &str| {
        format!("{scheme}://user-{SECRET}:word-{SECRET}@{}/{rest}", refused.address())
    };
    let environment = [
        ("MAINSTAY_DATABASE_URL", to("postgres", &format!("{SECRET}?password={SECRET}"))),
        ("MAINSTAY_DATABASE_REPORTS_URL", to("postgres", SECRET)),
        ("MAINSTAY_REDIS_URL", to("redis", "1")),
        ("MAINSTAY_HTTP_BASE_URL", to("http", &format!("{SECRET}?key={SECRET}"))),
        ("MAINSTAY_S3_ENDPOINT_URL", format!("http://{}", refused.address())),
        ("MAINSTAY_S3_BUCKET", "bucket".to_owned()),
        ("MAINSTAY_REDIS_PASSWORD", SECRET.to_owned()),
        ("AWS_ACCESS_KEY_ID", SECRET.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
    ];
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    for arguments in [&[][..], &["--json"]] {
        let said = doctor(arguments, &environment);
        assert_eq!(said.code, 1, "{}", said.text);
        for name in ["database:reports", "MAINSTAY_REDIS_PASSWORD", "s3"] {
            assert!(said.text.contains(name), "{name}: {}", said.text);
        }
        assert!(!said.text.contains(SECRET), "{}", said.text);
    }
}
