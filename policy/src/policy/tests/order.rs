//! For pairs of policies: how many attempts and operations each of the two sees.

use super::*;
use crate::{Deadline, Hedge, Mode, Outcome};
use std::{cell::Cell, future::poll_fn, task::Poll};

fn attempts(policy: &Policy) -> (u64, u64) {
    let health = crate::get_resilience_health();
    let breaker = &health.circuit_breakers[policy.name()];
    (breaker.total_calls, breaker.retries)
}

/// retry > breaker: the count in a row is of operations, the gate is asked before each attempt.
#[tokio::test(start_paused = true)]
async fn the_breaker_counts_operations_and_a_retry_that_succeeds_is_a_success() {
    let policy = database("t-order-rb")
        .enable_budget(false)
        .failure_threshold(2)
        .without_failure_rate()
        .build()
        .unwrap();
    for _ in 0..10 {
        let sent = AtomicU32::new(0);
        let flaky = policy.run(&READ, |_| {
            let n = sent.fetch_add(1, SeqCst);
            async move { if n < 2 { Err(Fault(Verdict::never_sent())) } else { Ok(()) } }
        });
        flaky.await.unwrap();
        assert_eq!(sent.load(SeqCst), 3);
    }
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
    assert_eq!(attempts(&policy), (10, 20));
}

/// breaker > rate: the window sees each attempt, so half of at least 20 opens it in mid-call.
#[tokio::test(start_paused = true)]
async fn the_window_counts_attempts_and_opens_in_the_middle_of_a_call() {
    let policy = database("t-order-window")
        .enable_budget(false)
        .failure_threshold(100)
        .max_attempts(9)
        .base_delay(Duration::ZERO)
        .build()
        .unwrap();
    let mut sent = 0;
    let mut ends = Vec::new();
    for _ in 0..3 {
        let (error, n) = against(&policy, &READ, Verdict::transient()).await;
        sent += n;
        ends.push(error.decider());
    }
    assert_eq!(ends, [Some(Decider::Retry), Some(Decider::Retry), Some(Decider::Breaker)]);
    assert_eq!(sent, 20);
}

/// deadline > retry: one deadline for all attempts; retry > timeout: one timeout for each.
#[tokio::test(start_paused = true)]
async fn each_attempt_has_the_timeout_and_all_have_the_deadline() {
    let policy = database("t-order-dt")
        .timeout(2 * S)
        .deadline(5 * S)
        .base_delay(Duration::ZERO)
        .build()
        .unwrap();
    let (started, starts) = (clock::now(), std::sync::Mutex::new(Vec::new()));
    let hang = policy.run(&READ, |attempt| {
        starts.lock().unwrap().push((clock::now().since(started).as_secs(), attempt.timeout()));
        std::future::pending::<Result<(), Fault>>()
    });
    let error = hang.await.unwrap_err();
    assert_eq!(error.decider(), Some(Decider::Deadline));
    assert_eq!(error.attempts(), 3);
    let expected = [(0, Some(2 * S)), (2, Some(2 * S)), (4, Some(S))];
    assert_eq!(*starts.lock().unwrap(), expected);
    assert_eq!(clock::now().since(started), 5 * S);
}

/// retry > bulkhead: a call that waits to retry holds no place.
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_to_retry_holds_no_place() {
    let policy = database("t-order-bulkhead")
        .max_concurrent(1)
        .base_delay(S)
        .jitter(Jitter::None)
        .build()
        .unwrap();
    let other = policy.clone();
    let waiting = tokio::spawn(async move { against(&other, &READ, Verdict::transient()).await });
    tokio::task::yield_now().await;
    policy.run(&READ, async |_| Ok::<_, Fault>(())).await.unwrap();
    assert_eq!(waiting.await.unwrap().1, 3);

    let hold = policy.0.place(policy.0.limits(), clock::Instant::NEVER).await.unwrap();
    let (error, sent) = against(&policy, &READ, Verdict::transient()).await;
    assert_eq!((sent, error.decider(), error.attempts()), (0, Some(Decider::Bulkhead), 0));
    assert!(error.is_rejected());
    drop(hold);
    assert_eq!(policy.breaker().state(), BreakerState::Closed, "our own refusal says nothing");
}

