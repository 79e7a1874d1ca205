//! The page itself: one file, which asks no other server for anything.

use super::respond;
use axum::{
    http::{HeaderName, HeaderValue, StatusCode},
    response::Response,
};

const PAGE: &str = include_str!("page.html");

/// Its style and its script are inline, and nothing else may run, be loaded or be asked. It is shown
/// in no frame: a click on it is meant for it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-u9eCV0+t1qnhQfCtkn3h98J1uwOxIssTB+/2Z6o4uiA='; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub(super) async fn page() -> Response {
    let mut response = respond(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    let headers = [
        ("content-security-policy", POLICY),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
    ];
    let headers = headers
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    response.headers_mut().extend(headers);
    response
}
