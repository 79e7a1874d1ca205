//! How to compare things that take nanoseconds: short rounds in random order, thread CPU time, and
//! the median of the rounds' ratios.

use rustix::time::{ClockId, clock_gettime};
use std::{
    future::Future,
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};

/// Runs so many calls, one after the other, and returns a word that depends on each.
pub type Run = Box<dyn FnMut(u64) -> u64 + Send>;

/// Something to be measured, by its name.
pub struct Case {
    /// What it is.
    pub name: &'static str,
    make: Box<dyn Fn() -> Run>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Case {
    /// Each thread calls its own clone of `call`; what they share is behind references.
    pub fn new<C, F, E>(name: &'static str, call: C) -> Self
    where
        C: FnMut() -> F + Clone + Send + 'static,
        F: Future<Output = Result<u64, E>>,
    {
        let make = move || {
            let mut call = call.clone();
            let run: Run = Box::new(move |calls| {
                let mut cx = Context::from_waker(Waker::noop());
                let mut sum = 0_u64;
                for _ in 0..calls {
                    let mut work = pin!(call());
                    // A word leaves the loop, not the result: to hide a whole `Result` from the
                    // optimiser costs 10 ns.
                    let word = loop {
                        match work.as_mut().poll(&mut cx) {
                            Poll::Ready(Ok(word)) => break word,
                            Poll::Ready(Err(_)) => break 1,
                            Poll::Pending => {}
                        }
                    };
                    sum = sum.wrapping_add(black_box(word));
                }
                sum
            });
            run
        };
        Self { name, make: Box::new(make) }
    }

    /// A caller for one thread.
    #[must_use]
    pub fn run(&self) -> Run {
        (self.make)()
    }
}

/// The CPU time of this thread in nanoseconds.
#[must_use]
pub fn thread_time() -> f64 {
    nanos(ClockId::ThreadCPUTime)
}

/// The CPU time of all threads in nanoseconds.
#[must_use]
pub fn process_time() -> f64 {
    nanos(ClockId::ProcessCPUTime)
}

/// The time that has passed, in nanoseconds.
#[must_use]
pub fn wall_time() -> f64 {
    nanos(ClockId::Monotonic)
}

#[allow(clippy::cast_precision_loss)] // Exact for 100 days.
fn nanos(clock: ClockId) -> f64 {
    let now = clock_gettime(clock);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// For each case, what every round took by the call.
#[derive(Debug)]
pub struct Rounds(Vec<Vec<f64>>);

impl Rounds {
    /// Measures `cases` things by `measure(case) -> nanoseconds of a call`, in another order in each
    /// round.
    pub fn measure(rounds: usize, cases: usize, mut measure: impl FnMut(usize) -> f64) -> Self {
        let mut seen = vec![Vec::with_capacity(rounds); cases];
        let mut order: Vec<usize> = (0..cases).collect();
        for _ in 0..rounds {
            fastrand::shuffle(&mut order);
            for &case in &order {
                seen[case].push(measure(case));
            }
        }
        Self(seen)
    }

    /// The median of one case.
    #[must_use]
    pub fn median(&self, case: usize) -> f64 {
        median(self.0[case].clone())
    }

    /// The median of what `combine` makes of the cases of each round.
    #[must_use]
    pub fn median_of(&self, combine: impl Fn(&dyn Fn(usize) -> f64) -> f64) -> f64 {
        let rounds = self.0.first().map_or(0, Vec::len);
        median((0..rounds).map(|round| combine(&|case| self.0[case][round])).collect())
    }
}

/// The middle of these figures; not a number when there are none.
#[must_use]
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
