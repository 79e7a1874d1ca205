//! The circuit breaker: after `failure_threshold` failed operations in a row, or when half of the
//! last attempts failed or were slow, it refuses calls; then it lets probes through until they
//! succeed. A busy dependency is given its load back in steps.
//!
//! The decisions are in [`state`], functions of state, event and time. This file holds what makes
//! them cheap: one word that says whether the breaker is closed, which nobody writes while it is,
//! and a snapshot for everybody else. The lock is taken by failures, probes and transitions.

mod config;
mod state;

pub(crate) use config::BreakerConfig;

#[cfg(feature = "metrics")]
use crate::telemetry::numbers::Numbers;
use crate::{
    classify::Outcome,
    clock::{self, Instant},
    error::{Cause, Decider},
    event::{self, Event},
    meter::{Counts, Meter, Noted},
    sync::{AtomicU64, Mutex, MutexGuard, Swap},
};
use serde::Serialize;
pub(crate) use state::Trip;
use state::{Admitted, Gate, Machine};
use std::{
    fmt,
    sync::{
        Arc, PoisonError,
        atomic::{
            AtomicU64 as Counter,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// Closed again after a break, with a growing share of the calls let through.
    Ramping,
    /// Calls are refused without I/O.
    Open,
    /// Probes pass, the rest is refused.
    HalfOpen,
    /// Refuses everything, because somebody said so.
    Isolated,
    /// Lets everything pass, because somebody said so.
    ForcedClosed,
}

impl BreakerState {
    /// A name for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Ramping => "ramping",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Isolated => "isolated",
            Self::ForcedClosed => "forced_closed",
        }
    }
}

/// Operations by how they ended, and extra attempts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) failed: Counter,
    pub(crate) neutral: Counter,
    pub(crate) retries: Counter,
    pub(crate) hedges: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) fallbacks: Counter,
}

impl Counters {
    pub(crate) fn add(counter: &Counter) {
        counter.fetch_add(1, Relaxed);
    }
}

/// What readers without the lock see.
#[derive(Clone, Debug)]
struct Snapshot {
    gate: Gate,
    cause: Option<Arc<Cause>>,
    config: BreakerConfig,
}

struct Inner {
    name: Arc<str>,
    /// The generation, and whether the breaker is plainly closed and whether it has failures in a
    /// row. Written under the lock, after `snapshot`.
    word: AtomicU64,
    snapshot: Swap<Snapshot>,
    machine: Mutex<Machine>,
    /// In nanoseconds; follows the median.
    slow_after: Counter,
    meter: Meter,
    counters: Counters,
    #[cfg(feature = "metrics")]
    numbers: Swap<Numbers>,
    /// The second in which `numbers` were asked for.
    #[cfg(feature = "metrics")]
    numbered: Counter,
}

/// Not plainly closed: ask the snapshot.
const GUARDED: u64 = 1;
/// There are failures in a row that a success must forget.
const FAILING: u64 = 2;
const GENERATION_SHIFT: u32 = 2;
/// The generation of a call that decides nothing.
const NO_GENERATION: u64 = u64::MAX >> GENERATION_SHIFT;

/// A shared circuit breaker; clones are the same breaker.
#[derive(Clone)]
pub struct Breaker(Arc<Inner>);

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("name", &self.0.name).field("state", &self.state()).finish()
    }
}

/// A refusal, and what opened the breaker.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) shut: Shut,
    pub(crate) cause: Option<Arc<Cause>>,
}

/// For how long: nanoseconds until the next probe, or the largest value when somebody isolated the
/// dependency by hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shut(u64);

impl Shut {
    pub(crate) const fn by(self) -> Decider {
        if self.0 == u64::MAX { Decider::Isolation } else { Decider::Breaker }
    }

    pub(crate) fn retry_after(self) -> Option<Duration> {
        (self.0 != u64::MAX).then_some(Duration::from_nanos(self.0))
    }
}

impl Refusal {
    fn new(until: Instant, now: Instant, cause: Option<&Arc<Cause>>) -> Self {
        let wait = if until.is_never() { u64::MAX } else { until.nanos_since(now) };
        Self { shut: Shut(wait), cause: cause.cloned() }
    }
}

