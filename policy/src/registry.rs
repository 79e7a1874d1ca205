//! Names to dependencies: one breaker and one budget each, per process.

use crate::{
    breaker::{Breaker, BreakerConfig},
    budget::Budget,
    error::Error,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

type Dependencies = BTreeMap<Arc<str>, (Breaker, Arc<Budget>)>;

static DEPENDENCIES: Mutex<Dependencies> = Mutex::new(BTreeMap::new());
static ENABLED: AtomicBool = AtomicBool::new(true);
/// Counts resets: a singleton from before the last one is forgotten.
static RESETS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

pub(crate) fn set_enabled(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// The breaker and budget of `name`; the newest settings win, the state stays.
pub(crate) fn dependency(name: &Arc<str>, config: BreakerConfig) -> (Breaker, Arc<Budget>) {
    let mut all = DEPENDENCIES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((breaker, budget)) = all.get(name) {
        breaker.configure(config);
        return (breaker.clone(), Arc::clone(budget));
    }
    let entry = (Breaker::new(Arc::clone(name), config), Arc::new(Budget::new()));
    all.insert(Arc::clone(name), entry.clone());
    entry
}

pub(crate) fn breakers() -> Vec<Breaker> {
    let all = DEPENDENCIES.lock().unwrap_or_else(PoisonError::into_inner);
    all.values().map(|(breaker, _)| breaker.clone()).collect()
}

/// Closes every breaker, refills every budget and forgets the singletons. For tests.
pub fn reset_resilience_state() {
    RESETS.fetch_add(1, Ordering::SeqCst);
    let all = DEPENDENCIES.lock().unwrap_or_else(PoisonError::into_inner);
    for (breaker, budget) in all.values() {
        breaker.reset();
        budget.refill();
    }
}

/// Named clients of one type, built on first use.
#[derive(Debug)]
pub struct Singletons<T> {
    clients: Mutex<(u64, BTreeMap<String, T>)>,
}

impl<T: Clone> Singletons<T> {
    /// No clients yet.
    #[must_use]
    #[allow(clippy::new_without_default)] // Only statics hold one.
    pub const fn new() -> Self {
        Self { clients: Mutex::new((0, BTreeMap::new())) }
    }

    /// The client of this name; `build` runs if there is none.
    ///
    /// # Errors
    /// What `build` says; nothing is kept then.
    pub fn get_or_try_init(
        &self,
        name: &str,
        build: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some(found) = self.with(|clients| clients.get(name).cloned()) {
            return Ok(found);
        }
        // Built outside the lock; of two first callers the first to finish wins.
        let built = build()?;
        Ok(self.with(|clients| clients.entry(name.to_owned()).or_insert(built).clone()))
    }

    /// Installs a client under this name.
    pub fn set(&self, name: &str, client: T) {
        self.with(|clients| clients.insert(name.to_owned(), client));
    }

    fn with<R>(&self, read: impl FnOnce(&mut BTreeMap<String, T>) -> R) -> R {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let resets = RESETS.load(Ordering::SeqCst);
        if clients.0 != resets {
            *clients = (resets, BTreeMap::new());
        }
        read(&mut clients.1)
    }
}
