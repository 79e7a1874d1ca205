//! What health and observers are told of a breaker, at the borders.

use super::*;
use crate::{breaker::permit::Ended, classify::Outcome, event::observe};
use std::{collections::VecDeque, time::Duration};

pub(super) const MS: u64 = 1_000_000;
const S: Duration = Duration::from_secs(1);
/// Slow from here on.
pub(super) const SLOW: u64 = 800 * MS;

/// Opens after four failures in a row, and by no rate.
pub(super) fn config() -> BreakerConfig {
    BreakerConfig {
        failure_threshold: 4,
        failure_rate: None,
        slow_rate: None,
        slow_after: Some(Duration::from_nanos(SLOW)),
        minimum_calls: 10,
        window: 10,
        recovery_timeout: S,
        grow_breaks: false,
        probes: 1,
        probe_lease: 5 * S,
        ramp: false,
        attempt_timeout: None,
    }
}

fn breaker(name: &str, config: BreakerConfig) -> Breaker {
    Breaker::new(name.into(), config)
}

pub(super) fn begun(breaker: &Breaker) -> Permit<'_> {
    let (mut permit, now) = (breaker.unasked(), clock::now());
    permit.ask(now).unwrap();
    permit.begin_attempt(now);
    permit
}

pub(super) fn answer(breaker: &Breaker, took: u64) {
    let mut permit = begun(breaker);
    let now = permit.attempt_since().after_nanos(took);
    permit.succeed(now, Cause::of_a_cut);
}

/// An attempt and its operation.
fn fail(breaker: &Breaker) {
    let mut permit = begun(breaker);
    permit.end_attempt(Ended::Failed, clock::now(), &Cause::of_a_cut);
    permit.finish(Outcome::Failure, clock::now(), &Cause::of_a_cut);
}

fn is_near(breaker: &Breaker) -> bool {
    breaker.is_near_its_trip(clock::now().after_nanos(SLOW))
}

#[tokio::test(start_paused = true)]
async fn half_the_failures_in_a_row_are_near_the_trip_and_fewer_are_not() {
    let four = breaker("near-row", config());
    assert!(!is_near(&four));
    fail(&four);
    assert!(!is_near(&four));
    fail(&four);
    assert!(is_near(&four), "two of four");
    answer(&four, MS);
    assert!(!is_near(&four), "forgotten");

    let three = breaker("near-row-3", BreakerConfig { failure_threshold: 3, ..config() });
    fail(&three);
    assert!(!is_near(&three));
    fail(&three);
    assert!(is_near(&three), "two of three");

    let one = breaker("near-row-1", BreakerConfig { failure_threshold: 1, ..config() });
    assert!(!is_near(&one), "half of one is none");
}

/// Of twenty: the rate opens it at ten, so five are near.
#[tokio::test(start_paused = true)]
async fn half_a_rate_is_near_the_trip_once_there_are_enough_calls() {
    let rate = BreakerConfig { failure_rate: Some(0.5), minimum_calls: 20, ..config() };
    let failing = breaker("near-rate", rate);
    for n in 0..4 {
        fail(&failing);
        assert!(!is_near(&failing), "{n} failures of {n} calls are too few to tell");
        answer(&failing, MS);
    }
    (0..10).for_each(|_| answer(&failing, MS));
    assert!(!is_near(&failing), "18 calls");
    fail(&failing);
    answer(&failing, MS);
    assert!(is_near(&failing), "5 of 20");
    answer(&failing, MS);
    assert!(!is_near(&failing), "5 of 21");

    let rate = BreakerConfig { slow_rate: Some(0.5), ..config() };
    let slow = breaker("near-slow", rate);
    (0..2).for_each(|_| answer(&slow, SLOW));
    (0..7).for_each(|_| answer(&slow, MS));
    assert!(!is_near(&slow), "9 calls");
    answer(&slow, MS);
    assert!(!is_near(&slow), "2 of 10");
    answer(&slow, SLOW);
    assert!(is_near(&slow), "3 of 11");

    // Those that were cut short while slow count as calls, too.
    let cut = breaker("near-cut", BreakerConfig { slow_rate: Some(0.5), ..config() });
    (0..9).for_each(|_| answer(&cut, MS));
    for _ in 0..3 {
        let mut permit = begun(&cut);
        let now = permit.attempt_since().after_nanos(SLOW);
        permit.end_attempt(Ended::Cut, now, &Cause::of_a_cut);
    }
    assert!(is_near(&cut), "3 of 12");
}

