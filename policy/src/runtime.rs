//! One value per live async runtime, for pools and links: connections die with the runtime that
//! made them, and so does the value kept here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::{
    runtime::{Handle, Id},
    task::AbortHandle,
};

/// A process has one runtime or a few: quicker to look through than to hash. No id is in it twice.
type Values<T> = Mutex<Vec<Kept<T>>>;

#[derive(Debug)]
struct Kept<T> {
    of: Id,
    value: T,
    /// The task that sees the runtime end; it ends with this too. Not longer: its handle holds what
    /// the runtime has open.
    watcher: Option<AbortHandle>,
}

/// One value per live tokio runtime.
#[derive(Debug)]
pub struct PerRuntime<T> {
    values: Arc<Values<T>>,
}

impl<T: Clone + Send + Sync + 'static> PerRuntime<T> {
    /// No values yet.
    #[must_use]
    pub fn new() -> Self {
        Self { values: Arc::default() }
    }

    /// The value of the current runtime, made on first use; `None` outside any runtime.
    pub fn get_or_init(&self, make: impl FnOnce() -> T) -> Option<T> {
        let handle = Handle::try_current().ok()?;
        let id = handle.id();
        if let Some(found) = find(&lock(&self.values), id) {
            return Some(found);
        }
        let made = make();
        let mut values = lock(&self.values);
        if let Some(found) = find(&values, id) {
            return Some(found);
        }
        values.push(Kept { of: id, value: made.clone(), watcher: None });
        drop(values);
        // The task dies with the runtime and takes the entry along, before the id is used again.
        // Not under the lock: a runtime that is closing drops the task at once.
        let entry = Entry { values: Arc::downgrade(&self.values), id };
        let watcher = handle.spawn(async move {
            let _entry = entry;
            std::future::pending::<()>().await;
        });
        if let Some(kept) = lock(&self.values).iter_mut().find(|kept| kept.of == id) {
            kept.watcher = Some(watcher.abort_handle());
        }
        Some(made)
    }
}

impl<T: Clone> PerRuntime<T> {
    /// The value of the current runtime, if it was made.
    pub fn get(&self) -> Option<T> {
        let id = Handle::try_current().ok()?.id();
        find(&lock(&self.values), id)
    }

    /// Those of all runtimes that have one.
    #[must_use]
    pub fn all(&self) -> Vec<T> {
        lock(&self.values).iter().map(|kept| kept.value.clone()).collect()
    }
}

impl<T: Clone + Send + Sync + 'static> Default for PerRuntime<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for PerRuntime<T> {
    fn drop(&mut self) {
        // Not under the lock, which the task's end takes.
        let values = std::mem::take(&mut *lock(&self.values));
        values.iter().filter_map(|kept| kept.watcher.as_ref()).for_each(AbortHandle::abort);
    }
}

struct Entry<T> {
    values: Weak<Values<T>>,
    id: Id,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        if let Some(values) = self.values.upgrade() {
            let mut values = lock(&values);
            let at = values.iter().position(|kept| kept.of == self.id);
            let gone = at.map(|at| values.swap_remove(at));
            drop(values);
            drop(gone);
        }
    }
}

fn find<T: Clone>(values: &[Kept<T>], id: Id) -> Option<T> {
    values.iter().find(|kept| kept.of == id).map(|kept| kept.value.clone())
}

fn lock<T>(values: &Values<T>) -> MutexGuard<'_, Vec<Kept<T>>> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn its_tasks_go_with_it() {
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let values = PerRuntime::new();
        assert_eq!(values.get_or_init(|| 1), Some(1));
        assert_eq!(tasks(), 1);
        drop(values);
        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn an_entry_goes_with_its_runtime() {
        let values = PerRuntime::new();
        assert_eq!(values.get_or_init(|| 0), None);
        for n in [1, 2] {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            assert_eq!(runtime.block_on(async { values.get_or_init(|| n) }), Some(n));
            assert_eq!(runtime.block_on(async { values.get_or_init(|| 9) }), Some(n));
            assert_eq!(values.all(), [n]);
            drop(runtime);
            assert!(lock(&values.values).is_empty());
        }
    }
}