/// retry > rate limit: each attempt takes a turn; breaker > rate limit: an open one takes none.
#[tokio::test(start_paused = true)]
async fn each_attempt_takes_a_turn_of_the_rate_limit() {
    let policy = database("t-order-rate")
        .rate_limit(2)
        .base_delay(Duration::ZERO)
        .max_attempts(5)
        .build()
        .unwrap();
    let (error, sent) = against(&policy, &READ, Verdict::transient()).await;
    assert_eq!((sent, error.decider(), error.attempts()), (2, Some(Decider::RateLimit), 2));
    assert!(error.last().is_some() && error.retry_after().is_some());
    policy.breaker().isolate();
    tokio::time::advance(S).await;
    for _ in 0..9 {
        assert_eq!(against(&policy, &READ, Verdict::transient()).await.1, 0);
    }
    policy.breaker().reset();
    assert_eq!(against(&policy, &READ, Verdict::transient()).await.1, 2);
}

/// A retry that is refused ends the call as any limit does that stops it: with what there was, and told.
#[tokio::test(start_paused = true)]
async fn a_retry_over_the_rate_limit_leaves_the_last_value() {
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let hearing = Arc::clone(&heard);
    let _subscription = crate::observe(move |event: &Event| {
        if let Event::Stopped { dependency, by, attempts, .. } = event
            && dependency.starts_with("t-order-rate-")
        {
            hearing.lock().unwrap().push((*by, *attempts));
        }
    });
    let policy = database("t-order-rate-value").rate_limit(1).build().unwrap();
    let call = policy.operation::<_, &str>("poll").retry_if_value(|_: &u32| true);
    assert_eq!(call.call(|| async { Ok(1) }).await.unwrap(), 1);
    let policy = database("t-order-rate-error").rate_limit(1).build().unwrap();
    let (error, sent) = against(&policy, &READ, Verdict::unknown()).await;
    assert_eq!((sent, error.attempts(), error.is_outcome_unknown()), (1, 1, true));
    assert_eq!(error.decider(), Some(Decider::RateLimit));
    assert_eq!(*heard.lock().unwrap(), [(Decider::RateLimit, 1)]);
    assert_eq!(attempts(&policy), (1, 0));
}

/// bulkhead > gate and deadline: both are asked again after the wait.
#[tokio::test(start_paused = true)]
async fn who_waited_for_a_place_is_sent_nowhere_that_is_shut_by_then() {
    let policy = database("t-order-wait").max_concurrent(1).max_wait(9 * S);
    let policy = policy.base_delay(S / 10).jitter(Jitter::None).build().unwrap();
    let sent = AtomicU32::new(0);
    let hold = policy.0.place_of_copy();
    let first = policy.run(&READ, async |_| {
        sent.fetch_add(1, SeqCst);
        Ok::<_, Fault>(())
    });
    let isolate = async {
        policy.breaker().isolate();
        drop(hold);
    };
    let (end, ()) = tokio::join!(first, isolate);
    let error = end.unwrap_err();
    assert_eq!((error.decider(), error.is_rejected()), (Some(Decider::Isolation), true));
    assert_eq!(sent.load(SeqCst), 0);

    policy.breaker().reset();
    let next = Cell::new(None);
    let retry = policy.run(&READ, async |_| {
        sent.fetch_add(1, SeqCst);
        // Somebody else has the place when this attempt gives it back.
        let mut place = Box::pin(policy.0.place(policy.0.limits(), clock::Instant::NEVER));
        assert!(poll_fn(|cx| Poll::Ready(place.as_mut().poll(cx).is_pending())).await);
        next.set(Some(place));
        Err::<(), _>(Fault(Verdict::transient()))
    });
    let isolate = async {
        tokio::time::sleep(S).await;
        policy.breaker().isolate();
        drop(next.take());
    };
    let (end, ()) = tokio::join!(retry, isolate);
    let error = end.unwrap_err();
    assert_eq!((error.decider(), error.attempts()), (Some(Decider::Isolation), 1));
    assert!(error.last().is_some());
    assert_eq!(sent.load(SeqCst), 1);

    // It comes when the call's time is up.
    policy.breaker().reset();
    let hold = policy.0.place_of_copy();
    let late = crate::Deadline::within(S).scope(policy.run(&READ, async |_| Ok::<_, Fault>(())));
    let free = async {
        tokio::time::sleep(S).await;
        drop(hold);
    };
    // Looked at in this order, the place is there first.
    let ((), end) = tokio::join!(biased; free, late);
    assert_eq!(end.unwrap_err().decider(), Some(Decider::Deadline));
}

