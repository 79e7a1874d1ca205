//! The last values seen: bounded by number and bytes, least recently used first out.
//!
//! Losing an entry is a miss, so the cache may drop what it likes. The owner orders the calls on
//! one key.

use super::Refusal;
use crate::command::Slot;
use bytes::Bytes;
use moka::{Expiry, policy::EvictionPolicy, sync::Cache};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const OVERHEAD: u64 = 64;

#[derive(Clone)]
struct Seen {
    value: Bytes,
    at: Instant,
    deadline: Option<Instant>,
}

#[derive(Default)]
struct Fields {
    seen: HashMap<Bytes, Seen>,
    bytes: u64,
}

#[derive(Clone)]
enum Shadowed {
    Text(Seen),
    Hash(Arc<Mutex<Fields>>),
}

fn lock(fields: &Mutex<Fields>) -> MutexGuard<'_, Fields> {
    fields.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cache's own expiry only frees memory; reads compare the deadline themselves.
struct Deadline;

impl Deadline {
    fn left(value: &Shadowed, now: Instant) -> Option<Duration> {
        match value {
            Shadowed::Text(seen) => seen.deadline.map(|d| d.saturating_duration_since(now)),
            Shadowed::Hash(_) => None,
        }
    }
}

impl Expiry<Bytes, Shadowed> for Deadline {
    fn expire_after_create(&self, _: &Bytes, value: &Shadowed, now: Instant) -> Option<Duration> {
        Self::left(value, now)
    }

    // The default would keep the lifetime of the value before.
    fn expire_after_update(
        &self,
        _: &Bytes,
        value: &Shadowed,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Self::left(value, now)
    }
}

pub(crate) struct Shadow {
    cache: Cache<Bytes, Shadowed>,
    max_bytes: u64,
    max_stale: Option<Duration>,
}

impl Shadow {
    pub(crate) fn new(max_entries: u64, max_bytes: u64, max_stale: Option<Duration>) -> Self {
        // One capacity bounds both: an entry weighs at least its share of the bytes.
        let share = max_bytes / max_entries.max(1);
        let weigher = move |key: &Bytes, value: &Shadowed| {
            let weight = weight(key, value).max(share);
            u32::try_from(weight).unwrap_or(u32::MAX)
        };
        let mut builder = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(weigher)
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(Deadline);
        if let Some(age) = max_stale {
            // moka panics beyond 1,000 years.
            builder = builder.time_to_live(age.min(Duration::from_secs(86_400 * 365)));
        }
        Self { cache: builder.build(), max_bytes, max_stale }
    }

    pub(crate) fn read(&self, slot: &Slot, now: Instant) -> Result<Option<Bytes>, Refusal> {
        let seen = match (self.cache.get(&slot.key), &slot.field) {
            (None, _) => None,
            (Some(Shadowed::Text(seen)), None) => Some(seen),
            (Some(Shadowed::Hash(fields)), Some(field)) => lock(&fields).seen.get(field).cloned(),
            (Some(Shadowed::Text(seen)), Some(_)) if !self.fresh(&seen, now) => None,
            (Some(Shadowed::Hash(fields)), None) if lock(&fields).seen.is_empty() => None,
            (Some(_), _) => return Err(Refusal::WrongType),
        };
        Ok(seen.filter(|seen| self.fresh(seen, now)).map(|seen| seen.value))
    }

    fn fresh(&self, seen: &Seen, now: Instant) -> bool {
        let age = now.saturating_duration_since(seen.at);
        seen.deadline.is_none_or(|d| now < d) && self.max_stale.is_none_or(|max| age <= max)
    }

    /// Keeps a value; refused if it is heavier than all there is room for.
    pub(crate) fn store(
        &self,
        slot: &Slot,
        value: Bytes,
        at: Instant,
        deadline: Option<Instant>,
    ) -> Result<(), Refusal> {
        let seen = Seen { value, at, deadline };
        let shadowed = match &slot.field {
            None => Shadowed::Text(seen),
            Some(field) => {
                let fields = match self.cache.get(&slot.key) {
                    Some(Shadowed::Hash(fields)) => fields,
                    _ => Arc::default(),
                };
                let mut held = lock(&fields);
                held.bytes += field_weight(field, &seen);
                if let Some(old) = held.seen.insert(field.clone(), seen) {
                    held.bytes -= field_weight(field, &old);
                }
                drop(held);
                Shadowed::Hash(fields)
            }
        };
        if weight(&slot.key, &shadowed) > self.max_bytes.min(u64::from(u32::MAX)) {
            self.forget(slot);
            return Err(Refusal::Full);
        }
        self.cache.insert(slot.key.clone(), shadowed);
        Ok(())
    }

