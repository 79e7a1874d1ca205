//! What happened, as plain data, and who listens.

use crate::{
    breaker::BreakerState,
    classify::Effect,
    error::{Cause, Decider},
    telemetry,
};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Something a policy did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A breaker went from one state to another.
    #[non_exhaustive]
    Changed {
        /// The dependency's name.
        dependency: Arc<str>,
        /// Where the breaker stood.
        from: BreakerState,
        /// Where it stands now.
        to: BreakerState,
        /// What opened it.
        cause: Option<Arc<Cause>>,
        /// How long until the next probe.
        retry_after: Option<Duration>,
    },
    /// An attempt failed and another will follow.
    #[non_exhaustive]
    Retrying {
        /// The dependency's name.
        dependency: Arc<str>,
        /// The operation's name.
        operation: &'static str,
        /// The attempt that failed, from 1.
        attempt: u32,
        /// The wait before the next one.
        delay: Duration,
        /// What the error said happened.
        effect: Effect,
    },
    /// A second copy of an attempt was sent, since the first took long.
    #[non_exhaustive]
    Hedged {
        /// The dependency's name.
        dependency: Arc<str>,
        /// The operation's name.
        operation: &'static str,
        /// How long the first had taken by then.
        after: Duration,
    },
    /// A policy ended a call that made attempts.
    #[non_exhaustive]
    Stopped {
        /// The dependency's name.
        dependency: Arc<str>,
        /// The operation's name.
        operation: &'static str,
        /// Who ended it.
        by: Decider,
        /// Attempts made.
        attempts: u32,
        /// Time since the call began.
        elapsed: Duration,
        /// What is known to have happened.
        effect: Effect,
    },
    /// A policy refused a call before any attempt.
    #[non_exhaustive]
    Rejected {
        /// The dependency's name.
        dependency: Arc<str>,
        /// The operation's name.
        operation: &'static str,
        /// Who refused.
        by: Decider,
        /// The policy only observes: the call went on.
        observed: bool,
    },
    /// The dependency asked for less load: from now on requests to it are held back.
    #[non_exhaustive]
    SlowedDown {
        /// The dependency's name.
        dependency: Arc<str>,
        /// How long nothing is sent to it.
        wait: Duration,
    },
    /// The dependency gets all requests again, after [`SlowedDown`](Self::SlowedDown).
    #[non_exhaustive]
    AtFullSpeed {
        /// The dependency's name.
        dependency: Arc<str>,
    },
    /// A fallback answered in the dependency's place.
    #[non_exhaustive]
    FellBack {
        /// The dependency's name.
        dependency: Arc<str>,
    },
}

/// Someone who wants to know.
///
/// It is called outside every lock, on the thread where the thing happened: it may call back into
/// the breaker, should be quick, and when it panics the panic ends with it.
pub trait Observer: Send + Sync + 'static {
    /// Called for each event.
    fn on_event(&self, event: &Event);
}

impl<F: Fn(&Event) + Send + Sync + 'static> Observer for F {
    fn on_event(&self, event: &Event) {
        self(event);
    }
}

type Entry = (u64, Arc<dyn Observer>);

static OBSERVERS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
static LISTENING: AtomicUsize = AtomicUsize::new(0);

/// Tells `observer` of every event from now on, until the subscription is dropped.
///
/// # Examples
/// ```
/// use mainstay_policy::{Event, observe};
///
/// let _subscription = observe(|event: &Event| {
///     if let Event::Changed { dependency, to, .. } = event {
///         eprintln!("{dependency} is now {to:?}");
///     }
/// });
/// ```
pub fn observe(observer: impl Observer) -> Subscription {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Relaxed);
    let mut observers = OBSERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    observers.push((id, Arc::new(observer)));
    LISTENING.store(observers.len(), Relaxed);
    Subscription(id)
}

/// Keeps an observer; dropping it ends the calls.
#[must_use = "dropping it ends the subscription"]
pub struct Subscription(u64);

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(&self.0).finish()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut observers = OBSERVERS.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = observers.iter().position(|(id, _)| *id == self.0);
        let gone = gone.map(|place| observers.swap_remove(place));
        LISTENING.store(observers.len(), Relaxed);
        // The observer's own drop may do anything, so not under the lock.
        drop(observers);
        drop(gone);
    }
}

/// Builds the event only if somebody listens.
#[inline]
pub(crate) fn emit(make: impl FnOnce() -> Event) {
    if is_heard() || telemetry::counts() {
        tell(&make());
    }
}

/// Whether an observer, or a subscriber of `tracing`, hears of events.
#[inline]
pub(crate) fn is_heard() -> bool {
    LISTENING.load(Relaxed) > 0 || telemetry::listens()
}

#[cold]
fn tell(event: &Event) {
    telemetry::tell(event);
    if LISTENING.load(Relaxed) > 0 {
        let observers = OBSERVERS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (_, observer) in observers {
            let _ = catch_unwind(AssertUnwindSafe(|| observer.on_event(event)));
        }
    }
}
