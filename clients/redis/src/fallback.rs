//! What answers while the server is away.
//!
//! The promise: a read of this client never gives a value older than its last write that returned
//! `Ok`. Two stores keep it. The *shadow* holds values seen; it is read only while degraded. The
//! *dirty* map holds what was written meanwhile; it is read first, always, until the server has
//! acknowledged that it forgot its own, older values of those keys.
//!
//! Both are touched under the stripe lock of their key. Its generation counts this client's writes:
//! an answer of the server is kept only if nothing was written since it was asked for.

mod dirty;
mod shadow;

use crate::{
    classify::RedisFailure,
    command::{Change, Slot},
    config::FallbackConfig,
};
use bytes::Bytes;
use dirty::Dirty;
pub(crate) use dirty::Task;
use shadow::Shadow;
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{MutexGuard as Turn, watch};

const STRIPES: usize = 64;
/// How long a write waits for the recovery of its key, about one round trip, before it stays here.
const DRAIN_WAIT: Duration = Duration::from_secs(1);

/// Why the fallback cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Full,
    WrongType,
}

impl From<Refusal> for RedisFailure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Self::full(),
            Refusal::WrongType => Self::wrong_type(),
        }
    }
}

/// The state of this client's writes at a key when a command was sent.
#[derive(Clone, Copy)]
pub(crate) struct Ticket(u64);

pub(crate) enum BeginRead {
    Local(Result<Option<Bytes>, Refusal>),
    Ask(Ticket),
}

pub(crate) enum BeginWrite {
    Local(Result<bool, Refusal>),
    /// The recovery is deleting this key right now: wait for it, then begin again.
    Draining,
    Ask(Ticket),
}

pub(crate) struct Fallback {
    /// Without a server the shadow is all there is: nothing is dirty and nothing gets stale.
    server: bool,
    stripes: [Mutex<u64>; STRIPES],
    hasher: RandomState,
    shadow: Shadow,
    dirty: Mutex<Dirty>,
    /// Keys in `dirty`; changed under a key's stripe lock, so that key's next call sees it.
    dirty_keys: AtomicUsize,
    any_dirty: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    recovery: tokio::sync::Mutex<()>,
}

impl Fallback {
    pub(crate) fn new(config: &FallbackConfig, server: bool) -> Self {
        let max_stale = server.then_some(config.max_stale);
        Self {
            server,
            stripes: std::array::from_fn(|_| Mutex::new(0)),
            hasher: RandomState::new(),
            shadow: Shadow::new(config.max_entries, config.max_bytes, max_stale),
            dirty: Mutex::new(Dirty::new(config.max_dirty_entries, config.max_dirty_bytes)),
            dirty_keys: AtomicUsize::new(0),
            any_dirty: watch::Sender::new(false),
            draining: watch::Sender::new(false),
            recovery: tokio::sync::Mutex::new(()),
        }
    }

    /// Keys that the server has not forgotten yet.
    pub(crate) fn dirty_keys(&self) -> usize {
        self.dirty_keys.load(Ordering::Acquire)
    }

