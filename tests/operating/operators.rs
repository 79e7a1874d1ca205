//! Who may change a breaker over the network: nobody, unless the service has said so, and then only
//! from the page.

use crate::ask::{Answer, get, send};
use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use mainstay::{BreakerState, Policy, Readiness, web::Routes};

const PATH: &str = "/resilience/breaker";
type Headers<'a> = &'a [(&'a str, &'a str)];

const PAGE: Headers<'_> =
    &[("content-type", "application/json"), ("sec-fetch-site", "same-origin"), ("x-user", "anna")];

async fn post(router: &Router, headers: Headers<'_>, body: &str) -> Answer {
    let mut request = Request::post(PATH);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(router, request.body(Body::from(body.to_owned())).unwrap()).await
}

fn routes() -> Routes {
    Routes::new(Readiness::builder().build())
}

fn for_anna() -> Router {
    let allow = |request: axum::http::request::Parts| async move {
        request.headers.get("x-user").is_some_and(|user| user == "anna")
    };
    routes().operators(allow).router()
}

#[tokio::test]
async fn it_is_off_by_default() {
    let policy = Policy::api("t-off");
    let order = r#"{"dependency":"api:t-off","action":"isolate"}"#;
    let answer = post(&routes().router(), PAGE, order).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(answer.json()["error"].as_str().unwrap().contains("opts in"), "{}", answer.body);
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
}

#[tokio::test]
async fn an_operator_isolates_closes_and_resets() {
    let (policy, router) = (Policy::api("t-operator"), for_anna());
    for (action, state) in [
        ("isolate", BreakerState::Isolated),
        ("force_closed", BreakerState::ForcedClosed),
        ("reset", BreakerState::Closed),
    ] {
        let order = format!(r#"{{"dependency":"api:t-operator","action":"{action}"}}"#);
        let answer = post(&router, PAGE, &order).await;
        assert_eq!(
            (answer.status, &answer.json()["state"]),
            (StatusCode::OK, &state.name().into())
        );
        assert_eq!(policy.breaker().state(), state);
    }
}

#[tokio::test]
async fn what_is_not_the_page_of_an_operator_is_refused() {
    const ORDER: &str = r#"{"dependency":"api:t-refused","action":"isolate"}"#;
    const KIND: (&str, &str) = ("content-type", "application/json");
    const HERE: (&str, &str) = ("sec-fetch-site", "same-origin");
    const ANNA: (&str, &str) = ("x-user", "anna");
    let (policy, router) = (Policy::api("t-refused"), for_anna());
    let long = format!("{ORDER}{}", " ".repeat(5_000));
    let rows: &[(&str, Headers, &str, u16)] = &[
        ("not an operator", &[KIND, HERE, ("x-user", "ben")], ORDER, 403),
        ("nobody", &[KIND, HERE], ORDER, 403),
        ("another site", &[KIND, ANNA, ("sec-fetch-site", "cross-site")], ORDER, 403),
        ("another host of this site", &[KIND, ANNA, ("sec-fetch-site", "same-site")], ORDER, 403),
        ("an address typed in", &[KIND, ANNA, ("sec-fetch-site", "none")], ORDER, 403),
        ("no browser", &[KIND, ANNA, ("host", "ops.test")], ORDER, 403),
        (
            "another origin",
            &[KIND, ANNA, ("host", "ops.test"), ("origin", "https://evil.test")],
            ORDER,
            403,
        ),
        ("no origin", &[KIND, ANNA, ("host", "ops.test"), ("origin", "null")], ORDER, 403),
        (
            "another port",
            &[KIND, ANNA, ("host", "ops.test:1"), ("origin", "http://ops.test:2")],
            ORDER,
            403,
        ),
        ("a form", &[HERE, ANNA, ("content-type", "text/plain")], ORDER, 415),
        ("no kind", &[HERE, ANNA], ORDER, 415),
        ("no order", &[KIND, HERE, ANNA], "{}", 400),
        (
            "more than an order",
            &[KIND, HERE, ANNA],
            r#"{"dependency":"api:t-refused","action":"isolate","x":1}"#,
            400,
        ),
        (
            "another action",
            &[KIND, HERE, ANNA],
            r#"{"dependency":"api:t-refused","action":"open"}"#,
            400,
        ),
        (
            "an unknown name",
            &[KIND, HERE, ANNA],
            r#"{"dependency":"api:t-nobody","action":"reset"}"#,
            404,
        ),
        ("too much", &[KIND, HERE, ANNA], &long, 413),
    ];
    for (who, headers, body, status) in rows {
        let answer = post(&router, headers, body).await;
        assert_eq!(answer.status.as_u16(), *status, "{who}: {}", answer.body);
        assert!(answer.json()["error"].is_string(), "{who}");
        assert_eq!(policy.breaker().state(), BreakerState::Closed, "{who}");
    }
    assert_eq!(get(&router, PATH).await.status, StatusCode::METHOD_NOT_ALLOWED);
    // An older browser says its origin only.
    let old = [KIND, ANNA, ("host", "ops.test"), ("origin", "https://ops.test")];
    assert_eq!(post(&router, &old, ORDER).await.status, StatusCode::OK);
    policy.breaker().reset();
}
