//! The machine alone, with time and chance given.

use super::*;

const S: Duration = Duration::from_secs(1);

pub(crate) fn config(failure_threshold: u32) -> BreakerConfig {
    BreakerConfig {
        failure_threshold,
        failure_rate: Some(0.5),
        slow_rate: Some(0.5),
        slow_after: None,
        minimum_calls: 20,
        window: 10,
        recovery_timeout: 30 * S,
        grow_breaks: true,
        probes: 1,
        probe_lease: 10 * S,
        ramp: true,
        attempt_timeout: Some(5 * S),
    }
}

fn machine(threshold: u32) -> (Machine, Instant) {
    (Machine::new(config(threshold)), Instant::of_nanos(5_000_000_000))
}

const QUIET: Counts = Counts { answered: 0, failed: 0, slow: 0, cut: 0 };
const BUSY_COUNTS: Counts = Counts { answered: 990, failed: 10, slow: 0, cut: 0 };

fn end(m: &mut Machine, admitted: Admitted, outcome: Outcome, now: Instant) -> Option<Trip> {
    m.operation(admitted, outcome, &QUIET, now, 0.5)
}

fn fail(m: &mut Machine, now: Instant) {
    let admitted = m.admit(now, 0.5).unwrap();
    end(m, admitted, Outcome::Failure, now);
}

#[test]
fn opens_after_the_threshold_in_a_row_and_not_before() {
    let (mut m, t) = machine(3);
    // failures in a row: 1 2 | success | 1 2 | neutral | 3
    fail(&mut m, t);
    fail(&mut m, t);
    assert_eq!(m.failures(), 2);
    let admitted = m.admit(t, 0.5).unwrap();
    end(&mut m, admitted, Outcome::Success, t);
    assert_eq!(m.failures(), 0);
    fail(&mut m, t);
    fail(&mut m, t);
    end(&mut m, admitted, Outcome::Neutral, t);
    assert_eq!(m.state(t), BreakerState::Closed);
    assert_eq!(end(&mut m, admitted, Outcome::Failure, t), Some(Trip::Consecutive));
    assert_eq!(m.state(t), BreakerState::Open);
    assert_eq!(m.admit(t, 0.5), Err(t.after(S)));
    let over = t.after(S);
    assert_eq!(m.state(over), BreakerState::HalfOpen, "at the end of the break, not after it");
    assert_eq!(m.stands(), BreakerState::Open, "until somebody asks");
    assert!(m.admit(over, 0.5).is_ok());
}

#[test]
fn breaks_double_until_the_recovery_timeout_or_stay_when_told() {
    for (grow, expected) in [(true, [1, 2, 4, 8, 16, 30, 30]), (false, [30; 7])] {
        let (mut m, mut t) = machine(1);
        m.config.grow_breaks = grow;
        let mut breaks = Vec::new();
        for _ in 0..7 {
            fail(&mut m, t);
            let Gate::Shut(until) = m.gate() else { panic!("open") };
            breaks.push(until.since(t).as_secs());
            t = until;
        }
        assert_eq!(breaks, expected);
    }
}

#[test]
fn a_rate_opens_it_only_with_enough_attempts() {
    let of = |answered, failed, slow, cut| Counts { answered, failed, slow, cut };
    for (counts, trip) in [
        (of(9, 10, 0, 0), None),
        (of(10, 10, 0, 0), Some(Trip::FailureRate)),
        (of(11, 10, 0, 0), None),
        (of(10, 9, 10, 0), None),
        (of(20, 0, 10, 0), Some(Trip::SlowRate)),
        (of(0, 0, 19, 19), None),
        (of(0, 0, 20, 20), Some(Trip::SlowRate)),
    ] {
        let (mut m, t) = machine(100);
        assert_eq!(m.attempt(0, &counts, t, 0.5), trip, "{counts:?}");
        let (mut late, t) = machine(100);
        assert_eq!(late.attempt(7, &counts, t, 0.5), None, "of another generation");
    }
    let (mut m, t) = machine(100);
    (m.config.failure_rate, m.config.slow_rate) = (None, None);
    assert_eq!(m.attempt(0, &of(0, 90, 90, 0), t, 0.5), None);
}

