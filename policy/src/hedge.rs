//! A second copy of an attempt that takes long; reads only, and the first success wins.
//!
//! "The Tail at Scale" (Dean and Barroso, 2013): a copy sent after the 95th percentile costs about
//! 5 % more load and cuts the tail.

use crate::{
    attempt::Attempt,
    bulkhead::Place,
    clock::{self, Instant},
    retry::{Judge, Judgement, Run, TracedAttempt},
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

/// One of two copies: when it began, and its place, which the next one gets when it ends.
type Leg<'a, 'p, Fut> = (Pin<&'a mut TracedAttempt<Fut>>, Instant, Place<'p>);

/// Runs `first`, and a second copy beside it once `delay` has passed.
pub(crate) async fn race<'p, T, E, F, Fut, J>(
    run: &mut Run<'p>,
    (mut first, began, place): Leg<'_, 'p, Fut>,
    attempt: &mut F,
    delay: Duration,
    judge: &J,
) -> Judgement<T, E>
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
            return run.judge(end, judge);
        }
    }
    let sent = clock::now();
    // A server that asks for less load gets no second copies.
    let free = judge.hold(Duration::ZERO).is_none();
    let second = if free { run.hedge(sent, delay) } else { None };
    let Some((copy, limit, free)) = second else {
        let end = first.await;
        return run.judge(end, judge);
    };
    let second = pin!(run.traced_attempt(copy, limit, sent, attempt));
    let (ended, end, other) = first_of([(first, began, place), (second, sent, free)]).await;
    let now = clock::now();
    match run.first_copy(ended, end, judge, now) {
        Ok(judgement) => {
            run.copy_cut(other.1, now);
            run.copy_remains(ended);
            judgement
        }
        Err(lost) => {
            run.copy_remains(other.1);
            let end = other.0.await;
            run.second_copy(end, judge, lost)
        }
    }
}

/// The leg that ends first: when it began, how it ended, and the other one.
async fn first_of<'a, 'p, T, E, Fut: Future<Output = Result<T, E>>>(
    [mut one, mut two]: [Leg<'a, 'p, Fut>; 2],
) -> (Instant, End<Result<T, E>>, Leg<'a, 'p, Fut>) {
    let (first, end) = poll_fn(|cx| {
        if let Poll::Ready(end) = one.0.as_mut().poll(cx) {
            return Poll::Ready((true, end));
        }
        two.0.as_mut().poll(cx).map(|end| (false, end))
    })
    .await;
    if first { (one.1, end, two) } else { (two.1, end, one) }
}
