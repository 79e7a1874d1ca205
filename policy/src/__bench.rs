//! The breaker without the rest of a call, for `policy/benches`: not for anybody else.

use crate::{
    breaker::{Permit, Trip},
    classify::Outcome,
    clock::Instant,
    error::Cause,
    policy::Policy,
};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    hint::black_box,
    pin::Pin,
    task::{Context, Poll},
};

pin_project! {
    /// Work behind a breaker, from [`guarded`].
    #[allow(missing_debug_implementations)]
    pub struct Guarded<'p, W> {
        permit: Permit<'p>,
        now: Instant,
        #[pin]
        work: W,
    }
}

/// Admits `work`, runs it and records how it ended, with windows and latencies on. The time is given,
/// in nanoseconds from some start. Fails with `None` when it is refused.
#[inline]
pub fn guarded<W>(policy: &Policy, now: u64, work: W) -> Guarded<'_, W> {
    let (breaker, now) = (&policy.0.breaker, Instant::of_nanos(now));
    let permit = breaker.begun_if_closed(now).unwrap_or_else(|| {
        // Keeps the optimiser from making both permits and choosing one.
        black_box(());
        breaker.unasked()
    });
    Guarded { permit, now, work }
}

impl<T, E, W: Future<Output = Result<T, E>>> Future for Guarded<'_, W> {
    type Output = Result<T, Option<E>>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (this, cause) = (self.project(), |trip: Trip| Cause::of_a_cut(trip));
        let (permit, now) = (this.permit, *this.now);
        if permit.attempt_since().is_never() {
            if permit.ask(now).is_err() {
                return Poll::Ready(Err(None));
            }
            permit.begin_attempt(now);
        }
        this.work.poll(cx).map(|end| {
            match &end {
                Ok(_) => permit.succeed(now, cause),
                Err(_) => permit.finish(Outcome::Failure, now, &cause),
            }
            end.map_err(Some)
        })
    }
}