#[tokio::test(start_paused = true)]
async fn the_next_attempt_is_as_far_away_as_a_caller_is_told() {
    let one = breaker("next", BreakerConfig { failure_threshold: 1, ..config() });
    assert_eq!(one.next_attempt_in(), None);
    fail(&one);
    let first = one.next_attempt_in().unwrap();
    assert!(first > S / 2 && first <= S * 3 / 2, "{first:?}");
    tokio::time::advance(S / 4).await;
    let later = one.next_attempt_in().unwrap();
    assert_eq!(first - later, S / 4);
    assert_eq!(one.refuses().unwrap().shut.retry_after(), Some(later));
    tokio::time::advance(2 * S).await;
    assert_eq!(one.next_attempt_in(), Some(Duration::ZERO));
    // The probe has the only lease: the next one is its end.
    let probe = begun(&one);
    assert!(probe.is_probe());
    assert_eq!(one.next_attempt_in(), Some(5 * S));
    assert!(one.unasked().ask(clock::now()).is_err());
    drop(probe);
    assert_eq!(one.next_attempt_in(), Some(Duration::ZERO), "it was given back");
    one.reset();
    assert_eq!(one.next_attempt_in(), None);
}

#[tokio::test(start_paused = true)]
async fn observers_are_told_how_long_it_is_open_and_by_what() {
    let seen = Arc::new(Mutex::new(VecDeque::new()));
    let told = Arc::clone(&seen);
    let _subscription = observe(move |event: &Event| {
        if let Event::Changed { dependency, to, cause, retry_after, .. } = event
            && **dependency == *"told"
        {
            let reason = cause.as_ref().map(|cause| cause.reason);
            told.lock().unwrap().push_back((*to, reason, *retry_after));
        }
    });
    let next = || seen.lock().unwrap().pop_front();
    let one = breaker("told", BreakerConfig { failure_threshold: 1, ..config() });
    fail(&one);
    let left = one.next_attempt_in();
    assert_eq!(next(), Some((BreakerState::Open, Some("failures in a row"), left)));
    one.reset();
    assert_eq!(next(), Some((BreakerState::Closed, None, None)));
    one.isolate();
    assert_eq!(next(), Some((BreakerState::Isolated, None, None)));
    one.force_closed();
    assert_eq!(next(), Some((BreakerState::ForcedClosed, None, None)));
    one.force_closed();
    assert_eq!(next(), None, "it stands where it stood");
}

/// Not by what had opened it before.
#[tokio::test(start_paused = true)]
async fn who_isolates_a_dependency_is_named_in_place_of_an_earlier_failure() {
    let opened_by = |one: &Breaker| one.refuses().unwrap().opened_by.unwrap();
    let fresh = breaker("by-hand-fresh", config());
    fresh.isolate();
    assert_eq!(&*opened_by(&fresh).dependency().unwrap(), "by-hand-fresh");

    let one = breaker("by-hand", BreakerConfig { failure_threshold: 1, ..config() });
    fail(&one);
    let cause = opened_by(&one).cause().unwrap();
    assert_eq!(cause.reason, "failures in a row");
    one.reset();
    assert!(one.refuses().is_none());
    one.isolate();
    let refusal = one.refuses().unwrap();
    assert_eq!((refusal.shut.by(), refusal.shut.retry_after()), (Decider::Isolation, None));
    assert!(opened_by(&one).cause().is_none());
    assert_eq!(&*opened_by(&one).dependency().unwrap(), "by-hand");
    // Once, however many policies are built for it: the list of openings is of all breakers.
    let first = opened_by(&one);
    one.configure(config());
    one.isolate();
    assert_eq!(opened_by(&one), first);
    // While it is open, it stays known what opened it.
    one.reset();
    one.configure(BreakerConfig { failure_threshold: 1, ..config() });
    fail(&one);
    one.isolate();
    assert_eq!(opened_by(&one).cause().unwrap().reason, "failures in a row");
}

/// What the registry may forget: nobody holds it, and there is nothing to remember.
#[tokio::test(start_paused = true)]
async fn it_is_idle_when_nobody_holds_it_and_nothing_failed() {
    let one = breaker("idle", BreakerConfig { failure_threshold: 2, ..config() });
    assert!(one.is_idle());
    let held = one.clone();
    assert!(!one.is_idle());
    drop(held);
    fail(&one);
    assert!(!one.is_idle(), "it has a failure to forget");
    answer(&one, MS);
    assert!(one.is_idle());
    (0..2).for_each(|_| fail(&one));
    assert!(!one.is_idle(), "it is open");
    one.reset();
    assert!(one.is_idle());
}
