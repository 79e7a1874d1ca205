//! What answers while the server is away.
//!
//! The promise: a read of this client never gives a value older than its last write that returned
//! `Ok`. Two stores keep it. The *shadow* holds values seen; it is read only while degraded. The
//! *dirty* map holds what was written meanwhile; it is read first, always, until the server has
//! acknowledged that it forgot its own, older values of those keys.
//!
//! Both are touched under the stripe lock of their key. Its generation counts the beginnings and ends
//! of this client's writes: an answer of the server is kept only if none was under way since it was
//! asked for.

mod dirty;
mod drain;
mod fields;
mod known;
mod shadow;

use crate::{
    command::{Change, Slot},
    config::{FallbackConfig, Mode},
    query::Query,
};
use bytes::Bytes;
pub(crate) use dirty::{Dirty, Task};
pub(crate) use drain::{Batch, Drain};
pub(crate) use known::{Held, Known, Life, Pairs, Standing};
use lru::DefaultHasher;
pub(crate) use shadow::{Before, Shadow};
use std::{
    hash::BuildHasher,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

const STRIPES: usize = 64;

/// Why the fallback cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No room for another write.
    Full,
    /// Heavier than all there is room for.
    TooHeavy,
    WrongType,
    /// The value is not a whole number, or would be too large a one.
    NotANumber,
    /// Memory does not know, or may not do, what is asked.
    Unavailable,
}

/// The state of this client's writes at a key when a command was sent.
#[derive(Clone, Copy)]
pub(crate) struct Ticket {
    generation: u64,
    /// Where its key belongs, which is not to be asked twice.
    stripe: usize,
}

pub(crate) enum BeginRead<T> {
    /// Written here: the server does not know yet.
    Local(Result<Known<T>, Refusal>),
    /// Partly: wait for the recovery, then begin again.
    Mixed,
    Ask(Ticket),
}

pub(crate) enum BeginWrite {
    /// The key was written here, and this write belongs to it.
    Local,
    /// The recovery is deleting this key right now: wait for it, then begin again.
    Draining,
    /// With what was known of the slot, which is no longer true once the write has happened.
    Ask(Ticket, Before),
}

/// What orders the calls on its keys.
#[derive(Default)]
struct Stripe {
    /// Changed under the lock, looked at without.
    generation: AtomicU64,
    lock: Mutex<()>,
}

impl Stripe {
    fn lock(&self) -> Locked<'_> {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { generation: &self.generation, _guard: guard }
    }

    /// Before the look at what is dirty: that is written first.
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

/// A stripe while nobody else may touch its keys.
struct Locked<'a> {
    generation: &'a AtomicU64,
    _guard: MutexGuard<'a, ()>,
}

impl Locked<'_> {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// A write of this client begins or ends.
    fn next(&self) -> u64 {
        let next = self.generation() + 1;
        self.generation.store(next, Ordering::Release);
        next
    }
}

pub(crate) struct Fallback {
    /// Without a server the shadow is all there is: nothing is dirty and nothing gets stale.
    server: bool,
    writes: bool,
    counters: bool,
    stripes: [Stripe; STRIPES],
    /// Quick, and seeded anew in each process.
    hasher: DefaultHasher,
    shadow: Shadow,
    dirty: Mutex<Dirty>,
    /// Keys in `dirty`; changed under a key's stripe lock, so that key's next call sees it.
    dirty_keys: AtomicUsize,
    any_dirty: watch::Sender<bool>,
    draining: watch::Sender<Batch>,
    /// The code by which the server refuses to forget what it is told to.
    refused: Mutex<Option<String>>,
}

impl Fallback {
    pub(crate) fn new(config: &FallbackConfig, server: bool) -> Self {
        let max_stale = server.then_some(config.max_stale);
        Self {
            server,
            writes: config.mode == Mode::On,
            counters: config.counters,
            stripes: std::array::from_fn(|_| Stripe::default()),
            hasher: DefaultHasher::default(),
            shadow: Shadow::new(config.max_entries, config.max_bytes, max_stale),
            dirty: Mutex::new(Dirty::new(config.max_dirty_entries, config.max_dirty_bytes)),
            dirty_keys: AtomicUsize::new(0),
            any_dirty: watch::Sender::new(false),
            draining: watch::Sender::new(None),
            refused: Mutex::new(None),
        }
    }

    /// Keys that the server has not forgotten yet.
    pub(crate) fn dirty_keys(&self) -> usize {
        self.dirty_keys.load(Ordering::Acquire)
    }

