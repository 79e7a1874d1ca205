//! The breaker without the rest of a call, for `policy/benches`: not for anybody else.

use crate::{breaker::Trip, clock::Instant, error::Cause, policy::Policy};
use std::future::Future;

/// Admits `work`, runs it and records how it ended, with windows and latencies on. The time is given,
/// in nanoseconds from some start. `None` when it is refused.
///
/// # Errors
/// Those of `work`.
pub async fn guarded<T, E>(
    policy: &Policy,
    now: u64,
    work: impl Future<Output = Result<T, E>>,
) -> Option<Result<T, E>> {
    let mut permit = policy.0.breaker.unasked();
    if !permit.if_closed() && permit.ask(Instant::of_nanos(now)).is_err() {
        return None;
    }
    permit.begin_attempt(Instant::of_nanos(now));
    let end = work.await;
    let now = Instant::of_nanos(now);
    let cause = |trip: Trip| Cause::of_a_cut(trip);
    match &end {
        Ok(_) => permit.succeed(now, cause),
        Err(_) => permit.finish(crate::Outcome::Failure, now, &cause),
    }
    Some(end)
}
