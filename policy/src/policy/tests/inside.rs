//! Calls inside calls, on one breaker.

use super::*;
use std::{future::poll_fn, pin::pin, task::Poll};

/// A breaker that one failure has opened, and whose break is over.
async fn half_open(name: &str) -> Policy {
    let policy = database(name).failure_threshold(1).build().unwrap();
    against(&policy, &WRITE, Verdict::unknown()).await;
    tokio::time::advance(2 * S).await;
    assert_eq!(policy.breaker().state(), BreakerState::HalfOpen);
    policy
}

async fn one() -> Result<u32, &'static str> {
    Ok(1)
}

#[tokio::test(start_paused = true)]
async fn a_call_inside_a_probe_is_part_of_it() {
    let policy = half_open("t-inside-probe").await;
    assert_eq!(policy.call(|| policy.call(|| policy.call(one))).await.unwrap(), 1);
    assert_eq!(policy.breaker().state(), BreakerState::Closed);

    let policy = half_open("t-inside-blocking").await;
    let nested = || policy.call_blocking(|| Ok::<_, &str>(1));
    assert_eq!(policy.call_blocking(nested).unwrap(), 1);
    assert_eq!(policy.breaker().state(), BreakerState::Closed);

    let policy = half_open("t-inside-detached").await;
    let inner = policy.clone();
    let nested = move || inner.call_blocking(|| Ok::<_, &str>(1));
    assert_eq!(policy.call_blocking_detached(nested).unwrap(), 1);
    assert_eq!(policy.breaker().state(), BreakerState::Closed);

    // Through calls on other breakers, closed and not.
    let closed = database("t-inside-other").build().unwrap();
    let (policy, other) = (half_open("t-inside-a").await, half_open("t-inside-b").await);
    let nested = policy.call(|| closed.call(|| other.call(|| policy.call(one))));
    assert_eq!(nested.await.unwrap(), 1);
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
    assert_eq!(other.breaker().state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_call_inside_a_probe_is_a_single_attempt_and_decides_nothing_itself() {
    let policy = half_open("t-inside-single").await;
    let sent = AtomicU32::new(0);
    let nested = policy.call(|| async {
        let (error, n) = against(&policy, &READ, Verdict::transient()).await;
        sent.fetch_add(n, SeqCst);
        assert_eq!(policy.breaker().state(), BreakerState::HalfOpen);
        policy.call(one).await.unwrap();
        assert_eq!(policy.breaker().state(), BreakerState::HalfOpen);
        Err::<(), _>(error)
    });
    assert!(nested.await.is_err());
    assert_eq!(sent.load(SeqCst), 1);
    assert_eq!(policy.breaker().state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_call_beside_a_probe_is_refused_on_the_same_thread_too() {
    let policy = half_open("t-inside-beside").await;
    let mut probe = pin!(policy.call(|| async {
        tokio::task::yield_now().await;
        policy.call(one).await
    }));
    assert!(poll_fn(|cx| Poll::Ready(probe.as_mut().poll(cx).is_pending())).await);
    assert!(policy.call(one).await.unwrap_err().is_rejected());
    assert_eq!(probe.await.unwrap(), 1);
    assert_eq!(policy.call(one).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_inside_one_that_a_ramp_lets_in_is_let_in() {
    let policy = database("t-inside-ramp").failure_threshold(1).build().unwrap();
    for _ in 0..150 {
        policy.call(one).await.unwrap();
    }
    against(&policy, &WRITE, Verdict::unknown()).await;
    tokio::time::advance(2 * S).await;
    policy.call(one).await.unwrap();
    let mut passed = 0;
    for _ in 0..300 {
        match policy.call(|| policy.call(one)).await {
            Ok(_) => passed += 1,
            Err(error) => assert!(error.is_rejected(), "let in, and then not: {error:?}"),
        }
    }
    assert!((1..150).contains(&passed), "{passed} of 300 in the first step");
    assert_eq!(policy.breaker().state(), BreakerState::Ramping);
}

/// What has let the attempt in stands no more.
#[tokio::test(start_paused = true)]
async fn a_call_inside_is_refused_when_the_dependency_is_isolated_or_dead_meanwhile() {
    for probe in [false, true] {
        let policy = half_open(&format!("t-inside-isolated-{probe}")).await;
        if !probe {
            policy.breaker().reset();
        }
        let nested = policy.call(|| async {
            policy.breaker().isolate();
            policy.call(one).await
        });
        let error = nested.await.unwrap_err();
        assert!(error.last().unwrap().is_rejected(), "{error:?}");
    }
    let policy = database("t-inside-dead").failure_threshold(1).build().unwrap();
    let nested = policy.call(|| async {
        against(&policy, &WRITE, Verdict::unknown()).await;
        policy.call(one).await
    });
    let error = nested.await.unwrap_err();
    assert!(error.last().unwrap().is_circuit_open(), "{error:?}");
}

/// What fails inside is one failure, however many calls of one breaker are around it.
#[tokio::test(start_paused = true)]
async fn what_fails_inside_another_call_on_its_breaker_is_counted_once() {
    const FAIL: Result<(), &str> = Err("no");
    let fail = || std::future::ready(FAIL);
    let counts = |policy: &Policy| {
        let health = crate::get_resilience_health();
        let breaker = &health.circuit_breakers[policy.name()];
        (breaker.failed_calls, breaker.state)
    };
    let build = |name: &str| database(name).failure_threshold(3).max_attempts(1).build().unwrap();

    let policy = build("t-inside-once");
    for n in 1..=3 {
        assert_eq!(counts(&policy).1, BreakerState::Closed, "{n}");
        assert!(policy.call(|| policy.call(|| policy.call(fail))).await.is_err());
        assert_eq!(counts(&policy).0, n);
    }
    assert_eq!(counts(&policy).1, BreakerState::Open);

    // On this thread, on others, and with repeats inside: one operation that fails.
    let policy = database("t-inside-once-blocking").base_delay(Duration::ZERO).build().unwrap();
    policy.call_blocking(|| policy.call_blocking(|| FAIL)).unwrap_err();
    let inner = policy.clone();
    policy.call_blocking_detached(move || inner.call_blocking(|| FAIL)).unwrap_err();
    assert_eq!(counts(&policy), (2, BreakerState::Closed));

    // What only looks on, and what is streamed.
    let policy = build("t-inside-once-watched");
    let watched = policy.call(async || {
        policy.watch(WRITE).failed(Verdict::unknown(), None);
        FAIL
    });
    assert!(watched.await.is_err());
    let broke = policy.call(async || {
        policy.stream_broke(policy.breaker().generation(), &BROKEN, Effect::Permanent);
        FAIL
    });
    assert!(broke.await.is_err());
    assert_eq!(counts(&policy), (2, BreakerState::Closed));

    // What fails by itself counts, whatever was inside.
    let (policy, other) = (build("t-inside-own"), build("t-inside-elsewhere"));
    let after = policy.call(async || {
        policy.call(one).await.unwrap();
        FAIL
    });
    assert!(after.await.is_err());
    assert!(policy.call(|| other.call(fail)).await.is_err());
    assert_eq!((counts(&policy).0, counts(&other).0), (2, 1));
}

/// The last attempt is the operation's outcome, and the call inside it has counted that.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_failed_by_itself_is_not_counted_beside_one_that_was_counted_inside() {
    let build = |attempts| {
        let builder = database("t-inside-after-own").failure_threshold(2);
        builder.max_attempts(attempts).build().unwrap()
    };
    let (outer, inner) = (build(2), build(1));
    let fault = || Fault(Verdict::transient());
    let call = outer.run(&READ, async |attempt| match attempt.number() {
        1 => Err::<(), _>(fault()),
        _ => inner.run(&READ, async |_| Err(fault())).await.map_err(|_| fault()),
    });
    assert_eq!(call.await.unwrap_err().attempts(), 2);
    let health = crate::get_resilience_health();
    let breaker = &health.circuit_breakers[outer.name()];
    assert_eq!((breaker.failed_calls, breaker.state), (1, BreakerState::Closed));
}