/// hedge > bulkhead: a second copy has a place of its own, or is not sent.
#[tokio::test(start_paused = true)]
async fn a_second_copy_is_sent_where_there_is_a_place_for_it() {
    for (most, per_second, copies) in [(1, 9, 1), (2, 9, 2), (2, 1, 1)] {
        let policy = database(&format!("t-order-copies-{most}-{per_second}"));
        let policy = policy.hedge(Hedge::After(S / 10)).max_concurrent(most);
        let policy = policy.rate_limit(per_second).build().unwrap();
        let sent = AtomicU32::new(0);
        let end = policy.run(&READ, async |_| {
            sent.fetch_add(1, SeqCst);
            tokio::time::sleep(S / 2).await;
            Ok::<_, Fault>(())
        });
        end.await.unwrap();
        assert_eq!(sent.load(SeqCst), copies, "{most} places, {per_second} a second");
        assert_eq!(policy.retries_left(), 11 - u64::from(copies), "not paid for what is not sent");
    }
}

/// The copy that lost the race may arrive after the next write: an idempotent write has none either.
#[tokio::test(start_paused = true)]
async fn only_reads_have_a_second_copy_and_calls_of_ones_own() {
    const PUT: Operation = Operation::new("put", Idempotency::Safe);
    const KEYED: Operation = Operation::new("post", Idempotency::Keyed);
    let policy = database("t-order-hedge-reads").hedge(Hedge::After(S / 10)).build().unwrap();
    let sent = AtomicU32::new(0);
    let slowly = async || {
        sent.fetch_add(1, SeqCst);
        tokio::time::sleep(S / 2).await;
        Ok::<_, Fault>(())
    };
    for (operation, copies) in [(READ, 2), (PUT, 1), (KEYED, 1), (WRITE, 1)] {
        policy.run(&operation, async |_| slowly().await).await.unwrap();
        assert_eq!(sent.swap(0, SeqCst), copies, "{operation:?}");
        assert_eq!(operation.is_read(), copies == 2);
    }
    for (call, copies) in [
        (policy.operation("own"), 2),
        (policy.operation("own").idempotent(true), 2),
        (policy.operation("own").idempotent(false), 1),
    ] {
        let told = format!("{call:?}");
        call.call(&slowly).await.unwrap();
        assert_eq!(sent.swap(0, SeqCst), copies, "{told}");
    }
    // What settings of a kind switch on, code can switch off.
    let policy = database("t-order-no-hedge").hedge(Hedge::After(S / 10)).without_hedge();
    policy.build().unwrap().run(&READ, async |_| slowly().await).await.unwrap();
    assert_eq!(sent.swap(0, SeqCst), 1);
}

