//! One attempt, bounded: the work is polled first, and a timer is armed only when it has to wait; if
//! its driver has a timer too, only when it has to wait again.

use crate::{
    chaos::{Blow, Struck},
    classify::Operation,
    clock::{self, Instant},
    deadline::{Marks, Scope},
};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::Sleep;

pin_project! {
    /// An attempt in a scope of its own, which ends by the scope's deadline.
    pub(crate) struct Bounded<F> {
        #[pin]
        work: F,
        #[pin]
        timer: Option<Sleep>,
        scope: Scope,
        started: Instant,
        blow: Blow,
        // The driver wakes the work in time: once.
        woken: bool,
    }
}

/// How a bounded attempt ended: `None` when time ran out.
pub(crate) struct End<T> {
    pub(crate) output: Option<T>,
    /// What nested calls marked.
    pub(crate) marks: Marks,
    /// There is no output because of a fault on purpose.
    pub(crate) struck: Struck,
}

impl<F: Future> Bounded<F> {
    /// `limit` bounds this attempt and the calls nested in it; `started` is now.
    #[inline]
    pub(crate) const fn new(
        operation: &Operation,
        work: F,
        limit: Instant,
        started: Instant,
        blow: Blow,
    ) -> Self {
        let scope = Scope::until(limit);
        let woken = operation.is_timed_by_driver();
        Self { work, timer: None, scope, started, blow, woken }
    }
}

impl<F: Future> Bounded<F> {
    /// How it ended, but for the marks, which stay in [`Self::marks`]: with them around it the output
    /// would be copied twice more.
    #[inline]
    pub(crate) fn poll_work(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<(Option<F::Output>, Struck)> {
        let this = self.project();
        match this.blow.before(cx) {
            Poll::Ready(struck) if struck.verdict().is_some() => {
                return Poll::Ready((None, struck));
            }
            Poll::Ready(_) => {}
            Poll::Pending => {
                let over = is_over(this.timer, this.scope.deadline, *this.started, cx);
                return if over { Poll::Ready((None, Struck::NOT)) } else { Poll::Pending };
            }
        }
        let inside = this.scope.enter();
        let polled = this.work.poll(cx);
        this.scope.marks = inside.leave();
        if let Poll::Ready(output) = polled {
            let struck = this.blow.after();
            let output = struck.verdict().is_none().then_some(output);
            return Poll::Ready((output, struck));
        }
        if std::mem::take(this.woken) {
            return Poll::Pending;
        }
        if is_over(this.timer, this.scope.deadline, *this.started, cx) {
            return Poll::Ready((None, Struck::NOT));
        }
        Poll::Pending
    }

    /// What nested calls have marked so far.
    pub(crate) const fn marks(&self) -> Marks {
        self.scope.marks
    }
}

impl<F: Future> Future for Bounded<F> {
    type Output = End<F::Output>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End<F::Output>> {
        let polled = self.as_mut().poll_work(cx);
        polled.map(|(output, struck)| End { output, marks: self.marks(), struck })
    }
}

/// Arms the timer if need be, and asks it.
fn is_over(
    mut timer: Pin<&mut Option<Sleep>>,
    limit: Instant,
    started: Instant,
    cx: &mut Context<'_>,
) -> bool {
    if timer.is_none() && !limit.is_never() && clock::has_timer() {
        timer.set(Some(clock::sleep_until(limit, started)));
    }
    timer.as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::Idempotency;
    use std::{future::poll_fn, pin::pin, time::Duration};

    const GET: Operation = Operation::new("get", Idempotency::Safe);

    const S: Duration = Duration::from_secs(1);

    fn blow() -> Blow {
        crate::chaos::blow("nobody")
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_ready_wins_over_a_limit_that_has_passed() {
        let start = clock::now();
        let end = Bounded::new(&GET, async { 1 }, start, start, blow()).await;
        assert_eq!(end.output, Some(1));
        let pending = std::future::pending::<()>();
        assert_eq!(Bounded::new(&GET, pending, start.after(S), start, blow()).await.output, None);
        assert_eq!(clock::now().since(start), S);
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_wakes_its_work_in_time_spares_the_timer_and_cannot_outlast_the_limit() {
        let timed = GET.timed_by_driver();
        let start = clock::now();
        let mut answered =
            pin!(Bounded::new(&timed, tokio::time::sleep(S), start.after(S * 2), start, blow()));
        assert!(poll_fn(|cx| Poll::Ready(answered.as_mut().poll(cx).is_pending())).await);
        assert!(answered.as_mut().project().timer.is_none());
        assert_eq!(answered.await.output, Some(()));
        // Woken after one second, and then still waiting.
        let (start, work) = (clock::now(), async {
            tokio::time::sleep(S).await;
            std::future::pending::<()>().await;
        });
        let end = Bounded::new(&timed, work, start.after(S * 2), start, blow()).await;
        assert_eq!(end.output, None);
        assert_eq!(clock::now().since(start), S * 2);
    }
}