    /// Drops what is known of this slot; says whether there was a value.
    pub(crate) fn forget(&self, slot: &Slot) -> bool {
        let Some(field) = &slot.field else {
            return self.cache.remove(&slot.key).is_some();
        };
        match self.cache.get(&slot.key) {
            None => false,
            Some(Shadowed::Text(_)) => {
                self.cache.invalidate(&slot.key);
                false
            }
            Some(Shadowed::Hash(fields)) => {
                let mut held = lock(&fields);
                let old = held.seen.remove(field);
                if let Some(old) = &old {
                    held.bytes -= field_weight(field, old);
                }
                let empty = held.seen.is_empty();
                drop(held);
                if empty {
                    self.cache.invalidate(&slot.key);
                }
                old.is_some()
            }
        }
    }
}

fn field_weight(field: &Bytes, seen: &Seen) -> u64 {
    (field.len() + seen.value.len()) as u64 + OVERHEAD
}

fn weight(key: &Bytes, value: &Shadowed) -> u64 {
    let value = match value {
        Shadowed::Text(seen) => seen.value.len() as u64,
        Shadowed::Hash(fields) => lock(fields).bytes,
    };
    key.len() as u64 + value + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shadow(max_stale: Option<Duration>) -> Shadow {
        Shadow::new(100, 10_000, max_stale)
    }

    fn value(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_value_goes_with_its_deadline_or_its_age() {
        let (shadow, now) = (shadow(Some(Duration::from_secs(60))), Instant::now());
        let (k, l) = (Slot::key("k"), Slot::key("l"));
        let at = |seconds| now + Duration::from_secs(seconds);
        shadow.store(&k, value("1"), now, Some(at(10))).unwrap();
        shadow.store(&l, value("2"), now, None).unwrap();
        assert_eq!(shadow.read(&k, at(9)).unwrap(), Some(value("1")));
        assert_eq!(shadow.read(&k, at(10)).unwrap(), None);
        assert_eq!(shadow.read(&l, at(60)).unwrap(), Some(value("2")));
        assert_eq!(shadow.read(&l, at(61)).unwrap(), None);
    }

    #[test]
    fn a_value_without_lifetime_does_not_inherit_one() {
        let (shadow, now) = (shadow(None), Instant::now());
        let k = Slot::key("k");
        shadow.store(&k, value("1"), now, Some(now + Duration::from_millis(20))).unwrap();
        shadow.store(&k, value("2"), now, None).unwrap();
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(shadow.read(&k, Instant::now()).unwrap(), Some(value("2")));
    }

    #[test]
    fn fields_come_and_go_one_by_one() {
        let (shadow, now) = (shadow(None), Instant::now());
        let (f, g) = (Slot::field("k", "f"), Slot::field("k", "g"));
        shadow.store(&f, value("1"), now, None).unwrap();
        shadow.store(&g, value("2"), now, None).unwrap();
        assert_eq!(shadow.read(&f, now).unwrap(), Some(value("1")));
        assert!(matches!(shadow.read(&Slot::key("k"), now), Err(Refusal::WrongType)));
        assert!(shadow.forget(&f));
        assert_eq!(shadow.read(&f, now).unwrap(), None);
        assert_eq!(shadow.read(&g, now).unwrap(), Some(value("2")));
        assert!(shadow.forget(&g));
        assert_eq!(shadow.read(&Slot::key("k"), now).unwrap(), None);
    }

    #[test]
    fn it_holds_no_more_than_its_room() {
        let (shadow, now) = (shadow(None), Instant::now());
        for n in 0..1000 {
            shadow.store(&Slot::key(format!("k{n}")), value("v"), now, None).unwrap();
        }
        shadow.cache.run_pending_tasks();
        assert!(shadow.cache.entry_count() <= 100, "{}", shadow.cache.entry_count());
        assert_eq!(shadow.read(&Slot::key("k999"), now).unwrap(), Some(value("v")));
        let heavy = Bytes::from(vec![0; 20_000]);
        assert!(matches!(shadow.store(&Slot::key("h"), heavy, now, None), Err(Refusal::Full)));
    }
}
