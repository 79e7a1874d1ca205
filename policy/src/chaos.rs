//! Faults on purpose, for users' own tests: an attempt is refused, its answer lost, or it is late or
//! hangs, at the seam between a policy and what it calls. Feature `chaos`, off by default.
//!
//! # Examples
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mainstay_policy::{Chaos, Policy};
//!
//! let policy = Policy::api("chaos-example");
//! let storm = Chaos::seeded(7).refuse(1.0).strike("api:chaos-example");
//! let seen = policy.operation("get").idempotent(false).call(|| async { Ok::<_, &str>(1) });
//! # let seen = mainstay_policy::Deadline::within(std::time::Duration::from_millis(1)).scope(seen);
//! assert!(seen.await.is_err());
//! drop(storm);
//! assert!(policy.call(|| async { Ok::<_, &str>(1) }).await.is_ok());
//! # Ok(()) }
//! ```

use crate::{
    classify::Verdict,
    clock::{self, Instant},
};
use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Sleep;

/// What happens to attempts, by shares that are drawn from a seed: the same seed, the same faults in
/// the same order.
///
/// Each attempt has at most one fault; the shares are of all attempts and should add up to at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "nothing happens until it strikes"]
pub struct Chaos {
    seed: u64,
    refuse: f64,
    lose: f64,
    hang: f64,
    delay: f64,
    delay_by: Duration,
}

impl Chaos {
    /// No faults yet.
    pub const fn seeded(seed: u64) -> Self {
        let delay_by = Duration::ZERO;
        Self { seed, refuse: 0.0, lose: 0.0, hang: 0.0, delay: 0.0, delay_by }
    }

    /// The futures of this share of attempts are not polled, as when a connection is refused: never
    /// sent.
    pub const fn refuse(mut self, share: f64) -> Self {
        self.refuse = share;
        self
    }

    /// This share of attempts is made and its answer thrown away, as when a connection breaks after
    /// the request was sent: the outcome is unknown.
    pub const fn lose(mut self, share: f64) -> Self {
        self.lose = share;
        self
    }

    /// This share of attempts never ends by itself.
    pub const fn hang(mut self, share: f64) -> Self {
        self.hang = share;
        self
    }

    /// This share of attempts begins so much later.
    pub const fn delay(mut self, share: f64, by: Duration) -> Self {
        (self.delay, self.delay_by) = (share, by);
        self
    }

    /// Strikes the attempts of the dependency of this name, such as `database` or `api:payments`,
    /// until the storm is dropped. A later one on the same name takes its place.
    pub fn strike(self, dependency: &str) -> Storm {
        let random = fastrand::Rng::with_seed(self.seed);
        let state = Arc::new(Mutex::new((self, random)));
        let mut storms = storms();
        storms.insert(dependency.to_owned(), Arc::clone(&state));
        STRIKING.store(storms.len(), Relaxed);
        Storm { dependency: dependency.to_owned(), state }
    }

    fn draw(&self, random: &mut fastrand::Rng) -> Blow {
        let mut left = random.f64();
        let faults = [
            (self.refuse, Blow::Refuse),
            (self.lose, Blow::Lose),
            (self.hang, Blow::Hang),
            (self.delay, Blow::Delay(self.delay_by, None)),
        ];
        for (share, blow) in faults {
            if left < share {
                return blow;
            }
            left -= share;
        }
        Blow::None
    }
}

type State = Arc<Mutex<(Chaos, fastrand::Rng)>>;

static STORMS: Mutex<Option<HashMap<String, State>>> = Mutex::new(None);
static STRIKING: AtomicUsize = AtomicUsize::new(0);

struct Storms(MutexGuard<'static, Option<HashMap<String, State>>>);

fn storms() -> Storms {
    Storms(STORMS.lock().unwrap_or_else(PoisonError::into_inner))
}

impl std::ops::Deref for Storms {
    type Target = HashMap<String, State>;

    fn deref(&self) -> &Self::Target {
        static EMPTY: std::sync::LazyLock<HashMap<String, State>> =
            std::sync::LazyLock::new(HashMap::new);
        self.0.as_ref().unwrap_or(&EMPTY)
    }
}

impl std::ops::DerefMut for Storms {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.0.get_or_insert_default()
    }
}

/// A [`Chaos`] that strikes; dropping it ends that.
#[must_use = "dropping it ends the faults"]
pub struct Storm {
    dependency: String,
    state: State,
}

impl fmt::Debug for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storm").field("dependency", &self.dependency).finish_non_exhaustive()
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let mut storms = storms();
        if storms.get(&self.dependency).is_some_and(|state| Arc::ptr_eq(state, &self.state)) {
            storms.remove(&self.dependency);
            STRIKING.store(storms.len(), Relaxed);
        }
    }
}

/// The fault of one attempt.
#[derive(Debug)]
pub(crate) enum Blow {
    None,
    Refuse,
    Lose,
    Hang,
    /// With its timer, once it runs.
    Delay(Duration, Option<Pin<Box<Sleep>>>),
}

/// What a fault made of an attempt.
#[derive(Debug)]
pub(crate) struct Struck(Option<Verdict>);

impl Struck {
    pub(crate) const NOT: Self = Self(None);

    pub(crate) const fn verdict(&self) -> Option<Verdict> {
        self.0
    }
}

/// What strikes the next attempt on this dependency.
pub(crate) fn blow(dependency: &str) -> Blow {
    if STRIKING.load(Relaxed) == 0 {
        return Blow::None;
    }
    let Some(state) = storms().get(dependency).cloned() else { return Blow::None };
    let (chaos, random) = &mut *state.lock().unwrap_or_else(PoisonError::into_inner);
    chaos.draw(random)
}

impl Blow {
    /// Before the attempt: ready when it may go on, with a verdict when it may not.
    pub(crate) fn before(&mut self, cx: &mut Context<'_>) -> Poll<Struck> {
        match self {
            Self::None | Self::Lose => Poll::Ready(Struck::NOT),
            Self::Refuse => Poll::Ready(Struck(Some(Verdict::never_sent()))),
            Self::Hang => Poll::Pending,
            Self::Delay(by, timer) => {
                if !clock::has_timer() {
                    return Poll::Ready(Struck::NOT);
                }
                let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(*by)));
                timer.as_mut().poll(cx).map(|()| Struck::NOT)
            }
        }
    }

    /// [`Self::before`] for a thread; `None` when the attempt hung until its limit.
    pub(crate) fn before_blocking(&self, limit: Instant) -> Option<Struck> {
        match self {
            Self::None | Self::Lose => Some(Struck::NOT),
            Self::Refuse => Some(Struck(Some(Verdict::never_sent()))),
            // Without a limit a hang would be for ever, and no test could see it.
            Self::Hang if limit.is_never() => Some(Struck(Some(Verdict::unknown()))),
            Self::Hang => {
                std::thread::sleep(limit.since(clock::now()));
                None
            }
            Self::Delay(by, _) => {
                std::thread::sleep(*by);
                Some(Struck::NOT)
            }
        }
    }

    /// After the attempt: its answer may be lost.
    pub(crate) const fn after(&self) -> Struck {
        match self {
            Self::Lose => Struck(Some(Verdict::unknown())),
            _ => Struck::NOT,
        }
    }
}
