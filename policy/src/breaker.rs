//! The circuit breaker: after `failure_threshold` failed operations in a row, or when half of the
//! last attempts failed or were slow, it refuses calls; then it lets probes through until they
//! succeed. A busy dependency is given its load back in steps.
//!
//! The decisions are in [`state`], functions of state, event and time. This file holds what makes
//! them cheap: one word that says whether the breaker is closed, which nobody writes while it is,
//! and a snapshot for everybody else. The lock is taken by failures, probes and transitions.

mod around;
mod config;
mod permit;
mod state;

pub(crate) use around::Admission;
pub(crate) use config::BreakerConfig;
pub(crate) use permit::{Ended, Permit};

#[cfg(feature = "metrics")]
use crate::telemetry::{handles::Handles, numbers::Numbers};
use crate::{
    classify::Outcome,
    clock::{self, Instant},
    deadline::Marks,
    error::{Cause, Decider, OpenedBy},
    event::{self, Event},
    meter::{Counts, Meter},
    sync::{AtomicU64, Mutex, MutexGuard, Swap},
};
use serde::Serialize;
pub(crate) use state::Trip;
use state::{Gate, Machine};
use std::{
    fmt,
    num::NonZeroU64,
    sync::{
        Arc, PoisonError,
        atomic::{
            AtomicBool, AtomicU64 as Counter,
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

/// The time between two transitions of a breaker. What was begun in one and ends in another says
/// nothing of the dependency as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(u64);

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
    /// Until when, in nanoseconds, everybody is refused; 0 when the snapshot must be asked. Written
    /// before the word, and after `opened_by`.
    shut_until: AtomicU64,
    /// The number of the opening that `shut_until` is of; 0 before the first.
    opened_by: AtomicU64,
    snapshot: Swap<Snapshot>,
    machine: Mutex<Machine>,
    /// In nanoseconds; follows the median.
    slow_after: Counter,
    meter: Meter,
    counters: Counters,
    /// Its dependency is gone for good.
    retired: AtomicBool,
    #[cfg(feature = "metrics")]
    numbers: Handles,
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
        self.0.fmt(f)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("name", &self.name).field("state", &self.state()).finish()
    }
}

/// A refusal, and what opened the breaker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    pub(crate) shut: Shut,
    pub(crate) opened_by: Option<OpenedBy>,
}

/// For how long: nanoseconds until the next probe, or the largest value when somebody isolated the
/// dependency by hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shut(NonZeroU64);

impl Shut {
    #[inline]
    pub(crate) const fn by(self) -> Decider {
        if self.0.get() == u64::MAX { Decider::Isolation } else { Decider::Breaker }
    }

    #[inline]
    pub(crate) fn retry_after(self) -> Option<Duration> {
        let nanos = self.0.get();
        (nanos != u64::MAX).then_some(Duration::from_nanos(nanos))
    }
}

impl Refusal {
    #[inline]
    fn new(until: Instant, now: Instant, opened_by: Option<OpenedBy>) -> Self {
        let wait = if until.is_never() { u64::MAX } else { until.nanos_since(now) };
        Self { shut: Shut(NonZeroU64::new(wait).unwrap_or(NonZeroU64::MIN)), opened_by }
    }
}

impl Breaker {
    pub(crate) fn new(name: Arc<str>, config: BreakerConfig) -> Self {
        let slow_after = Counter::new(config.slow_after(None));
        let snapshot = Snapshot { gate: Gate::Closed, cause: None, config: config.clone() };
        #[cfg(feature = "metrics")]
        let numbers = Handles::of(&name);
        Self(Arc::new(Inner {
            name,
            word: AtomicU64::new(0),
            shut_until: AtomicU64::new(0),
            opened_by: AtomicU64::new(0),
            snapshot: Swap::new(snapshot),
            machine: Mutex::new(Machine::new(config)),
            slow_after,
            meter: Meter::default(),
            counters: Counters::default(),
            retired: AtomicBool::new(false),
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
        self.0.state()
    }

    /// Whether it refuses every call, because somebody said so; quick while it is closed.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        self.is_guarded() && self.gate() == Gate::Isolated
    }

    /// Whether it would refuse a call now: open, isolated, or half-open with all its probes under way.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        match self.gate() {
            Gate::Shut(until) => !until.since(clock::now()).is_zero(),
            Gate::Isolated => true,
            Gate::Closed | Gate::Ramp(_) | Gate::ForcedClosed => false,
        }
    }

