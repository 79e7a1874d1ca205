//! From what code, settings and the kind's defaults say to one checked policy.

use super::{Inner, Kind, LimitCells, Policy, Tuning};
use crate::{
    backoff::{Backoff, Jitter},
    breaker::BreakerConfig,
    bulkhead::Bulkhead,
    clock,
    config::{self, Overrides, Rate, Settings},
    error::ConfigError,
    hedge::Hedge,
    meter,
    rate_limit::RateLimit,
    registry,
    sync::Swap,
};
use std::{
    num::NonZeroU32,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

/// Whether a policy acts or only watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// It times out, repeats and refuses.
    #[default]
    Enforce,
    /// Its breaker counts, opens and tells what it would refuse. Nothing is cut, repeated, held back or
    /// refused, so budget and limits have nothing to say: how a service takes this up.
    Observe,
}

/// How breaks grow while probes fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakGrowth {
    /// From 1 s, doubled with each failed probe, to `recovery_timeout`.
    #[default]
    Exponential,
    /// `recovery_timeout` every time.
    Fixed,
}

/// Builds a [`Policy`]; a setter replaces what settings and the kind's defaults say.
#[derive(Clone, Debug)]
#[must_use]
pub struct PolicyBuilder {
    kind: Kind,
    name: Arc<str>,
    code: Overrides,
    seed: Option<u64>,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        impl PolicyBuilder {
            $(
                $(#[$doc])*
                pub fn $name(mut self, $name: $type) -> Self {
                    self.code.$name = Some($name);
                    self
                }
            )*
        }
    };
}

setters! {
    /// The limit of one attempt. Defaults: see [`Kind`].
    timeout: Duration;
    /// The limit of the whole call, waits included. Default: twice the timeout. In its last 2 ms nothing
    /// is repeated, nor is a call that has no more at all.
    deadline: Duration;
    /// Attempts in all, the first included. Defaults: see [`Kind`].
    max_attempts: u32;
    /// The wait before the first retry, before jitter. Default: by kind, from 0.1 s to 5 s.
    base_delay: Duration;
    /// The longest wait, jitter included. Default: by kind, from 1 s to 30 s.
    max_delay: Duration;
    /// What each wait is multiplied by for the next; at least 1. Default: 2.
    exponential_base: f64;
    /// How waits are spread. Default: [`Jitter::Full`].
    jitter: Jitter;
    /// Failed operations in a row that open the breaker. Default: by kind, from 2 to 5.
    failure_threshold: u32;
    /// The longest break; the first is 1 s, or this if it is shorter. Default: by kind, from 15 s
    /// to 120 s.
    recovery_timeout: Duration;
    /// Switches attempt timeout and deadline on or off. Default: on.
    enable_timeout: bool;
    /// Switches retries on or off. Default: on.
    enable_retry: bool;
    /// Switches the breaker on or off. Default: on.
    enable_circuit_breaker: bool;
    /// Switches the retry budget on or off. Default: on; without it an outage multiplies the load.
    enable_budget: bool;
    /// Whether it acts or only watches. Default: [`Mode::Enforce`].
    mode: Mode;
    /// Attempts that take this long are slow. Default: ten times the observed median, within 250 ms
    /// and the timeout.
    slow_after: Duration;
    /// Rates of fewer attempts in the window mean nothing. Default: 20.
    minimum_calls: u32;
    /// How far back the rates look, in whole seconds up to 60. Default: 10 s.
    window: Duration;
    /// How breaks grow. Default: [`BreakGrowth::Exponential`].
    break_growth: BreakGrowth;
    /// Probes that half-open admits, and that must succeed to close it. Default: 1.
    probes: u32;
    /// Whether a busy dependency, one that saw 100 attempts in the window before it was cut off, gets
    /// its load back in steps of 10, 25 and 50 %, each for a third of the break before. Default: yes.
    ramp: bool;
    /// How long an attempt may wait for its turn at `max_concurrent` and `rate_limit`. Default: not
    /// at all.
    max_wait: Duration;
}

impl PolicyBuilder {
    pub(super) fn new(kind: Kind, name: Arc<str>) -> Self {
        Self { kind, name, code: Overrides::default(), seed: None }
    }

    /// The dependency's name: policies of one name share breaker and budget. Of a call inside another on one
    /// dependency a failure counts once, but both are in its `total_calls`, and both earn for the budget.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// The share of failed attempts in the window that opens the breaker. Default: 0.5.
    pub fn failure_rate(mut self, share: f64) -> Self {
        self.code.failure_rate = Some(Rate(Some(share)));
        self
    }

    /// No share of failed attempts opens the breaker.
    pub fn without_failure_rate(mut self) -> Self {
        self.code.failure_rate = Some(Rate(None));
        self
    }

