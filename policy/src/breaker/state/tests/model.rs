//! The machine beside a naive model: every call in a list, nothing derived, nothing cached.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// A call asks to be let in; with this draw.
    Ask(f64),
    /// The n-th call in flight ends.
    End(usize, Outcome),
    /// A failed attempt looks at the window.
    Weigh(Counts),
    /// Time passes, in milliseconds.
    Wait(u64),
    Isolate,
    Force,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome =
        prop_oneof![Just(Outcome::Success), Just(Outcome::Failure), Just(Outcome::Neutral)];
    let counts = (0_u64..150, 0_u64..150, 0_u64..50).prop_map(|(answered, failed, cut)| Counts {
        answered,
        failed,
        slow: cut,
        cut,
    });
    // Up to 198 days: not so long that two hundred of them reach the end of time.
    let wait = prop_oneof![Just(0), 0_u64..1_500, 0_u64..40_000, Just(1 << 34)];
    let step = prop_oneof![
        6 => (0.0..1.0).prop_map(Step::Ask),
        6 => (any::<usize>(), outcome).prop_map(|(n, outcome)| Step::End(n, outcome)),
        1 => counts.prop_map(Step::Weigh),
        3 => wait.prop_map(Step::Wait),
        1 => prop_oneof![8 => Just(Step::Reset), 1 => Just(Step::Isolate), 1 => Just(Step::Force)],
    ];
    prop::collection::vec(step, 1..200)
}

/// What it is, in the plainest words.
#[derive(Clone, Debug, PartialEq)]
enum Naive {
    Closed { in_a_row: u32, reopened: Option<Instant>, breaks: u32 },
    Open { until: Instant, breaks: u32, busy: bool },
    Half { probes: Vec<(usize, Instant)>, good: u32, breaks: u32, busy: bool },
    Isolated,
    Forced,
}

#[derive(Debug)]
struct Model {
    state: Naive,
    /// Counts everything that makes older calls strangers.
    era: u32,
}

impl Model {
    fn open(&mut self, breaks: u32, busy: bool, now: Instant) {
        let until = now.after(length(breaks));
        self.enter(Naive::Open { until, breaks, busy });
    }

    fn enter(&mut self, state: Naive) {
        self.state = state;
        self.era += 1;
    }

    /// Whether call number `id` may pass, and whether as a probe.
    fn ask(&mut self, id: usize, probes_allowed: u32, now: Instant, draw: f64) -> Option<bool> {
        if let Naive::Open { until, breaks, busy } = self.state {
            if now < until {
                return None;
            }
            self.enter(Naive::Half { probes: vec![], good: 0, breaks, busy });
        }
        match &mut self.state {
            Naive::Isolated | Naive::Open { .. } => None,
            Naive::Forced | Naive::Closed { reopened: None, .. } => Some(false),
            Naive::Closed { reopened, breaks, .. } => {
                let since = reopened.map(|then| now.since(then)).unwrap_or_default();
                let thirds = since.as_nanos() / (length(*breaks) / 3).as_nanos();
                let share = match thirds {
                    0 => 0.10,
                    1 => 0.25,
                    2 => 0.50,
                    _ => {
                        (*reopened, *breaks) = (None, 0);
                        1.0
                    }
                };
                (draw < share).then_some(false)
            }
            Naive::Half { probes, good, .. } => {
                probes.retain(|(_, until)| now < *until);
                let free = probes.len() as u32 + *good < probes_allowed;
                free.then(|| {
                    probes.push((id, now.after(10 * S)));
                    true
                })
            }
        }
    }