    fn gate(&self) -> Gate {
        self.0.snapshot.read(|snapshot| snapshot.gate)
    }

    /// The one that it is in now, for [`Policy::stream_broke`](crate::Policy::stream_broke).
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.0.word.load(Acquire) >> GENERATION_SHIFT)
    }

    /// Closes it and forgets its failures; calls in flight no longer count.
    pub fn reset(&self) {
        self.0.change(None, |machine, _| machine.reset());
    }

    /// Refuses every call until [`Breaker::reset`] or [`Breaker::force_closed`].
    pub fn isolate(&self) {
        self.0.change(None, |machine, _| machine.isolate());
    }

    /// Lets every call pass, whatever fails, until [`Breaker::reset`] or [`Breaker::isolate`].
    pub fn force_closed(&self) {
        self.0.change(None, |machine, _| machine.force_closed());
    }

    /// A streamed operation has ended well: it has been counted when it began, and now forgets
    /// failures in a row.
    pub(crate) fn stream_ended(&self, begun: Generation) {
        if self.0.word.load(Relaxed) & FAILING == 0 || self.generation() != begun {
            return;
        }
        let mut permit = self.unasked();
        if permit.if_closed() {
            permit.forget_failures(clock::now());
        }
    }

    /// What a streamed operation began has broken off: as an attempt and an operation that fail now.
    pub(crate) fn stream_broke(&self, begun: Generation, cause: &dyn Fn(Trip) -> Cause) {
        let (mut permit, now) = (Permit::of(&self.0, begun.0), clock::now());
        permit.mark_failure();
        permit.begin_attempt(now);
        permit.end_attempt(Ended::Failed, now, cause);
        permit.finish(Outcome::Failure, now, cause);
    }

    pub(crate) fn configure(&self, config: BreakerConfig) {
        self.0.slow_after.store(config.slow_after(self.0.meter.median()), Relaxed);
        let mut machine = self.0.machine();
        machine.config = config;
        self.0.publish(&machine, self.cause());
    }

    /// Closed, and of no policy any more.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_left() && self.0.word.load(Relaxed) & (GUARDED | FAILING) == 0
    }

    /// Nobody but the registry has it.
    fn is_left(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// To be forgotten once nobody has it, or not after all.
    pub(crate) fn retire(&self, retired: bool) {
        self.0.retired.store(retired, Relaxed);
    }

    /// Nobody has it or will ask for it, nor has somebody told it what to do until he says otherwise.
    pub(crate) fn is_over(&self) -> bool {
        let told = matches!(self.gate(), Gate::Isolated | Gate::ForcedClosed);
        self.is_left() && self.0.retired.load(Relaxed) && !told
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// At half the failures in a row, or half the rates, that would open it.
    pub(crate) fn is_near_its_trip(&self, now: Instant) -> bool {
        let counts = self.counts(now);
        let machine = self.0.machine();
        let config = &machine.config;
        let (calls, least) = (counts.attempts() + counts.cut, u64::from(config.minimum_calls));
        let half = |rate: Option<f64>, seen: f64| rate.is_some_and(|rate| seen >= rate / 2.0);
        let in_a_row = machine.failures().saturating_mul(2) >= config.failure_threshold;
        in_a_row
            || calls >= least
                && (half(config.failure_rate, counts.failure_rate())
                    || half(config.slow_rate, counts.slow_rate()))
    }

    pub(crate) fn next_attempt_in(&self) -> Option<Duration> {
        match self.gate() {
            Gate::Shut(until) => Some(until.since(clock::now())),
            _ => None,
        }
    }

    /// Admits one call, or says why not.
    #[cfg(all(test, mainstay_loom))]
    pub(crate) fn admit(&self, now: Instant) -> Result<Permit<'_>, Refusal> {
        let mut permit = self.unasked();
        permit.ask(now).map(|()| permit)
    }

    /// Not plainly closed.
    #[inline]
    pub(crate) fn is_guarded(&self) -> bool {
        self.0.word.load(Relaxed) & GUARDED != 0
    }

    /// Refuses while it is shut for a while yet, without a look at the exact time. Else `None`: ask
    /// for a permit.
    #[inline(always)]
    pub(crate) fn refuses(&self) -> Option<Refusal> {
        let until = self.0.shut_until.load(Acquire);
        if until == 0 || self.0.admission().is_around() {
            return None;
        }
        let until = Instant::of_nanos(until);
        let now = if until.is_never() { Instant::NEVER } else { clock::about_now() };
        let surely = until.is_never() || until.nanos_since(now) > clock::ABOUT;
        surely.then(|| Refusal::new(until, now, self.0.opened_by()))
    }

    /// A permit for nothing yet.
    #[inline]
    pub(crate) fn unasked(&self) -> Permit<'_> {
        Permit::unasked(&self.0)
    }

    /// A permit whose attempt begins now, if it is plainly closed.
    #[cfg(feature = "__bench")]
    #[inline]
    pub(crate) fn begun_if_closed(&self, now: Instant) -> Option<Permit<'_>> {
        Permit::begun_if_closed(&self.0, now)
    }

    pub(crate) fn counts(&self, now: Instant) -> Counts {
        self.0.counts(now)
    }

    pub(crate) fn cause(&self) -> Option<Arc<Cause>> {
        self.0.cause()
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn numbers(&self, record: impl Fn(&Numbers)) {
        self.0.numbers.read(record);
    }
}

