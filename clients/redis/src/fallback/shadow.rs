//! The last values seen: bounded by number and bytes, least recently used first out.
//!
//! Losing an entry is a miss, so the cache may drop what it likes. The owner orders the calls on
//! one key; the lock in here is held for a look or a change of the order, for no copy of a value.

use super::{
    Refusal,
    fields::{Fields, HASH_OVERHEAD, Whole, allocated, field_weight},
    known::{Held, Known, Life, Pairs},
};
use crate::command::Slot;
use bytes::Bytes;
use lru::LruCache;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What an entry takes beside its key and value: a node in the order of use, the count of a value's
/// owners, and its share of a table that may have grown to twice what it needs.
const OVERHEAD: u64 = 112 + 32 + 80;

/// A text that is compared while others wait for the lock, since that is quicker than to be counted
/// among its owners.
const SHORT: usize = 4096;

#[derive(Clone)]
enum Shadowed {
    Text(Held),
    Hash(Arc<Mutex<Fields>>),
}

fn lock(fields: &Mutex<Fields>) -> MutexGuard<'_, Fields> {
    fields.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Entry {
    /// `None` since a write was sent, whose value will most likely be kept here.
    shadowed: Option<Shadowed>,
    weight: u64,
}

/// In the order of their use.
struct Entries {
    by_key: LruCache<Box<[u8]>, Entry>,
    bytes: u64,
}

impl Entries {
    fn new() -> Self {
        Self { by_key: LruCache::unbounded(), bytes: 0 }
    }

    fn put(&mut self, key: &Bytes, entry: Entry) {
        self.bytes += entry.weight;
        let old = match self.by_key.get_mut(&key[..]) {
            Some(old) => Some(std::mem::replace(old, entry)),
            None => self.by_key.put(key[..].into(), entry),
        };
        self.bytes -= old.map_or(0, |old| old.weight);
    }

    fn remove(&mut self, key: &Bytes) -> Option<Shadowed> {
        let old = self.by_key.pop(&key[..])?;
        self.bytes -= old.weight;
        old.shadowed
    }

    fn take(&mut self, key: &Bytes) -> Option<Shadowed> {
        self.by_key.get_mut(&key[..])?.shadowed.take()
    }

    fn drop_oldest(&mut self) {
        if let Some((_, old)) = self.by_key.pop_lru() {
            self.bytes -= old.weight;
        }
    }
}

/// What was taken out before a write was sent.
pub(crate) enum Before {
    Nothing,
    /// It may be too old to be told.
    Value(Held),
    Hash(Arc<Mutex<Fields>>),
    /// A text where a field is to be written; it is there still.
    Text,
}

pub(crate) struct Shadow {
    entries: Mutex<Entries>,
    max_entries: usize,
    max_bytes: u64,
    max_stale: Option<Duration>,
}

