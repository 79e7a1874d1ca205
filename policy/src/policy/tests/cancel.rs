//! A call's future dropped at every point where it can wait.

use super::*;
use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll, Waker},
};

/// Waits once, as a socket would.
async fn once() {
    let mut waited = false;
    poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending })
        .await;
}

/// What a breaker and its neighbours hold between calls.
#[derive(Debug, PartialEq)]
struct Held {
    state: BreakerState,
    tokens: u64,
    places: usize,
}

/// Of the two or fewer places.
fn held(policy: &Policy) -> Held {
    let places: Vec<_> = (0..2).map_while(|_| policy.0.place_of_copy()).collect();
    let places = places.len();
    Held { state: policy.breaker().state(), tokens: policy.retries_left(), places }
}

/// An operation that waits twice an attempt and ends as `faults` say, in turn.
async fn operation(policy: &Policy, faults: &[Option<Verdict>], sent: &AtomicU32) {
    let _ = policy
        .run(&READ, |attempt| {
            sent.fetch_add(1, SeqCst);
            let fault = faults.get(attempt.number() as usize - 1).copied().flatten();
            async move {
                once().await;
                once().await;
                fault.map_or(Ok(()), |verdict| Err(Fault(verdict)))
            }
        })
        .await;
}

/// Polls `n` times, moving the clock to the next timer between polls, then drops.
async fn poll_and_drop(n: usize, call: impl Future<Output = ()>) -> bool {
    let mut call = pin!(call);
    for _ in 0..n {
        if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return true;
        }
        tokio::time::advance(Duration::from_millis(60)).await;
    }
    false
}