    fn stripe(&self, key: &Bytes) -> MutexGuard<'_, u64> {
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash % STRIPES as u64).unwrap_or_default();
        self.stripes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a read is sent.
    pub(crate) fn begin_read(&self, slot: &Slot, now: Instant) -> BeginRead {
        let generation = self.stripe(&slot.key);
        if self.dirty_keys() > 0
            && let Some(answer) = self.dirty().read(slot, now)
        {
            return BeginRead::Local(answer);
        }
        BeginRead::Ask(Ticket(*generation))
    }

    /// The server answered a read that was sent at `sent`. Gives what to tell the caller: a write
    /// may have gone to the dirty map meanwhile.
    pub(crate) fn filled(
        &self,
        slot: &Slot,
        ticket: Ticket,
        answer: Option<Bytes>,
        sent: Instant,
        now: Instant,
    ) -> Result<Option<Bytes>, Refusal> {
        let generation = self.stripe(&slot.key);
        if self.dirty_keys() > 0
            && let Some(answer) = self.dirty().read(slot, now)
        {
            return answer;
        }
        if *generation == ticket.0 {
            match &answer {
                // Too large to keep is a miss later.
                Some(value) => {
                    let _ = self.shadow.store(slot, value.clone(), sent, None);
                }
                None => {
                    self.shadow.forget(slot);
                }
            }
        }
        Ok(answer)
    }

    /// The server is away.
    pub(crate) fn read(&self, slot: &Slot, now: Instant) -> Result<Option<Bytes>, Refusal> {
        let _stripe = self.stripe(&slot.key);
        match self.dirty().read(slot, now) {
            Some(answer) => answer,
            None => self.shadow.read(slot, now),
        }
    }

    /// Before a write is sent: what was seen of this slot is no longer true.
    pub(crate) fn begin_write(&self, slot: &Slot, change: &Change, now: Instant) -> BeginWrite {
        let mut generation = self.stripe(&slot.key);
        if self.dirty_keys() > 0 && self.dirty().owns(slot) {
            if *self.draining.borrow() {
                return BeginWrite::Draining;
            }
            return BeginWrite::Local(self.write_locked(&mut generation, slot, change, now));
        }
        *generation += 1;
        self.shadow.forget(slot);
        BeginWrite::Ask(Ticket(*generation))
    }

    /// The server acknowledged a write that was sent at `sent`. With another write of this client
    /// since, nobody knows whose value the server holds, so nothing is kept.
    pub(crate) fn landed(&self, slot: &Slot, change: &Change, ticket: Ticket, sent: Instant) {
        let generation = self.stripe(&slot.key);
        match change {
            Change::Put { value, ttl } if *generation == ticket.0 => {
                let deadline = ttl.and_then(|ttl| sent.checked_add(ttl));
                let _ = self.shadow.store(slot, value.clone(), sent, deadline);
            }
            _ => {
                self.shadow.forget(slot);
            }
        }
    }

    /// The server is away: the write stays here, or is refused.
    pub(crate) fn write(
        &self,
        slot: &Slot,
        change: &Change,
        now: Instant,
    ) -> Result<bool, Refusal> {
        let mut generation = self.stripe(&slot.key);
        self.write_locked(&mut generation, slot, change, now)
    }

    fn write_locked(
        &self,
        generation: &mut u64,
        slot: &Slot,
        change: &Change,
        now: Instant,
    ) -> Result<bool, Refusal> {
        // As the server would: a field cannot be written into a text, SET and DEL take any type.
        let known = match self.shadow.read(slot, now) {
            Ok(value) => value.is_some(),
            Err(refusal) if slot.field.is_some() && !self.dirty().owns(slot) => {
                return Err(refusal);
            }
            Err(_) => true,
        };
        if !self.server {
            return match change {
                Change::Put { value, ttl } => {
                    let deadline = ttl.and_then(|ttl| now.checked_add(ttl));
                    self.shadow.store(slot, value.clone(), now, deadline).map(|()| known)
                }
                Change::Remove => {
                    self.shadow.forget(slot);
                    Ok(known)
                }
            };
        }
        let mut dirty = self.dirty();
        let was_dirty = dirty.owns(slot);
        let existed = dirty.write(slot, change, now)?;
        self.dirty_keys.store(dirty.len(), Ordering::Release);
        drop(dirty);
        *generation += 1;
        self.shadow.forget(slot);
        self.any_dirty.send_if_modified(|any| !std::mem::replace(any, true));
        Ok(if was_dirty { existed } else { known })
    }

    /// Resolves once something is dirty.
    pub(crate) async fn until_dirty(&self) {
        let mut any = self.any_dirty.subscribe();
        // The sender lives in `self`.
        let _ = any.wait_for(|any| *any).await;
    }

    /// Waits until the recovery in progress has told how it ended, no longer than its caller may.
    pub(crate) async fn until_drained(&self, limit: Option<Duration>) {
        let mut draining = self.draining.subscribe();
        let quiet = draining.wait_for(|draining| !*draining);
        let limit = limit.map_or(DRAIN_WAIT, |limit| limit.min(DRAIN_WAIT));
        let _ = tokio::time::timeout(limit, quiet).await;
    }

    /// One recovery at a time, whatever the number of runtimes.
    pub(crate) async fn recovery_turn(&self) -> Turn<'_, ()> {
        self.recovery.lock().await
    }

    /// Some of what the server must forget; writes of dirty keys wait while it is held.
    pub(crate) fn drain(&self, size: usize) -> Drain<'_> {
        self.draining.send_replace(true);
        // After the flag: from here on nothing is added to these keys.
        let tasks = self.dirty().batch(size);
        Drain { fallback: self, tasks }
    }
}

/// A batch being deleted at the server.
pub(crate) struct Drain<'a> {
    fallback: &'a Fallback,
    pub(crate) tasks: Vec<Task>,
}

impl Drain<'_> {
    /// The server has forgotten them all; says whether anything is dirty still.
    pub(crate) fn acknowledge(self) -> bool {
        let fallback = self.fallback;
        for task in &self.tasks {
            let _stripe = fallback.stripe(&task.key);
            let mut dirty = fallback.dirty();
            dirty.acknowledge(task);
            fallback.dirty_keys.store(dirty.len(), Ordering::Release);
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
        self.fallback.draining.send_replace(false);
    }
}

#[cfg(test)]
mod tests;
