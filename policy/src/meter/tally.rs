//! Counts that one thread adds to with a plain store: an addition that locks the line costs as much as
//! all the rest of a refusal.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A count in a shard.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Written by the owner of the shard alone.
    own: AtomicU64,
    /// Of those who found the shard owned by another thread.
    beside: AtomicU64,
}

impl Tally {
    /// One more, of the thread that owns the shard.
    #[inline(always)]
    pub(super) fn add(&self) {
        self.own.store(self.own.load(Relaxed) + 1, Relaxed);
    }

    /// One more, of another thread: how many such there are.
    #[inline]
    pub(super) fn add_beside(&self) -> u64 {
        self.beside.fetch_add(1, Relaxed).wrapping_add(1)
    }

    /// All that were ever added.
    #[inline]
    pub(super) fn all(&self) -> u64 {
        self.own.load(Relaxed).wrapping_add(self.beside.load(Relaxed))
    }
}