#[test]
fn probes_pass_up_to_their_number_and_all_must_succeed() {
    let (mut m, t) = machine(1);
    m.config.probes = 2;
    fail(&mut m, t);
    let t = t.after(S);
    let (one, two) = (m.admit(t, 0.5).unwrap(), m.admit(t, 0.5).unwrap());
    assert!(one.lease.is_some() && two.lease.is_some() && one != two);
    assert_eq!(m.admit(t, 0.5), Err(t.after(10 * S)));
    end(&mut m, one, Outcome::Success, t);
    assert_eq!(m.state(t), BreakerState::HalfOpen);
    assert!(m.admit(t, 0.5).is_err(), "one has succeeded, one is under way");
    end(&mut m, two, Outcome::Success, t);
    assert_eq!(m.state(t), BreakerState::Closed);
}

#[test]
fn a_dropped_probe_frees_its_place_and_a_hung_one_loses_it() {
    let (mut m, t) = machine(1);
    fail(&mut m, t);
    let t = t.after(S);
    let dropped = m.admit(t, 0.5).unwrap();
    end(&mut m, dropped, Outcome::Neutral, t);
    let hung = m.admit(t, 0.5).unwrap();
    let later = t.after(10 * S);
    let live = m.admit(later, 0.5).unwrap();
    end(&mut m, hung, Outcome::Failure, later);
    assert_eq!(m.state(later), BreakerState::HalfOpen);
    end(&mut m, live, Outcome::Success, later);
    assert_eq!(m.state(later), BreakerState::Closed);
}

#[test]
fn a_probe_that_took_longer_than_its_lease_closes_it_but_does_not_open_it() {
    let (mut m, t) = machine(1);
    m.config.probes = 2;
    fail(&mut m, t);
    let t = t.after(S);
    let long = [m.admit(t, 0.5).unwrap(), m.admit(t, 0.5).unwrap()];
    let later = t.after(10 * S);
    let next = m.admit(later, 0.5).unwrap();
    let inside = Admitted { generation: m.generation(), lease: Some(u64::MAX) };
    for part in [inside, Admitted { lease: None, ..inside }] {
        end(&mut m, part, Outcome::Success, later);
        end(&mut m, part, Outcome::Failure, later);
    }
    end(&mut m, long[0], Outcome::Success, later);
    assert_eq!(m.state(later), BreakerState::HalfOpen, "one of two");
    assert_eq!(m.admit(later, 0.5), Err(later.after(10 * S)), "the other is under way");
    let mut fails = m.clone();
    assert_eq!(end(&mut fails, long[1], Outcome::Failure, later), None);
    assert_eq!(fails.state(later), BreakerState::HalfOpen);
    end(&mut m, long[1], Outcome::Success, later);
    assert_eq!(m.state(later), BreakerState::Closed);
    end(&mut m, next, Outcome::Failure, later);
    assert_eq!(m.state(later), BreakerState::Closed, "from before");
}

#[test]
fn late_results_from_before_a_transition_decide_nothing() {
    let (mut m, t) = machine(1);
    let old = m.admit(t, 0.5).unwrap();
    fail(&mut m, t);
    end(&mut m, old, Outcome::Success, t);
    assert_eq!(m.state(t), BreakerState::Open);
    m.reset();
    end(&mut m, old, Outcome::Failure, t);
    assert_eq!(m.state(t), BreakerState::Closed);
}

