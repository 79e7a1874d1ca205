//! What the caller hears of a transfer.

use crate::numbers::{Direction, count_bytes};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// How far a transfer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes that are there: with the store, or in the temporary file. What is sent or fetched again counts
    /// once.
    pub done: u64,
    /// All bytes.
    pub total: u64,
}

pub(crate) type Listener = Arc<dyn Fn(Progress) + Send + Sync>;

/// Counts for one transfer.
pub(crate) struct Tracker {
    done: AtomicU64,
    total: u64,
    direction: Direction,
    listener: Option<Listener>,
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker").field("done", &self.done).field("total", &self.total).finish()
    }
}

impl Tracker {
    pub(crate) fn new(direction: Direction, total: u64, listener: Option<Listener>) -> Self {
        Self { done: AtomicU64::new(0), total, direction, listener }
    }

    /// These bytes have come through.
    pub(crate) fn moved(&self, bytes: u64) {
        count_bytes(self.direction, bytes);
        self.there(bytes);
    }

    /// These bytes need not be moved any more.
    pub(crate) fn there(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Relaxed) + bytes;
        if let Some(listener) = &self.listener {
            listener(Progress { done, total: self.total });
        }
    }
}