    /// The share of slow attempts in the window that opens the breaker. Default: 0.5.
    pub fn slow_rate(mut self, share: f64) -> Self {
        self.code.slow_rate = Some(Rate(Some(share)));
        self
    }

    /// No share of slow attempts opens the breaker.
    pub fn without_slow_rate(mut self) -> Self {
        self.code.slow_rate = Some(Rate(None));
        self
    }

    /// Sends a second copy of a read that takes long, if `max_concurrent` and `rate_limit` leave room for it
    /// at once. Default: off.
    ///
    /// Reads are a client's [`Operation::read`](crate::Operation::read): GET, HEAD and OPTIONS of HTTP,
    /// what asks Redis or S3, and `db.read()` of SQL; never a write, though it be idempotent. Calls of
    /// one's own ([`Policy::call`]) get a second copy where this is said in code, unless they are
    /// [`idempotent(false)`](crate::Call::idempotent); `hedge` in settings is for all of a kind, and does not
    /// reach them.
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.code.hedge = Some(Some(hedge));
        self
    }

    /// Sends no second copies, whatever settings say.
    pub fn without_hedge(mut self) -> Self {
        self.code.hedge = Some(None);
        self
    }

    /// How many attempts of this policy, which is this value and its clones, may be in flight: build it
    /// once. Default: no limit.
    pub fn max_concurrent(mut self, attempts: u32) -> Self {
        self.code.max_concurrent = Some(Some(attempts));
        self
    }

    /// No limit of attempts in flight, whatever settings say.
    pub fn without_max_concurrent(mut self) -> Self {
        self.code.max_concurrent = Some(None);
        self
    }

    /// How many attempts of this policy, which is this value and its clones, may start in a second: build
    /// it once. As in other token buckets, what was not used for a second may start at once: after a
    /// pause this many, and nearly as many more within the second that follows. Default: no limit.
    pub fn rate_limit(mut self, attempts: u32) -> Self {
        self.code.rate_limit = Some(Some(attempts));
        self
    }

    /// No limit of attempts in a second, whatever settings say.
    pub fn without_rate_limit(mut self) -> Self {
        self.code.rate_limit = Some(None);
        self
    }

    /// Draws jitter from this seed, so that a test sees the same waits every time.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Checks everything and builds the policy.
    ///
    /// # Errors
    /// [`ConfigError`] with every bad setting and every contradiction at once.
    pub fn build(self) -> Result<Policy, ConfigError> {
        let settings = config::settings()?;
        let overrides = self.code.over(&settings.overrides(self.kind));
        let tuning = resolve(self.kind, &self.name, &overrides, settings.enabled())?;
        // Switched off nothing is checked: what does not fit is not to keep it off for all.
        let fits = tuning.enabled || resolve(self.kind, &self.name, &overrides, true).is_ok();
        Ok(self.finish(&overrides, tuning, fits, Some(settings)))
    }

    /// Builds the policy whatever the settings say: when it cannot be built with them, this warns and goes
    /// on without them, and with the kind's defaults alone if what code says contradicts itself. Whether
    /// the policy is switched off or in observe mode holds all the same; of a file that is no TOML nothing
    /// can be read, and the environment alone says so.
    #[must_use]
    pub fn build_or_defaults(self) -> Policy {
        match self.clone().build() {
            Ok(policy) => policy,
            Err(error) => {
                tracing::warn!(%error, "settings cannot be used; going on with the defaults");
                let (known, switches) = (config::known(), config::switches(self.kind));
                let (overrides, tuning) =
                    without_settings(self.kind, &self.name, &self.code, switches);
                self.finish(&overrides, tuning, false, known)
            }
        }
    }

    /// By what `settings` said, and by those that hold in the end.
    fn finish(
        self,
        overrides: &Overrides,
        tuning: Tuning,
        with_settings: bool,
        settings: Option<Arc<Settings>>,
    ) -> Policy {
        // The first look at the clock measures it, for up to 200 ms: here, not in the first call.
        clock::now();
        let (breaker, budget) = registry::dependency(&self.name, tuning.breaker.clone());
        let wait = overrides.max_wait.unwrap_or_default();
        // Built where all is switched off too: a reload may switch it on.
        let bulkhead = overrides.max_concurrent.flatten().filter(|most| *most > 0);
        let bulkhead = bulkhead.map(|most| Arc::new(Bulkhead::new(breaker.clone(), most, wait)));
        let calls = overrides.rate_limit.flatten().and_then(NonZeroU32::new);
        let rate_limit = calls.and_then(|n| RateLimit::new(n, Duration::from_secs(1), wait));
        let rate_limit = rate_limit.map(Arc::new);
        let limits = LimitCells::new(&tuning, bulkhead.is_some() || rate_limit.is_some());
        let inner = Arc::new(Inner {
            limits,
            tuning: Swap::new(tuning),
            breaker,
            budget,
            bulkhead,
            rate_limit,
            seed: self.seed.map(AtomicU64::new),
            kind: self.kind,
            code: self.code,
            with_settings,
        });
        registry::keep(&inner);
        config::follow(settings, |settings| inner.retune_by(settings));
        Policy(inner)
    }
}