/// ```text
/// busy, open 3 times | probe ok | 10 % ... 25 % ... 50 % ... | closed
///   1 s, 2 s, 4 s    t          t       +4/3 s   +8/3 s     +4 s
/// ```
#[test]
fn a_busy_dependency_is_given_its_load_back_in_steps() {
    let (mut m, mut t) = machine(1);
    let admitted = m.admit(t, 0.5).unwrap();
    m.operation(admitted, Outcome::Failure, &BUSY_COUNTS, t, 0.5);
    for seconds in [1, 2] {
        t = t.after(seconds * S);
        fail(&mut m, t);
    }
    let t = t.after(4 * S);
    let probe = m.admit(t, 0.5).unwrap();
    end(&mut m, probe, Outcome::Success, t);
    assert_eq!(m.state(t), BreakerState::Ramping);
    let third = 4 * S / 3;
    for (thirds, passes, refused) in [(0, 0.09, 0.1), (1, 0.24, 0.25), (2, 0.49, 0.5)] {
        let now = t.after(thirds * third);
        assert!(m.admit(now, passes).is_ok(), "{passes} after {thirds} thirds");
        assert_eq!(m.admit(now, refused), Err(t.after((thirds + 1) * third)));
    }
    let mut trips = m.clone();
    let in_ramp = trips.admit(t, 0.0).unwrap();
    end(&mut trips, in_ramp, Outcome::Failure, t);
    let Gate::Shut(until) = trips.gate() else { panic!("open") };
    assert_eq!(until.since(t), 8 * S, "the break before was the third");

    let over = t.after(4 * S);
    assert_eq!(m.state(over), BreakerState::Closed);
    assert!(m.admit(over, 0.99).is_ok());
    assert_eq!(m.gate(), Gate::Closed);
    fail(&mut m, over);
    let Gate::Shut(until) = m.gate() else { panic!("open") };
    assert_eq!(until.since(over), S, "a new first break");
}

#[test]
fn the_ramp_can_be_switched_off_and_is_not_for_quiet_ones() {
    for (ramp, counts) in [(false, BUSY_COUNTS), (true, QUIET)] {
        let (mut m, t) = machine(1);
        m.config.ramp = ramp;
        let admitted = m.admit(t, 0.5).unwrap();
        m.operation(admitted, Outcome::Failure, &counts, t, 0.5);
        let t = t.after(S);
        let probe = m.admit(t, 0.5).unwrap();
        end(&mut m, probe, Outcome::Success, t);
        assert_eq!(m.state(t), BreakerState::Closed);
    }
}

#[test]
fn the_operators_hand_holds_until_it_lets_go() {
    let (mut m, t) = machine(1);
    let before = m.admit(t, 0.5).unwrap();
    m.isolate();
    assert_eq!(m.admit(t.after(99 * S), 0.0), Err(Instant::NEVER));
    m.force_closed();
    for _ in 0..9 {
        fail(&mut m, t);
    }
    assert_eq!(m.state(t), BreakerState::ForcedClosed);
    m.reset();
    end(&mut m, before, Outcome::Failure, t);
    assert_eq!(m.state(t), BreakerState::Closed);
}

#[test]
fn jitter_is_within_fifteen_percent_and_extremes_do_not_panic() {
    for (random, ms) in [(0.0, 850), (1.0, 1150)] {
        let (mut m, t) = machine(1);
        let admitted = m.admit(t, 0.5).unwrap();
        m.operation(admitted, Outcome::Failure, &QUIET, t, random);
        let Gate::Shut(until) = m.gate() else { panic!("open") };
        assert_eq!(until.since(t).as_millis(), ms);
    }
    let (mut m, t) = machine(1);
    m.config.recovery_timeout = Duration::MAX;
    m.config.probe_lease = Duration::MAX;
    m.config.probes = u32::MAX;
    m.open(u32::MAX, &BUSY_COUNTS, t, 1.0);
    assert_eq!(m.state(t), BreakerState::Open);
    assert!(m.admit(Instant::NEVER, 0.5).is_ok());
    let (mut m, t) = machine(u32::MAX);
    for _ in 0..99 {
        fail(&mut m, t);
    }
    assert_eq!(m.state(t), BreakerState::Closed);
}

mod model;