    /// Whether the server has not forgotten this one yet.
    pub(crate) fn is_dirty(&self, key: &Bytes) -> bool {
        self.dirty().touches(key)
    }

    /// Entries and bytes of values seen, about.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.shadow.size()
    }

    /// Frees what has expired.
    pub(crate) fn tidy(&self) {
        self.shadow.tidy(Instant::now());
    }

    /// Whether this change may be made here while the server is away.
    pub(crate) const fn takes(&self, change: &Change) -> bool {
        match change {
            Change::Add(_) => self.writes && self.counters,
            _ => self.writes,
        }
    }

    fn stripe_of(&self, key: &Bytes) -> usize {
        let hash = self.hasher.hash_one(key);
        usize::try_from(hash % STRIPES as u64).unwrap_or_default()
    }

    fn stripe(&self, key: &Bytes) -> Locked<'_> {
        self.stripes[self.stripe_of(key)].lock()
    }

    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a question is sent.
    pub(crate) fn begin_read<Q: Query>(&self, query: &Q, now: Instant) -> BeginRead<Q::Found> {
        let stripe = self.stripe_of(query.key());
        let mut generation = self.stripes[stripe].generation();
        if self.dirty_keys() > 0 {
            let locked = self.stripes[stripe].lock();
            generation = locked.generation();
            match query.dirty(&self.dirty(), now) {
                Standing::Dirty(known) => return BeginRead::Local(known),
                Standing::Mixed => return BeginRead::Mixed,
                Standing::Clean => {}
            }
        }
        BeginRead::Ask(Ticket { generation, stripe })
    }

    /// The server answered a question that was sent at `sent`. Gives what memory knows better: a
    /// write may have been kept here meanwhile.
    #[inline]
    pub(crate) fn filled<Q: Query>(
        &self,
        query: &Q,
        ticket: Ticket,
        found: &Q::Found,
        sent: Instant,
    ) -> Option<Result<Known<Q::Found>, Refusal>> {
        // Nothing is changed then, so that no other call has to be kept out.
        if self.dirty_keys() == 0 && query.is_kept(&self.shadow, found, sent) {
            return None;
        }
        self.filled_anew(query, ticket, found, sent)
    }

    #[inline(never)]
    fn filled_anew<Q: Query>(
        &self,
        query: &Q,
        ticket: Ticket,
        found: &Q::Found,
        sent: Instant,
    ) -> Option<Result<Known<Q::Found>, Refusal>> {
        let stripe = self.stripes[ticket.stripe].lock();
        if self.dirty_keys() > 0 {
            let now = Instant::now();
            let dirty = self.dirty();
            match query.dirty(&dirty, now) {
                Standing::Clean => {}
                Standing::Dirty(known) => return Some(known),
                Standing::Mixed => return Some(query.memory(&dirty, &self.shadow, now)),
            }
        }
        if stripe.generation() == ticket.generation {
            query.keep(&self.shadow, found, sent);
        }
        None
    }

    /// The server is away.
    pub(crate) fn read<Q: Query>(
        &self,
        query: &Q,
        now: Instant,
    ) -> Result<Known<Q::Found>, Refusal> {
        let _stripe = self.stripe(query.key());
        query.memory(&self.dirty(), &self.shadow, now)
    }

    /// Before a write is sent: what was seen of this slot is no longer true.
    pub(crate) fn begin_write(&self, slot: &Slot, now: Instant) -> BeginWrite {
        let stripe = self.stripe_of(&slot.key);
        let locked = self.stripes[stripe].lock();
        if self.dirty_keys() > 0 && self.dirty().owns(slot) {
            let drains = drain::is_under_way(*self.draining.borrow(), now);
            return if drains { BeginWrite::Draining } else { BeginWrite::Local };
        }
        let generation = locked.next();
        let before = self.shadow.take(slot, now);
        BeginWrite::Ask(Ticket { generation, stripe }, before)
    }

    /// The server acknowledged a write that was sent at `sent`. With another write of this client
    /// since, nobody knows whose value the server holds, so nothing is kept.
    pub(crate) fn landed(&self, slot: &Slot, change: &Change, ticket: Ticket, sent: Instant) {
        self.landed_among(slot, change, ticket, 0, sent);
    }

    /// Writes of one call, in the order in which they began, were acknowledged together: they do not
    /// outdate each other.
    pub(crate) fn landed_together(&self, writes: &[(&Slot, &Change, Ticket)], sent: Instant) {
        let mut own = [0_u64; STRIPES];
        for (.., ticket) in writes {
            own[ticket.stripe] += 1;
        }
        for (slot, change, ticket) in writes {
            self.landed_among(slot, change, *ticket, own[ticket.stripe] - 1, sent);
        }
    }

    /// Of each write of a call so many `others` of its stripe have begun later or ended before.
    fn landed_among(
        &self,
        slot: &Slot,
        change: &Change,
        ticket: Ticket,
        others: u64,
        sent: Instant,
    ) {
        let stripe = self.stripes[ticket.stripe].lock();
        let alone = stripe.generation() == ticket.generation + others;
        // Answers to what was asked before this write reached the server may still come.
        stripe.next();
        match change {
            Change::Put { value, ttl } if alone => {
                let held = Held { value: value.clone(), at: sent, life: Life::of(*ttl, sent) };
                // Too large to keep is a miss later.
                let _ = self.shadow.store(slot, held);
            }
            _ => self.shadow.forget(slot),
        }
    }

    /// The same of a lifetime that is counted from then, for what was known before, unless something
    /// was seen since.
    pub(crate) fn landed_life(
        &self,
        slot: &Slot,
        before: &Before,
        ttl: Option<Duration>,
        ticket: Ticket,
        sent: Instant,
    ) {
        let known = self.shadow.known_before(before, sent);
        let stripe = self.stripes[ticket.stripe].lock();
        let alone = stripe.generation() == ticket.generation;
        stripe.next();
        match known {
            Ok(Known::Here { what, .. }) if alone && self.shadow.is_taken(slot) => {
                let _ = self.shadow.store(slot, Held { life: Life::of(ttl, sent), ..what });
            }
            _ => self.shadow.forget(slot),
        }
    }

    /// Writes of one call, in their order, were refused before they were sent: what was known stands,
    /// but where this client has begun or ended another since.
    pub(crate) fn put_back<'a>(
        &self,
        taken: impl DoubleEndedIterator<Item = (&'a Slot, Ticket, Before)>,
    ) {
        // Those of one stripe have tickets one after the other.
        let mut later = [0; STRIPES];
        for (slot, ticket, before) in taken.rev() {
            let stripe = self.stripes[ticket.stripe].lock();
            let later = &mut later[ticket.stripe];
            if stripe.generation() == ticket.generation + *later {
                self.shadow.put_back(slot, before);
                *later += 1;
            }
        }
    }

    /// Before a command is sent that only the server can do; `None` while one of its keys is dirty.
    /// The ticket is that of the last key. What was seen is forgotten in the end, as it stays true if
    /// the command is never sent.
    pub(crate) fn begin_direct(&self, keys: &[Bytes], effect: OnKeys) -> Option<Ticket> {
        if self.dirty_keys() > 0 {
            let dirty = self.dirty();
            if effect == OnKeys::MayChangeAll || keys.iter().any(|key| dirty.touches(key)) {
                return None;
            }
        }
        let mut ticket = Ticket { generation: 0, stripe: 0 };
        match effect {
            OnKeys::Reads => {}
            OnKeys::MayChange => {
                for key in keys {
                    let stripe = self.stripe_of(key);
                    ticket = Ticket { generation: self.stripes[stripe].lock().next(), stripe };
                }
            }
            OnKeys::MayChangeAll => {
                for stripe in &self.stripes {
                    stripe.lock().next();
                }
            }
        }
        Some(ticket)
    }

    /// After it, unless it was never sent.
    pub(crate) fn end_direct(&self, keys: &[Bytes], effect: OnKeys) {
        match effect {
            OnKeys::Reads => {}
            OnKeys::MayChange => {
                for key in keys {
                    let stripe = self.stripe(key);
                    stripe.next();
                    self.shadow.forget(&Slot { key: key.clone(), field: None });
                }
            }
            // Nothing that was seen is true any more.
            OnKeys::MayChangeAll => {
                for stripe in &self.stripes {
                    stripe.lock().next();
                }
                self.shadow.clear();
            }
        }
    }

    /// The server is away: the write stays here, or is refused. Gives what the server would: a
    /// counter's new value, else 1 if there was something to change, else 0.
    pub(crate) fn write(&self, slot: &Slot, change: &Change, now: Instant) -> Result<i64, Refusal> {
        self.write_after(slot, change, None, now)
    }

    /// The same after it could not be sent. What was known before stands if this client has written
    /// nothing there since, nor seen anything.
    pub(crate) fn write_after(
        &self,
        slot: &Slot,
        change: &Change,
        before: Option<(Ticket, &Before)>,
        now: Instant,
    ) -> Result<i64, Refusal> {
        if !self.takes(change) {
            return Err(Refusal::Unavailable);
        }
        let stripe = self.stripe(&slot.key);
        let mut dirty = self.dirty();
        let known = match dirty.read(slot, now) {
            Standing::Dirty(known) => known,
            // Fields were written here, so that it is a hash.
            Standing::Mixed => Err(Refusal::WrongType),
            Standing::Clean => match (self.shadow.read(slot, now), before) {
                (Ok(Known::Unknown), Some((ticket, before)))
                    if ticket.generation == stripe.generation() && self.shadow.is_taken(slot) =>
                {
                    self.shadow.known_before(before, now)
                }
                (known, _) => known,
            },
        };
        // What was only seen gets stale whatever lifetime it is given.
        let stale = match (change, &known) {
            (Change::Expire(_), _) if dirty.touches(&slot.key) => dirty.stale(&slot.key),
            (Change::Expire(_), Ok(Known::Here { at, .. })) => self.shadow.stale(*at),
            _ => None,
        };
        let Some((held, answer)) = applied(slot, change, known, now)? else { return Ok(0) };
        if !self.server {
            drop(dirty);
            match held {
                Some(held) if self.shadow.fits(slot, &held) => self.shadow.store(slot, held)?,
                Some(_) => return Err(Refusal::TooHeavy),
                None => self.shadow.forget(slot),
            }
            return Ok(answer);
        }
        dirty.write(slot, held.map(Held::alone), now)?;
        if let Some(at) = stale {
            dirty.gets_stale(&slot.key, at);
        }
        self.dirty_keys.store(dirty.len(), Ordering::Release);
        drop(dirty);
        // After the count, by which the next call sees that it is dirty.
        stripe.next();
        self.shadow.forget(slot);
        drop(stripe);
        self.any_dirty.send_if_modified(|any| !std::mem::replace(any, true));
        Ok(answer)
    }

    /// Resolves once something is dirty.
    pub(crate) async fn until_dirty(&self) {
        let mut any = self.any_dirty.subscribe();
        // The sender lives in `self`.
        let _ = any.wait_for(|any| *any).await;
    }

    /// By which code the server refuses to forget, so that keys stay here.
    pub(crate) fn refused(&self) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says whether this is news.
    pub(crate) fn set_refused(&self, code: Option<String>) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *refused != code;
        *refused = code;
        is_new
    }
}