/// The same policy, tuned otherwise; a reload does not reach it.
pub(super) fn copy(of: &Arc<Inner>, tuning: Tuning) -> Policy {
    let placed = of.bulkhead.is_some() || of.rate_limit.is_some();
    Policy(Arc::new(Inner {
        limits: LimitCells::new(&tuning, placed),
        tuning: Swap::new(tuning),
        breaker: of.breaker.clone(),
        budget: Arc::clone(&of.budget),
        bulkhead: of.bulkhead.clone(),
        rate_limit: of.rate_limit.clone(),
        seed: None,
        kind: of.kind,
        code: of.code.clone(),
        with_settings: of.with_settings,
    }))
}

/// What code and defaults alone say, for a policy that cannot be built with settings; the defaults
/// alone, if code contradicts itself. Of settings there remains whether policies act at all.
pub(crate) fn without_settings(
    kind: Kind,
    name: &str,
    code: &Overrides,
    (enabled, mode): (bool, Option<Mode>),
) -> (Overrides, Tuning) {
    let alone = Overrides { mode: code.mode.or(mode), ..Overrides::default() };
    let code = code.over(&alone);
    match resolve(kind, name, &code, enabled) {
        Ok(tuning) => (code, tuning),
        Err(_) => {
            let tuning = resolve(kind, name, &alone, enabled).unwrap_or_else(|_| defaults(kind));
            (alone, tuning)
        }
    }
}

pub(crate) fn defaults(kind: Kind) -> Tuning {
    // timeout, attempts, base delay, max delay, threshold, recovery: seconds and counts.
    let (timeout, max_attempts, base, max, failure_threshold, recovery) = match kind {
        Kind::Database => (30.0, 3, 0.5, 10.0, 3, 30.0),
        Kind::Cache => (5.0, 2, 0.1, 1.0, 3, 15.0),
        Kind::Api => (60.0, 5, 1.0, 30.0, 5, 60.0),
        Kind::File => (10.0, 3, 0.2, 5.0, 3, 30.0),
        Kind::Ml => (300.0, 2, 5.0, 30.0, 2, 120.0),
        Kind::Default | Kind::Custom => (5.0, 3, 1.0, 30.0, 5, 60.0),
    };
    let timeout = Duration::from_secs_f64(timeout);
    Tuning {
        enabled: true,
        timeout: Some(timeout),
        deadline: Some(2 * timeout),
        own_deadline: false,
        max_attempts,
        enable_retry: true,
        enable_circuit_breaker: true,
        observe: false,
        backoff: Backoff {
            base_delay: Duration::from_secs_f64(base),
            max_delay: Duration::from_secs_f64(max),
            exponential_base: 2.0,
            jitter: Jitter::Full,
        },
        budget: true,
        hedge: None,
        breaker: BreakerConfig {
            failure_threshold,
            failure_rate: Some(0.5),
            slow_rate: Some(0.5),
            slow_after: None,
            minimum_calls: 20,
            window: 10,
            recovery_timeout: Duration::from_secs_f64(recovery),
            grow_breaks: true,
            probes: 1,
            probe_lease: 2 * timeout,
            ramp: true,
            attempt_timeout: Some(timeout),
        },
    }
}

