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
    /// One more, of a thread that owns the shard or not. True when another thread added in the same
    /// moment.
    #[inline(always)]
    pub(super) fn add(&self, owned: bool) -> bool {
        let own = self.own.load(Relaxed);
        if owned {
            self.own.store(own + 1, Relaxed);
            return false;
        }
        let seen = self.beside.load(Relaxed);
        self.beside.fetch_add(1, Relaxed) != seen || self.own.load(Relaxed) != own
    }

    /// What its owner has added.
    #[inline]
    pub(super) fn own(&self) -> u64 {
        self.own.load(Relaxed)
    }

    /// All that were ever added.
    #[inline]
    pub(super) fn all(&self) -> u64 {
        self.own.load(Relaxed).wrapping_add(self.beside.load(Relaxed))
    }
}
