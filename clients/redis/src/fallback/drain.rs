//! A batch of the recovery on its way: one at a time, whatever the number of runtimes.

use super::{Fallback, Task};
use bytes::Bytes;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a batch may take before another runtime's recovery goes on without it: a runtime that
/// nobody polls would hold up all others. Longer than the two rounds of a batch, of a second each. A late
/// end changes nothing here, as what was written since has another number; a deletion that its runtime had
/// handed to the driver and not written yet may still be sent.
const LEASE: Duration = Duration::from_secs(3);

/// The batch that is under way, by the end of its lease.
pub(crate) type Batch = Option<Instant>;

pub(crate) fn is_under_way(batch: Batch, now: Instant) -> bool {
    batch.is_some_and(|end| now < end)
}

/// A batch being deleted at the server.
pub(crate) struct Drain<'a> {
    fallback: &'a Fallback,
    end: Instant,
    pub(crate) tasks: Vec<Task>,
}

impl Fallback {
    /// Hears of each beginning and end of a batch of the recovery.
    pub(crate) fn drains(&self) -> watch::Receiver<Batch> {
        self.draining.subscribe()
    }

    /// Some of what the servers must forget that can be told so, once no other batch is under way;
    /// writes of dirty keys wait while it is held.
    pub(crate) async fn drain_where(
        &self,
        size: usize,
        reached: impl Fn(&Bytes) -> bool,
    ) -> Drain<'_> {
        let mut batches = self.draining.subscribe();
        loop {
            let now = Instant::now();
            let mut other = None;
            let end = now + LEASE;
            self.draining.send_if_modified(|batch| {
                other = batch.filter(|_| is_under_way(*batch, now));
                if other.is_none() {
                    *batch = Some(end);
                }
                other.is_none()
            });
            match other {
                None => return self.drain_until(end, size, reached),
                Some(other) => {
                    // Whatever ends that wait, there is another look.
                    let _ = tokio::time::timeout(other - now, batches.changed()).await;
                }
            }
        }
    }

    fn drain_until(
        &self,
        end: Instant,
        size: usize,
        reached: impl Fn(&Bytes) -> bool,
    ) -> Drain<'_> {
        // After the flag: from here on nothing is added to these keys.
        let tasks = self.dirty().batch_where(size, reached);
        Drain { fallback: self, end, tasks }
    }

    /// Whatever else is under way, as if that had taken too long.
    #[cfg(test)]
    pub(crate) fn drain(&self, size: usize) -> Drain<'_> {
        let end = Instant::now() + LEASE;
        self.draining.send_replace(Some(end));
        self.drain_until(end, size, |_| true)
    }
}

impl Drain<'_> {
    /// Whether no other batch can have begun since.
    pub(crate) fn holds(&self) -> bool {
        is_under_way(Some(self.end), Instant::now())
    }

    /// Which of them the server has forgotten; says whether anything is dirty still.
    pub(crate) fn acknowledge(self, done: &[bool]) -> bool {
        let fallback = self.fallback;
        for (task, done) in self.tasks.iter().zip(done) {
            let _stripe = fallback.stripe(&task.key);
            let mut dirty = fallback.dirty();
            if *done {
                dirty.acknowledge(task);
            } else {
                dirty.pass_over(task);
            }
            fallback.dirty_keys.store(dirty.len(), super::Ordering::Release);
        }
        let mut left = false;
        fallback.any_dirty.send_if_modified(|any| {
            left = fallback.dirty_keys() > 0;
            std::mem::replace(any, left) != left
        });
        left
    }
}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        self.fallback.draining.send_if_modified(|batch| {
            let is_mine = *batch == Some(self.end);
            if is_mine {
                *batch = None;
            }
            is_mine
        });
    }
}
