//! The composition: one order for every call.
//!
//! ```text
//! fallback > admission (isolated? breaker open?) > deadline
//!   > retry { budget > backoff > hedge { breaker gate > rate limit > bulkhead > attempt timeout > driver } }
//! ```
//!
//! Servers count attempts, so the limits sit inside the retry and a call that waits to retry holds
//! no place; the breaker comes before them, so that an open one spends nothing.

mod builder;
mod limits;

pub use builder::{BreakGrowth, Mode, PolicyBuilder};
pub(crate) use builder::{defaults, resolve};
use limits::LimitCells;
pub(crate) use limits::{Limits, Tuning};

#[cfg(feature = "metrics")]
use crate::classify::Outcome;
use crate::{
    attempt::Attempt,
    breaker::{Breaker, Counters, Generation},
    budget::Budget,
    bulkhead::{Bulkhead, Place},
    call::{self, Call},
    classify::{Classify, Effect, Operation},
    clock::{self, Instant},
    config::{Overrides, Settings},
    deadline::{Deadline, Marks, Scope},
    error::{CallError, ConfigError, Decider},
    event::{self, Event},
    hedge::Hedge,
    rate_limit::RateLimit,
    retry,
    sync::Swap,
};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// What an operation talks to; each kind has its defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// SQL: 30 s, 3 attempts.
    Database,
    /// Redis: 5 s, 2 attempts.
    Cache,
    /// HTTP: 60 s, 5 attempts.
    Api,
    /// S3: 10 s for one part, 3 attempts.
    File,
    /// Models: 300 s, 2 attempts.
    Ml,
    /// Anything else: 5 s, 3 attempts.
    Default,
    /// Named by the caller; the defaults of [`Kind::Default`].
    Custom,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Database, Self::Cache, Self::Api, Self::File, Self::Ml, Self::Default, Self::Custom];

    /// The name in settings and in breakers' names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Cache => "cache",
            Self::Api => "api",
            Self::File => "file",
            Self::Ml => "ml",
            Self::Default => "default",
            Self::Custom => "custom",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    limits: LimitCells,
    tuning: Swap<Tuning>,
    pub(crate) breaker: Breaker,
    pub(crate) budget: Arc<Budget>,
    bulkhead: Option<Arc<Bulkhead>>,
    rate_limit: Option<Arc<RateLimit>>,
    /// Draws of this policy, for those who seeded it.
    seed: Option<AtomicU64>,
    kind: Kind,
    /// What code set: it stays when settings are read again.
    code: Overrides,
    /// False: it could not be built with settings, and goes on without them.
    with_settings: bool,
}

impl Inner {
    #[inline]
    pub(crate) fn limits(&self) -> Limits {
        self.limits.load()
    }

    #[inline]
    pub(crate) fn deadline(&self) -> u64 {
        self.limits.deadline()
    }

    pub(crate) fn tuning(&self) -> Arc<Tuning> {
        self.tuning.get()
    }

    fn retune(&self, tuning: Tuning) {
        self.breaker.configure(tuning.breaker.clone());
        self.limits.store(&tuning, self.bulkhead.is_some() || self.rate_limit.is_some());
        self.tuning.store(tuning);
    }

    /// What it is to be told by these settings.
    fn tuning_by(&self, settings: &Settings) -> Result<Tuning, ConfigError> {
        let code = self.code.over(&settings.overrides(self.kind));
        resolve(self.kind, self.breaker.name(), &code, settings.enabled())
    }

