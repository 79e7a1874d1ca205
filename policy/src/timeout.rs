//! One attempt, bounded: the work is polled first, and a timer is armed only when it has to wait.

use crate::{
    clock::{self, Instant},
    deadline::Scope,
};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::Sleep;

pin_project! {
    /// An attempt that ends by `limit`, in a scope of its own.
    pub(crate) struct Bounded<F> {
        #[pin]
        work: F,
        #[pin]
        timer: Option<Sleep>,
        limit: Instant,
        started: Instant,
        scope: Scope,
    }
}

/// How a bounded attempt ended: `None` when time ran out.
pub(crate) struct End<T> {
    pub(crate) output: Option<T>,
    /// What nested calls marked.
    pub(crate) scope: Scope,
}

impl<F: Future> Bounded<F> {
    /// `limit` bounds this attempt, `deadline` is what nested calls see; `started` is now.
    pub(crate) fn new(work: F, limit: Instant, started: Instant) -> Self {
        let scope = Scope { deadline: limit, ..Scope::NONE };
        Self { work, timer: None, limit, started, scope }
    }
}

impl<F: Future> Future for Bounded<F> {
    type Output = End<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End<F::Output>> {
        let mut this = self.project();
        let (polled, scope) = this.scope.enter(|| this.work.poll(cx));
        this.scope.handled = scope.handled;
        this.scope.unknown = scope.unknown;
        if let Poll::Ready(output) = polled {
            return Poll::Ready(End { output: Some(output), scope });
        }
        if this.limit.is_never() {
            return Poll::Pending;
        }
        if this.timer.is_none() {
            if !clock::has_timer() {
                return Poll::Pending;
            }
            this.timer.set(Some(clock::sleep_until(*this.limit, *this.started)));
        }
        match this.timer.as_pin_mut().map(|timer| timer.poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(End { output: None, scope }),
            _ => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn work_that_is_ready_wins_over_a_limit_that_has_passed() {
        let start = clock::now();
        let end = Bounded::new(async { 1 }, start, start).await;
        assert_eq!(end.output, Some(1));
        let pending = std::future::pending::<()>();
        assert_eq!(Bounded::new(pending, start.after(S), start).await.output, None);
        assert_eq!(clock::now().since(start), S);
    }
}
