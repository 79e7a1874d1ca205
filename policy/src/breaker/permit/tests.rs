//! What a busy breaker is told, beyond the first answers, after which most are counted in passing.

use super::*;
use crate::{
    breaker::{
        Breaker, BreakerConfig,
        tests::{MS, SLOW, answer, begun, config},
    },
    meter::Counts,
};
use std::time::Duration;

fn breaker(slow_after: Option<Duration>) -> Breaker {
    let (failure_threshold, minimum_calls, probe_lease) = (2, 20, Duration::MAX);
    let config =
        BreakerConfig { failure_threshold, minimum_calls, probe_lease, slow_after, ..config() };
    Breaker::new("permit".into(), config)
}

fn fail(breaker: &Breaker) {
    begun(breaker).finish(Outcome::Failure, clock::now(), &Cause::of_a_cut);
}

fn counts(breaker: &Breaker) -> Counts {
    breaker.counts(clock::now().after_nanos(SLOW))
}

fn busy() -> Breaker {
    let breaker = breaker(Some(Duration::from_nanos(SLOW)));
    (0..100).for_each(|_| answer(&breaker, MS));
    breaker
}

#[tokio::test(start_paused = true)]
async fn a_busy_breaker_sees_slow_answers_and_forgets_failures() {
    let breaker = busy();
    for (took, slow) in [(SLOW - 1, 0), (SLOW, 1), (SLOW + 1, 2)] {
        answer(&breaker, took);
        assert_eq!(counts(&breaker).slow, slow, "{took}");
    }
    assert_eq!(counts(&breaker).answered, 103);
    fail(&breaker);
    answer(&breaker, MS);
    assert_eq!(breaker.0.machine().failures(), 0, "an answer came between");
    fail(&breaker);
    assert!(!breaker.is_guarded());
    fail(&breaker);
    assert!(breaker.is_guarded(), "two in a row");
}

/// Of 801 answers how many were timed beside the first, which is in any case; and for how many these
/// speak, that one included.
fn answer_at_once(
    breaker: &Breaker,
    took: u64,
    begun: impl Fn(&Breaker) -> Permit<'_>,
) -> (u32, u32) {
    let (mut timed, mut like) = (0, 0);
    let answers = breaker.meter().answers();
    for _ in 0..801 {
        let mut permit = begun(breaker);
        let now = permit.attempt_since().after_nanos(took);
        let look = |answers| {
            (timed, like) = (timed + 1, like + answers);
            now
        };
        permit.succeed_at_once(look, Cause::of_a_cut);
    }
    assert_eq!(breaker.meter().answers() - answers, 801);
    (timed - 1, like)
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_at_once_is_timed_seldom_while_it_is_quick() {
    let soon_slow = || {
        let breaker = breaker(Some(Duration::from_micros(8)));
        (0..100).for_each(|_| answer(&breaker, 1));
        breaker
    };
    for (busy, quick) in [(busy as fn() -> Breaker, QUICK), (soon_slow, 1_000)] {
        for (took, timed) in [(quick - 1, 100), (quick, 800), (quick + 1, 800)] {
            let breaker = busy();
            assert_eq!(answer_at_once(&breaker, took, begun), (timed, 801), "{took}");
            assert_eq!(counts(&breaker).answered, 901);
        }
    }
    // Without a breaker, too; the first ones are all timed.
    fn unguarded(breaker: &Breaker) -> Permit<'_> {
        let mut permit = breaker.unasked();
        permit.unguarded();
        permit.begin_attempt(clock::now());
        permit
    }
    let breaker = breaker(None);
    assert_eq!(answer_at_once(&breaker, 1, unguarded), (63 + 92, 800));
    assert_eq!((counts(&breaker).answered, breaker.meter().answers()), (0, 801));
    // Not while there are failures to be forgotten.
    let breaker = busy();
    begun(&breaker).succeed_at_once(|_| clock::now(), Cause::of_a_cut);
    fail(&breaker);
    begun(&breaker).succeed_at_once(|_| clock::now(), Cause::of_a_cut);
    assert_eq!(breaker.0.machine().failures(), 0);
}

#[tokio::test(start_paused = true)]
async fn slow_follows_the_median_from_the_first_answer_on() {
    let breaker = breaker(None);
    answer(&breaker, 1_000 * MS);
    let slow = breaker.0.slow_after.load(Relaxed);
    assert!(slow.abs_diff(10_000 * MS) < 1_300 * MS, "{slow}");
}

#[tokio::test(start_paused = true)]
async fn what_began_before_a_transition_says_nothing_and_what_began_after_it_does() {
    let breaker = busy();
    let (mut late, mut later) = (begun(&breaker), begun(&breaker));
    breaker.reset();
    late.end_attempt(Ended::Failed, clock::now(), &Cause::of_a_cut);
    late.finish(Outcome::Failure, clock::now(), &Cause::of_a_cut);
    later.succeed(clock::now(), Cause::of_a_cut);
    assert_eq!(counts(&breaker), Counts::default());
    fail(&breaker);
    assert!(!breaker.is_guarded(), "the first of this generation");
    fail(&breaker);
    assert!(breaker.is_guarded());
    // Nothing opens it now, but everything is counted.
    breaker.force_closed();
    begun(&breaker).end_attempt(Ended::Failed, clock::now(), &Cause::of_a_cut);
    assert_eq!(counts(&breaker).failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_without_breaker_is_not_stopped_by_one_and_others_are() {
    let breaker = busy();
    let (mut free, held) = (breaker.unasked(), begun(&breaker));
    free.unguarded();
    breaker.isolate();
    assert!(free.gate(clock::now()).is_ok());
    assert!(held.gate(clock::now()).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_probe_may_go_on_and_a_stream_that_begins_is_one_answer() {
    let breaker = busy();
    fail(&breaker);
    begun(&breaker).begun(clock::now(), Cause::of_a_cut);
    assert_eq!((counts(&breaker).answered, breaker.0.machine().failures()), (101, 1));
    fail(&breaker);
    tokio::time::advance(Duration::from_secs(2)).await;
    let mut probe = begun(&breaker);
    assert!(probe.is_probe() && probe.gate(clock::now()).is_ok());
    probe.begun(clock::now(), Cause::of_a_cut);
    drop(probe);
    assert!(!breaker.is_guarded(), "it has shown what was asked of it");
    assert_eq!(breaker.counters().neutral.load(Relaxed), 0, "nobody gave up");
}