impl Breaker {
    pub(crate) fn new(name: Arc<str>, config: BreakerConfig) -> Self {
        let slow_after = Counter::new(config.slow_after(None));
        let snapshot = Snapshot { gate: Gate::Closed, cause: None, config: config.clone() };
        #[cfg(feature = "metrics")]
        let numbers = Swap::new(Numbers::of(&name));
        Self(Arc::new(Inner {
            name,
            word: AtomicU64::new(0),
            snapshot: Swap::new(snapshot),
            machine: Mutex::new(Machine::new(config)),
            slow_after,
            meter: Meter::default(),
            counters: Counters::default(),
            #[cfg(feature = "metrics")]
            numbers,
            #[cfg(feature = "metrics")]
            numbered: Counter::new(u64::MAX),
        }))
    }

    /// The dependency's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.0.name)
    }

    /// Where it stands now.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.machine().state(clock::now())
    }

    /// Closes it and forgets its failures; calls in flight no longer count.
    pub fn reset(&self) {
        self.change(None, |machine, _| machine.reset());
    }

    /// Refuses every call until [`Breaker::reset`] or [`Breaker::force_closed`].
    pub fn isolate(&self) {
        self.change(None, |machine, _| machine.isolate());
    }

    /// Lets every call pass, whatever fails, until [`Breaker::reset`] or [`Breaker::isolate`].
    pub fn force_closed(&self) {
        self.change(None, |machine, _| machine.force_closed());
    }

    /// A streamed operation has ended well: it has been counted when it began, and now forgets
    /// failures in a row.
    pub(crate) fn stream_ended(&self) {
        if self.0.word.load(Relaxed) & FAILING == 0 {
            return;
        }
        let mut permit = self.unasked();
        if permit.if_closed() {
            permit.report(Outcome::Success, clock::now(), &Cause::of_a_cut);
            permit.lease = TOLD;
        }
    }

    pub(crate) fn configure(&self, config: BreakerConfig) {
        self.0.slow_after.store(config.slow_after(self.0.meter.median()), Relaxed);
        let mut machine = self.machine();
        machine.config = config;
        self.publish(&machine, self.cause());
    }

    /// Closed, and of no policy any more.
    pub(crate) fn is_idle(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.0.word.load(Relaxed) & (GUARDED | FAILING) == 0
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.0.meter
    }

    pub(crate) fn counts(&self, now: Instant) -> Counts {
        let window = self.0.snapshot.read(|snapshot| snapshot.config.window);
        self.0.meter.counts(now, window)
    }

    /// At half the failures in a row, or half the rates, that would open it.
    pub(crate) fn is_near_its_trip(&self, now: Instant) -> bool {
        let counts = self.counts(now);
        let machine = self.machine();
        let config = &machine.config;
        let (calls, least) = (counts.attempts() + counts.cut, u64::from(config.minimum_calls));
        let half = |rate: Option<f64>, seen: f64| rate.is_some_and(|rate| seen >= rate / 2.0);
        let in_a_row = machine.failures() > 0
            && machine.failures().saturating_mul(2) >= config.failure_threshold
            && config.failure_threshold > 1;
        in_a_row
            || calls >= least
                && (half(config.failure_rate, counts.failure_rate())
                    || half(config.slow_rate, counts.slow_rate()))
    }

    pub(crate) fn next_attempt_in(&self) -> Option<Duration> {
        match self.0.snapshot.read(|snapshot| snapshot.gate) {
            Gate::Shut(until) => Some(until.since(clock::now())),
            _ => None,
        }
    }

    pub(crate) fn cause(&self) -> Option<Arc<Cause>> {
        self.0.snapshot.read(|snapshot| snapshot.cause.clone())
    }

    /// Admits one call, or says why not.
    #[cfg(all(test, mainstay_loom))]
    pub(crate) fn admit(&self, now: Instant) -> Result<Permit<'_>, Refusal> {
        let mut permit = self.unasked();
        permit.ask(now).map(|()| permit)
    }

    /// A permit for nothing yet.
    #[inline]
    pub(crate) const fn unasked(&self) -> Permit<'_> {
        let (generation, attempt_since) = (NO_GENERATION, Instant::NEVER);
        Permit { breaker: self, generation, lease: TOLD, attempt_since }
    }

    /// Runs `event` on the machine, publishes what it made of it and tells the observers.
    fn change<R>(
        &self,
        cause: Option<&dyn Fn(Trip) -> Cause>,
        event: impl FnOnce(&mut Machine, &mut Option<Trip>) -> R,
    ) -> R {
        let now = clock::now();
        let mut machine = self.machine();
        let (from, generation, gate) = (machine.stands(), machine.generation(), machine.gate());
        let mut trip = None;
        let result = event(&mut machine, &mut trip);
        let to = machine.stands();
        let mut told = self.cause();
        if let (Some(trip), Some(cause)) = (trip, cause) {
            told = Some(Arc::new(cause(trip)));
        } else if matches!(to, BreakerState::Closed | BreakerState::ForcedClosed) {
            told = None;
        }
        if machine.generation() != generation {
            self.0.meter.clear();
        }
        if machine.gate() != gate || machine.generation() != generation {
            self.publish(&machine, told.clone());
        } else {
            self.write_word(&machine);
        }
        let gate = machine.gate();
        drop(machine);
        if from != to {
            #[cfg(feature = "metrics")]
            self.renumber();
            let retry_after = match gate {
                Gate::Shut(until) => Some(until.since(now)),
                _ => None,
            };
            event::emit(|| Event::Changed {
                dependency: self.shared_name(),
                from,
                to,
                cause: told,
                retry_after,
            });
        }
        result
    }

    fn publish(&self, machine: &Machine, cause: Option<Arc<Cause>>) {
        let config = machine.config.clone();
        self.0.snapshot.store(Snapshot { gate: machine.gate(), cause, config });
        self.write_word(machine);
    }

    fn write_word(&self, machine: &Machine) {
        let guarded = if machine.gate() == Gate::Closed { 0 } else { GUARDED };
        let failing = if machine.failures() > 0 { FAILING } else { 0 };
        let generation = machine.generation() & NO_GENERATION;
        // Released after the snapshot: who sees the word sees what it speaks of.
        self.0.word.store(generation << GENERATION_SHIFT | guarded | failing, Release);
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        // No user code runs under this lock, so a poisoned one still holds a whole state.
        self.0.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn follow_median(&self, #[cfg_attr(not(feature = "metrics"), allow(unused))] now: Instant) {
        let median = self.0.meter.median();
        let nanos = self.0.snapshot.read(|snapshot| snapshot.config.slow_after(median));
        self.0.slow_after.store(nanos, Relaxed);
        #[cfg(feature = "metrics")]
        if self.0.numbered.swap(now.second().into(), Relaxed) != u64::from(now.second()) {
            self.renumber();
        }
    }

    /// A recorder may have been installed meanwhile.
    #[cfg(feature = "metrics")]
    fn renumber(&self) {
        self.0.numbers.store(Numbers::of(&self.0.name));
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn numbers(&self, record: impl FnOnce(&Numbers)) {
        self.0.numbers.read(record);
    }
}

/// The right to run one operation. Dropped in mid-attempt it tells the breaker a slow call if the
/// attempt was slow by then, else nothing; dropped in any way it frees its probe. Small, since it
/// sits in every call's future.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    breaker: &'a Breaker,
    generation: u64,
    lease: u64,
    /// "Never" between attempts.
    attempt_since: Instant,
}

