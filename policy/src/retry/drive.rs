//! The two loops: for futures, and for closures that block.

use super::{Answer, Judge, Refused, Retry, Run, Step};
use crate::{
    attempt::Attempt,
    breaker::Admission,
    bulkhead::Place,
    chaos::{self, Struck},
    classify::Operation,
    clock::{self, Instant},
    deadline::Scope,
    error::Decider,
    hedge,
    policy::Inner,
    telemetry::{self, Ending, InSpan},
    timeout::{Bounded, End},
};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};
use tracing::Span;

/// Runs futures.
#[inline]
pub(crate) fn drive<'p, T, E, F, Fut, J>(
    policy: &'p Inner,
    operation: &'p Operation,
    attempt: F,
    judge: J,
) -> impl Future<Output = Answer<T, E>>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    J: Judge<T, E>,
{
    let (run, parts) = (Run::new(policy, operation), Some((attempt, judge, go_on)));
    Drive { phase: Phase::New, run, parts }
}

pin_project! {
    /// One call: its first attempt. What most calls never need lives on the heap, so that every
    /// call's future stays small: retries, races of two copies, the wait for a place, and all of a
    /// call whose span somebody wants or which a breaker lets in that is not closed.
    ///
    /// Written by hand, since an `async` block has room for each argument twice, and copies what it
    /// returns, which took a tenth of a call that is ready at once.
    struct Drive<'p, F, Fut, J, G, R> {
        #[pin]
        phase: Phase<'p, Fut, R>,
        run: Run<'p>,
        // The third makes the rest of the call from the other two.
        parts: Option<(F, J, G)>,
    }
}

pin_project! {
    #[project = InPhase]
    enum Phase<'p, Fut, R> {
        New,
        First { #[pin] work: Bounded<Fut>, place: Place<'p> },
        Rest { rest: Pin<Box<InSpan<R>>>, admission: Option<Admission> },
        Done,
    }
}

impl<'p, T, E, F, Fut, J, G, R> Future for Drive<'p, F, Fut, J, G, R>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    J: Judge<T, E>,
    G: FnOnce(Run<'p>, Option<Retry<'p, T, E>>, F, J) -> R,
    R: Future<Output = Answer<T, E>>,
{
    type Output = Answer<T, E>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        if matches!(*this.phase, Phase::New) {
            if telemetry::wants_spans() {
                return self.begin_in_span(cx);
            }
            // Before all else: who is refused pays for nothing else.
            if this.run.is_barred()
                && let Some(refusal) = this.run.policy.refuses(this.run.operation)
            {
                return Poll::Ready(Err(refusal.into()));
            }
        }
        self.poll_call(cx)
    }
}