/// fallback > everything: it sees every way to fail, and only those.
#[tokio::test(start_paused = true)]
async fn a_fallback_answers_refusals_too() {
    let policy = database("t-order-fallback").build().unwrap();
    let cached = async |error: CallError<Fault>| match error {
        CallError::Backend { .. } => Err(error),
        _ => Ok("cached"),
    };
    let failing = || async { Err::<&str, _>(Fault(Verdict::transient())) };
    for _ in 0..3 {
        let answer = policy.operation("get").call_or(failing, cached).await;
        assert_eq!(answer.unwrap(), "cached");
    }
    policy.breaker().isolate();
    assert_eq!(policy.operation("get").call_or(failing, cached).await.unwrap(), "cached");
    policy.breaker().reset();
    let fresh = policy.operation("get").call_or(|| async { Ok("fresh") }, cached).await;
    assert_eq!(fresh.unwrap(), "fresh");
    // And one that a client counts itself.
    policy.fell_back();
    let health = crate::get_resilience_health();
    assert_eq!(health.circuit_breakers["t-order-fallback"].fallbacks, 5);
}

/// retry > hedge: each attempt may have a second copy, and a copy counts as an attempt.
#[tokio::test(start_paused = true)]
async fn the_first_success_of_two_copies_wins_and_both_are_counted() {
    let policy = database("t-order-hedge")
        .hedge(Hedge::After(S / 10))
        .base_delay(Duration::ZERO)
        .build()
        .unwrap();
    // The first copy fails while the second is under way; the second succeeds.
    let started = clock::now();
    let answer = policy
        .run(&READ, |attempt| async move {
            let (wait, result) = match attempt.number() {
                1 => (S / 5, Err(Fault(Verdict::transient()))),
                _ => (S / 2, Ok(attempt.number())),
            };
            tokio::time::sleep(wait).await;
            result
        })
        .await;
    assert_eq!(answer.unwrap(), 2);
    assert_eq!(clock::now().since(started), S / 10 + S / 2);
    // Both fail: the next attempt is the third.
    let numbers = std::sync::Mutex::new(Vec::new());
    let error = policy
        .run(&READ, |attempt| {
            numbers.lock().unwrap().push(attempt.number());
            async move {
                tokio::time::sleep(S).await;
                Err::<(), _>(Fault(Verdict::transient()))
            }
        })
        .await
        .unwrap_err();
    assert_eq!(*numbers.lock().unwrap(), [1, 2, 3, 4]);
    assert_eq!(error.attempts(), 4);
    // A write is never sent twice at once.
    let sent = AtomicU32::new(0);
    let write = policy.run(&WRITE, |_| {
        sent.fetch_add(1, SeqCst);
        async {
            tokio::time::sleep(S).await;
            Ok::<_, Fault>(())
        }
    });
    write.await.unwrap();
    assert_eq!(sent.load(SeqCst), 1);
    // 10 at first; three copies and a retry took four, two successes earned less than one back.
    assert!((6..=7).contains(&policy.retries_left()), "{}", policy.retries_left());
}

/// Of nested policies the innermost repeats, and the deadline around it holds.
#[tokio::test(start_paused = true)]
async fn nested_policies_do_not_multiply() {
    let outer = Policy::builder(Kind::Custom, "t-nest-outer").build().unwrap();
    let inner = database("t-nest-inner").build().unwrap();
    let sent = AtomicU32::new(0);
    let nested = || async {
        let run = inner.run(&READ, |_| {
            sent.fetch_add(1, SeqCst);
            async { Err::<(), _>(Fault(Verdict::transient())) }
        });
        // The error is the user's own by the time the outer policy sees it.
        run.await.map_err(|_| "no user")
    };
    let error = outer.call(nested).await.unwrap_err();
    assert_eq!(sent.load(SeqCst), 3);
    assert_eq!((error.attempts(), error.last()), (1, Some(&"no user")));

    // An inner policy that does not repeat leaves that to the outer one.
    let once = database("t-nest-once").enable_retry(false).build().unwrap();
    let sent = AtomicU32::new(0);
    let nested = || async {
        let run = once.run(&READ, |_| {
            sent.fetch_add(1, SeqCst);
            async { Err::<(), _>(Fault(Verdict::transient())) }
        });
        run.await.map_err(|_| "no user")
    };
    assert_eq!(outer.call(nested).await.unwrap_err().attempts(), 3);
    assert_eq!(sent.load(SeqCst), 3);

    // Unless it does not know what happened.
    once.breaker().reset();
    let sent = AtomicU32::new(0);
    let nested = || async {
        let run = once.run(&WRITE, |_| {
            sent.fetch_add(1, SeqCst);
            async { Err::<(), _>(Fault(Verdict::unknown())) }
        });
        run.await.map_err(|_| "no user")
    };
    let error = outer.call(nested).await.unwrap_err();
    assert_eq!(sent.load(SeqCst), 1);
    assert!(error.is_outcome_unknown());
}

