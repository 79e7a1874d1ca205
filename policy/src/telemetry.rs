//! What of our events goes to `tracing`: opening and giving up warn, closing informs, the rest is
//! for debugging. Object keys, statements and URLs are not in them.

use crate::{breaker::BreakerState, event::Event};
use tracing::level_filters::LevelFilter;

/// Whether any subscriber is installed.
pub(crate) fn listens() -> bool {
    LevelFilter::current() != LevelFilter::OFF
}

pub(crate) fn tell(event: &Event) {
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
        Event::FellBack { dependency } => {
            tracing::debug!(mainstay.policy.name = &**dependency, "fallback answered");
        }
    }
}
