//! Every interleaving of two or three threads on one breaker, within loom's bounds.

use super::*;
use crate::classify::Outcome;
use loom::thread;

fn breaker(threshold: u32, probes: u32) -> Breaker {
    let config = BreakerConfig {
        failure_threshold: threshold,
        failure_rate: None,
        slow_rate: None,
        slow_after: Some(Duration::MAX),
        minimum_calls: 20,
        window: 10,
        // Over at once, so that a break and a probe fit into one run.
        recovery_timeout: Duration::from_nanos(1),
        grow_breaks: false,
        probes,
        probe_lease: Duration::MAX,
        ramp: false,
        attempt_timeout: None,
    };
    Breaker::new("loom".into(), config)
}

fn long_break(threshold: u32) -> Breaker {
    let breaker = breaker(threshold, 1);
    breaker.0.machine().config.recovery_timeout = Duration::from_secs(3_600);
    breaker
}

fn fail(breaker: &Breaker) -> bool {
    let now = clock::now();
    match breaker.admit(now) {
        Ok(mut permit) => {
            permit.begin_attempt(now);
            permit.finish(Outcome::Failure, now, &Cause::of_a_cut);
            true
        }
        Err(_) => false,
    }
}

/// Two threads fail at once under a threshold of two: whatever the order, it is open afterwards, the
/// word says so, and the next call is refused.
#[test]
fn failures_at_once_are_all_counted() {
    loom::model(|| {
        let one = long_break(2);
        let two = one.clone();
        let other = thread::spawn(move || fail(&two));
        fail(&one);
        other.join().unwrap();
        assert_eq!(one.state(), BreakerState::Open);
        assert!(one.0.word.load(Acquire) & GUARDED != 0);
        assert!(!fail(&one));
    });
}

/// A success and a failure at once: the word's mark of failures in a row never differs from the
/// machine's count, so that a later success is not skipped.
#[test]
fn the_word_says_what_the_machine_holds() {
    loom::model(|| {
        let one = long_break(3);
        fail(&one);
        let two = one.clone();
        let other = thread::spawn(move || fail(&two));
        let now = clock::now();
        let mut permit = one.admit(now).unwrap();
        permit.begin_attempt(now);
        permit.succeed(now, &Cause::of_a_cut);
        other.join().unwrap();
        let failing = one.0.word.load(Acquire) & FAILING != 0;
        assert_eq!(failing, one.0.machine().failures() > 0);
    });
}

/// After a break two threads ask at once: exactly one is the probe.
#[test]
fn only_one_of_two_is_the_probe() {
    loom::model(|| {
        let one = breaker(1, 1);
        assert!(fail(&one));
        let two = one.clone();
        let later = clock::now().after(Duration::from_secs(1));
        let other = thread::spawn(move || two.admit(later).map(std::mem::forget).is_ok());
        let mine = one.admit(later).map(std::mem::forget).is_ok();
        let theirs = other.join().unwrap();
        assert!(mine != theirs, "one probe, not {}", u8::from(mine) + u8::from(theirs));
    });
}

/// A probe is dropped while another thread asks: the lease is free in the end.
#[test]
fn a_dropped_probe_always_frees_its_lease() {
    loom::model(|| {
        let one = breaker(1, 1);
        assert!(fail(&one));
        let later = clock::now().after(Duration::from_secs(1));
        let probe = one.admit(later).unwrap();
        let two = one.clone();
        let other = thread::spawn(move || drop(two.admit(later)));
        drop(probe);
        other.join().unwrap();
        assert!(one.admit(later).is_ok());
    });
}

/// A result from before a reset comes while others reset: it decides nothing.
#[test]
fn a_late_failure_never_opens_what_was_reset() {
    loom::model(|| {
        let one = long_break(1);
        let now = clock::now();
        let mut late = one.admit(now).unwrap();
        late.begin_attempt(now);
        let two = one.clone();
        let other = thread::spawn(move || two.reset());
        late.finish(Outcome::Failure, now, &Cause::of_a_cut);
        other.join().unwrap();
        // Before the reset it opened it, and the reset closed it; after it, it was late.
        assert_eq!(one.state(), BreakerState::Closed);
        assert!(one.admit(now).is_ok());
    });
}

/// A reader on its way through the word and the snapshot while the breaker opens: it is let in by
/// the old state or refused by the new one, and never sees a break without its cause.
#[test]
fn a_refusal_always_knows_what_opened_it() {
    loom::model(|| {
        let one = long_break(1);
        let two = one.clone();
        let other = thread::spawn(move || fail(&two));
        match one.admit(clock::now()) {
            Ok(permit) => std::mem::forget(permit),
            Err(refusal) => assert!(refusal.opened_by.is_some()),
        }
        other.join().unwrap();
    });
}

/// The same for who does not ask the snapshot: a refusal has a cause, and where the word is closed for
/// good nobody is refused any more.
#[test]
fn a_refusal_at_once_knows_what_opened_it_and_ends_with_the_break() {
    loom::model(|| {
        let one = long_break(1);
        let two = one.clone();
        let other = thread::spawn(move || fail(&two));
        if let Some(refusal) = one.refuses() {
            assert!(refusal.opened_by.is_some());
            assert_eq!(refusal.shut.by(), Decider::Breaker);
        }
        other.join().unwrap();
        assert!(one.refuses().is_some());
        let two = one.clone();
        let other = thread::spawn(move || two.reset());
        let _ = one.refuses();
        other.join().unwrap();
        assert!(one.refuses().is_none());
    });
}