    /// Whether these settings can be used for it, if its others could.
    pub(crate) fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        let fits = self.tuning_by(settings);
        if self.with_settings { fits.map(drop) } else { Ok(()) }
    }

    /// Applies settings; goes on without them where they cannot be used.
    pub(crate) fn retune_by(&self, settings: &Settings) {
        let tuning = self.tuning_by(settings).unwrap_or_else(|error| {
            tracing::warn!(%error, "settings cannot be used; going on with the defaults");
            let switches = (settings.enabled(), settings.overrides(self.kind).mode);
            builder::without_settings(self.kind, self.breaker.name(), &self.code, switches).1
        });
        self.retune(tuning);
    }

    /// In `0.0..1.0`.
    pub(crate) fn random(&self) -> f64 {
        match &self.seed {
            None => fastrand::f64(),
            Some(seed) => fastrand::Rng::with_seed(seed.fetch_add(1, Relaxed)).f64(),
        }
    }

    /// When a second copy of this operation follows.
    pub(crate) fn hedge_after(&self, limits: Limits, operation: &Operation) -> Option<Duration> {
        const ENOUGH: u64 = 20;
        if !limits.hedged() {
            return None;
        }
        // Settings are for all of a kind: they do not say that a user's own call is a read.
        let own_reads = operation.is_own() && matches!(self.code.hedge, Some(Some(_)));
        if !operation.is_read() && !own_reads {
            return None;
        }
        match self.tuning().hedge? {
            Hedge::After(delay) => Some(delay),
            Hedge::P95 => {
                let meter = self.breaker.meter();
                (meter.answers() >= ENOUGH).then(|| meter.quantile(0.95)).flatten()
            }
        }
    }

    /// A place without a wait; `None` if there is none, or a second copy may follow.
    pub(crate) fn place_now(&self, limits: Limits) -> Option<Place<'_>> {
        match (limits.hedged(), limits.placed()) {
            (true, _) => None,
            (false, true) => self.place_of_copy(),
            (false, false) => Some(Place::free()),
        }
    }

    /// A place for a second copy, without a wait; `None` if there is none.
    #[inline]
    pub(crate) fn place_of_copy(&self) -> Option<Place<'_>> {
        // The rate comes last here, since what it has let pass cannot be given back.
        let place = match &self.bulkhead {
            None => Place::free(),
            Some(bulkhead) => bulkhead.enter_now()?,
        };
        let passes = self.rate_limit.as_ref().is_none_or(|limit| limit.pass_now());
        passes.then_some(place)
    }

    /// Rate limit, then bulkhead; `Err` says who refused and when it may be worth trying again.
    pub(crate) async fn place(
        &self,
        limits: Limits,
        end: Instant,
    ) -> Result<Place<'_>, (Decider, Option<Duration>)> {
        if !limits.placed() {
            return Ok(Place::free());
        }
        if let Some(limit) = &self.rate_limit {
            limit.pass(end).await.map_err(|wait| (Decider::RateLimit, Some(wait)))?;
        }
        match &self.bulkhead {
            None => Ok(Place::free()),
            Some(bulkhead) => bulkhead.enter(end).await.ok_or((Decider::Bulkhead, None)),
        }
    }

    pub(crate) fn place_blocking(
        &self,
        limits: Limits,
        end: Instant,
    ) -> Result<Place<'_>, (Decider, Option<Duration>)> {
        if !limits.placed() {
            return Ok(Place::free());
        }
        if let Some(limit) = &self.rate_limit {
            limit.pass_blocking(end).map_err(|wait| (Decider::RateLimit, Some(wait)))?;
        }
        match &self.bulkhead {
            None => Ok(Place::free()),
            Some(bulkhead) => bulkhead.enter_blocking(end).ok_or((Decider::Bulkhead, None)),
        }
    }
}

/// How calls on one dependency are bounded, repeated and refused; clones share everything.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mainstay_policy::{Kind, Policy};
/// use std::time::Duration;
///
/// let policy = Policy::builder(Kind::Database, "users").base_delay(Duration::ZERO).build()?;
/// let mut tries = 0;
/// let user = policy
///     .call(|| {
///         tries += 1;
///         let now = tries;
///         async move { if now < 3 { Err("connection refused") } else { Ok("John") } }
///     })
///     .await;
/// assert_eq!(user.ok(), Some("John"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Policy(pub(crate) Arc<Inner>);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $kind:ident;)*) => {
        impl Policy {
            $(
                $(#[$doc])*
                ///
                /// Its breaker and budget are named `{kind}:{name}`: it is
                /// [`Policy::builder`] of that kind and that whole name. Settings of file and
                /// environment are applied; when they cannot be used, which
                /// [`settings`](crate::settings) reports as an error, this warns and goes on
                /// without them, as [`PolicyBuilder::build_or_defaults`] says.
                #[must_use]
                pub fn $name(name: &str) -> Self {
                    Self::of_kind(Kind::$kind, name)
                }
            )*
        }
    };
}

kinds! {
    /// A policy for SQL: 30 s an attempt, 3 attempts.
    database: Database;
    /// A policy for a cache: 5 s an attempt, 2 attempts.
    cache: Cache;
    /// A policy for an HTTP service: 60 s an attempt, 5 attempts.
    api: Api;
    /// A policy for files and object stores: 10 s an attempt, 3 attempts.
    file: File;
    /// A policy for models: 300 s an attempt, 2 attempts.
    ml: Ml;
    /// A policy for anything else: 5 s an attempt, 3 attempts.
    custom: Custom;
}

