//! The whole call, in memory, on a paused clock.

use super::*;
use crate::{BreakerState, Idempotency, Jitter, Outcome, Verdict};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

const S: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq)]
struct Fault(Verdict);
impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0.effect)
    }
}
impl std::error::Error for Fault {}
impl Classify for Fault {
    fn classify(&self) -> Verdict {
        self.0
    }
}

/// Of a client that keeps a limit itself.
#[derive(Debug)]
struct Late(Verdict, Decider);
impl std::fmt::Display for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("late")
    }
}
impl std::error::Error for Late {}
impl Classify for Late {
    fn classify(&self) -> Verdict {
        self.0
    }

    fn decider(&self) -> Option<Decider> {
        Some(self.1)
    }
}

const WRITE: Operation = Operation::new("write", Idempotency::Unsafe);
const READ: Operation = Operation::read("read");
const BROKEN: Operation = Operation::new("body", Idempotency::Unsafe);

/// Runs `operation` against a backend that always answers `fault`; the end and the sends counted.
async fn against(
    policy: &Policy,
    operation: &Operation,
    fault: Verdict,
) -> (CallError<Fault>, u32) {
    let sent = AtomicU32::new(0);
    let end = policy
        .run(operation, |_| {
            sent.fetch_add(1, SeqCst);
            async move { Err::<(), _>(Fault(fault)) }
        })
        .await;
    (end.unwrap_err(), sent.load(SeqCst))
}

fn database(name: &str) -> PolicyBuilder {
    Policy::builder(Kind::Database, name)
}

#[tokio::test(start_paused = true)]
async fn fails_twice_then_succeeds_on_attempt_three() {
    let policy = database("t-documents-example").build().unwrap();
    let sent = AtomicU32::new(0);
    let end = policy
        .run(&READ, |attempt| {
            let n = sent.fetch_add(1, SeqCst) + 1;
            assert_eq!(attempt.number(), n);
            async move { if n < 3 { Err(Fault(Verdict::never_sent())) } else { Ok("success") } }
        })
        .await;
    assert_eq!(end.unwrap(), "success");
    assert_eq!(sent.load(SeqCst), 3);
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
}

/// The timer of a client ends an attempt a moment before that of the policy: the policy sees an error.
#[tokio::test(start_paused = true)]
async fn a_limit_that_a_client_keeps_itself_is_named_by_error_and_event() {
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let hearing = Arc::clone(&heard);
    let _subscription = crate::observe(move |event: &Event| {
        if let Event::Stopped { dependency, by, attempts, .. } = event
            && &**dependency == "t-limit-of-a-client"
        {
            hearing.lock().unwrap().push((*by, *attempts));
        }
    });
    let policy = database("t-limit-of-a-client").failure_threshold(99).build().unwrap();
    let mut seen = Vec::new();
    // Repeated until no attempts are left, but not after the deadline; and not repeated at all.
    for verdict in [Verdict::never_sent(), Verdict::unknown()] {
        for by in [Decider::Timeout, Decider::Deadline] {
            let end = policy.run(&WRITE, async |_| Err::<(), _>(Late(verdict, by))).await;
            let error = end.unwrap_err();
            assert_eq!(error.decider(), Some(by), "{error}");
            assert!(error.last().is_some());
            seen.push((by, error.attempts()));
        }
    }
    assert_eq!(seen.iter().map(|(_, attempts)| *attempts).collect::<Vec<_>>(), [3, 1, 1, 1]);
    assert_eq!(*heard.lock().unwrap(), seen);
}

