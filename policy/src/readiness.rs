//! Whether this process should be sent work: named checks of its dependencies, made seldom.
//!
//! A probe reads the results of the last round. Where that began longer ago than the interval, a new
//! round begins, and everybody who asks meanwhile waits for it: no rate of probes makes more than one
//! check of a dependency in an interval. A round is a task of its own, so that a probe that hangs up
//! neither ends it nor starts it again. It belongs to the runtime of who began it; where that stands
//! still, as one does in which nobody waits for anything, others begin one of their own in time.

use crate::{
    clock::{self, Instant},
    health::{Health, HealthStatus},
    registry,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

type Run = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Health> + Send>> + Send + Sync>;
type Checks = Arc<BTreeMap<String, CheckReport>>;
type Flight = watch::Receiver<Option<Checks>>;

/// What a round may take beyond its slowest check before others stop waiting for it.
const GRACE: Duration = Duration::from_secs(1);

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// It does not take work yet: [`Readiness::started`] ends this.
    Starting,
    /// It takes work.
    Serving,
    /// It finishes what it has and takes no more work.
    Draining,
}

impl Phase {
    /// A name for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// What a readiness probe is told.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ReadinessReport {
    /// Whether to send work: serving, and no critical dependency is unhealthy.
    pub ready: bool,
    /// Where this process is in its life.
    pub phase: Phase,
    /// Each check by name.
    pub checks: BTreeMap<String, CheckReport>,
}

impl ReadinessReport {
    /// How the dependencies are together: unhealthy if a critical one is, degraded if any is not
    /// healthy.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        let of = |check: &CheckReport| match (check.critical, check.health.status) {
            (false, HealthStatus::Unhealthy) => HealthStatus::Degraded,
            (_, status) => status,
        };
        self.checks.values().map(of).max().unwrap_or(HealthStatus::Healthy)
    }
}

/// What one check saw.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Whether this process is of no use without the dependency.
    pub critical: bool,
    /// How the dependency is.
    #[serde(flatten)]
    pub health: Health,
}

#[derive(Clone)]
struct Check {
    name: String,
    critical: bool,
    timeout: Duration,
    run: Run,
}

/// Builds a [`Readiness`].
#[must_use]
pub struct ReadinessBuilder {
    checks: Vec<Check>,
    timeout: Duration,
    interval: Duration,
    phase: Phase,
}

impl fmt::Debug for ReadinessBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.checks.iter().map(|check| &check.name);
        f.debug_list().entries(names).finish()
    }
}

impl ReadinessBuilder {
    /// A dependency without which this process can do nothing: while it is unhealthy, no work.
    ///
    /// `check` is called with a clone of `client` and should be cheap and not feed a breaker, as the
    /// clients' `health_check()`. It must not block its thread. A name given again replaces.
    pub fn critical<C, F>(
        self,
        name: impl Into<String>,
        client: C,
        check: impl Fn(C) -> F + Send + Sync + 'static,
    ) -> Self
    where
        C: Clone + Send + Sync + 'static,
        F: Future<Output = Health> + Send + 'static,
    {
        self.check(name.into(), true, client, check)
    }

    /// A dependency without which this process can do some of its work: reported, and never in the
    /// way of readiness. As [`ReadinessBuilder::critical`] otherwise.
    pub fn optional<C, F>(
        self,
        name: impl Into<String>,
        client: C,
        check: impl Fn(C) -> F + Send + Sync + 'static,
    ) -> Self
    where
        C: Clone + Send + Sync + 'static,
        F: Future<Output = Health> + Send + 'static,
    {
        self.check(name.into(), false, client, check)
    }

    fn check<C, F>(
        mut self,
        name: String,
        critical: bool,
        client: C,
        check: impl Fn(C) -> F + Send + Sync + 'static,
    ) -> Self
    where
        C: Clone + Send + Sync + 'static,
        F: Future<Output = Health> + Send + 'static,
    {
        let run: Run = Arc::new(move || Box::pin(check(client.clone())));
        self.checks.retain(|other| other.name != name);
        self.checks.push(Check { name, critical, timeout: self.timeout, run });
        self
    }