impl Policy {
    /// A builder with the defaults of `kind` and the settings of file and environment. Policies of
    /// one name share breaker and budget. `name` is the whole name: `Policy::api("payments")` is
    /// `Policy::builder(Kind::Api, "api:payments")`.
    pub fn builder(kind: Kind, name: impl Into<Arc<str>>) -> PolicyBuilder {
        PolicyBuilder::new(kind, name.into())
    }

    fn of_kind(kind: Kind, name: &str) -> Self {
        Self::builder(kind, format!("{}:{name}", kind.name())).build_or_defaults()
    }

    /// The dependency's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.breaker.name()
    }

    /// The attempt timeout; `None` when switched off or, in observe mode, not held to.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        let nanos = self.0.limits().timeout;
        (nanos != u64::MAX).then(|| Duration::from_nanos(nanos))
    }

    /// The deadline of a whole call; `None` when switched off or, in observe mode, not held to.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let nanos = self.0.deadline();
        (nanos != u64::MAX).then(|| Duration::from_nanos(nanos))
    }

    /// Whether it may delay and refuse calls: not in observe mode, nor with breaker and retries
    /// switched off. For what a client decides outside [`Policy::run`].
    #[must_use]
    pub fn acts(&self) -> bool {
        let limits = self.0.limits();
        !limits.observe() && (limits.guarded() || limits.owns_retries())
    }

    /// Whether its breaker may refuse calls: not in observe mode, nor with it switched off.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.0.limits().refuses()
    }

    /// What a [streamed](Operation::streamed) operation began has ended well. `begun` is the
    /// [generation](Breaker::generation) that the breaker was in then; in a later one this decides
    /// nothing, since the connection is from before.
    pub fn stream_ended(&self, begun: Generation) {
        self.0.breaker.stream_ended(begun);
    }

    /// What a [streamed](Operation::streamed) operation began has broken off: one more operation that
    /// failed, of a single attempt. `begun` is as in [`Self::stream_ended`].
    pub fn stream_broke(&self, begun: Generation, what: &Operation, effect: Effect) {
        let limits = self.0.limits();
        // As every failure of ours: who is around it does not repeat it.
        Scope::mark(Marks::new(limits.owns_retries(), false));
        #[cfg(feature = "metrics")]
        self.0.breaker.numbers(|numbers| {
            numbers.attempt_failed(Duration::ZERO, false);
            numbers.call_ended(Outcome::Failure, Duration::ZERO);
        });
        if limits.guarded() {
            self.0.breaker.stream_broke(begun, &|trip| retry::cause(what, trip, effect, None));
        }
    }

    /// What a call of this policy may have done stays unknown, though it ended with a refusal: tells the policy
    /// around it, as [`Self::run`] does of what it knows itself.
    pub fn tell_unknown(&self) {
        Scope::mark(Marks::new(self.0.limits().owns_retries(), true));
    }

    /// A client's own fallback has answered one operation: counts it for health and metrics.
    pub fn fell_back(&self) {
        Counters::add(&self.0.breaker.counters().fallbacks);
    }

    /// The dependency is gone for good, such as a server that left its cluster: once nobody has this
    /// policy or another of its name any more, its breaker is listed no more either. One that somebody
    /// [isolated](Breaker::isolate) or [forced](Breaker::force_closed) stays.
    pub fn retire(&self) {
        crate::registry::retire(&self.0.breaker);
    }

    /// How long one step may take from now on: the attempt timeout, or what is left of the deadline
    /// around it, if that is less. For what a client does outside [`Policy::run`].
    #[must_use]
    pub fn time_for_attempt(&self) -> Option<Duration> {
        let left = Deadline::current().map(Deadline::left);
        match (self.timeout(), left) {
            (Some(timeout), Some(left)) => Some(timeout.min(left)),
            (timeout, left) => timeout.or(left),
        }
    }

    /// The dependency's breaker.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.0.breaker
    }

    /// Retries and hedges that the dependency's budget would allow now: 10 for a quiet client, up to 50
    /// for a busy one.
    #[must_use]
    pub fn retries_left(&self) -> u64 {
        self.0.budget.left(self.0.breaker.meter().answers(), clock::now())
    }

    /// The same policy with another attempt timeout, also where its own is switched off, and a deadline
    /// of twice that if none was set; everything else stays shared. Where everything is switched off it
    /// has none.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let tuning = self.0.tuning();
        let own = tuning.deadline.filter(|_| tuning.own_deadline);
        let deadline = own.unwrap_or_else(|| timeout.saturating_mul(2));
        let limit = |limit| tuning.enabled.then_some(limit);
        let (timeout, deadline) = (limit(timeout), limit(deadline));
        builder::copy(&self.0, Tuning { timeout, deadline, ..(*tuning).clone() })
    }

    /// Runs a client's operation: the closure once per attempt.
    ///
    /// # Errors
    /// [`CallError`] says who decided, after how many attempts, and whether it may have happened.
    ///
    /// # Cancel safety
    /// Dropping the future drops the attempt in flight and gives its probe, place and tokens back.
    pub fn run<'p, T, E, F, Fut>(
        &'p self,
        operation: &'p Operation,
        attempt: F,
    ) -> impl Future<Output = Result<T, CallError<E>>>
    where
        E: Classify + std::error::Error,
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        retry::drive(&self.0, operation, attempt, call::ByClassify)
    }

    /// As [`run`](Self::run), of a client whose server may ask for less load: after a retry's backoff,
    /// and after each such wait, `hold` says how long it has to wait still, and is told how long it can
    /// at most. Nothing is sent meanwhile, so this is no attempt; a wait that does not fit into the
    /// deadline ends the call at once. Where a retry that cannot wait at all would be held back, no
    /// second copy is sent either.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub fn run_in_turn<'p, T, E, H, F, Fut>(
        &'p self,
        operation: &'p Operation,
        hold: H,
        attempt: F,
    ) -> impl Future<Output = Result<T, CallError<E>>>
    where
        E: Classify + std::error::Error,
        H: Fn(Duration) -> Option<Duration>,
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        retry::drive(&self.0, operation, attempt, call::InTurn(hold))
    }

    /// Tells whoever listens that this dependency asks for less load, and how long nothing is sent to
    /// it, or with `None` that it gets all requests again: [`Event::SlowedDown`] and
    /// [`Event::AtFullSpeed`]. For clients that hold requests back.
    pub fn tell_slowed(&self, wait: Option<Duration>) {
        event::emit(|| {
            let dependency = self.0.breaker.shared_name();
            match wait {
                Some(wait) => Event::SlowedDown { dependency, wait },
                None => Event::AtFullSpeed { dependency },
            }
        });
    }

    /// Runs a user's own operation, which may be repeated: an error counts as transient, unless it
    /// is one of ours or an [`std::io::Error`], which say more (as does, with feature `sqlx`, one of sqlx's
    /// of a missing row, of a constraint, or of what our client decided), or a call in it has already been
    /// repeated by its own policy.
    ///
    /// Outside a tokio runtime there is no timer: attempts are neither bounded nor spaced, and do not wait
    /// for a turn at a limit. A runtime built without its time driver makes tokio panic.
    ///
    /// # Errors
    /// [`CallError`] with the operation's own last error.
    ///
    /// # Cancel safety
    /// As [`Policy::run`].
    pub async fn call<T, E, F, Fut>(&self, operation: F) -> Result<T, CallError<E>>
    where
        E: 'static,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.operation("call").call(operation).await
    }

    /// [`Policy::call`] for a closure that blocks, on this thread.
    ///
    /// Time is checked between attempts only: the closure should ask
    /// [`Deadline::current`](crate::Deadline::current) how long it has.
    ///
    /// # Errors
    /// As [`Policy::call`].
    pub fn call_blocking<T, E: 'static>(
        &self,
        operation: impl FnMut() -> Result<T, E>,
    ) -> Result<T, CallError<E>> {
        self.operation("call").call_blocking(operation)
    }

    /// [`Policy::call_blocking`] on a thread of its own for each attempt, so that this call does
    /// return on time. An attempt that ran out of time runs on; its result is dropped. A panic in the
    /// closure goes on in the caller.
    ///
    /// # Errors
    /// As [`Policy::call`].
    pub fn call_blocking_detached<T, E, F>(&self, operation: F) -> Result<T, CallError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: Fn() -> Result<T, E> + Send + Sync + 'static,
    {
        self.operation("call").call_blocking_detached(operation)
    }

    /// One call with a name of its own, and more to say about it.
    pub fn operation<T, E>(&self, name: &'static str) -> Call<'_, T, E> {
        Call::new(self, name)
    }
}

#[cfg(test)]
mod tests;