fn limited(name: &str) -> Policy {
    database(name)
        .base_delay(Duration::from_millis(100))
        .jitter(Jitter::None)
        .max_concurrent(1)
        .timeout(S)
        .failure_threshold(3)
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_drop_gives_everything_back_in_every_state() {
    let fail = Some(Verdict::transient());
    let cases: [&[Option<Verdict>]; 4] =
        [&[None], &[fail, None], &[fail, fail, None], &[fail, fail, fail]];
    for half_open in [false, true] {
        for (case, faults) in cases.iter().enumerate() {
            for n in 0.. {
                let policy = limited(&format!("t-cancel-{half_open}-{case}-{n}"));
                if half_open {
                    for _ in 0..3 {
                        against(&policy, &WRITE, Verdict::unknown()).await;
                    }
                    tokio::time::advance(2 * S).await;
                    assert_eq!(policy.breaker().state(), BreakerState::HalfOpen);
                }
                let before = held(&policy);
                let sent = AtomicU32::new(0);
                let done = poll_and_drop(n, operation(&policy, faults, &sent)).await;
                let retries = u64::from(sent.load(SeqCst).saturating_sub(1));
                let after = held(&policy);
                let what = format!("{faults:?}, half-open {half_open}, dropped after {n} polls");
                // A retry that was made is paid for; one that was not is not.
                assert_eq!(after.tokens, before.tokens - retries, "{what}");
                assert_eq!(after.places, 1, "{what}");
                if done {
                    break;
                }
                assert_eq!(after.state, before.state, "{what}");
                // Whatever was dropped, the next caller is admitted: as the probe, if it is one.
                policy.run(&READ, async |_| Ok::<_, Fault>(())).await.unwrap();
                assert_eq!(policy.breaker().state(), BreakerState::Closed, "{what}");
                assert!(n < 40, "it ends");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hedged_call_gives_everything_back_too() {
    for n in 0..12 {
        let policy = database(&format!("t-cancel-hedge-{n}"))
            .hedge(crate::Hedge::After(Duration::from_millis(50)))
            .max_concurrent(2)
            .build()
            .unwrap();
        let sent = AtomicU32::new(0);
        let call = async {
            let hang = policy.run(&READ, |_| {
                sent.fetch_add(1, SeqCst);
                std::future::pending::<Result<(), Fault>>()
            });
            let _ = hang.await;
        };
        assert!(!poll_and_drop(n, call).await);
        let after = held(&policy);
        assert_eq!(after.places, 2);
        let copies = u64::from(sent.load(SeqCst).saturating_sub(1));
        assert_eq!(after.tokens, 10 - copies, "after {n} polls");
        assert_eq!(after.state, BreakerState::Closed);
    }
}

/// Dropped or refused, a retry that waits for its place is not made.
#[tokio::test(start_paused = true)]
async fn a_retry_that_gets_no_place_costs_nothing_and_is_none() {
    for (n, patience) in [250, 9_000].into_iter().enumerate() {
        let name = format!("t-no-place-{n}");
        let policy = database(&name).base_delay(S / 10).jitter(Jitter::None);
        let policy = policy.max_concurrent(1).max_wait(S).build().unwrap();
        let taken = std::cell::OnceCell::new();
        let call = policy.run(&WRITE, async |attempt| {
            assert_eq!(attempt.number(), 1);
            // Whoever comes next has the place when this attempt gives it back.
            let waits = policy.0.place(policy.0.limits(), clock::Instant::NEVER);
            let mut waits = Box::pin(waits);
            assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
            let _ = taken.set(waits);
            Err::<(), _>(Fault(Verdict::transient()))
        });
        let ended = tokio::time::timeout(Duration::from_millis(patience), call).await;
        if let Ok(end) = ended {
            let error = end.unwrap_err();
            assert_eq!((error.decider(), error.attempts()), (Some(Decider::Bulkhead), 1));
            assert_eq!(error.effect(), crate::Effect::Transient);
            assert!(error.last().is_some());
        } else {
            assert_eq!(n, 0, "only the first is dropped");
        }
        assert_eq!(policy.retries_left(), 10);
        assert_eq!(crate::get_resilience_health().circuit_breakers[&*name].retries, 0);
    }
}

/// Below the slow threshold a drop says nothing; past it, it is a slow call.
#[tokio::test(start_paused = true)]
async fn hangs_behind_impatient_callers_open_the_breaker_and_quick_drops_do_not() {
    for (patience, state) in [(100, BreakerState::Closed), (400, BreakerState::Open)] {
        let policy = database(&format!("t-impatient-{patience}")).window(60 * S).build().unwrap();
        for call in 0..20 {
            assert_eq!(
                policy.breaker().state(),
                BreakerState::Closed,
                "{patience} ms, call {call}"
            );
            let hang = policy.run(&READ, |_| std::future::pending::<Result<(), Fault>>());
            assert!(tokio::time::timeout(Duration::from_millis(patience), hang).await.is_err());
        }
        assert_eq!(policy.breaker().state(), state, "{patience} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn three_impatient_callers_do_not_open_it() {
    let hedged = database("t-three-impatient-hedged").hedge(crate::Hedge::After(S / 10));
    for policy in [database("t-three-impatient"), hedged] {
        let policy = policy.build().unwrap();
        for _ in 0..3 {
            let hang = policy.run(&READ, |_| std::future::pending::<Result<(), Fault>>());
            let ended = crate::Deadline::within(S).scope(hang).await.unwrap_err();
            assert_eq!(ended.decider(), Some(Decider::Deadline));
        }
        assert_eq!(policy.breaker().state(), BreakerState::Closed, "{}", policy.name());
    }
}

/// By a drop, by the deadline around it, and by a client that keeps that deadline itself.
#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_until_its_caller_gives_up_has_failed() {
    for (patience, state) in
        [(Duration::from_millis(100), BreakerState::HalfOpen), (S, BreakerState::Open)]
    {
        for how in 0..3 {
            let policy = database(&format!("t-hung-probe-{how}-{patience:?}"));
            let policy = policy.failure_threshold(1).build().unwrap();
            against(&policy, &READ, Verdict::transient()).await;
            tokio::time::advance(2 * S).await;
            let hang = policy.run(&READ, async |_| {
                if how == 2 {
                    tokio::time::sleep(patience).await;
                    let cut = Verdict::unknown().with_outcome(crate::Outcome::Neutral);
                    return Err(Late(cut, Decider::Deadline));
                }
                std::future::pending::<Result<(), _>>().await
            });
            let ended = match how {
                0 => tokio::time::timeout(patience, hang).await.is_err(),
                1 => crate::Deadline::within(patience).scope(hang).await.is_err(),
                _ => hang.await.is_err(),
            };
            assert!(ended);
            assert_eq!(policy.breaker().state(), state, "{how}, {patience:?}");
        }
    }
}