    /// How long a check may take before its dependency counts as unhealthy; for the checks named
    /// after this. Default: 2 s. A probe waits this long at most, so give it more.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// For how long a round's results are given to probes. Default: 1 s.
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Not ready until [`Readiness::started`] is called, for a process that has to load or migrate
    /// something first. Default: ready as soon as its critical dependencies are.
    pub const fn starts_up(mut self) -> Self {
        self.phase = Phase::Starting;
        self
    }

    /// Nothing is checked yet.
    #[must_use]
    pub fn build(self) -> Readiness {
        let state = State { phase: self.phase, last: None, flight: None };
        Readiness(Arc::new(Inner {
            checks: self.checks,
            interval: self.interval,
            state: Mutex::new(state),
        }))
    }
}

struct Inner {
    checks: Vec<Check>,
    interval: Duration,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// The last round: when it began, and what it saw.
    last: Option<(Instant, Checks)>,
    /// The round under way; closed without a value if its runtime has ended.
    flight: Option<Flight>,
}

/// Whether this process should be sent work; clones share everything.
///
/// For a readiness probe. A **liveness** probe must not ask it, nor anything else about a dependency:
/// restarting every replica does not mend a database, and turns its outage into one of our own. A
/// process is alive if it answers at all.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use mainstay_policy::{BreakerState, Health, HealthStatus, Readiness};
/// use std::time::Duration;
///
/// // With a client: .critical("database", db, |db| async move { db.health_check().await })
/// let answer = |status| Health::new(status, Duration::ZERO, BreakerState::Closed, "asked");
/// let readiness = Readiness::builder()
///     .critical("database", (), move |()| async move { answer(HealthStatus::Healthy) })
///     .optional("mail", (), move |()| async move { answer(HealthStatus::Unhealthy) })
///     .build();
/// assert!(readiness.report().await.ready);
/// readiness.drain();
/// assert!(!readiness.report().await.ready);
/// # }
/// ```
#[derive(Clone)]
pub struct Readiness(Arc<Inner>);

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness").field("phase", &self.phase()).finish_non_exhaustive()
    }
}

impl Readiness {
    /// A builder without checks; without any, a process is ready when it serves.
    pub const fn builder() -> ReadinessBuilder {
        ReadinessBuilder {
            checks: Vec::new(),
            timeout: Duration::from_secs(2),
            interval: Duration::from_secs(1),
            phase: Phase::Serving,
        }
    }

    /// Start-up is over. Does nothing once draining.
    pub fn started(&self) {
        let mut state = self.state();
        if state.phase == Phase::Starting {
            state.phase = Phase::Serving;
        }
    }

    /// Not ready from now on, whatever the dependencies say, so that no new work comes in while what
    /// there is gets finished. Call it first thing when asked to end, and go on serving until the
    /// load balancer has noticed.
    pub fn drain(&self) {
        self.state().phase = Phase::Draining;
    }

    /// Where this process is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Whether to send work, by checks no older than the interval. Takes as long as the slowest check
    /// may, and none at all where the last round is new enough or the process drains; twice as long and
    /// a little where a round is under way in a runtime that stands still.
    ///
    /// # Cancel safety
    /// The round goes on for whoever asks next.
    pub async fn report(&self) -> ReadinessReport {
        let checks = self.checks().await;
        self.tell(checks)
    }

    /// What is known without asking anybody; `None` before the first round has ended.
    #[must_use]
    pub fn last(&self) -> Option<ReadinessReport> {
        let checks = self.state().last.as_ref().map(|(_, checks)| Arc::clone(checks));
        checks.map(|checks| self.tell(checks))
    }

    fn tell(&self, checks: Checks) -> ReadinessReport {
        let phase = self.phase();
        let down =
            |check: &CheckReport| check.critical && check.health.status == HealthStatus::Unhealthy;
        let ready = phase == Phase::Serving && !checks.values().any(down);
        ReadinessReport { ready, phase, checks: (*checks).clone() }
    }