impl Shadow {
    pub(crate) fn new(max_entries: u64, max_bytes: u64, max_stale: Option<Duration>) -> Self {
        let max_entries = usize::try_from(max_entries.max(1)).unwrap_or(usize::MAX);
        Self { entries: Mutex::new(Entries::new()), max_entries, max_bytes, max_stale }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is at a key, which is then the one used last.
    fn get(&self, key: &Bytes) -> Option<Shadowed> {
        self.entries().by_key.get(&key[..])?.shadowed.clone()
    }

    fn remove(&self, key: &Bytes) -> Option<Shadowed> {
        self.entries().remove(key)
    }

    fn recent(&self, at: Instant, now: Instant) -> bool {
        self.max_stale.is_none_or(|max| age(at, now) <= max)
    }

    /// Until when a value that was seen then is recent.
    pub(crate) fn stale(&self, at: Instant) -> Option<Instant> {
        at.checked_add(self.max_stale?)
    }

    fn fresh(&self, held: &Held, now: Instant) -> bool {
        self.is_fresh(held.at, held.life, now)
    }

    fn is_fresh(&self, at: Instant, life: Life, now: Instant) -> bool {
        !life.is_over(now) && self.recent(at, now)
    }

    /// Whether anything of a hash may be told.
    fn any_fresh(&self, fields: &Mutex<Fields>, now: Instant) -> bool {
        lock(fields).seen.values().any(|held| self.fresh(held, now))
    }

    /// Since when this text is known to be at a key, and for how long.
    fn known(&self, key: &Bytes, text: &Bytes) -> Option<(Instant, Life)> {
        let mut entries = self.entries();
        let Some(Shadowed::Text(held)) = &entries.by_key.get(&key[..])?.shadowed else {
            return None;
        };
        if held.value.len() != text.len() {
            return None;
        }
        let (at, life) = (held.at, held.life);
        let same = if text.len() <= SHORT {
            held.value == *text
        } else {
            let value = held.value.clone();
            drop(entries);
            value == *text
        };
        same.then_some((at, life))
    }

    /// Without a server there is no more than this.
    pub(crate) const fn is_all(&self) -> bool {
        self.max_stale.is_none()
    }

    /// When anything of a hash was seen last.
    pub(crate) fn hash(&self, key: &Bytes) -> Option<Instant> {
        match self.get(key)? {
            Shadowed::Hash(fields) => lock(&fields).seen.values().map(|held| held.at).max(),
            Shadowed::Text(_) => None,
        }
    }

    pub(crate) fn read(&self, slot: &Slot, now: Instant) -> Result<Known<Held>, Refusal> {
        let held = match (self.get(&slot.key), &slot.field) {
            (None, _) => None,
            (Some(Shadowed::Text(held)), None) => Some(held),
            (Some(Shadowed::Hash(fields)), Some(field)) => lock(&fields).seen.get(field).cloned(),
            (Some(Shadowed::Text(held)), Some(_)) if !self.fresh(&held, now) => None,
            (Some(Shadowed::Hash(fields)), None) if !self.any_fresh(&fields, now) => None,
            (Some(_), _) => return Err(Refusal::WrongType),
        };
        let fresh = held.filter(|held| self.fresh(held, now));
        Ok(fresh.map_or(Known::Unknown, |held| Known::Here { at: held.at, what: held }))
    }

    /// All fields of a hash, if all are known.
    pub(crate) fn read_all(&self, key: &Bytes, now: Instant) -> Result<Known<Pairs>, Refusal> {
        let fields = match self.get(key) {
            None => return Ok(Known::Unknown),
            Some(Shadowed::Text(held)) if !self.fresh(&held, now) => return Ok(Known::Unknown),
            Some(Shadowed::Text(_)) => return Err(Refusal::WrongType),
            Some(Shadowed::Hash(fields)) => fields,
        };
        let held = lock(&fields);
        let complete = match self.max_stale {
            Some(_) => held.whole.since().filter(|at| self.recent(*at, now)),
            // Without a server there is no more of it than this.
            None => held.seen.values().map(|held| held.at).max(),
        };
        match complete {
            Some(at) => {
                let pair = |(field, held): (&Bytes, &Held)| (field.clone(), held.value.clone());
                Ok(Known::Here { what: held.seen.iter().map(pair).collect(), at })
            }
            None if held.seen.values().any(|held| self.fresh(held, now)) => {
                Err(Refusal::Unavailable)
            }
            None => Ok(Known::Unknown),
        }
    }

    /// Whether there is room for a value, if not for much else.
    pub(crate) fn fits(&self, slot: &Slot, held: &Held) -> bool {
        let value = match (&slot.field, self.get(&slot.key)) {
            (None, _) => allocated(held.value.len()),
            (Some(field), Some(Shadowed::Hash(fields))) => {
                let fields = lock(&fields);
                let old = fields.seen.get(field).map_or(0, |old| field_weight(field, old));
                HASH_OVERHEAD + fields.bytes - old + field_weight(field, held)
            }
            (Some(field), _) => HASH_OVERHEAD + field_weight(field, held),
        };
        allocated(slot.key.len()) + value + OVERHEAD <= self.max_bytes
    }

    /// Keeps a value; refused if it is heavier than all there is room for, and then the older one is
    /// gone all the same.
    pub(crate) fn store(&self, slot: &Slot, held: Held) -> Result<(), Refusal> {
        let held = held.alone();
        let shadowed = match &slot.field {
            None => Shadowed::Text(held),
            Some(field) => {
                if !self.fits(slot, &held) {
                    self.forget(slot);
                    return Err(Refusal::TooHeavy);
                }
                let fields = match self.get(&slot.key) {
                    Some(Shadowed::Hash(fields)) => fields,
                    _ => Arc::default(),
                };
                lock(&fields).put(field, held);
                Shadowed::Hash(fields)
            }
        };
        self.insert(&slot.key, shadowed)
    }

    fn insert(&self, key: &Bytes, shadowed: Shadowed) -> Result<(), Refusal> {
        let weight = weight(key, &shadowed);
        let mut entries = self.entries();
        if weight > self.max_bytes {
            entries.remove(key);
            return Err(Refusal::TooHeavy);
        }
        entries.put(key, Entry { shadowed: Some(shadowed), weight });
        while entries.bytes > self.max_bytes || entries.by_key.len() > self.max_entries {
            entries.drop_oldest();
        }
        Ok(())
    }

    /// Whether an answer of the server is what is held, so that there is nothing to keep: of a text
    /// that has not changed only the age may have, which is written down again once it matters, as a
    /// look is half the price of a write.
    pub(crate) fn holds(&self, slot: &Slot, value: &Bytes, at: Instant) -> bool {
        slot.field.is_none()
            && self.known(&slot.key, value).is_some_and(|(old, life)| {
                !life.is_over(at) && self.max_stale.is_none_or(|max| age(old, at) <= max / 8)
            })
    }

    /// Keeps an answer of the server.
    pub(crate) fn seen(&self, slot: &Slot, value: &Bytes, at: Instant) {
        let mut life = Life::Unknown;
        if slot.field.is_none()
            && let Some((old, its_life)) = self.known(&slot.key, value)
            && self.is_fresh(old, its_life, at)
        {
            life = its_life;
        }
        // Too large to keep is a miss later.
        let _ = self.store(slot, Held { value: value.clone(), at, life });
    }

    /// The server has no value for this slot.
    pub(crate) fn seen_absent(&self, slot: &Slot) {
        let Some(field) = &slot.field else { return drop(self.remove(&slot.key)) };
        match self.get(&slot.key) {
            Some(Shadowed::Hash(fields)) => {
                let gone = lock(&fields).remove(field);
                if gone.is_some() {
                    let _ = self.insert(&slot.key, Shadowed::Hash(fields));
                }
            }
            Some(Shadowed::Text(_)) => drop(self.remove(&slot.key)),
            None => {}
        }
    }

    /// The server's whole hash.
    pub(crate) fn seen_all(&self, key: &Bytes, pairs: &Pairs, at: Instant) {
        let slot = Slot { key: key.clone(), field: None };
        if pairs.is_empty() {
            return self.seen_absent(&slot);
        }
        let mut fields = Fields { whole: Whole::Since(at), ..Fields::default() };
        for (field, value) in pairs {
            let held = Held { value: value.clone(), at, life: Life::Unknown };
            fields.put(&Bytes::copy_from_slice(field), held.alone());
        }
        let _ = self.insert(key, Shadowed::Hash(Arc::new(Mutex::new(fields))));
    }

    /// The server said how long a text lives.
    pub(crate) fn seen_life(&self, key: &Bytes, life: Life) {
        if let Some(Shadowed::Text(held)) = self.get(key) {
            let _ = self.insert(key, Shadowed::Text(Held { life, ..held }));
        }
    }

    /// Takes out what is known of this slot. A text stays where a field is to be written: the server
    /// refuses that, or the text is another client's loss.
    pub(crate) fn take(&self, slot: &Slot, now: Instant) -> Before {
        let taken = match &slot.field {
            None => match self.entries().take(&slot.key) {
                Some(Shadowed::Text(held)) => Some(held),
                Some(Shadowed::Hash(fields)) => return Before::Hash(fields),
                None => None,
            },
            Some(field) => match self.get(&slot.key) {
                Some(Shadowed::Text(held)) if self.fresh(&held, now) => return Before::Text,
                Some(Shadowed::Text(_)) => {
                    self.remove(&slot.key);
                    None
                }
                Some(Shadowed::Hash(fields)) => {
                    let mut held = lock(&fields);
                    let taken = held.remove(field);
                    held.taken = Some(field.clone());
                    held.whole = held.whole.touched();
                    drop(held);
                    if taken.is_some() {
                        let _ = self.insert(&slot.key, Shadowed::Hash(fields));
                    }
                    taken
                }
                None => None,
            },
        };
        taken.map_or(Before::Nothing, Before::Value)
    }

    /// What was taken says this of its slot.
    pub(crate) fn known_before(
        &self,
        before: &Before,
        now: Instant,
    ) -> Result<Known<Held>, Refusal> {
        Ok(match before {
            Before::Value(held) if self.fresh(held, now) => {
                Known::Here { at: held.at, what: held.clone() }
            }
            Before::Hash(fields) if !self.any_fresh(fields, now) => Known::Unknown,
            Before::Hash(_) | Before::Text => return Err(Refusal::WrongType),
            Before::Value(_) | Before::Nothing => Known::Unknown,
        })
    }

    /// Puts back what was taken by the write that began last at this key, where nothing was seen since.
    pub(crate) fn put_back(&self, slot: &Slot, before: Before) {
        match (&slot.field, before) {
            (None, Before::Value(held)) if self.is_taken(slot) => {
                let _ = self.insert(&slot.key, Shadowed::Text(held));
            }
            (None, Before::Hash(fields)) if self.is_taken(slot) => {
                let _ = self.insert(&slot.key, Shadowed::Hash(fields));
            }
            (Some(field), before) => {
                let Some(Shadowed::Hash(fields)) = self.get(&slot.key) else { return };
                let mut held = lock(&fields);
                // Seen whole since, it says more.
                if held.whole.since().is_some() {
                    return;
                }
                if let Whole::Before(at) = held.whole {
                    held.whole = Whole::Since(at);
                }
                let still_taken = held.taken.take().as_ref() == Some(field);
                if let Before::Value(value) = before
                    && still_taken
                {
                    held.put(field, value);
                }
                drop(held);
                let _ = self.insert(&slot.key, Shadowed::Hash(fields));
            }
            _ => {}
        }
    }

    /// Nothing was seen of a slot, and not that it is gone, since what was known of it was taken.
    pub(crate) fn is_taken(&self, slot: &Slot) -> bool {
        let entries = self.entries();
        let Some(entry) = entries.by_key.peek(&slot.key[..]) else { return false };
        match (&slot.field, &entry.shadowed) {
            (None, shadowed) => shadowed.is_none(),
            (Some(field), Some(Shadowed::Hash(fields))) => {
                lock(fields).taken.as_ref() == Some(field)
            }
            (Some(_), _) => false,
        }
    }

    /// Drops what is known of this slot.
    pub(crate) fn forget(&self, slot: &Slot) {
        let is_over = slot.field.is_none()
            || matches!(self.take(slot, Instant::now()), Before::Text)
            || match self.get(&slot.key) {
                Some(Shadowed::Hash(fields)) => {
                    let mut fields = lock(&fields);
                    // Nobody puts this back.
                    (fields.whole, fields.taken) = (Whole::Unknown, None);
                    fields.seen.is_empty()
                }
                _ => false,
            };
        if is_over {
            self.remove(&slot.key);
        }
    }

    pub(crate) fn clear(&self) {
        let old = std::mem::replace(&mut *self.entries(), Entries::new());
        drop(old);
    }

    /// Frees what has expired, up to the first that has not in the order of use. What is behind that
    /// is told to nobody, and goes when its place is wanted.
    pub(crate) fn tidy(&self, now: Instant) {
        loop {
            // Anew for each, so that calls may come between.
            let mut entries = self.entries();
            match entries.by_key.peek_lru() {
                Some((_, oldest)) if self.is_over(oldest, now) => entries.drop_oldest(),
                _ => return,
            }
        }
    }

    fn is_over(&self, entry: &Entry, now: Instant) -> bool {
        match &entry.shadowed {
            None => true,
            Some(Shadowed::Text(held)) => !self.fresh(held, now),
            Some(Shadowed::Hash(fields)) => !self.any_fresh(fields, now),
        }
    }

    /// Entries held, and the bytes they take.
    pub(crate) fn size(&self) -> (u64, u64) {
        let entries = self.entries();
        (entries.by_key.len() as u64, entries.bytes)
    }
}

fn age(at: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(at)
}

fn weight(key: &Bytes, value: &Shadowed) -> u64 {
    let value = match value {
        Shadowed::Text(held) => allocated(held.value.len()),
        Shadowed::Hash(fields) => lock(fields).bytes + HASH_OVERHEAD,
    };
    allocated(key.len()) + value + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shadow(max_stale: Option<Duration>) -> Shadow {
        Shadow::new(100, 100_000, max_stale)
    }

    fn value(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn held(text: &'static str, at: Instant, life: Life) -> Held {
        Held { value: value(text), at, life }
    }

    fn read(shadow: &Shadow, slot: &Slot, now: Instant) -> Option<Bytes> {
        match shadow.read(slot, now).unwrap() {
            Known::Here { what, .. } => Some(what.value),
            _ => None,
        }
    }

    #[test]
    fn a_value_goes_with_its_deadline_or_its_age() {
        let (shadow, now) = (shadow(Some(Duration::from_secs(60))), Instant::now());
        let (k, l) = (Slot::key("k"), Slot::key("l"));
        let at = |seconds| now + Duration::from_secs(seconds);
        shadow.store(&k, held("1", now, Life::Until(at(10)))).unwrap();
        shadow.store(&l, held("2", now, Life::Forever)).unwrap();
        assert_eq!(read(&shadow, &k, at(9)), Some(value("1")));
        assert_eq!(read(&shadow, &k, at(10)), None);
        assert_eq!(read(&shadow, &l, at(60)), Some(value("2")));
        assert_eq!(read(&shadow, &l, at(61)), None);
    }

    #[test]
    fn a_value_without_lifetime_does_not_inherit_one() {
        let (shadow, now) = (shadow(None), Instant::now());
        let k = Slot::key("k");
        shadow.store(&k, held("1", now, Life::Until(now + Duration::from_millis(20)))).unwrap();
        shadow.store(&k, held("2", now, Life::Forever)).unwrap();
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(read(&shadow, &k, Instant::now()), Some(value("2")));
    }

    #[test]
    fn the_server_s_answer_does_not_lengthen_the_life_this_client_gave() {
        let (shadow, now) = (shadow(Some(Duration::from_secs(60))), Instant::now());
        let k = Slot::key("k");
        let at = |seconds| now + Duration::from_secs(seconds);
        shadow.store(&k, held("1", now, Life::Until(at(50)))).unwrap();
        shadow.seen(&k, &value("1"), at(40));
        assert_eq!(read(&shadow, &k, at(49)), Some(value("1")));
        assert_eq!(read(&shadow, &k, at(50)), None);
        // Another value is somebody else's, of whose life nothing is known.
        shadow.seen(&k, &value("2"), at(45));
        assert_eq!(read(&shadow, &k, at(100)), Some(value("2")));
    }

    #[test]
    fn an_answer_keeps_a_value_young() {
        let (shadow, now) = (shadow(Some(Duration::from_secs(60))), Instant::now());
        let k = Slot::key("k");
        for seconds in (0..200).step_by(5) {
            shadow.seen(&k, &value("1"), now + Duration::from_secs(seconds));
        }
        assert_eq!(read(&shadow, &k, now + Duration::from_secs(240)), Some(value("1")));
        assert_eq!(read(&shadow, &k, now + Duration::from_secs(260)), None);
    }

    #[test]
    fn fields_come_and_go_one_by_one() {
        let (shadow, now) = (shadow(None), Instant::now());
        let (f, g) = (Slot::field("k", "f"), Slot::field("k", "g"));
        shadow.store(&f, held("1", now, Life::Forever)).unwrap();
        shadow.store(&g, held("2", now, Life::Forever)).unwrap();
        assert_eq!(read(&shadow, &f, now), Some(value("1")));
        assert_eq!(shadow.read(&Slot::key("k"), now), Err(Refusal::WrongType));
        shadow.forget(&f);
        assert_eq!(read(&shadow, &f, now), None);
        assert_eq!(read(&shadow, &g, now), Some(value("2")));
        shadow.forget(&g);
        assert_eq!(shadow.read(&Slot::key("k"), now), Ok(Known::Unknown));
    }

    #[test]
    fn a_hash_is_whole_once_seen_whole_and_until_this_client_changes_it() {
        let (shadow, now) = (shadow(Some(Duration::from_secs(60))), Instant::now());
        let (key, f) = (Bytes::from("k"), Slot::field("k", "f"));
        assert_eq!(shadow.read_all(&key, now), Ok(Known::Unknown));
        shadow.seen(&f, &value("1"), now);
        assert_eq!(shadow.read_all(&key, now), Err(Refusal::Unavailable), "there may be others");
        let pairs = vec![(value("f"), value("1"))];
        shadow.seen_all(&key, &pairs, now);
        assert_eq!(shadow.read_all(&key, now), Ok(Known::Here { what: pairs, at: now }));
        assert_eq!(read(&shadow, &f, now), Some(value("1")));
        let later = now + Duration::from_secs(61);
        assert_eq!(shadow.read_all(&key, later), Ok(Known::Unknown));
        shadow.forget(&Slot::field("k", "g"));
        assert_eq!(shadow.read_all(&key, now), Err(Refusal::Unavailable));
    }

    #[test]
    fn it_holds_no_more_than_its_room() {
        let (shadow, now) = (shadow(None), Instant::now());
        for n in 0..1000 {
            shadow.store(&Slot::key(format!("k{n}")), held("v", now, Life::Forever)).unwrap();
        }
        assert_eq!(shadow.size().0, 100);
        assert_eq!(read(&shadow, &Slot::key("k999"), now), Some(value("v")));
        let heavy = Held { value: vec![0; 200_000].into(), at: now, life: Life::Forever };
        assert_eq!(shadow.store(&Slot::key("h"), heavy.clone()), Err(Refusal::TooHeavy));
        // A field takes no others along, only what it was before.
        let (f, g) = (Slot::field("h", "f"), Slot::field("h", "g"));
        for field in [&f, &g] {
            shadow.store(field, held("v", now, Life::Forever)).unwrap();
        }
        assert_eq!(shadow.store(&f, heavy), Err(Refusal::TooHeavy));
        assert_eq!((read(&shadow, &f, now), read(&shadow, &g, now)), (None, Some(value("v"))));
    }
}
