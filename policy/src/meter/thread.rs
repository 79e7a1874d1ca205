//! A number for each thread that counts. When a thread ends the next one takes its number, and with it
//! what that owned: a service whose threads come and go has no more owners than threads.

use std::{
    cell::Cell,
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

/// A thread without a number, which owns nothing.
pub(super) const UNNUMBERED: usize = 0;

static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers { most: UNNUMBERED, free: BTreeSet::new() });

struct Numbers {
    most: usize,
    /// Those of threads that have ended.
    free: BTreeSet<usize>,
}

thread_local! {
    /// One instruction away, other than what has to be dropped.
    static NUMBER: Cell<usize> = const { Cell::new(UNNUMBERED) };
    static HELD: Held = Held::take();
}

struct Held(usize);

impl Held {
    fn take() -> Self {
        let mut numbers = numbers();
        Self(numbers.free.pop_first().unwrap_or_else(|| {
            numbers.most += 1;
            numbers.most
        }))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        NUMBER.set(UNNUMBERED);
        // Under the lock: who takes the number next sees all that was counted under it.
        numbers().free.insert(self.0);
    }
}

fn numbers() -> MutexGuard<'static, Numbers> {
    NUMBERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of this thread, if it has asked for one.
#[inline(always)]
pub(super) fn number() -> usize {
    NUMBER.get()
}

/// The number of this thread, for good; none while the thread ends.
pub(super) fn take_number() -> usize {
    if NUMBER.get() == UNNUMBERED {
        let _ = HELD.try_with(|held| NUMBER.set(held.0));
    }
    NUMBER.get()
}

/// No thread has this number.
const NOBODY: usize = usize::MAX;

/// The number of the thread that owns a shard, or [`NOBODY`].
#[derive(Debug)]
pub(super) struct Owner(AtomicUsize);

impl Default for Owner {
    fn default() -> Self {
        Self(AtomicUsize::new(NOBODY))
    }
}

impl Owner {
    #[inline]
    pub(super) fn is(&self, thread: usize) -> bool {
        self.0.load(Relaxed) == thread
    }

    /// Whether it is this thread's from now on. Acquired: what the one before has added is seen.
    pub(super) fn take(&self, thread: usize) -> bool {
        let may = thread != UNNUMBERED && self.is(NOBODY);
        may && self.0.compare_exchange(NOBODY, thread, Acquire, Relaxed).is_ok()
    }

    pub(super) fn give_back(&self, thread: usize) {
        let _ = self.0.compare_exchange(thread, NOBODY, Release, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_thread_that_ended_is_taken_again() {
        let of_one = || std::thread::spawn(take_number).join().unwrap();
        let most = (0..500).map(|_| of_one()).max();
        // Other tests count beside this one.
        assert!(most.is_some_and(|most| most < 300), "{most:?}");
        assert_eq!(take_number(), take_number());
    }
}