impl<'p, T, E, F, Fut, J, G, R> Drive<'p, F, Fut, J, G, R>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    J: Judge<T, E>,
    G: FnOnce(Run<'p>, Option<Retry<'p, T, E>>, F, J) -> R,
    R: Future<Output = Answer<T, E>>,
{
    #[cold]
    #[inline(never)]
    fn begin_in_span(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<T, E>> {
        let mut this = self.as_mut().project();
        let span = telemetry::call_span(this.run.policy.breaker.name(), this.run.operation.name());
        if let Err(refused) = span.in_scope(|| this.run.ask()) {
            this.phase.set(Phase::Done);
            let refused = Err(refused);
            refused.note(&span);
            return Poll::Ready(refused);
        }
        self.go_on(None, span, cx)
    }

    #[inline(never)]
    fn poll_call(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<T, E>> {
        let begins = matches!(self.phase, Phase::New);
        if begins {
            if !self.as_mut().project().run.begin() {
                return self.admit(cx);
            }
            self.as_mut().first(Place::free());
        }
        let mut this = self.as_mut().project();
        let InPhase::First { mut work, .. } = this.phase.as_mut().project() else {
            return self.poll_rest(cx);
        };
        let Poll::Ready((output, struck)) = work.as_mut().poll_work(cx) else {
            return Poll::Pending;
        };
        let marks = work.marks();
        this.phase.set(Phase::Done);
        match (output, this.parts) {
            (Some(Ok(value)), Some((_, judge, _))) if !judge.refuses(&value) => {
                if begins {
                    this.run.succeed_at_once();
                } else {
                    this.run.succeed(clock::now());
                }
                Poll::Ready(Ok(value))
            }
            (output, _) => self.failed(End { output, marks, struck }, clock::now(), cx),
        }
    }

    #[inline]
    fn first(self: Pin<&mut Self>, place: Place<'p>) {
        let mut this = self.project();
        let Some((attempt, ..)) = this.parts else { return };
        let now = this.run.started;
        let (number, limit) = this.run.next_attempt(now);
        let blow = chaos::blow(this.run.policy.breaker.name());
        let work = Bounded::new(this.run.operation, attempt(number), limit, now, blow);
        this.phase.set(Phase::First { work, place });
    }

    /// Where a look at the word did not do.
    #[inline(never)]
    fn admit(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<T, E>> {
        let mut this = self.as_mut().project();
        if let Some(refusal) = this.run.policy.refuses(this.run.operation) {
            return Poll::Ready(Err(refusal.into()));
        }
        if let Err(refused) = this.run.admit() {
            this.phase.set(Phase::Done);
            return Poll::Ready(Err(refused.into()));
        }
        let place = match this.run.permit.admission() {
            None => this.run.policy.place_now(this.run.limits),
            Some(_) => None,
        };
        match place {
            Some(place) => {
                self.as_mut().first(place);
                self.poll(cx)
            }
            None => self.go_on(None, Span::none(), cx),
        }
    }

    #[inline(never)]
    fn failed(
        mut self: Pin<&mut Self>,
        end: End<Result<T, E>>,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<Answer<T, E>> {
        let this = self.as_mut().project();
        let Some((_, judge, _)) = this.parts else { return Poll::Pending };
        let judgement = this.run.judge(end, judge);
        match this.run.take().take_in(judgement, (None, Duration::ZERO), now) {
            Step::End(end) => Poll::Ready(end),
            Step::Again(run, retry) => {
                *this.run = run;
                self.go_on(Some(retry), Span::none(), cx)
            }
        }
    }

    fn go_on(
        mut self: Pin<&mut Self>,
        retry: Option<Retry<'p, T, E>>,
        span: Span,
        cx: &mut Context<'_>,
    ) -> Poll<Answer<T, E>> {
        self.as_mut().box_rest(retry, span);
        self.poll_rest(cx)
    }

    /// Apart from where it is polled, as [`Run::traced_attempt`].
    #[inline(never)]
    fn box_rest(self: Pin<&mut Self>, retry: Option<Retry<'p, T, E>>, span: Span) {
        let mut this = self.project();
        if let Some((attempt, judge, go_on)) = this.parts.take() {
            let admission = this.run.permit.admission();
            let rest = Box::pin(InSpan::new(go_on(this.run.take(), retry, attempt, judge), span));
            this.phase.set(Phase::Rest { rest, admission });
        }
    }

    #[inline(never)]
    fn poll_rest(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<T, E>> {
        let mut phase = self.project().phase;
        let InPhase::Rest { rest, admission } = phase.as_mut().project() else {
            return Poll::Pending;
        };
        let polled = {
            let _inside = admission.map(Admission::enter);
            rest.as_mut().poll(cx)
        };
        if polled.is_ready() {
            phase.set(Phase::Done);
        }
        polled
    }
}

/// A call that waits: for a place, between attempts, or for the second of two copies; and one whose
/// breaker notes what it lets in.
async fn go_on<T, E, F, Fut, J>(
    mut run: Run<'_>,
    mut retry: Option<Retry<'_, T, E>>,
    mut attempt: F,
    judge: J,
) -> Answer<T, E>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    J: Judge<T, E>,
{
    loop {
        let delay = retry.as_ref().map(|retry| retry.delay);
        let (place, now) = match run.turn(delay, |left| judge.hold(left)).await {
            Ok(turn) => turn,
            Err(refused) => return run.refuse(refused, retry, clock::now()),
        };
        let before = run.make(retry);
        let (this, limit) = run.next_attempt(now);
        let hedge = run.policy.hedge_after(run.limits, run.operation);
        let hedge = hedge.filter(|_| !run.permit.is_probe());
        let judgement = {
            let mut first = pin!(run.traced_attempt(this, limit, now, &mut attempt));
            match hedge {
                None => {
                    let end = first.as_mut().await;
                    drop(place);
                    run.judge(end, &judge)
                }
                Some(after) => {
                    let first = (first.as_mut(), now, place);
                    hedge::race(&mut run, first, &mut attempt, after, &judge).await
                }
            }
        };
        (run, retry) = match run.take_in(judgement, before, clock::now()) {
            Step::End(end) => return end,
            Step::Again(run, next) => (run, Some(next)),
        };
    }
}

/// An attempt of a call that waits, in a span of its own.
pub(crate) type TracedAttempt<Fut> = InSpan<Bounded<Fut>>;

impl<'p> Run<'p> {
    /// Waits until the next attempt may be made: after a backoff of `delay`, if it is a retry, until
    /// nothing holds it back and there is a place for it. Then it is now.
    async fn turn(
        &self,
        delay: Option<Duration>,
        hold: impl Fn(Duration) -> Option<Duration>,
    ) -> Result<(Place<'p>, Instant), Refused> {
        let mut now = self.started;
        if let Some(delay) = delay {
            clock::sleep(delay).await;
            while let Some(wait) = hold(self.end.since(clock::now())) {
                self.fits(wait)?;
                // Without a timer it would be asked again and again.
                if !clock::has_timer() {
                    return Err((Decider::Throttle, Some(wait)).into());
                }
                clock::sleep(wait).await;
            }
            now = clock::now();
            self.waited(now, true)?;
        }
        let place = self.policy.place(self.limits, self.end).await?;
        if self.limits.placed() {
            now = clock::now();
            self.waited(now, delay.is_some())?;
        }
        Ok((place, now))
    }

    /// [`Self::turn`] for a thread.
    fn turn_blocking(&self, delay: Option<Duration>) -> Result<(Place<'p>, Instant), Refused> {
        let mut now = self.started;
        if let Some(delay) = delay {
            std::thread::sleep(delay);
            now = clock::now();
            self.waited(now, true)?;
        }
        let place = self.policy.place_blocking(self.limits, self.end)?;
        if self.limits.placed() {
            now = clock::now();
            self.waited(now, delay.is_some())?;
        }
        Ok((place, now))
    }

    /// An attempt, not begun. Made apart from where it is polled: without optimisation each move of a
    /// large future leaves a copy on the stack, which is gone by then.
    #[inline(never)]
    pub(crate) fn traced_attempt<F, Fut>(
        &self,
        this: Attempt,
        limit: Instant,
        now: Instant,
        attempt: &mut F,
    ) -> TracedAttempt<Fut>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future,
    {
        let blow = chaos::blow(self.policy.breaker.name());
        let span = telemetry::attempt_span(this.number());
        let bounded = Bounded::new(self.operation, attempt(this), limit, now, blow);
        InSpan::new(bounded, span)
    }
}

/// Runs closures that block, on the caller's thread: time is checked between attempts.
pub(crate) fn drive_blocking<T, E, J>(
    policy: &Inner,
    operation: &Operation,
    attempt: impl FnMut(Attempt, Instant) -> Option<Result<T, E>>,
    judge: J,
) -> Answer<T, E>
where
    J: Judge<T, E>,
{
    let span = telemetry::call_span(policy.breaker.name(), operation.name());
    let end = span.in_scope(|| go_on_blocking(policy, operation, attempt, judge));
    end.note(&span);
    end
}

fn go_on_blocking<T, E, J>(
    policy: &Inner,
    operation: &Operation,
    mut attempt: impl FnMut(Attempt, Instant) -> Option<Result<T, E>>,
    judge: J,
) -> Answer<T, E>
where
    J: Judge<T, E>,
{
    let mut run = Run::new(policy, operation);
    run.ask()?;
    let _inside = run.permit.admission().map(Admission::enter);
    let mut retry: Option<Retry<'_, T, E>> = None;
    loop {
        let delay = retry.as_ref().map(|retry| retry.delay);
        let (place, now) = match run.turn_blocking(delay) {
            Ok(turn) => turn,
            Err(refused) => return run.refuse(refused, retry, clock::now()),
        };
        let before = run.make(retry);
        let (this, limit) = run.next_attempt(now);
        let scope = Scope::until(limit);
        let blow = chaos::blow(policy.breaker.name());
        let inside = scope.enter();
        let (output, struck) = match blow.before_blocking(limit) {
            None => (None, Struck::NOT),
            Some(struck) if struck.verdict().is_some() => (None, struck),
            Some(_) => {
                let span = telemetry::attempt_span(this.number());
                let output = span.in_scope(|| attempt(this, limit));
                output.note(&span);
                let struck = blow.after();
                (output.filter(|_| struck.verdict().is_none()), struck)
            }
        };
        let marks = inside.leave();
        drop(place);
        let judgement = run.judge(End { output, marks, struck }, &judge);
        (run, retry) = match run.take_in(judgement, before, clock::now()) {
            Step::End(end) => return end,
            Step::Again(run, next) => (run, Some(next)),
        };
    }
}