/// Defaults of `kind`, changed by `o`, and checked; not where policies are switched off, which must
/// work whatever else is set.
pub(crate) fn resolve(
    kind: Kind,
    name: &str,
    o: &Overrides,
    enabled: bool,
) -> Result<Tuning, ConfigError> {
    let mut t = defaults(kind);
    t.observe = o.mode.unwrap_or_default() == Mode::Observe;
    if !enabled {
        return Ok(Tuning {
            enabled: false,
            timeout: None,
            deadline: None,
            enable_retry: false,
            enable_circuit_breaker: false,
            ..t
        });
    }
    let timed = o.enable_timeout.unwrap_or(true);
    let timeout = o.timeout.filter(|timeout| timed || !timeout.is_zero());
    let timeout = timeout.or(t.timeout).unwrap_or(Duration::MAX);
    let mut check = Checks { name, problems: Vec::new() };
    check.that(!timeout.is_zero(), "timeout is 0; give it more, or enable_timeout(false)");
    let deadline = o.deadline.unwrap_or(timeout.saturating_mul(2));
    check.that(
        !timed || deadline >= timeout,
        "deadline is shorter than the timeout of one attempt; raise it or lower timeout",
    );
    t.max_attempts = o.max_attempts.unwrap_or(t.max_attempts);
    check.that(t.max_attempts > 0, "max_attempts is 0; 1 means no retries");
    let b = &mut t.backoff;
    b.base_delay = o.base_delay.unwrap_or(b.base_delay);
    b.max_delay = o.max_delay.unwrap_or(b.max_delay);
    b.exponential_base = o.exponential_base.unwrap_or(b.exponential_base);
    b.jitter = o.jitter.unwrap_or(b.jitter);
    check.that(
        b.base_delay <= b.max_delay,
        "base_delay is over max_delay; lower it or raise max_delay",
    );
    let grows = b.exponential_base.is_finite() && b.exponential_base >= 1.0;
    check.that(grows, "exponential_base is not a number from 1");
    let c = &mut t.breaker;
    c.failure_threshold = o.failure_threshold.unwrap_or(c.failure_threshold);
    check.that(c.failure_threshold > 0, "failure_threshold is 0; use 1 or more");
    let share = |rate: Option<Rate>, default| rate.map_or(default, |Rate(share)| share);
    c.failure_rate = share(o.failure_rate, c.failure_rate);
    c.slow_rate = share(o.slow_rate, c.slow_rate);
    for (what, rate) in [("failure_rate", c.failure_rate), ("slow_rate", c.slow_rate)] {
        let fits = rate.is_none_or(|rate| rate > 0.0 && rate <= 1.0);
        check.that(fits, &format!("{what} is not over 0 and up to 1"));
    }
    c.slow_after = o.slow_after;
    check.that(
        c.slow_after.is_none_or(|slow| !slow.is_zero()),
        "slow_after is 0; use without_slow_rate() to switch it off",
    );
    c.minimum_calls = o.minimum_calls.unwrap_or(c.minimum_calls);
    check.that(c.minimum_calls > 0, "minimum_calls is 0; use 1 or more");
    let window = o.window.unwrap_or(Duration::from_secs(c.window.into()));
    let seconds = u32::try_from(window.as_secs()).unwrap_or(u32::MAX);
    let whole = window.subsec_nanos() == 0 && (1..=meter::LONGEST_WINDOW).contains(&seconds);
    check.that(whole, "window is not a whole number of seconds from 1 to 60");
    c.window = seconds;
    c.recovery_timeout = o.recovery_timeout.unwrap_or(c.recovery_timeout);
    check.that(!c.recovery_timeout.is_zero(), "recovery_timeout is 0; give it more");
    c.grow_breaks = o.break_growth.unwrap_or_default() == BreakGrowth::Exponential;
    c.probes = o.probes.unwrap_or(c.probes);
    check.that(c.probes > 0, "probes is 0; use 1 or more");
    // A probe that hangs must not hold the others off for good, also where an attempt may take for ever.
    let lease = timeout.checked_mul(2).filter(|lease| clock::nanos(*lease) < u64::MAX);
    c.probe_lease = lease.unwrap_or(c.probe_lease);
    c.ramp = o.ramp.unwrap_or(c.ramp);
    check.that(
        o.max_concurrent != Some(Some(0)),
        "max_concurrent is 0; use 1 or more, or without_max_concurrent()",
    );
    check.that(
        o.rate_limit != Some(Some(0)),
        "rate_limit is 0; use 1 or more, or without_rate_limit()",
    );
    if let Some(Some(Hedge::After(after))) = o.hedge {
        check.that(!after.is_zero(), "hedge is 0; give it more, or without_hedge()");
        check.that(
            !timed || after < timeout,
            "hedge comes after the timeout; lower it or raise timeout",
        );
    }
    check.done()?;
    t.timeout = timed.then_some(timeout);
    t.deadline = timed.then_some(deadline);
    t.own_deadline = o.deadline.is_some();
    t.breaker.attempt_timeout = t.timeout;
    t.enable_retry = o.enable_retry.unwrap_or(true);
    t.enable_circuit_breaker = o.enable_circuit_breaker.unwrap_or(true);
    t.budget = o.enable_budget.unwrap_or(true);
    t.hedge = o.hedge.flatten();
    Ok(t)
}

struct Checks<'a> {
    name: &'a str,
    problems: Vec<String>,
}

impl Checks<'_> {
    fn that(&mut self, holds: bool, problem: &str) {
        if !holds {
            self.problems.push(format!("policy `{}`: {problem}", self.name));
        }
    }

    fn done(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() { Ok(()) } else { Err(ConfigError::new(self.problems)) }
    }
}