    fn end(&mut self, id: usize, era: u32, outcome: Outcome, allowed: u32, now: Instant) {
        if era != self.era {
            return;
        }
        match &mut self.state {
            Naive::Closed { in_a_row, breaks, .. } => match outcome {
                Outcome::Neutral => {}
                Outcome::Success => *in_a_row = 0,
                Outcome::Failure => {
                    *in_a_row += 1;
                    let (trips, breaks) = (*in_a_row >= 3, *breaks + 1);
                    if trips {
                        self.open(breaks, false, now);
                    }
                }
            },
            Naive::Half { probes, good, breaks, busy } => {
                // All that were let in since it is half-open are probes.
                let given_up = probes.iter().all(|(probe, _)| *probe != id);
                probes.retain(|(probe, _)| *probe != id);
                let (breaks, busy) = (*breaks, *busy);
                match outcome {
                    Outcome::Neutral => {}
                    Outcome::Failure if given_up => {}
                    Outcome::Failure => self.open(breaks + 1, busy, now),
                    Outcome::Success => {
                        *good += 1;
                        if *good >= allowed {
                            let reopened = busy.then_some(now);
                            let breaks = if busy { breaks } else { 0 };
                            self.enter(Naive::Closed { in_a_row: 0, reopened, breaks });
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn weigh(&mut self, counts: &Counts, now: Instant) {
        let Naive::Closed { breaks, .. } = self.state else { return };
        let ended = counts.answered + counts.failed;
        let fails = ended >= 20 && counts.failed * 2 >= ended;
        let slow = ended + counts.cut >= 20 && counts.slow * 2 >= ended + counts.cut;
        if fails || slow {
            self.open(breaks + 1, ended + counts.cut >= 100, now);
        }
    }

    fn stands(&self, now: Instant) -> BreakerState {
        match &self.state {
            Naive::Closed { reopened: Some(then), breaks, .. }
                if now.since(*then) < 3 * (length(*breaks) / 3) =>
            {
                BreakerState::Ramping
            }
            Naive::Closed { .. } => BreakerState::Closed,
            Naive::Open { until, .. } if now < *until => BreakerState::Open,
            Naive::Open { .. } | Naive::Half { .. } => BreakerState::HalfOpen,
            Naive::Isolated => BreakerState::Isolated,
            Naive::Forced => BreakerState::ForcedClosed,
        }
    }
}

/// The last of so many breaks in a row; the ramp after it is as long.
fn length(breaks: u32) -> Duration {
    Duration::from_secs(1_u64.checked_shl(breaks - 1).unwrap_or(u64::MAX).min(30))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn the_machine_does_what_the_naive_model_does(steps in steps(), probes in 1_u32..4) {
        let mut machine = Machine::new(BreakerConfig { probes, ..config(3) });
        let state = Naive::Closed { in_a_row: 0, reopened: None, breaks: 0 };
        let mut model = Model { state, era: 0 };
        let mut now = Instant::default();
        let mut flying: Vec<(usize, Admitted, u32)> = Vec::new();
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Step::Wait(ms) => now = now.after(Duration::from_millis(ms)),
                Step::Ask(draw) => {
                    let real = machine.admit(now, draw);
                    let expected = model.ask(id, probes, now, draw);
                    prop_assert_eq!(real.map(|a| a.lease.is_some()).ok(), expected);
                    if let Ok(admitted) = real {
                        flying.push((id, admitted, model.era));
                    }
                    if let Err(until) = real {
                        prop_assert!(now < until || until.is_never());
                    }
                }
                Step::End(n, outcome) if !flying.is_empty() => {
                    let (id, admitted, era) = flying.swap_remove(n % flying.len());
                    machine.operation(admitted, outcome, &QUIET, now, 0.5);
                    model.end(id, era, outcome, probes, now);
                }
                Step::End(..) => {}
                Step::Weigh(counts) => {
                    machine.attempt(machine.generation(), &counts, now, 0.5);
                    model.weigh(&counts, now);
                }
                Step::Isolate => {
                    machine.isolate();
                    model.enter(Naive::Isolated);
                }
                Step::Force => {
                    machine.force_closed();
                    model.enter(Naive::Forced);
                }
                Step::Reset => {
                    machine.reset();
                    model.enter(Naive::Closed { in_a_row: 0, reopened: None, breaks: 0 });
                }
            }
            prop_assert_eq!(machine.state(now), model.stands(now));
        }
    }
}
