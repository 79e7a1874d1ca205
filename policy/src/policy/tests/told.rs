//! What attempts that end in odd ways tell the breaker and the caller.

use super::*;
use crate::{Hedge, meter::Counts};

fn counts(policy: &Policy) -> Counts {
    policy.0.breaker.counts(clock::now())
}

fn hedged(name: &str) -> Policy {
    let policy = database(name).hedge(Hedge::After(S / 100)).failure_threshold(99);
    policy.max_attempts(2).base_delay(Duration::ZERO).build().unwrap()
}

/// Two copies of a read, each of which takes its time and ends as it is told.
async fn copies(
    policy: &Policy,
    ends: [(Duration, Result<(), Verdict>); 2],
) -> Result<(), CallError<Fault>> {
    let run = policy.run(&READ, |attempt| async move {
        let (wait, end) = ends[attempt.number() as usize - 1];
        tokio::time::sleep(wait).await;
        end.map_err(Fault)
    });
    run.await
}

/// Slow is what takes 250 ms, each copy counted from its own start.
#[tokio::test(start_paused = true)]
async fn each_of_two_copies_tells_how_it_ended() {
    let (quick, slow) = (S / 50, S / 100 * 29);
    let seen = |answered, failed, slow, cut| Counts { answered, failed, slow, cut };
    for (n, (ends, expected)) in [
        ([(quick, Err(Verdict::transient())), (quick, Ok(()))], seen(1, 1, 0, 0)),
        ([(quick, Err(Verdict::throttled(None))), (quick, Ok(()))], seen(1, 0, 0, 0)),
        ([(quick, Err(Verdict::transient())), (slow, Ok(()))], seen(1, 1, 1, 0)),
        ([(9 * S, Ok(())), (slow, Ok(()))], seen(1, 0, 2, 1)),
        ([(9 * S, Ok(())), (quick, Ok(()))], seen(1, 0, 0, 0)),
    ]
    .into_iter()
    .enumerate()
    {
        let policy = hedged(&format!("t-copies-{n}"));
        copies(&policy, ends).await.unwrap();
        assert_eq!(counts(&policy), expected, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_copy_may_have_done_the_call_may_have_done() {
    for (n, (first, unknown)) in
        [(Verdict::unknown(), true), (Verdict::transient(), false)].into_iter().enumerate()
    {
        let policy = hedged(&format!("t-copies-unknown-{n}"));
        let ends = [(S / 50, Err(first)), (S / 50, Err(Verdict::never_sent()))];
        let error = copies(&policy, ends).await.unwrap_err();
        assert_eq!((error.attempts(), error.is_outcome_unknown()), (2, unknown));
    }
}

/// The answer of the copy that ended first is the last one when the other has none.
#[tokio::test(start_paused = true)]
async fn a_copy_that_hangs_leaves_the_error_of_the_other() {
    let policy = hedged("t-copies-last");
    let ends = [(S / 50, Err(Verdict::transient())), (99 * S, Ok(()))];
    let error = copies(&policy, ends).await.unwrap_err();
    assert_eq!((error.decider(), error.attempts()), (Some(Decider::Timeout), 2));
    assert_eq!(error.last(), Some(&Fault(Verdict::transient())));
    // Each is counted, in whichever order they end.
    let policy = hedged("t-copies-timeouts");
    let error = copies(&policy, [(99 * S, Ok(())), (99 * S, Ok(()))]).await.unwrap_err();
    assert_eq!((error.decider(), error.attempts()), (Some(Decider::Timeout), 2));
    assert_eq!(counts(&policy), Counts { failed: 2, slow: 2, ..Counts::default() });
    assert_eq!(crate::get_resilience_health().circuit_breakers[policy.name()].timeouts, 2);
}

/// A call inside a copy has been repeated already, whichever copy it was in.
#[tokio::test(start_paused = true)]
async fn what_was_repeated_inside_one_copy_is_not_repeated_by_the_other() {
    let inner = database("t-copies-inner").max_attempts(2).build().unwrap();
    for nested in 1..=2 {
        let outer = database(&format!("t-copies-outer-{nested}")).hedge(Hedge::After(S / 100));
        let outer = outer.failure_threshold(99).build().unwrap();
        let sent = AtomicU32::new(0);
        let end = outer.call(|| {
            let n = sent.fetch_add(1, SeqCst) + 1;
            let inner = &inner;
            async move {
                tokio::time::sleep(S / 50).await;
                if n == nested {
                    against(inner, &READ, Verdict::never_sent()).await;
                } else {
                    tokio::time::sleep(9 * S).await;
                }
                Err::<(), _>("no")
            }
        });
        assert!(end.await.is_err());
        assert_eq!(sent.load(SeqCst), 2, "{nested}");
        inner.breaker().reset();
    }
}

/// By its hint, whichever of the two says it.
#[tokio::test(start_paused = true)]
async fn what_one_copy_was_asked_to_wait_holds_for_the_attempt_after_both() {
    let throttled = Err(Verdict::throttled(Some(5 * S)));
    let (passes, asks_less) = (Err(Verdict::transient()), Err(Verdict::throttled(Some(S))));
    for (n, (first, second)) in
        [(throttled, passes), (passes, throttled), (throttled, asks_less)].into_iter().enumerate()
    {
        let policy = database(&format!("t-copies-hint-{n}")).hedge(Hedge::After(S / 100));
        let policy = policy.max_attempts(3).base_delay(Duration::ZERO).build().unwrap();
        let (started, ends) = (clock::now(), [(S / 50, first), (S / 10, second)]);
        let began = std::sync::Mutex::new(Vec::new());
        let run = policy.run(&READ, |attempt| {
            began.lock().unwrap().push(clock::now().since(started));
            let (wait, end) =
                *ends.get(attempt.number() as usize - 1).unwrap_or(&(S / 200, Ok(())));
            async move {
                tokio::time::sleep(wait).await;
                end.map_err(Fault)
            }
        });
        run.await.unwrap();
        let began = began.into_inner().unwrap();
        assert!(began.len() == 3 && began[2] >= 5 * S, "{n}: {began:?}");
    }
    // A call that ends with the other copy's error says so, too; an answer that decides does not.
    for (n, (second, hint)) in
        [(Verdict::transient(), Some(5 * S)), (Verdict::permanent(), None)].into_iter().enumerate()
    {
        let policy = hedged(&format!("t-copies-hint-told-{n}"));
        let error = copies(&policy, [(S / 50, throttled), (S / 10, Err(second))]).await;
        assert_eq!(error.unwrap_err().retry_after(), hint, "{second:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_a_second_copy_is_sent_however_many_there_were() {
    for (n, (budget, copies)) in [(true, 10), (false, 30)].into_iter().enumerate() {
        let policy = database(&format!("t-copies-budget-{n}")).hedge(Hedge::After(S / 100));
        let policy = policy.enable_budget(budget).failure_threshold(99).without_failure_rate();
        let policy = policy.max_attempts(1).build().unwrap();
        let sent = AtomicU32::new(0);
        for _ in 0..30 {
            let run = policy.run(&READ, async |_| {
                sent.fetch_add(1, SeqCst);
                tokio::time::sleep(S / 50).await;
                Err::<(), _>(Fault(Verdict::transient()))
            });
            assert!(run.await.is_err());
        }
        assert_eq!(sent.into_inner() - 30, copies, "{budget}");
    }
}

/// Nor a retry, in the deadline's last two milliseconds: no timer would measure what is left.
#[tokio::test(start_paused = true)]
async fn no_second_copy_is_sent_that_has_no_time() {
    for (after, copies) in [(49, 1), (40, 2)] {
        let policy = database(&format!("t-copies-late-{after}"));
        let policy = policy.hedge(Hedge::After(after * S / 1000)).build().unwrap();
        let sent = AtomicU32::new(0);
        let hang = policy.run(&READ, |_| {
            sent.fetch_add(1, SeqCst);
            std::future::pending::<Result<(), Fault>>()
        });
        let error = crate::Deadline::within(S / 20).scope(hang).await.unwrap_err();
        assert_eq!((error.decider(), error.attempts()), (Some(Decider::Deadline), copies));
        assert_eq!(sent.load(SeqCst), copies, "after {after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn no_retry_is_held_back_until_there_is_no_time_for_it() {
    let policy = database("t-hold-late").base_delay(Duration::ZERO).deadline(60 * S);
    let policy = policy.timeout(S).max_attempts(2).build().unwrap();
    for (short, sent) in [(1, 1), (10, 2)] {
        let (started, held) = (clock::now(), AtomicU32::new(0));
        let hold =
            |left: Duration| (held.fetch_add(1, SeqCst) == 0).then(|| left - short * S / 1000);
        let end =
            policy.run_in_turn(&READ, hold, async |_| Err::<(), _>(Fault(Verdict::never_sent())));
        let error = end.await.unwrap_err();
        assert_eq!(error.attempts(), sent, "{short} ms before the end");
        let waited = clock::now().since(started);
        assert_eq!((sent == 1, sent == 1), (waited.is_zero(), error.retry_after().is_some()));
    }
}

/// Its wait ended late, or others had the place until then.
#[tokio::test(start_paused = true)]
async fn no_retry_is_made_when_its_place_is_free_too_late() {
    let policy = database("t-place-late").max_concurrent(1).max_wait(9 * S).max_attempts(2);
    let policy = policy.base_delay(S / 10).jitter(Jitter::None).build().unwrap();
    let sent = AtomicU32::new(0);
    let run = policy.run(&READ, async |_| {
        sent.fetch_add(1, SeqCst);
        Err::<(), _>(Fault(Verdict::transient()))
    });
    let hog = async {
        tokio::time::sleep(S / 20).await;
        let place = policy.0.place_of_copy();
        tokio::time::sleep(S / 1000 * 949).await;
        drop(place);
    };
    let (end, ()) = tokio::join!(crate::Deadline::within(S).scope(run), hog);
    let error = end.unwrap_err();
    assert_eq!((error.decider(), error.attempts()), (Some(Decider::Deadline), 1));
    assert_eq!(sent.load(SeqCst), 1);
}

/// What is refused is no call of the dependency's, whoever refuses it.
#[tokio::test(start_paused = true)]
async fn what_a_limit_refuses_is_in_no_total() {
    let policy = database("t-refused-total").max_concurrent(1).build().unwrap();
    let calls = || crate::get_resilience_health().circuit_breakers["t-refused-total"].total_calls;
    policy.run(&READ, async |_| Ok::<_, Fault>(())).await.unwrap();
    let place = policy.0.place_of_copy();
    for _ in 0..10 {
        let (error, sent) = against(&policy, &READ, Verdict::transient()).await;
        assert_eq!((error.decider(), sent), (Some(Decider::Bulkhead), 0));
    }
    assert_eq!(calls(), 1);
    // Of a probe, too, which is given back.
    policy.breaker().reset();
    drop(place);
    for _ in 0..3 {
        against(&policy, &WRITE, Verdict::unknown()).await;
    }
    tokio::time::advance(2 * S).await;
    let place = policy.0.place_of_copy();
    let (error, _) = against(&policy, &READ, Verdict::transient()).await;
    assert_eq!((error.decider(), calls()), (Some(Decider::Bulkhead), 4));
    drop(place);
    policy.run(&READ, async |_| Ok::<_, Fault>(())).await.unwrap();
    assert_eq!((policy.breaker().state(), calls()), (BreakerState::Closed, 5));
}

/// Where there is no timer nothing can be waited for, and nothing is asked again and again.
#[test]
fn a_retry_that_is_held_back_outside_a_runtime_is_not_made() {
    let policy = database("t-hold-no-timer").base_delay(Duration::ZERO).build().unwrap();
    let asked = AtomicU32::new(0);
    let hold = |_: Duration| (asked.fetch_add(1, SeqCst) < 1_000).then_some(S);
    let mut run = std::pin::pin!(
        policy.run_in_turn(&READ, hold, async |_| { Err::<(), _>(Fault(Verdict::transient())) })
    );
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(end) = run.as_mut().poll(&mut cx) else { panic!("it waits") };
    let error = end.unwrap_err();
    assert_eq!((error.decider(), error.attempts()), (Some(Decider::Throttle), 1));
    assert_eq!((error.retry_after(), asked.load(SeqCst)), (Some(S), 1));
}

#[cfg(feature = "chaos")]
#[tokio::test(start_paused = true)]
async fn a_fault_strikes_the_second_copy_too() {
    let policy = hedged("t-copies-struck");
    let _storm = crate::Chaos::seeded(1).lose(1.0).strike("t-copies-struck");
    let ends = [(S, Ok(())), (S, Ok(()))];
    assert!(copies(&policy, ends).await.unwrap_err().is_outcome_unknown());
}

#[tokio::test(start_paused = true)]
async fn the_shorter_of_two_limits_decides_and_the_attempts_own_where_they_are_one() {
    for (n, (deadline, by)) in
        [(S, Decider::Timeout), (2 * S, Decider::Timeout)].into_iter().enumerate()
    {
        let policy = database(&format!("t-limits-{n}")).timeout(S).deadline(deadline);
        let policy = policy.build().unwrap();
        let hang = policy.run(&WRITE, |_| std::future::pending::<Result<(), Fault>>());
        assert_eq!(hang.await.unwrap_err().decider(), Some(by), "{deadline:?}");
        assert_eq!(counts(&policy).failed, 1);
    }
    let policy = database("t-limits-around").timeout(S).build().unwrap();
    let hang = policy.run(&WRITE, |_| std::future::pending::<Result<(), Fault>>());
    let hang = crate::Deadline::within(S / 2).scope(hang);
    assert_eq!(hang.await.unwrap_err().decider(), Some(Decider::Deadline));
    // It says that the server was slow, and not that it failed.
    assert_eq!(counts(&policy), Counts { slow: 1, cut: 1, ..Counts::default() });
}

#[tokio::test(start_paused = true)]
async fn a_slow_refusal_by_the_server_is_in_no_window() {
    let policy = database("t-slow-throttle").max_attempts(1).build().unwrap();
    let run = policy.run(&READ, async |_| {
        tokio::time::sleep(S).await;
        Err::<(), _>(Fault(Verdict::throttled(None)))
    });
    assert!(run.await.is_err());
    assert_eq!(counts(&policy), Counts::default());
}

/// The answer was there when the work was next looked at, though too late.
#[tokio::test(start_paused = true)]
async fn an_error_after_the_deadline_is_the_deadlines_though_attempts_ran_out_too() {
    let policy = database("t-late-error").timeout(S).max_attempts(1).build().unwrap();
    let run = policy.run(&READ, async |_| {
        tokio::time::advance(9 * S).await;
        Err::<(), _>(Fault(Verdict::transient()))
    });
    assert_eq!(run.await.unwrap_err().decider(), Some(Decider::Deadline));
}

#[tokio::test(start_paused = true)]
async fn those_that_are_told_to_wait_are_spread_over_an_eighth() {
    let policy = database("t-spread").base_delay(S / 50).jitter(Jitter::None).enable_budget(false);
    let policy = policy.max_attempts(2).build().unwrap();
    let (floor, mut most) = (S / 100 * 8, Duration::ZERO);
    for _ in 0..40 {
        let started = clock::now();
        against(&policy, &READ, Verdict::throttled(Some(floor))).await;
        let waited = clock::now().since(started);
        assert!(waited >= floor && waited <= floor + floor / 8 + S / 500, "{waited:?}");
        most = most.max(waited);
    }
    assert!(most > floor + floor / 20, "{most:?}");
}

/// What a server says of coming again does not say that nothing happened.
#[tokio::test(start_paused = true)]
async fn a_hint_beside_an_unknown_outcome_is_waited_for_and_the_outcome_stays_unknown() {
    #[derive(Debug)]
    struct Hinted(Duration);
    impl std::fmt::Display for Hinted {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("come again")
        }
    }
    impl std::error::Error for Hinted {}
    impl Classify for Hinted {
        fn classify(&self) -> Verdict {
            Verdict::unknown()
        }

        fn retry_after(&self) -> Option<Duration> {
            Some(self.0)
        }
    }
    let policy = database("t-hinted").deadline(60 * S).max_attempts(2).build().unwrap();
    for (operation, hint, attempts, by, waited) in [
        (&READ, 7 * S, 2, Some(Decider::Retry), 7 * S),
        (&READ, 90 * S, 1, Some(Decider::Deadline), Duration::ZERO),
        (&WRITE, 7 * S, 1, None, Duration::ZERO),
    ] {
        let started = clock::now();
        let run = policy.run(operation, async |_| Err::<(), _>(Hinted(hint))).await;
        let (error, took) = (run.unwrap_err(), clock::now().since(started));
        assert_eq!((error.attempts(), error.decider()), (attempts, by));
        assert!(error.is_outcome_unknown() && took >= waited && took <= waited + S, "{took:?}");
        assert_eq!(error.retry_after(), by.map(|_| hint));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_at_the_end_says_what_happened_in_the_end() {
    let policy = database("t-answered-at-last").build().unwrap();
    let verdicts = [Verdict::unknown(), Verdict::permanent()];
    let run = policy.run(&READ, |attempt| async move {
        Err::<(), _>(Fault(verdicts[attempt.number() as usize - 1]))
    });
    let error = run.await.unwrap_err();
    assert_eq!((error.attempts(), error.is_outcome_unknown()), (2, false));
}

#[tokio::test(start_paused = true)]
async fn a_value_is_repeated_until_it_will_do() {
    let policy = database("t-values").base_delay(Duration::ZERO).build().unwrap();
    for good in 1..=3 {
        let tries = AtomicU32::new(0);
        let call = policy.operation::<_, &str>("poll").retry_if_value(|n: &u32| *n < good);
        let end = call.call(|| async { Ok(tries.fetch_add(1, SeqCst) + 1) }).await;
        assert_eq!((end.ok(), tries.load(SeqCst)), (Some(good), good));
    }
}

/// A call inside has been repeated already: not again, unless the caller says so.
#[tokio::test(start_paused = true)]
async fn what_was_repeated_inside_is_repeated_outside_only_by_the_callers_word() {
    let inner = database("t-told-inner").failure_threshold(99).build().unwrap();
    let outer = database("t-told-outer").timeout(60 * S).failure_threshold(99).build().unwrap();
    for (retry_if, hangs, times) in
        [(false, false, 1), (true, false, 3), (false, true, 1), (true, true, 1)]
    {
        let sent = AtomicU32::new(0);
        let mut call = outer.operation("outer");
        if retry_if {
            call = call.retry_if(|_: &&str| true);
        }
        let end = call.call(|| async {
            sent.fetch_add(1, SeqCst);
            against(&inner, &READ, Verdict::never_sent()).await;
            inner.0.budget.refill(inner.0.breaker.meter().answers());
            if hangs {
                std::future::pending::<()>().await;
            }
            Err::<(), _>("no")
        });
        assert!(end.await.is_err());
        outer.0.budget.refill(outer.0.breaker.meter().answers());
        assert_eq!(sent.load(SeqCst), times, "{retry_if} {hangs}");
    }
}

/// A client that looks afterwards says itself what it has not found out; that it has repeated is told at once.
#[tokio::test(start_paused = true)]
async fn what_a_client_looks_into_is_unknown_when_it_says_so() {
    let inner = database("t-told-later-inner").build().unwrap();
    let outer = database("t-told-later-outer").build().unwrap();
    let write = WRITE.told_by_client();
    for found in [true, false] {
        let end = outer.call(|| async {
            against(&inner, &write, Verdict::unknown()).await;
            if !found {
                inner.tell_unknown();
            }
            Err::<(), _>("no")
        });
        let error = end.await.unwrap_err();
        assert_eq!((error.attempts(), error.is_outcome_unknown()), (1, !found));
    }
}

#[tokio::test(start_paused = true)]
async fn what_opened_a_breaker_has_the_backends_code() {
    #[derive(Debug)]
    struct Coded;
    impl std::fmt::Display for Coded {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("coded")
        }
    }
    impl std::error::Error for Coded {}
    impl Classify for Coded {
        fn classify(&self) -> Verdict {
            Verdict::unknown()
        }

        fn code(&self) -> Option<String> {
            Some("57P01".into())
        }
    }
    let policy = database("t-coded").failure_threshold(1).build().unwrap();
    let run = async || policy.run(&WRITE, async |_| Err::<(), _>(Coded)).await.unwrap_err();
    run().await;
    let refused = run().await;
    let cause = refused.cause().unwrap();
    assert_eq!((cause.code.as_deref(), cause.reason), (Some("57P01"), "failures in a row"));
}

/// Whoever reads a log at night has to see which dependency refused.
#[tokio::test(start_paused = true)]
async fn a_refusal_names_its_dependency_once() {
    let policy = database("t-named").failure_threshold(1).build().unwrap();
    against(&policy, &WRITE, Verdict::unknown()).await;
    let refused = || async { against(&policy, &READ, Verdict::unknown()).await.0 };
    let opened = "refused without an attempt: circuit breaker open, opened by write (no answer";
    let error = refused().await;
    assert!(error.to_string().starts_with(&format!("t-named: {opened}")), "{error}");
    let own = crate::Error::from(error);
    assert!(own.to_string().starts_with(&format!("t-named: call {opened}")), "{own}");
    let own = crate::Error::from_call("t-named", "read", refused().await);
    assert!(own.to_string().starts_with(&format!("t-named: read {opened}")), "{own}");
    policy.breaker().reset();
    policy.breaker().isolate();
    let error = refused().await;
    let by_hand = "t-named: refused without an attempt: isolated by hand, until reset()";
    assert!(error.to_string().starts_with(by_hand), "{error}");
    assert_eq!(error.cause(), None);
}

/// There is time left that a timer of the client's own kept for its answer, and none for an attempt.
#[tokio::test(start_paused = true)]
async fn what_a_client_ends_by_the_deadline_is_not_begun_again() {
    let policy = database("t-late-by-client").base_delay(Duration::ZERO).deadline(S);
    let policy = policy.timeout(S).max_attempts(3).build().unwrap();
    for (by, attempts) in [(Decider::Deadline, 1), (Decider::Timeout, 3)] {
        let run = policy.run(&READ, async |attempt| {
            if attempt.number() == 1 {
                tokio::time::sleep(S * 9 / 10).await;
            }
            Err::<(), _>(Late(Verdict::never_sent(), by))
        });
        let error = run.await.unwrap_err();
        assert_eq!((error.decider(), error.attempts()), (Some(by), attempts));
    }
}
