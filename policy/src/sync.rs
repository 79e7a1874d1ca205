//! The shared-memory types that the breaker is built from, so that loom can stand in for them.
//!
//! `RUSTFLAGS="--cfg mainstay_loom" cargo test -p mainstay-policy --lib loom` runs the proofs.

#[cfg(all(test, mainstay_loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicU64};
#[cfg(not(all(test, mainstay_loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic::AtomicU64};

use std::sync::Arc;

/// A value replaced as a whole and read without waiting.
#[derive(Debug)]
pub(crate) struct Swap<T> {
    #[cfg(not(all(test, mainstay_loom)))]
    value: arc_swap::ArcSwap<T>,
    #[cfg(all(test, mainstay_loom))]
    value: Mutex<Arc<T>>,
}

#[cfg(not(all(test, mainstay_loom)))]
impl<T> Swap<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: arc_swap::ArcSwap::from_pointee(value) }
    }

    pub(crate) fn store(&self, value: T) {
        self.value.store(Arc::new(value));
    }

    /// Reads in place: cheaper than [`Self::get`], and writes nothing that threads share.
    pub(crate) fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.value.load())
    }

    pub(crate) fn get(&self) -> Arc<T> {
        self.value.load_full()
    }
}

#[cfg(all(test, mainstay_loom))]
impl<T> Swap<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(Arc::new(value)) }
    }

    pub(crate) fn store(&self, value: T) {
        *self.value.lock().unwrap() = Arc::new(value);
    }

    pub(crate) fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.get())
    }

    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.lock().unwrap())
    }
}
