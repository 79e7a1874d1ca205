//! Names to dependencies: one breaker and one budget each, per process.

use crate::{
    breaker::{Breaker, BreakerConfig},
    budget::Budget,
    config::{self, Settings},
    error::{ConfigError, Error},
    policy::Inner,
};
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

type Dependencies = BTreeMap<Arc<str>, (Breaker, Arc<Budget>)>;

/// So many origins of HTTP are kept: a client of user-given hosts must not fill the memory.
const MOST_ORIGINS: usize = 1_024;
const ORIGIN: &str = "http:";

static DEPENDENCIES: Mutex<Dependencies> = Mutex::new(BTreeMap::new());
/// The policies that a reload changes.
static POLICIES: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());
/// Counts resets: a singleton from before the last one is forgotten.
static RESETS: AtomicU64 = AtomicU64::new(0);

fn dependencies() -> MutexGuard<'static, Dependencies> {
    DEPENDENCIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The breaker and budget of `name`; the newest settings win, the state stays.
pub(crate) fn dependency(name: &Arc<str>, config: BreakerConfig) -> (Breaker, Arc<Budget>) {
    let found = dependencies().get(name).cloned();
    if let Some((breaker, budget)) = found {
        breaker.retire(false);
        breaker.configure(config);
        return (breaker, budget);
    }
    // Made and dropped outside the lock, since the recorder of metrics gives and takes its handles.
    let entry = (Breaker::new(Arc::clone(name), config), Arc::new(Budget::new()));
    let mut gone = None;
    let mut all = dependencies();
    // Of two at once the first wins.
    if let Some(entry) = all.get(name) {
        return entry.clone();
    }
    if name.starts_with(ORIGIN) {
        let from = (Bound::Included(ORIGIN), Bound::Unbounded);
        let origins = || all.range::<str, _>(from).take_while(|(n, _)| n.starts_with(ORIGIN));
        if origins().count() >= MOST_ORIGINS {
            let idle = origins().find(|(_, (breaker, _))| breaker.is_idle());
            match idle.map(|(name, _)| Arc::clone(name)) {
                Some(idle) => gone = all.remove(&idle),
                // All are in use: this one lives as long as its policy, unlisted.
                None => return entry,
            }
        }
    }
    all.insert(Arc::clone(name), entry.clone());
    drop(all);
    drop(gone);
    entry
}

/// This dependency is listed no more once nobody has it, unless somebody asks for it again.
pub(crate) fn retire(breaker: &Breaker) {
    breaker.retire(true);
    sweep();
}

/// Forgets the retired ones that nobody has any more.
fn sweep() {
    let gone: Vec<_> = dependencies().extract_if(.., |_, (breaker, _)| breaker.is_over()).collect();
    for (_, (breaker, _)) in gone {
        // For who heard that it opened and waits for its end.
        breaker.reset();
    }
}

/// Remembers a policy for [`retune`], and forgets those that are gone.
pub(crate) fn keep(policy: &Arc<Inner>) {
    let mut all = POLICIES.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() == all.capacity() {
        all.retain(|policy| policy.strong_count() > 0);
    }
    all.push(Arc::downgrade(policy));
}

fn policies() -> Vec<Arc<Inner>> {
    let all = POLICIES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    all.iter().filter_map(Weak::upgrade).collect()
}

/// Whether every policy can be told these settings; else why not.
pub(crate) fn check(settings: &Settings) -> Result<(), ConfigError> {
    let mut problems = Vec::new();
    for policy in policies() {
        if let Err(error) = policy.check(settings) {
            problems.extend_from_slice(error.problems());
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigError::new(problems)) }
}

/// Applies settings to every policy.
pub(crate) fn retune(settings: &Settings) {
    for policy in policies() {
        policy.retune_by(settings);
    }
}

pub(crate) fn all() -> Vec<(Breaker, Arc<Budget>)> {
    sweep();
    dependencies().values().cloned().collect()
}

/// The breaker of a dependency by its whole name, such as `database` or `api:payments`; `None` if no
/// policy has that name.
///
/// # Examples
/// ```
/// use mainstay_policy::{BreakerState, Policy, breaker};
///
/// let policy = Policy::api("payments");
/// if let Some(payments) = breaker("api:payments") {
///     payments.isolate();
/// }
/// assert_eq!(policy.breaker().state(), BreakerState::Isolated);
/// ```
#[must_use]
pub fn breaker(name: &str) -> Option<Breaker> {
    sweep();
    dependencies().get(name).map(|(breaker, _)| breaker.clone())
}

/// What clients forget at a reset.
static FORGETTERS: Mutex<Vec<fn()>> = Mutex::new(Vec::new());

/// From now on [`reset_resilience_state`] calls this too, under no lock. For clients, which know more
/// of a dependency than its breaker does.
pub fn on_reset(forget: fn()) {
    FORGETTERS.lock().unwrap_or_else(PoisonError::into_inner).push(forget);
}

/// Closes every breaker, refills every budget, and forgets the singletons, the settings that were
/// read, and how much load a server asked for. For tests.
pub fn reset_resilience_state() {
    RESETS.fetch_add(1, Ordering::SeqCst);
    let forgetters = FORGETTERS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    forgetters.iter().for_each(|forget| forget());
    config::forget();
    for (breaker, budget) in all() {
        breaker.reset();
        budget.refill(breaker.meter().answers());
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

    /// Every client there is, to be closed.
    #[must_use]
    pub fn all(&self) -> Vec<T> {
        self.with(|clients| clients.values().cloned().collect())
    }

    /// Where there are `most` or more, forgets those for which `keep` is false.
    pub fn make_room(&self, most: usize, keep: impl Fn(&T) -> bool) {
        let gone = self.with(|clients| match clients.len() < most {
            true => BTreeMap::new(),
            false => {
                let (kept, gone) =
                    std::mem::take(clients).into_iter().partition(|(_, client)| keep(client));
                *clients = kept;
                gone
            }
        });
        // Under no lock, since what a client holds may be long in going.
        drop(gone);
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
