//! Errors as the answers of axum handlers: what a client may do next, and nothing of ours. Here and
//! not in the facade, because of the orphan rule.

use super::{CallError, Decider, Effect, Error, ErrorKind};
use axum_core::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use std::{any::Any, time::Duration};

/// 503 with `Retry-After` where a policy refused the call, or ended it after attempts that failed; 504
/// where time ran out; 502 for an answer of the dependency that says no. The body is one plain line,
/// without a name of ours or a word of the dependency's.
///
/// An error of the operation that is an [`Error`] itself answers as that does.
impl<E: 'static> IntoResponse for CallError<E> {
    fn into_response(self) -> Response {
        if let Self::Backend { error, .. } = &self
            && let Some(own) = (error as &dyn Any).downcast_ref::<Error>()
        {
            return of_own(own);
        }
        answer(self.decider(), self.effect(), self.retry_after())
    }
}

/// As for [`CallError`]; 500 for input and settings that cannot work, which are this service's own.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        of_own(&self)
    }
}

fn of_own(error: &Error) -> Response {
    match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::Config => {
            (StatusCode::INTERNAL_SERVER_ERROR, "this service made a mistake\n").into_response()
        }
        _ => answer(error.decider(), error.effect(), error.retry_after()),
    }
}

fn answer(by: Option<Decider>, effect: Effect, hint: Option<Duration>) -> Response {
    let unknown = effect == Effect::Unknown;
    let (status, body) = match (by, effect) {
        (Some(Decider::Timeout | Decider::Deadline), _) if unknown => (
            StatusCode::GATEWAY_TIMEOUT,
            "no answer in time; it may have happened, so look before repeating it\n",
        ),
        (Some(Decider::Timeout | Decider::Deadline), _) => {
            (StatusCode::GATEWAY_TIMEOUT, "no answer in time\n")
        }
        (Some(_), _) if unknown => (
            StatusCode::SERVICE_UNAVAILABLE,
            "not available now; it may have happened, so look before repeating it\n",
        ),
        (Some(_), _) | (None, Effect::Throttled { .. }) => {
            (StatusCode::SERVICE_UNAVAILABLE, "not available now; try again later\n")
        }
        (None, _) if unknown => (
            StatusCode::BAD_GATEWAY,
            "no usable answer; it may have happened, so look before repeating it\n",
        ),
        (None, _) => (StatusCode::BAD_GATEWAY, "no usable answer\n"),
    };
    let mut response = (status, body).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, seconds(hint));
    }
    response
}

/// Whole seconds, rounded up so that nobody comes too early; one where nobody knows better.
fn seconds(hint: Option<Duration>) -> HeaderValue {
    let hint = hint.unwrap_or_default();
    let up = hint.as_secs().saturating_add(u64::from(hint.subsec_nanos() > 0));
    HeaderValue::from(up.max(1))
}