/// What a command does to the keys it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OnKeys {
    Reads,
    MayChange,
    /// Those it does not name too.
    MayChangeAll,
}

/// What a change makes of what was there, and what it answers; `None` when it changes nothing.
#[allow(clippy::type_complexity, reason = "a name would say less")]
fn applied(
    slot: &Slot,
    change: &Change,
    known: Result<Known<Held>, Refusal>,
    now: Instant,
) -> Result<Option<(Option<Held>, i64)>, Refusal> {
    // SET and DEL do not mind the type; a field can only be written into a hash.
    let any_type = slot.field.is_none();
    let existed = || match &known {
        Ok(Known::Here { .. }) => Ok(1),
        Ok(_) => Ok(0),
        Err(Refusal::WrongType) if any_type => Ok(1),
        Err(refusal) => Err(*refusal),
    };
    Ok(Some(match change {
        Change::Put { value, ttl } => {
            let existed = existed()?;
            let held = Held { value: value.clone(), at: now, life: Life::of(*ttl, now) };
            (Some(held), existed)
        }
        Change::Remove => (None, existed()?),
        Change::Expire(ttl) => match known {
            Ok(Known::Here { what, .. }) => match (ttl, what.life) {
                (None, Life::Forever) => return Ok(None),
                (None, Life::Unknown) => return Err(Refusal::Unavailable),
                (ttl, _) => (Some(Held { life: Life::of(*ttl, now), ..what }), 1),
            },
            Ok(Known::Absent) => return Ok(None),
            // Of a hash, or of a key that the server may hold, too little is known.
            _ => return Err(Refusal::Unavailable),
        },
        Change::Add(n) => {
            let (old, life) = match known? {
                Known::Here { what, .. } => (whole_number(&what.value)?, what.life),
                _ => (0, Life::Forever),
            };
            let sum = old.checked_add(*n).ok_or(Refusal::NotANumber)?;
            let value = Bytes::from(sum.to_string());
            (Some(Held { value, at: now, life }), sum)
        }
    }))
}

/// As strict as the server: no sign `+`, no spaces, no leading zeros.
fn whole_number(text: &[u8]) -> Result<i64, Refusal> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    number.filter(|n| n.to_string().as_bytes() == text).ok_or(Refusal::NotANumber)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
