//! A second copy of an attempt that takes long; idempotent work only, and the first success wins.
//!
//! "The Tail at Scale" (Dean and Barroso, 2013): a copy sent after the 95th percentile costs about
//! 5 % more load and cuts the tail.

use crate::{
    attempt::Attempt,
    classify::Effect,
    clock::{self, Instant},
    retry::{Judge, Run, TracedAttempt},
    timeout::End,
};
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

/// When the second copy is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hedge {
    /// After this long.
    After(Duration),
    /// After the observed 95th percentile of the last minutes; not before 20 answers were seen.
    P95,
}

/// Runs `first`, and a second copy beside it once `delay` has passed.
pub(crate) async fn race<T, E, F, Fut, J>(
    run: &mut Run<'_>,
    mut first: Pin<&mut TracedAttempt<Fut>>,
    began: Instant,
    attempt: &mut F,
    delay: Duration,
    judge: &J,
) -> End<Result<T, E>>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    J: Judge<T, E>,
{
    {
        let mut wait = pin!(clock::sleep(delay));
        let alone = poll_fn(|cx| match first.as_mut().poll(cx) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending => wait.as_mut().poll(cx).map(|()| None),
        });
        if let Some(end) = alone.await {
            return end;
        }
    }
    // A server that asks for less load gets no second copies.
    if judge.hold().is_some() {
        return first.await;
    }
    let sent = clock::now();
    let Some((copy, limit)) = run.hedge(sent, delay) else { return first.await };
    let second = pin!(run.traced_attempt(copy, limit, sent, attempt));
    let both = [(first, began), (second, sent)];
    let (ended, end, other) = first_of(both).await;
    let now = clock::now();
    let verdict = match &end.output {
        Some(Ok(value)) if !judge.refuses(value) => None,
        Some(Ok(_)) => Some(crate::Verdict::transient()),
        Some(Err(error)) => Some(judge.error(error, run.operation()).verdict),
        None => Some(end.struck.verdict().unwrap_or(crate::Verdict::unknown())),
    };
    match verdict.filter(|verdict| verdict.effect != Effect::Permanent) {
        None => {
            run.copy_cut(other.1, now);
            run.copy_remains(ended);
            end
        }
        Some(verdict) => {
            run.copy_failed(ended, verdict, now);
            run.copy_remains(other.1);
            other.0.await
        }
    }
}

type Leg<'a, Fut> = (Pin<&'a mut TracedAttempt<Fut>>, Instant);

/// The leg that ends first: when it began, how it ended, and the other one.
async fn first_of<'a, Fut: Future>(
    [mut one, mut two]: [Leg<'a, Fut>; 2],
) -> (Instant, End<Fut::Output>, Leg<'a, Fut>) {
    let (first, end) = poll_fn(|cx| {
        if let Poll::Ready(end) = one.0.as_mut().poll(cx) {
            return Poll::Ready((true, end));
        }
        two.0.as_mut().poll(cx).map(|end| (false, end))
    })
    .await;
    if first { (one.1, end, two) } else { (two.1, end, one) }
}