/// The lease of a call that is no probe.
const NO_LEASE: u64 = u64::MAX;
/// The lease of a call that has told how it ended.
const TOLD: u64 = u64::MAX - 1;

impl Permit<'_> {
    /// The right to pass, if the breaker is plainly closed.
    #[inline]
    pub(crate) fn if_closed(&mut self) -> bool {
        let word = self.breaker.0.word.load(Acquire);
        let closed = word & GUARDED == 0;
        if closed {
            (self.generation, self.lease) = (word >> GENERATION_SHIFT, NO_LEASE);
        }
        closed
    }

    /// The right to pass, as a probe perhaps, or why not.
    pub(crate) fn ask(&mut self, now: Instant) -> Result<(), Refusal> {
        if self.if_closed() {
            return Ok(());
        }
        let breaker = self.breaker;
        let generation = breaker.0.word.load(Acquire) >> GENERATION_SHIFT;
        // `Some` decides; `None` asks the machine.
        let decided = breaker.0.snapshot.read(|snapshot| {
            let passes = match snapshot.gate {
                Gate::ForcedClosed => Ok(true),
                Gate::Isolated => Err(Instant::NEVER),
                Gate::Shut(until) if now < until => Err(until),
                Gate::Shut(_) | Gate::Closed => Ok(false),
                Gate::Ramp(ramp) => ramp.pass(now, fastrand::f64()).map(|()| ramp.goes_on(now)),
            };
            match passes {
                Ok(true) => Some(Ok(Admitted { generation, lease: None })),
                Ok(false) => None,
                Err(until) => Some(Err(Refusal::new(until, now, snapshot.cause.as_ref()))),
            }
        });
        let admitted = match decided {
            Some(decided) => decided?,
            None => breaker
                .change(None, |machine, _| machine.admit(now, fastrand::f64()))
                .map_err(|until| Refusal::new(until, now, breaker.cause().as_ref()))?,
        };
        self.generation = admitted.generation;
        self.lease = admitted.lease.unwrap_or(NO_LEASE);
        Ok(())
    }

    /// The right to pass for a call that the breaker neither guards nor learns from.
    #[inline]
    pub(crate) const fn unguarded(&mut self) -> bool {
        (self.generation, self.lease) = (NO_GENERATION, NO_LEASE);
        true
    }

    /// Half-open: one attempt only, so that a sick dependency sees no burst.
    #[inline]
    pub(crate) const fn is_probe(&self) -> bool {
        self.lease != NO_LEASE
    }

    /// Whether calls in flight should stop: the breaker has opened since this permit was given.
    pub(crate) fn gate(&self, now: Instant) -> Result<(), Refusal> {
        let word = self.breaker.0.word.load(Acquire);
        if word >> GENERATION_SHIFT == self.generation || self.generation == NO_GENERATION {
            return Ok(());
        }
        self.breaker.0.snapshot.read(|snapshot| {
            let until = match snapshot.gate {
                Gate::Closed | Gate::Ramp(_) | Gate::ForcedClosed => return Ok(()),
                Gate::Shut(until) => until,
                Gate::Isolated => Instant::NEVER,
            };
            Err(Refusal::new(until, now, snapshot.cause.as_ref()))
        })
    }

    pub(crate) const fn attempt_since(&self) -> Instant {
        self.attempt_since
    }

    #[inline]
    pub(crate) fn begin_attempt(&mut self, now: Instant) {
        self.attempt_since = now;
    }

    /// The attempt ended: feeds the windows. A cut attempt is one that a drop or the caller's
    /// deadline ended.
    pub(crate) fn end_attempt(
        &mut self,
        ended: Ended,
        now: Instant,
        cause: &dyn Fn(Trip) -> Cause,
    ) {
        let inner = &*self.breaker.0;
        let took = now.nanos_since(self.attempt_since);
        self.attempt_since = Instant::NEVER;
        if !self.is_current() {
            return;
        }
        let slow = took >= inner.slow_after.load(Relaxed);
        match (ended, slow) {
            (Ended::Failed, _) => {
                inner.meter.failed(now);
                if slow {
                    inner.meter.slow(now);
                }
            }
            (Ended::Cut, true) => inner.meter.cut(now),
            (Ended::Neutral | Ended::Cut, _) => return,
        }
        self.weigh(now, cause);
    }

    /// Whether nothing has happened to the breaker since this permit was given.
    fn is_current(&self) -> bool {
        self.breaker.0.word.load(Relaxed) >> GENERATION_SHIFT == self.generation
    }

    /// Asks the machine whether the windows are over a rate.
    fn weigh(&self, now: Instant, cause: &dyn Fn(Trip) -> Cause) {
        let generation = self.generation;
        let counts = self.breaker.counts(now);
        self.breaker.change(Some(cause), |machine, trip| {
            *trip = machine.attempt(generation, &counts, now, fastrand::f64());
        });
    }

    /// The operation succeeded with the attempt in flight.
    #[inline(always)]
    pub(crate) fn succeed(&mut self, now: Instant, cause: impl Fn(Trip) -> Cause) {
        let inner = &*self.breaker.0;
        let word = inner.word.load(Relaxed);
        let current = word >> GENERATION_SHIFT == self.generation;
        let took = now.nanos_since(self.attempt_since);
        let noted = inner.meter.answered(now, took, current);
        let slow = took >= inner.slow_after.load(Relaxed);
        if noted == Noted::Median || current && (slow || word & (FAILING | GUARDED) != 0) {
            self.succeed_with_news(noted, current && slow, word, now, &cause);
        }
        self.lease = TOLD;
    }

    /// A streamed operation has begun to be answered: as [`Self::succeed`], but failures in a row
    /// stay, since its end is still to come. A probe has shown what was asked of it.
    pub(crate) fn begun(&mut self, now: Instant, cause: impl Fn(Trip) -> Cause) {
        let inner = &*self.breaker.0;
        let word = inner.word.load(Relaxed);
        if self.is_probe() || word & FAILING == 0 || word & GUARDED != 0 {
            return self.succeed(now, cause);
        }
        let current = word >> GENERATION_SHIFT == self.generation;
        let took = now.nanos_since(self.attempt_since);
        let noted = inner.meter.answered(now, took, current);
        let slow = current && took >= inner.slow_after.load(Relaxed);
        if noted == Noted::Median || slow {
            self.succeed_with_news(noted, slow, 0, now, &cause);
        }
        self.lease = TOLD;
    }

    #[cold]
    fn succeed_with_news(
        &self,
        noted: Noted,
        slow: bool,
        word: u64,
        now: Instant,
        cause: &dyn Fn(Trip) -> Cause,
    ) {
        if noted == Noted::Median {
            self.breaker.follow_median(now);
        }
        if slow {
            self.breaker.0.meter.slow(now);
            self.weigh(now, cause);
        }
        if word & (FAILING | GUARDED) != 0 {
            self.report(Outcome::Success, now, cause);
        }
    }

    /// The operation ended without success; its attempts have been told already.
    pub(crate) fn finish(&mut self, outcome: Outcome, now: Instant, cause: &dyn Fn(Trip) -> Cause) {
        let counters = &self.breaker.0.counters;
        match outcome {
            Outcome::Success => return self.succeed(now, cause),
            Outcome::Failure => Counters::add(&counters.failed),
            Outcome::Neutral => Counters::add(&counters.neutral),
        }
        self.report(outcome, now, cause);
        self.lease = TOLD;
    }

    fn report(&self, outcome: Outcome, now: Instant, cause: &dyn Fn(Trip) -> Cause) {
        let (generation, lease) = (self.generation, self.is_probe().then_some(self.lease));
        let admitted = Admitted { generation, lease };
        if generation == NO_GENERATION {
            return;
        }
        let counts = self.breaker.counts(now);
        self.breaker.change(Some(cause), |machine, trip| {
            *trip = machine.operation(admitted, outcome, &counts, now, fastrand::f64());
        });
    }
}

/// How one attempt ended, where it was no success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Failed,
    Neutral,
    Cut,
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.lease != TOLD {
            self.drop_untold();
        }
    }
}

impl Permit<'_> {
    #[cold]
    fn drop_untold(&mut self) {
        let now = clock::now();
        let cause = Cause::of_a_cut;
        let mut outcome = Outcome::Neutral;
        if !self.attempt_since.is_never() {
            let took = now.nanos_since(self.attempt_since);
            // A probe that hung until its caller gave up has shown what there was to see.
            if took >= self.breaker.0.slow_after.load(Relaxed) && self.is_probe() {
                outcome = Outcome::Failure;
            }
            self.end_attempt(Ended::Cut, now, &cause);
        }
        Counters::add(&self.breaker.0.counters.neutral);
        if self.is_probe() {
            self.report(outcome, now, &cause);
        }
    }
}

impl Trip {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Consecutive => "failures in a row",
            Self::FailureRate => "failure rate",
            Self::SlowRate => "slow calls",
            Self::Probe => "failed probe",
        }
    }
}

#[cfg(all(test, mainstay_loom))]
mod loom_proofs;