impl Inner {
    fn state(&self) -> BreakerState {
        self.machine().state(clock::now())
    }

    fn counts(&self, now: Instant) -> Counts {
        let window = self.snapshot.read(|snapshot| snapshot.config.window);
        self.meter.counts(now, window)
    }

    fn cause(&self) -> Option<Arc<Cause>> {
        self.snapshot.read(|snapshot| snapshot.cause.clone())
    }

    /// What it notes of the attempts that it lets in as it stands.
    fn admission(&self) -> Admission {
        let generation = self.word.load(Acquire) >> GENERATION_SHIFT;
        Admission { breaker: self.address(), generation }
    }

    /// What tells it from others while it lives.
    fn address(&self) -> usize {
        const { assert!(align_of::<Self>() > Marks::BITS) };
        std::ptr::from_ref(self).addr()
    }

    /// What opened it, without a wait.
    #[inline]
    fn opened_by(&self) -> Option<OpenedBy> {
        OpenedBy::numbered(self.opened_by.load(Relaxed))
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
            let cause = Arc::new(cause(trip));
            self.remember(Some(Arc::clone(&cause)));
            told = Some(cause);
        } else if matches!(to, BreakerState::Closed | BreakerState::ForcedClosed) {
            told = None;
        } else if (to, &told) == (BreakerState::Isolated, &None) && from != to {
            self.remember(None);
        }
        if machine.generation() != generation {
            self.meter.clear();
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
                dependency: Arc::clone(&self.name),
                from,
                to,
                cause: told,
                retry_after,
            });
        }
        result
    }

    fn remember(&self, cause: Option<Arc<Cause>>) {
        let number = OpenedBy::remember(Arc::clone(&self.name), cause).map_or(0, OpenedBy::number);
        self.opened_by.store(number, Relaxed);
    }

    fn publish(&self, machine: &Machine, cause: Option<Arc<Cause>>) {
        let (gate, config) = (machine.gate(), machine.config.clone());
        let until = match gate {
            Gate::Shut(until) => until.as_nanos(),
            Gate::Isolated => Instant::NEVER.as_nanos(),
            Gate::Closed | Gate::Ramp(_) | Gate::ForcedClosed => 0,
        };
        self.snapshot.store(Snapshot { gate, cause, config });
        self.shut_until.store(until, Release);
        self.write_word(machine);
    }

    fn write_word(&self, machine: &Machine) {
        let guarded = if machine.gate() == Gate::Closed { 0 } else { GUARDED };
        let failing = if machine.failures() > 0 { FAILING } else { 0 };
        let generation = machine.generation() & NO_GENERATION;
        // Released after the snapshot: who sees the word sees what it speaks of.
        self.word.store(generation << GENERATION_SHIFT | guarded | failing, Release);
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        // No user code runs under this lock, so a poisoned one still holds a whole state.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn follow_median(&self, #[cfg_attr(not(feature = "metrics"), allow(unused))] now: Instant) {
        let median = self.meter.median();
        let nanos = self.snapshot.read(|snapshot| snapshot.config.slow_after(median));
        self.slow_after.store(nanos, Relaxed);
        #[cfg(feature = "metrics")]
        if self.numbered.swap(now.second().into(), Relaxed) != u64::from(now.second()) {
            self.renumber();
        }
    }

    #[cfg(feature = "metrics")]
    fn renumber(&self) {
        self.numbers.renew(&self.name);
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
#[cfg(all(test, not(mainstay_loom)))]
mod tests;