/// The same of calls that block, with a deadline between the two.
#[test]
fn nested_calls_that_block_do_not_multiply_either() {
    let outer = Policy::builder(Kind::Custom, "t-nest-blocking-outer").base_delay(Duration::ZERO);
    let outer = outer.build().unwrap();
    let inner = database("t-nest-blocking").base_delay(Duration::ZERO).build().unwrap();
    for (idempotent, times) in [(false, 1), (true, 3)] {
        let mut sent = 0;
        let end = outer.call_blocking(|| {
            let pay = || {
                sent += 1;
                Err::<(), _>(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
            };
            let pay = || inner.operation("pay").idempotent(idempotent).call_blocking(pay);
            Deadline::within(60 * S).scope_blocking(pay).map_err(|_| "no")
        });
        assert_eq!((end.unwrap_err().is_outcome_unknown(), sent), (true, times));
    }
}

#[tokio::test(start_paused = true)]
async fn inner_calls_end_by_the_deadline_around_them() {
    let outer = Policy::builder(Kind::Custom, "t-ambient-outer").timeout(2 * S).build().unwrap();
    let inner = database("t-ambient-inner").build().unwrap();
    let started = clock::now();
    let seen = outer
        .call(|| async {
            let hang = || std::future::pending::<Result<(), std::io::Error>>();
            inner.call(hang).await
        })
        .await;
    let seen = seen.unwrap_err();
    assert_eq!(seen.last().and_then(CallError::decider), Some(Decider::Deadline), "{seen:?}");
    assert_eq!(seen.attempts(), 1, "the inner policy owns the retries");
    assert_eq!(clock::now().since(started), 2 * S);
    let past = Deadline::within(Duration::ZERO);
    let refused = past.scope(inner.call(|| async { Ok::<_, &str>(1) })).await.unwrap_err();
    assert!(refused.is_rejected() && refused.is_timeout());
}

#[tokio::test(start_paused = true)]
async fn observe_mode_refuses_repeats_and_cuts_nothing_but_counts() {
    let policy = database("t-observe").mode(Mode::Observe).timeout(S).build().unwrap();
    for _ in 0..5 {
        let (error, sent) = against(&policy, &READ, Verdict::transient()).await;
        assert_eq!((sent, error.attempts()), (1, 1));
        assert!(!error.is_rejected());
    }
    assert_eq!(policy.breaker().state(), BreakerState::Open);
    let health = crate::get_resilience_health();
    assert_eq!(health.circuit_breakers["t-observe"].blocked_calls, 2);
    let slow = policy.run(&READ, async |_| {
        tokio::time::sleep(60 * S).await;
        Ok::<_, Fault>(())
    });
    slow.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_spent_ends_calls_and_successes_earn_it_back() {
    let policy = database("t-spent").enable_circuit_breaker(false).build().unwrap();
    while policy.retries_left() > 0 {
        against(&policy, &READ, Verdict::transient()).await;
    }
    let (error, sent) = against(&policy, &READ, Verdict::transient()).await;
    assert_eq!((sent, error.decider()), (1, Some(Decider::Budget)));
    for _ in 0..8 {
        policy.run(&READ, async |_| Ok::<_, Fault>(())).await.unwrap();
    }
    assert_eq!(policy.retries_left(), 4);
    let (error, sent) = against(&policy, &READ, Verdict::transient()).await;
    assert_eq!((sent, error.decider()), (3, Some(Decider::Retry)));
}

#[tokio::test(start_paused = true)]
async fn what_may_have_happened_once_may_have_happened_at_the_end() {
    let policy = database("t-sticky").build().unwrap();
    let verdicts = [Verdict::unknown(), Verdict::never_sent(), Verdict::throttled(None)];
    let error = policy
        .run(&READ, |attempt| async move {
            Err::<(), _>(Fault(verdicts[attempt.number() as usize - 1]))
        })
        .await
        .unwrap_err();
    assert_eq!(error.attempts(), 3);
    assert!(error.is_outcome_unknown(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn users_errors_are_judged_by_the_user_then_by_type() {
    use std::io::{Error as Io, ErrorKind as K};
    let policy = Policy::builder(Kind::Custom, "t-judge").build().unwrap();
    policy.breaker().force_closed();
    let count = async |idempotent: bool, kind: K, retry_if: Option<bool>| {
        let sent = AtomicU32::new(0);
        let mut call = policy.operation("op").idempotent(idempotent);
        if let Some(retry) = retry_if {
            call = call.retry_if(move |_: &Io| retry);
        }
        let end = call.call(|| {
            sent.fetch_add(1, SeqCst);
            async move { Err::<(), _>(Io::from(kind)) }
        });
        let unknown = end.await.unwrap_err().is_outcome_unknown();
        policy.0.budget.refill(policy.breaker().meter().answers());
        (sent.load(SeqCst), unknown)
    };
    assert_eq!(count(true, K::ConnectionReset, None).await, (3, true));
    assert_eq!(count(false, K::ConnectionReset, None).await, (1, true));
    assert_eq!(count(false, K::ConnectionRefused, None).await, (3, false));
    assert_eq!(count(true, K::NotFound, None).await, (1, false));
    assert_eq!(count(true, K::NotFound, Some(true)).await, (3, false));
    assert_eq!(count(true, K::ConnectionRefused, Some(false)).await, (1, false));
    // A type nobody knows: transient, unless it must not be repeated.
    let sent = AtomicU32::new(0);
    let mine = || {
        sent.fetch_add(1, SeqCst);
        async { Err::<(), _>("mine") }
    };
    assert!(!policy.call(mine).await.unwrap_err().is_outcome_unknown());
    assert_eq!(sent.swap(0, SeqCst), 3);
    let once = policy.operation("op").idempotent(false).call(mine).await.unwrap_err();
    assert!(once.is_outcome_unknown());
    assert_eq!(sent.load(SeqCst), 1);
}

/// An attempt of one's own is often several steps: that the last one did not happen says nothing of the first.
#[tokio::test(start_paused = true)]
async fn what_must_not_happen_twice_is_not_repeated_on_the_word_of_an_error() {
    let policy = Policy::builder(Kind::Custom, "t-word").failure_threshold(1).build().unwrap();
    let unavailable = Verdict::transient().with_outcome(Outcome::Neutral);
    for (idempotent, verdict, attempts, unknown) in [
        (true, Verdict::transient(), 3, false),
        (false, Verdict::transient(), 1, true),
        (false, unavailable, 1, true),
        (false, Verdict::never_sent(), 3, false),
        (false, Verdict::permanent(), 1, false),
    ] {
        policy.breaker().reset();
        policy.0.budget.refill(policy.breaker().meter().answers());
        let call = policy.operation("op").idempotent(idempotent).by_classify();
        let error = call.call(async || Err::<(), _>(Fault(verdict))).await.unwrap_err();
        let told = (error.attempts(), error.is_outcome_unknown());
        assert_eq!(told, (attempts, unknown), "{verdict:?}, idempotent: {idempotent}");
        let closed = policy.breaker().state() == BreakerState::Closed;
        assert_eq!(closed, verdict.outcome != Outcome::Failure, "{verdict:?}");
    }
}

#[test]
fn blocking_calls_follow_the_same_rules() {
    let policy = Policy::builder(Kind::Custom, "t-blocking")
        .base_delay(Duration::from_millis(1))
        .build()
        .unwrap();
    let mut sent = 0;
    let answer = policy.call_blocking(|| {
        sent += 1;
        if sent < 3 { Err("not yet") } else { Ok(Deadline::current().is_some()) }
    });
    assert!(answer.unwrap(), "the closure sees how long it has");
    let refused =
        policy.call_blocking(|| Err::<(), _>(std::io::Error::from(std::io::ErrorKind::NotFound)));
    assert_eq!(refused.unwrap_err().attempts(), 1);
}

/// As from a closure on this thread: nothing has run out of time, and nothing is repeated.
#[test]
fn a_panic_goes_on_in_the_caller_of_a_detached_call() {
    let policy = Policy::builder(Kind::Custom, "t-detached-panic").failure_threshold(1);
    let policy = policy.build().unwrap();
    let panics = || policy.call_blocking_detached(|| -> Result<(), &str> { panic!("as planned") });
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"as planned"));
    assert_eq!(Deadline::current(), None);
    let health = crate::get_resilience_health();
    let breaker = &health.circuit_breakers[policy.name()];
    assert_eq!((breaker.total_calls, breaker.failed_calls, breaker.timeouts), (1, 0, 0));
}

#[test]
fn a_detached_call_returns_on_time() {
    let policy = Policy::builder(Kind::Custom, "t-detached")
        .timeout(Duration::from_millis(30))
        .max_attempts(1)
        .build()
        .unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let started = std::time::Instant::now();
    let end = policy.call_blocking_detached(move || {
        let _ = held.lock().unwrap().recv();
        Ok::<_, &str>(())
    });
    let error = end.unwrap_err();
    assert!(error.is_timeout() && error.is_outcome_unknown(), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
    drop(release);
}

/// retry > hold: what is held back is no attempt, and a hold that does not fit ends the call at once.
#[tokio::test(start_paused = true)]
async fn a_retry_waits_while_its_client_holds_it_back_which_is_no_attempt() {
    let policy = database("t-order-hold").base_delay(Duration::ZERO).deadline(60 * S);
    let policy = policy.jitter(crate::Jitter::None).build().unwrap();
    for (holds, took, sent, by) in [
        (&[][..], 0, 3, Decider::Retry),
        (&[7, 3], 10, 3, Decider::Retry),
        (&[7, 53], 7, 1, Decider::Deadline),
    ] {
        let (started, before) = (clock::now(), attempts(&policy));
        let (numbers, left) = (std::sync::Mutex::new(Vec::new()), AtomicU32::new(0));
        let hold = |most: Duration| {
            assert_eq!(most, 60 * S - clock::now().since(started));
            holds.get(left.fetch_add(1, SeqCst) as usize).map(|n| *n * S)
        };
        let end = policy.run_in_turn(&READ, hold, |attempt| {
            numbers.lock().unwrap().push(attempt.number());
            async { Err::<(), _>(Fault(Verdict::never_sent())) }
        });
        let error = end.await.unwrap_err();
        assert_eq!((error.decider(), error.attempts()), (Some(by), sent), "{holds:?}");
        assert_eq!(*numbers.lock().unwrap(), (1..=sent).collect::<Vec<_>>(), "{holds:?}");
        assert_eq!(clock::now().since(started), took * S, "{holds:?}");
        assert_eq!(attempts(&policy).0 - before.0, 1);
        policy.breaker().reset();
    }
}

/// hedge > hold: a server that asks for less load gets no second copies.
#[tokio::test(start_paused = true)]
async fn no_second_copy_is_sent_that_would_be_held_back() {
    let policy = database("t-order-hold-hedge").hedge(Hedge::After(S / 10)).build().unwrap();
    for (hold, copies) in [(None, 2), (Some(S), 1)] {
        let sent = AtomicU32::new(0);
        let end = policy.run_in_turn(
            &READ,
            |left| {
                assert_eq!(left, Duration::ZERO, "it is no retry, and takes no turn");
                hold
            },
            |_| async {
                sent.fetch_add(1, SeqCst);
                tokio::time::sleep(S).await;
                Ok::<_, Fault>(())
            },
        );
        end.await.unwrap();
        assert_eq!(sent.load(SeqCst), copies, "{hold:?}");
    }
}