    async fn checks(&self) -> Checks {
        let slowest = self.0.checks.iter().map(|check| check.timeout).max().unwrap_or_default();
        let patience = slowest.saturating_add(GRACE);
        let mut given_up = None;
        loop {
            let (mut flight, own) = {
                let mut state = self.state();
                match state.fresh(self.0.interval, clock::now()) {
                    Some(checks) => return checks,
                    None => match self.join_locked(&mut state, given_up.as_ref()) {
                        Some(joined) => joined,
                        None => return self.unasked("there is no tokio runtime"),
                    },
                }
            };
            let wait = flight.wait_for(Option::is_some);
            // Our own ends if anything here does. The wait for another's is timed by a task: that fails
            // in a runtime that has ended or has no timer, where a timer of this future would panic.
            let mut late = JoinSet::new();
            if !own && clock::has_timer() {
                late.spawn(async move { sleep(patience).await });
            }
            let end = tokio::select! {
                checks = wait => Some(checks.ok().and_then(|checks| checks.clone())),
                Some(Ok(())) = late.join_next() => None,
            };
            match end {
                Some(Some(checks)) => return checks,
                // Closed: its runtime ended before it did.
                Some(None) if own => return self.unasked("this tokio runtime has ended"),
                Some(None) => {}
                None => given_up = Some(flight),
            }
        }
    }

    /// The round under way unless it was given up, or a new one, and whether that is our own; `None`
    /// outside any runtime.
    fn join_locked(&self, state: &mut State, given_up: Option<&Flight>) -> Option<(Flight, bool)> {
        let open = |flight: &&Flight| {
            flight.has_changed().is_ok() && given_up.is_none_or(|given| !flight.same_channel(given))
        };
        if let Some(flight) = state.flight.as_ref().filter(open) {
            return Some((flight.clone(), false));
        }
        let handle = Handle::try_current().ok()?;
        let (tell, flight) = watch::channel(None);
        state.flight = Some(flight.clone());
        handle.spawn(round(Arc::clone(&self.0), tell));
        Some((flight, true))
    }

    fn unasked(&self, why: &str) -> Checks {
        let health = |check: &Check| {
            let health = unhealthy(&check.name, Duration::ZERO, format!("not asked, as {why}"));
            (check.name.clone(), CheckReport { critical: check.critical, health })
        };
        Arc::new(self.0.checks.iter().map(health).collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fresh(&self, interval: Duration, now: Instant) -> Option<Checks> {
        let (began, checks) = self.last.as_ref()?;
        // Nobody sends work to a process that drains: what was known will do.
        let fresh = self.phase == Phase::Draining || now.since(*began) < interval;
        fresh.then(|| Arc::clone(checks))
    }
}

/// Asks every dependency, all at once.
async fn round(inner: Arc<Inner>, tell: watch::Sender<Option<Checks>>) {
    let began = clock::now();
    let start = |check: &Check| -> JoinHandle<Health> {
        let check = check.clone();
        tokio::spawn(async move {
            let asked = timeout(check.timeout, (check.run)()).await;
            asked.unwrap_or_else(|_| {
                let detail = format!("no result of the check within {:?}", check.timeout);
                unhealthy(&check.name, check.timeout, detail)
            })
        })
    };
    let asked: Vec<_> = inner.checks.iter().map(|check| (check, start(check))).collect();
    let mut seen = BTreeMap::new();
    for (check, health) in asked {
        // The panic's own words may hold anything.
        let panicked = |_| unhealthy(&check.name, Duration::ZERO, "the check panicked".to_owned());
        let health = health.await.unwrap_or_else(panicked);
        seen.insert(check.name.clone(), CheckReport { critical: check.critical, health });
    }
    let checks = Arc::new(seen);
    let mut state = inner.state();
    // Who was given up and ends late has the older news, and is not the round under way.
    if state.last.as_ref().is_none_or(|(last, _)| *last <= began) {
        state.last = Some((began, Arc::clone(&checks)));
    }
    state.flight.take_if(|flight| flight.same_channel(&tell.subscribe()));
    drop(state);
    tell.send_replace(Some(checks));
}

/// A check's name is the service's word for it, and the breaker's may be another: then nothing is known.
fn unhealthy(name: &str, took: Duration, detail: String) -> Health {
    let breaker = registry::breaker(name).map(|breaker| breaker.state());
    Health::new(HealthStatus::Unhealthy, took, breaker, detail)
}

#[cfg(test)]
mod tests;
