//! What of our events goes to `tracing`: opening, slowing down and giving up warn, closing informs,
//! the rest is for debugging. Object keys, statements and URLs are not in them.

#[cfg(feature = "metrics")]
pub(crate) mod handles;
#[cfg(feature = "metrics")]
pub(crate) mod numbers;

use crate::{breaker::BreakerState, error::CallError, event::Event, timeout::End};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tracing::{
    Span,
    field::Empty,
    level_filters::{LevelFilter, STATIC_MAX_LEVEL},
};

/// Whether a subscriber of `tracing` may hear of events.
#[inline]
pub(crate) fn listens() -> bool {
    STATIC_MAX_LEVEL != LevelFilter::OFF && LevelFilter::current() != LevelFilter::OFF
}

/// Whether a recorder of `metrics` may count them.
#[inline]
pub(crate) const fn counts() -> bool {
    cfg!(feature = "metrics")
}

/// Whether a subscriber wants the span of a call. Where there is none, this is one load of what
/// `tracing` keeps for that, and nothing where it is compiled out.
#[inline(always)]
pub(crate) fn wants_spans() -> bool {
    #[cold]
    #[inline(never)]
    fn ask() -> bool {
        tracing::span_enabled!(tracing::Level::INFO)
    }
    STATIC_MAX_LEVEL >= LevelFilter::INFO && LevelFilter::current() >= LevelFilter::INFO && ask()
}

/// The span of one call.
pub(crate) fn call_span(dependency: &str, operation: &str) -> Span {
    tracing::info_span!(
        "call",
        mainstay.policy.name = dependency,
        mainstay.operation = operation,
        otel.status_code = Empty,
        "error.type" = Empty
    )
}

/// The span of one attempt, a child of the call's.
pub(crate) fn attempt_span(number: u32) -> Span {
    tracing::info_span!(
        "attempt",
        mainstay.attempt = number,
        otel.status_code = Empty,
        "error.type" = Empty
    )
}

/// What ends a span, and how it has failed if it did, in a word: OpenTelemetry's `error.type`.
pub(crate) trait Ending {
    fn failure(&self) -> Option<&'static str>;

    /// In words that OpenTelemetry's layers understand.
    fn note(&self, span: &Span) {
        if let Some(failure) = self.failure() {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", failure);
        }
    }
}

impl<T, E> Ending for Result<T, CallError<E>> {
    fn failure(&self) -> Option<&'static str> {
        match self.as_ref().err()? {
            CallError::Rejected { by, .. } | CallError::Stopped { by, .. } => Some(by.name()),
            CallError::Backend { effect, .. } => Some(effect.name()),
        }
    }
}

impl<T, E> Ending for End<Result<T, E>> {
    fn failure(&self) -> Option<&'static str> {
        match self.struck.verdict() {
            Some(_) => Some("_OTHER"),
            None => self.output.failure(),
        }
    }
}

/// An attempt's output.
impl<T, E> Ending for Option<Result<T, E>> {
    fn failure(&self) -> Option<&'static str> {
        match self {
            Some(Ok(_)) => None,
            // The error's own words may hold anything; this is OpenTelemetry's for "some other".
            Some(Err(_)) => Some("_OTHER"),
            None => Some("timeout"),
        }
    }
}

pin_project! {
    /// A call or an attempt in its span.
    pub(crate) struct InSpan<F> {
        #[pin]
        work: F,
        span: Span,
    }
}

impl<F> InSpan<F> {
    #[inline]
    pub(crate) const fn new(work: F, span: Span) -> Self {
        Self { work, span }
    }
}

impl<F> Future for InSpan<F>
where
    F: Future,
    F::Output: Ending,
{
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let polled = this.span.in_scope(|| this.work.poll(cx));
        if let Poll::Ready(end) = &polled {
            end.note(this.span);
        }
        polled
    }
}

pub(crate) fn tell(event: &Event) {
    #[cfg(feature = "metrics")]
    numbers::tell(event);
    match event {
        Event::Changed { dependency, from, to, cause, retry_after } => {
            let cause = cause.as_deref().map(tracing::field::display);
            match to {
                BreakerState::Open | BreakerState::Isolated => tracing::warn!(
                    mainstay.policy.name = &**dependency,
                    mainstay.breaker.from = from.name(),
                    mainstay.breaker.state = to.name(),
                    cause,
                    retry_after = retry_after.map(|wait| wait.as_secs_f64()),
                    "circuit breaker opened"
                ),
                _ => tracing::info!(
                    mainstay.policy.name = &**dependency,
                    mainstay.breaker.from = from.name(),
                    mainstay.breaker.state = to.name(),
                    "circuit breaker changed"
                ),
            }
        }
        Event::Retrying { dependency, operation, attempt, delay, effect } => tracing::debug!(
            mainstay.policy.name = &**dependency,
            operation,
            mainstay.attempt = attempt,
            delay = delay.as_secs_f64(),
            effect = effect.name(),
            "attempt failed, retrying"
        ),
        Event::Hedged { dependency, operation, after } => tracing::debug!(
            mainstay.policy.name = &**dependency,
            operation,
            after = after.as_secs_f64(),
            "second copy sent"
        ),
        Event::Stopped { dependency, operation, by, attempts, elapsed, effect } => tracing::warn!(
            mainstay.policy.name = &**dependency,
            operation,
            decider = by.name(),
            attempts,
            elapsed = elapsed.as_secs_f64(),
            effect = effect.name(),
            "call given up"
        ),
        Event::Rejected { dependency, operation, by, observed } => tracing::debug!(
            mainstay.policy.name = &**dependency,
            operation,
            decider = by.name(),
            observed,
            "call refused"
        ),
        Event::SlowedDown { dependency, wait } => tracing::warn!(
            mainstay.policy.name = &**dependency,
            wait = wait.as_secs_f64(),
            "the server asks for less load: requests are held back"
        ),
        Event::AtFullSpeed { dependency } => tracing::info!(
            mainstay.policy.name = &**dependency,
            "the server takes all requests again"
        ),
        Event::FellBack { dependency } => {
            tracing::debug!(mainstay.policy.name = &**dependency, "fallback answered");
        }
    }
}
