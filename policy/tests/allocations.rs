//! What a call costs in heap allocations: none, whether it succeeds, waits or is refused; and one,
//! however often it is repeated.
//!
//! Counted on this thread only, so tests may run side by side. No subscriber of `tracing` listens.
// A recorder of metrics is asked for its handles once a second, which allocates.
#![cfg(not(feature = "metrics"))]
#![allow(clippy::unwrap_used)]

use mainstay_policy::{
    Attempt, BreakGrowth, CallError, Classify, Idempotency, Kind, Operation, Policy, Verdict,
};
use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

const READ: Operation = Operation::new("read", Idempotency::Safe);
const CALLS: u64 = 1_000;

#[derive(Debug)]
struct Fault;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not now")
    }
}

impl std::error::Error for Fault {}

impl Classify for Fault {
    fn classify(&self) -> Verdict {
        Verdict::transient()
    }
}

/// An answer that is not worth repeating.
#[derive(Debug)]
struct Answered;

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such row")
    }
}

impl std::error::Error for Answered {}

impl Classify for Answered {
    fn classify(&self) -> Verdict {
        Verdict::permanent()
    }
}

/// Pending once, and woken at once.
#[derive(Default)]
struct Once(bool);

impl Future for Once {
    type Output = Result<u32, Fault>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(Ok(1));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Runs `work`, and says how often it allocated while it was polled and dropped.
async fn counted<F: Future>(work: F) -> (F::Output, u64) {
    let mut allocations = 0;
    let mut work = pin!(Some(work));
    let output = poll_fn(|cx| {
        let mut polled = Poll::Pending;
        let seen = allocation_counter::measure(|| {
            if let Some(running) = work.as_mut().as_pin_mut() {
                polled = running.poll(cx);
            }
            if polled.is_ready() {
                work.set(None);
            }
        });
        allocations += seen.count_total;
        polled
    })
    .await;
    (output, allocations)
}

/// Allocations of `CALLS` calls, after one that may fill what is filled once.
async fn of_many<F: Future<Output = bool>>(mut call: impl FnMut() -> F) -> u64 {
    assert!(call().await);
    let (all, allocations) = counted(async {
        let mut all = true;
        for _ in 0..CALLS {
            all &= call().await;
        }
        all
    })
    .await;
    assert!(all);
    allocations
}

fn policy(name: &str) -> Policy {
    // Its breaks last longer than what is counted in them.
    let policy = Policy::builder(Kind::Database, name).break_growth(BreakGrowth::Fixed);
    policy.base_delay(Duration::ZERO).build().unwrap()
}

#[tokio::test]
async fn the_counter_counts() {
    let (_, allocations) = counted(async { std::hint::black_box(Box::new(1)) }).await;
    assert_eq!(allocations, 1);
}

#[tokio::test]
async fn a_successful_call_allocates_nothing() {
    let policy = policy("allocations-ready");
    let run = || async { policy.run(&READ, |_| async { Ok::<_, Fault>(1) }).await.is_ok() };
    assert_eq!(of_many(run).await, 0);
    let call = || async { policy.call(|| async { Ok::<_, Fault>(1) }).await.is_ok() };
    assert_eq!(of_many(call).await, 0);
}

#[tokio::test]
async fn a_call_that_waits_allocates_nothing() {
    let policy = policy("allocations-pending");
    let run = || async { policy.run(&READ, |_| Once::default()).await.is_ok() };
    assert_eq!(of_many(run).await, 0);
    let call = || async { policy.call(Once::default).await.is_ok() };
    assert_eq!(of_many(call).await, 0);
}

#[tokio::test]
async fn a_refused_call_and_its_error_allocate_nothing() {
    let policy = policy("allocations-refused");
    let fails = || policy.run(&READ, |_| async { Err::<(), _>(Fault) });
    while !fails().await.unwrap_err().is_rejected() {}
    assert_eq!(of_many(|| async { fails().await.unwrap_err().is_rejected() }).await, 0);
    let refused = || async {
        let end = policy.call(|| async { Err::<(), _>(Fault) }).await;
        matches!(end, Err(CallError::Rejected { opened_by: Some(_), .. }))
    };
    assert_eq!(of_many(refused).await, 0);
    policy.breaker().isolate();
    assert_eq!(of_many(|| async { fails().await.unwrap_err().is_rejected() }).await, 0);
}

#[tokio::test]
async fn a_repeated_call_allocates_once() {
    let policy = policy("allocations-retry");
    let run = || policy.run(&READ, |_| async { Ok::<_, Fault>(1) });
    let fails_twice =
        |attempt: Attempt| async move { if attempt.number() < 3 { Err(Fault) } else { Ok(1) } };
    for _ in 0..20 {
        let (repeated, allocations) = counted(policy.run(&READ, fails_twice)).await;
        assert!(repeated.is_ok());
        assert_eq!(allocations, 1);
        // Four successes pay for two retries, and more of them keep the failure rate low.
        for _ in 0..4 {
            assert!(run().await.is_ok());
        }
    }
}

#[tokio::test]
async fn a_call_that_fails_allocates_nothing() {
    let policy = policy("allocations-failed");
    let run = || policy.run(&READ, |_| async { Err::<(), _>(Answered) });
    assert_eq!(of_many(|| async { run().await.is_err() }).await, 0);
}
