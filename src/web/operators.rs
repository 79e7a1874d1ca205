//! What an operator may do from the page: off unless the service has opted in, and then only for whom
//! it allows, from the page itself.

use super::{Shared, json};
use crate::{BreakerState, breaker as named};
use axum::{
    body::to_bytes,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::Response,
};
use serde::{Deserialize, Serialize};
use std::{future::Future, pin::Pin, sync::Arc};

pub(super) type Allow =
    Box<dyn Fn(Parts) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

const MOST_BYTES: usize = 4 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    dependency: String,
    action: Action,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Isolate,
    ForceClosed,
    Reset,
}

impl Action {
    const fn name(self) -> &'static str {
        match self {
            Self::Isolate => "isolate",
            Self::ForceClosed => "force_closed",
            Self::Reset => "reset",
        }
    }
}

#[derive(Serialize)]
struct Done {
    state: BreakerState,
}

#[derive(Serialize)]
struct Refused {
    error: &'static str,
}

pub(super) async fn breaker(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    match obey(&shared, request).await {
        Ok(state) => json(StatusCode::OK, &Done { state }),
        Err((status, error)) => json(status, &Refused { error }),
    }
}

type Refusal = (StatusCode, &'static str);

async fn obey(shared: &Shared, request: Request) -> Result<BreakerState, Refusal> {
    let Some(allow) = &shared.operators else {
        let off = "operators' controls are off in this service; it opts in with Routes::operators";
        return Err((StatusCode::FORBIDDEN, off));
    };
    let (head, body) = request.into_parts();
    if !is_same_origin(&head.headers) {
        return Err((StatusCode::FORBIDDEN, "this must be sent by the page itself"));
    }
    if !is_json(&head.headers) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be application/json"));
    }
    if !allow(head).await {
        return Err((StatusCode::FORBIDDEN, "this service does not allow you to do that"));
    }
    let body = to_bytes(body, MOST_BYTES).await;
    let body = body.map_err(|_| (StatusCode::PAYLOAD_TOO_LARGE, "the body is over 4 KiB"))?;
    let order: Order = serde_json::from_slice(&body).map_err(|_| {
        let form = "the body must be {\"dependency\": a name, \"action\": \"isolate\", \
                    \"force_closed\" or \"reset\"}";
        (StatusCode::BAD_REQUEST, form)
    })?;
    let breaker = named(&order.dependency)
        .ok_or((StatusCode::NOT_FOUND, "there is no dependency of this name"))?;
    match order.action {
        Action::Isolate => breaker.isolate(),
        Action::ForceClosed => breaker.force_closed(),
        Action::Reset => breaker.reset(),
    }
    tracing::warn!(
        mainstay.policy.name = breaker.name(),
        action = order.action.name(),
        "an operator changed a breaker"
    );
    Ok(breaker.state())
}

/// Browsers say where a request comes from, and pages cannot make them lie. Neither header: not a
/// browser of the last years, and nobody we know.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return site == "same-origin";
    }
    let (Some(origin), Some(host)) = (text("origin"), text(header::HOST.as_str())) else {
        return false;
    };
    origin.split_once("://").is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(host))
}

/// Which no form can send, and no other site without asking first.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"))
}