#[tokio::test(start_paused = true)]
async fn repeats_only_what_may_be_repeated() {
    for (n, (fault, writes, reads)) in [
        (Verdict::never_sent(), 3, 3),
        (Verdict::transient(), 3, 3),
        (Verdict::throttled(None), 3, 3),
        (Verdict::unknown(), 1, 3),
        (Verdict::permanent(), 1, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let policy = database(&format!("t-repeat-{n}")).build().unwrap();
        let (error, sent) = against(&policy, &WRITE, fault).await;
        assert_eq!((sent, error.attempts()), (writes, writes), "write, {fault:?}");
        assert_eq!(error.is_outcome_unknown(), fault == Verdict::unknown());
        let (error, sent) = against(&policy, &READ, fault).await;
        assert_eq!((sent, error.attempts()), (reads, reads), "read, {fault:?}");
        assert_eq!(error.last(), Some(&Fault(fault)));
    }
}

/// An answer says of the attempts before it too that they did nothing; a refused login does not.
#[tokio::test(start_paused = true)]
async fn what_may_have_happened_is_not_denied_by_who_was_not_let_in() {
    for (n, (last, unknown)) in [
        (Verdict::permanent(), false),
        (Verdict::permanent().with_outcome(Outcome::Failure), true),
        (Verdict::permanent().with_outcome(Outcome::Neutral), true),
        (Verdict::never_sent(), true),
    ]
    .into_iter()
    .enumerate()
    {
        let policy = database(&format!("t-denied-{n}")).max_attempts(2).build().unwrap();
        let end = policy.run(&READ, async |attempt| match attempt.number() {
            1 => Err::<(), _>(Fault(Verdict::unknown())),
            _ => Err(Fault(last)),
        });
        let error = end.await.unwrap_err();
        assert_eq!((error.attempts(), error.is_outcome_unknown()), (2, unknown), "{last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hang_ends_by_the_deadline_and_its_write_is_sent_once() {
    let policy = database("t-hang").timeout(S).deadline(2 * S).build().unwrap();
    for (operation, most) in [(&WRITE, 1), (&READ, 2)] {
        let started = clock::now();
        let sent = AtomicU32::new(0);
        let end: Result<(), CallError<Fault>> = policy
            .run(operation, |_| {
                sent.fetch_add(1, SeqCst);
                std::future::pending()
            })
            .await;
        let error = end.unwrap_err();
        assert!(error.is_timeout() && error.is_outcome_unknown());
        assert!(clock::now().since(started) <= 2 * S + Duration::from_millis(2));
        assert!(sent.load(SeqCst) <= most);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_does_not_fit_is_not_slept() {
    let policy = database("t-floor").timeout(S).build().unwrap();
    let started = clock::now();
    let (error, sent) = against(&policy, &WRITE, Verdict::throttled(Some(60 * S))).await;
    assert_eq!((sent, error.decider()), (1, Some(Decider::Deadline)));
    assert_eq!(error.retry_after(), Some(60 * S));
    assert_eq!(clock::now(), started);
}

#[tokio::test(start_paused = true)]
async fn open_breaker_refuses_without_calling_and_a_probe_closes_it() {
    let policy = database("t-breaker").build().unwrap();
    for _ in 0..3 {
        against(&policy, &READ, Verdict::transient()).await;
    }
    let (error, sent) = against(&policy, &READ, Verdict::transient()).await;
    assert_eq!(sent, 0);
    assert!(error.is_circuit_open() && error.is_rejected());
    assert!(error.to_string().contains("opened by read"), "{error}");
    tokio::time::advance(2 * S).await;
    let (error, sent) = against(&policy, &READ, Verdict::transient()).await;
    assert_eq!((sent, error.attempts()), (1, 1), "a probe is a single attempt");
    tokio::time::advance(3 * S).await;
    policy.run(&READ, async |_| Ok::<_, Fault>(())).await.unwrap();
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_stop_when_the_breaker_opens() {
    let policy = database("t-gate").base_delay(5 * S).jitter(Jitter::None).build().unwrap();
    let other = policy.clone();
    let waiting = tokio::spawn(async move { against(&other, &READ, Verdict::transient()).await });
    tokio::task::yield_now().await;
    let quick = database("t-gate").enable_retry(false).build().unwrap();
    for _ in 0..3 {
        against(&quick, &READ, Verdict::transient()).await;
    }
    let (error, sent) = waiting.await.unwrap();
    assert_eq!((sent, error.decider()), (1, Some(Decider::Breaker)));
    assert!(error.last().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_probe_dropped_in_flight_is_given_back() {
    let policy = database("t-drop").failure_threshold(1).build().unwrap();
    against(&policy, &READ, Verdict::transient()).await;
    tokio::time::advance(2 * S).await;
    {
        let call = policy.run(&READ, |_| std::future::pending::<Result<(), Fault>>());
        tokio::select! { biased; _ = call => {}, () = std::future::ready(()) => {} }
    }
    policy.run(&READ, async |_| Ok::<_, Fault>(())).await.unwrap();
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
}

/// Transfers by their length, one after the other: each takes longer than twice the timeout of the kind.
#[tokio::test(start_paused = true)]
async fn a_probe_that_takes_longer_than_its_lease_closes_it_and_holds_nobody_off_for_longer() {
    let policy = database("t-long-probe").timeout(S).failure_threshold(1).build().unwrap();
    against(&policy, &WRITE, Verdict::unknown()).await;
    tokio::time::advance(2 * S).await;
    let long = policy.with_timeout(8 * S);
    let begun_after = async |wait| {
        tokio::time::sleep(wait).await;
        let took = async |_| {
            tokio::time::sleep(6 * S).await;
            Ok::<_, Fault>(())
        };
        let end = long.run(&READ, took).await;
        (end, policy.breaker().state())
    };
    let ends = tokio::join!(
        begun_after(Duration::ZERO),
        begun_after(S / 2),
        begun_after(5 * S / 2),
        begun_after(9 * S / 2)
    );
    let refused = ends.1.0.unwrap_err();
    assert_eq!(refused.retry_after(), Some(3 * S / 2), "twice the timeout of the kind");
    assert_eq!(
        (ends.0.0.is_ok(), ends.0.1),
        (true, BreakerState::Closed),
        "the first one has shown it"
    );
    assert!(ends.2.0.is_ok() && ends.3.0.is_ok(), "the next one is let in meanwhile");
}

/// "For ever" is not by hand, and a probe that hangs for ever holds nobody off for good.
#[tokio::test(start_paused = true)]
async fn attempts_and_breaks_without_end_are_no_isolation() {
    let endless = Duration::MAX;
    let policy = database("t-endless").timeout(endless).failure_threshold(1).build().unwrap();
    against(&policy, &WRITE, Verdict::unknown()).await;
    tokio::time::advance(2 * S).await;
    let hangs = policy.clone();
    let probe = tokio::spawn(async move {
        hangs.run(&READ, |_| std::future::pending::<Result<(), Fault>>()).await
    });
    tokio::task::yield_now().await;
    let (refused, sent) = against(&policy, &READ, Verdict::unknown()).await;
    assert_eq!((refused.decider(), sent), (Some(Decider::Breaker), 0));
    let lease = refused.retry_after().unwrap();
    assert_eq!(lease, 60 * S, "twice the timeout of the kind");
    tokio::time::advance(lease).await;
    policy.run(&READ, async |_| Ok::<_, Fault>(())).await.unwrap();
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
    probe.abort();

    let fixed = database("t-endless-break").break_growth(BreakGrowth::Fixed);
    let fixed = fixed.recovery_timeout(endless).failure_threshold(1).build().unwrap();
    against(&fixed, &WRITE, Verdict::unknown()).await;
    let (refused, _) = against(&fixed, &READ, Verdict::unknown()).await;
    assert_eq!(refused.decider(), Some(Decider::Breaker));
    assert!(refused.retry_after() > Some(1_000_000 * S) && refused.cause().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_total_outage_spends_the_budget_once() {
    let policy = database("t-storm").enable_circuit_breaker(false).build().unwrap();
    let mut sent = 0;
    for _ in 0..1000 {
        sent += against(&policy, &READ, Verdict::transient()).await.1;
    }
    assert!(sent <= 1200, "{sent} attempts for 1000 calls");
}

#[test]
fn build_gives_every_contradiction_at_once() {
    let error = database("t-bad")
        .timeout(2 * S)
        .deadline(S)
        .max_attempts(0)
        .base_delay(20 * S)
        .failure_threshold(0)
        .build()
        .unwrap_err();
    assert_eq!(error.problems().len(), 4, "{error}");
    // Each says what to do instead, and doing it helps.
    let error = database("t-bad")
        .timeout(Duration::ZERO)
        .hedge(Hedge::After(Duration::ZERO))
        .max_concurrent(0)
        .rate_limit(0)
        .build()
        .unwrap_err();
    let text = error.to_string();
    for switch in [
        "enable_timeout(false)",
        "without_hedge()",
        "without_max_concurrent()",
        "without_rate_limit()",
    ] {
        assert!(text.contains(switch), "{switch}: {text}");
    }
    let error = database("t-late").timeout(S).hedge(Hedge::After(S)).build().unwrap_err();
    assert!(error.to_string().contains("hedge comes after the timeout"), "{error}");
    let done = database("t-off").timeout(Duration::ZERO).deadline(Duration::ZERO);
    let done = done.enable_timeout(false).hedge(Hedge::After(S)).build().unwrap();
    assert_eq!((done.timeout(), done.deadline()), (None, None));
}

#[test]
fn limits_of_attempts_are_switched_off_again() {
    let limited = || database("t-unlimited").max_concurrent(1).rate_limit(1);
    let places = |policy: PolicyBuilder| {
        let policy = policy.build().unwrap().0;
        let held = [policy.place_of_copy(), policy.place_of_copy()];
        held.into_iter().flatten().count()
    };
    assert_eq!(places(limited()), 1);
    assert_eq!(places(limited().without_max_concurrent()), 1, "the rate limit is left");
    assert_eq!(places(limited().without_rate_limit()), 1, "the bulkhead is left");
    assert_eq!(places(limited().without_max_concurrent().without_rate_limit()), 2);
}

#[tokio::test(start_paused = true)]
async fn largest_settings_do_not_panic() {
    let max = Duration::MAX;
    let policy = database("t-max")
        .timeout(max)
        .deadline(max)
        .max_attempts(u32::MAX)
        .max_delay(max)
        .recovery_timeout(max)
        .failure_threshold(u32::MAX)
        .build()
        .unwrap();
    let (error, _) = against(&policy, &WRITE, Verdict::unknown()).await;
    assert_eq!(error.attempts(), 1);
}

#[tokio::test]
async fn a_retired_dependency_is_listed_no_more_unless_another_policy_has_it() {
    let build = || {
        let builder = Policy::builder(Kind::Api, "t-retired").failure_threshold(1).max_attempts(1);
        builder.build().unwrap()
    };
    let (policy, other) = (build(), build());
    let _ = policy.call(|| std::future::ready(Err::<(), _>(std::io::Error::other("down")))).await;
    let state = || crate::breaker("t-retired").map(|breaker| breaker.state());
    assert_eq!(state(), Some(BreakerState::Open));
    policy.retire();
    drop(policy);
    assert_eq!(state(), Some(BreakerState::Open), "the other has it");
    let again = build();
    drop((other, again));
    assert_eq!(state(), Some(BreakerState::Open), "somebody asked for it again");
    let last = build();
    last.retire();
    drop(last);
    assert_eq!(state(), None);
    let new = build();
    new.breaker().isolate();
    new.retire();
    drop(new);
    assert_eq!(state(), Some(BreakerState::Isolated), "until who said so says otherwise");
}

mod answered;
mod cancel;
mod inside;
mod order;
mod told;

#[tokio::test(start_paused = true)]
async fn a_streamed_success_forgets_no_failures_until_its_end() {
    const STREAM: Operation = Operation::new("stream", Idempotency::Safe).streamed();
    let begin =
        async |policy: &Policy| policy.run(&STREAM, |_| async { Ok::<_, Fault>(()) }).await.is_ok();
    let broke = |policy: &Policy| {
        policy.stream_broke(policy.breaker().generation(), &BROKEN, Effect::Permanent);
    };
    let policy = database("t-streamed").failure_threshold(3).build().unwrap();
    for n in 1..=3 {
        assert_eq!(policy.breaker().state(), BreakerState::Closed, "{n}");
        assert!(begin(&policy).await);
        broke(&policy);
    }
    assert_eq!(policy.breaker().state(), BreakerState::Open);
    assert!(!begin(&policy).await);
    // A stream that ends well between them, or another success, begins the count anew.
    for (name, ends) in [("t-streamed-ends", true), ("t-streamed-beside", false)] {
        let policy = database(name).failure_threshold(3).build().unwrap();
        for _ in 0..4 {
            for _ in 0..2 {
                assert!(begin(&policy).await);
                broke(&policy);
            }
            assert!(begin(&policy).await);
            if ends {
                policy.stream_ended(policy.breaker().generation());
            } else {
                policy.run(&READ, |_| async { Ok::<_, Fault>(()) }).await.unwrap();
            }
        }
        assert_eq!(policy.breaker().state(), BreakerState::Closed, "{name}");
    }
}

/// A host that went without a word: its old connections stall long after it is back.
#[tokio::test(start_paused = true)]
async fn a_stream_from_before_an_outage_decides_nothing_after_it() {
    let policy = database("t-stream-late").failure_threshold(1).build().unwrap();
    let broke = |begun| {
        policy.stream_broke(begun, &BROKEN, Effect::Permanent);
        policy.breaker().state()
    };
    let begun = policy.breaker().generation();
    against(&policy, &WRITE, Verdict::unknown()).await;
    assert_eq!(broke(begun), BreakerState::Open);
    tokio::time::advance(2 * S).await;
    assert_eq!(broke(begun), BreakerState::HalfOpen, "it is no probe");
    policy.run(&READ, |_| async { Ok::<_, Fault>(()) }).await.unwrap();
    assert_eq!(broke(begun), BreakerState::Closed);
    let health = crate::get_resilience_health();
    assert_eq!(health.circuit_breakers["t-stream-late"].blocked_calls, 0);
    assert_eq!(broke(policy.breaker().generation()), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_stream_from_before_an_outage_forgets_nothing_after_it() {
    for (name, late) in [("t-stream-late-end", true), ("t-stream-new-end", false)] {
        let policy = database(name).failure_threshold(2).build().unwrap();
        let before = policy.breaker().generation();
        policy.breaker().isolate();
        policy.breaker().reset();
        against(&policy, &WRITE, Verdict::unknown()).await;
        policy.stream_ended(if late { before } else { policy.breaker().generation() });
        against(&policy, &WRITE, Verdict::unknown()).await;
        let stands = if late { BreakerState::Open } else { BreakerState::Closed };
        assert_eq!(policy.breaker().state(), stands, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_around_a_stream_that_broke_does_not_repeat_it() {
    let (inside, around) = (database("t-stream-inside"), database("t-stream-around"));
    let (inside, around) = (inside.build().unwrap(), around.build().unwrap());
    let reads = AtomicU32::new(0);
    let end = around.call(|| async {
        reads.fetch_add(1, SeqCst);
        inside.stream_broke(inside.breaker().generation(), &BROKEN, Effect::Permanent);
        Err::<(), _>("cut off")
    });
    end.await.unwrap_err();
    assert_eq!(reads.load(SeqCst), 1);
}

#[test]
fn a_policy_says_whether_it_acts_and_by_when_a_call_ends() {
    let policy = database("t-acts").timeout(2 * S).build().unwrap();
    assert_eq!((policy.deadline(), policy.acts()), (Some(4 * S), true));
    let unguarded = database("t-acts-unguarded").enable_circuit_breaker(false).build().unwrap();
    assert_eq!((unguarded.acts(), unguarded.refuses(), policy.refuses()), (true, false, true));
    assert_eq!(policy.with_timeout(3 * S).deadline(), Some(6 * S));
    let off = database("t-acts-off").enable_timeout(false).enable_retry(false);
    let off = off.enable_circuit_breaker(false).build().unwrap();
    assert_eq!((off.deadline(), off.acts()), (None, false));
    // A limit that is asked for holds beside one that is switched off, but not where all is.
    let limited = off.with_timeout(3 * S);
    assert_eq!((limited.timeout(), limited.deadline()), (Some(3 * S), Some(6 * S)));
    let mut tuning = (*off.0.tuning()).clone();
    tuning.enabled = false;
    let none = builder::copy(&off.0, tuning).with_timeout(3 * S);
    assert_eq!((none.timeout(), none.deadline()), (None, None));
    let observing = database("t-acts-observing").mode(Mode::Observe).build().unwrap();
    assert_eq!((observing.deadline(), observing.acts()), (None, false));
    assert!(!observing.refuses());
    // Nor has a step beside it a limit, but for the deadline around it.
    for observing in [observing.with_timeout(S), observing] {
        assert_eq!((observing.timeout(), observing.time_for_attempt()), (None, None));
        let left = || observing.time_for_attempt();
        let left = crate::Deadline::within(9 * S).scope_blocking(left);
        assert!(left.is_some_and(|left| left > 8 * S), "{left:?}");
    }
}
