//! What this client wrote while the server was away: the newest value or tombstone of each key or
//! hash field. Bounded and never evicted: a write that does not fit is refused.
//!
//! A function of calls and of the time they carry; the lock is the owner's.

use super::Refusal;
use crate::command::{Change, Slot};
use bytes::Bytes;
use std::{collections::HashMap, time::Instant};

/// What an entry costs beside its bytes.
const OVERHEAD: usize = 64;

enum Whole {
    Gone,
    Value { value: Bytes, deadline: Option<Instant> },
}

impl Whole {
    fn live(&self, now: Instant) -> Option<&Bytes> {
        match self {
            Self::Value { value, deadline } if deadline.is_none_or(|d| now < d) => Some(value),
            // An expired value is still newer than what the server holds: a tombstone.
            _ => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Value { value, .. } => value.len(),
            Self::Gone => 0,
        }
    }
}

struct Entry {
    /// `None`: only the fields below are dirty.
    whole: Option<Whole>,
    /// `None`: a tombstone.
    fields: HashMap<Bytes, Option<Bytes>>,
    sequence: u64,
    bytes: usize,
}

/// One key to delete at the server; without fields, the whole key.
pub(crate) struct Task {
    pub(crate) key: Bytes,
    pub(crate) fields: Vec<Bytes>,
    sequence: u64,
}

pub(crate) struct Dirty {
    keys: HashMap<Bytes, Entry>,
    count: usize,
    bytes: usize,
    sequence: u64,
    max_count: usize,
    max_bytes: usize,
}

impl Dirty {
    pub(crate) fn new(max_count: usize, max_bytes: usize) -> Self {
        Self { keys: HashMap::new(), count: 0, bytes: 0, sequence: 0, max_count, max_bytes }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The answer if this slot is dirty.
    pub(crate) fn read(&self, slot: &Slot, now: Instant) -> Option<Result<Option<Bytes>, Refusal>> {
        let entry = self.keys.get(&slot.key)?;
        let live = entry.whole.as_ref().map(|whole| whole.live(now).cloned());
        match (&slot.field, live) {
            (None, None) => None,
            (None, Some(Some(value))) => Some(Ok(Some(value))),
            (None, Some(None)) if entry.fields.values().any(Option::is_some) => {
                Some(Err(Refusal::WrongType))
            }
            (None, Some(None)) => Some(Ok(None)),
            (Some(_), Some(Some(_))) => Some(Err(Refusal::WrongType)),
            (Some(field), whole) => match entry.fields.get(field) {
                Some(value) => Some(Ok(value.clone())),
                None => whole.map(|_| Ok(None)),
            },
        }
    }

    /// Whether a write of this slot must stay here: sent now, it would be deleted by the recovery,
    /// or hidden by what is here.
    pub(crate) fn owns(&self, slot: &Slot) -> bool {
        self.keys.get(&slot.key).is_some_and(|entry| match &slot.field {
            None => true,
            Some(field) => entry.whole.is_some() || entry.fields.contains_key(field),
        })
    }

    /// Takes a write; says whether a value was here before it.
    pub(crate) fn write(
        &mut self,
        slot: &Slot,
        change: &Change,
        now: Instant,
    ) -> Result<bool, Refusal> {
        let existed = match self.read(slot, now) {
            Some(Err(refusal)) if slot.field.is_some() => return Err(refusal),
            // SET and DEL do not mind the type.
            Some(Err(_)) => true,
            Some(Ok(value)) => value.is_some(),
            None => false,
        };
        match &slot.field {
            None => self.write_key(&slot.key, change, now)?,
            Some(field) => self.write_field(&slot.key, field, change, now)?,
        }
        Ok(existed)
    }

    fn write_key(&mut self, key: &Bytes, change: &Change, now: Instant) -> Result<(), Refusal> {
        let whole = match change {
            Change::Put { value, ttl } => {
                let deadline = ttl.and_then(|ttl| now.checked_add(ttl));
                Whole::Value { value: value.clone(), deadline }
            }
            Change::Remove => Whole::Gone,
        };
        let bytes = key.len() + OVERHEAD + whole.len();
        let old = self.keys.get(key);
        let (old_count, old_bytes) = old.map_or((0, 0), |e| (1 + e.fields.len(), e.bytes));
        self.admit(1, old_count, bytes, old_bytes)?;
        let sequence = self.sequence;
        let entry = Entry { whole: Some(whole), fields: HashMap::new(), sequence, bytes };
        self.keys.insert(key.clone(), entry);
        Ok(())
    }

    fn write_field(
        &mut self,
        key: &Bytes,
        field: &Bytes,
        change: &Change,
        now: Instant,
    ) -> Result<(), Refusal> {
        let value = match change {
            Change::Put { value, .. } => Some(value.clone()),
            Change::Remove => None,
        };
        let cost =
            |value: &Option<Bytes>| field.len() + OVERHEAD + value.as_ref().map_or(0, Bytes::len);
        let (mut count, mut bytes, mut old_count, mut old_bytes) = (1, cost(&value), 0, 0);
        match self.keys.get(key) {
            None => {
                count += 1;
                bytes += key.len() + OVERHEAD;
            }
            Some(entry) => {
                if let Some(old) = entry.fields.get(field) {
                    old_count = 1;
                    old_bytes = cost(old);
                }
            }
        }
        self.admit(count, old_count, bytes, old_bytes)?;
        let sequence = self.sequence;
        let entry = self.keys.entry(key.clone()).or_insert_with(|| Entry {
            whole: None,
            fields: HashMap::new(),
            sequence,
            bytes: 0,
        });
        entry.sequence = sequence;
        entry.bytes = entry.bytes + bytes - old_bytes;
        entry.fields.insert(field.clone(), value);
        // A field can only be written once the value has expired, so that it is a tombstone now.
        if let Some(whole) = entry.whole.as_mut().filter(|whole| whole.live(now).is_none()) {
            let freed = whole.len();
            *whole = Whole::Gone;
            entry.bytes -= freed;
            self.bytes -= freed;
        }
        Ok(())
    }

    /// Books the cost of a write and numbers it, or refuses it.
    fn admit(
        &mut self,
        count: usize,
        old_count: usize,
        bytes: usize,
        old_bytes: usize,
    ) -> Result<(), Refusal> {
        let (total, total_bytes) = (self.count + count - old_count, self.bytes + bytes - old_bytes);
        let grows = count > old_count || bytes > old_bytes;
        if grows && (total > self.max_count || total_bytes > self.max_bytes) {
            return Err(Refusal::Full);
        }
        (self.count, self.bytes) = (total, total_bytes);
        self.sequence += 1;
        Ok(())
    }

    /// Some of what the server must forget.
    pub(crate) fn batch(&self, size: usize) -> Vec<Task> {
        let task = |(key, entry): (&Bytes, &Entry)| Task {
            key: key.clone(),
            fields: match entry.whole {
                Some(_) => Vec::new(),
                None => entry.fields.keys().cloned().collect(),
            },
            sequence: entry.sequence,
        };
        self.keys.iter().take(size).map(task).collect()
    }

    /// The server has forgotten it; what was written since stays dirty.
    pub(crate) fn acknowledge(&mut self, task: &Task) {
        if self.keys.get(&task.key).is_some_and(|entry| entry.sequence == task.sequence)
            && let Some(entry) = self.keys.remove(&task.key)
        {
            self.count -= 1 + entry.fields.len();
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn put(value: &'static str) -> Change {
        Change::Put { value: Bytes::from_static(value.as_bytes()), ttl: None }
    }

    fn text(answer: Option<Result<Option<Bytes>, Refusal>>) -> Option<Option<String>> {
        answer.map(|a| a.unwrap().map(|b| String::from_utf8(b.into()).unwrap()))
    }

    fn some(text: &str) -> Option<Option<String>> {
        Some(Some(text.to_owned()))
    }

    #[test]
    fn the_newest_write_wins_and_a_tombstone_is_an_answer() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        let k = Slot::key("k");
        assert_eq!(text(dirty.read(&k, now)), None);
        assert!(!dirty.write(&k, &put("1"), now).unwrap());
        assert!(dirty.write(&k, &put("2"), now).unwrap());
        assert_eq!(text(dirty.read(&k, now)), some("2"));
        assert!(dirty.write(&k, &Change::Remove, now).unwrap());
        assert_eq!(text(dirty.read(&k, now)), Some(None));
        assert!(dirty.owns(&k));
    }

    #[test]
    fn an_expired_value_stays_dirty() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        let k = Slot::key("k");
        let value = Bytes::from_static(b"v");
        let ttl = Some(Duration::from_secs(1));
        dirty.write(&k, &Change::Put { value, ttl }, now).unwrap();
        let later = now + Duration::from_secs(1);
        assert_eq!(text(dirty.read(&k, later)), Some(None));
        assert_eq!(dirty.batch(9).len(), 1);
        // Then it may become a hash.
        dirty.write(&Slot::field("k", "f"), &put("1"), later).unwrap();
        assert_eq!(text(dirty.read(&Slot::field("k", "f"), later)), some("1"));
        assert!(matches!(dirty.read(&k, later), Some(Err(Refusal::WrongType))));
        let tasks = dirty.batch(9);
        assert!(tasks[0].fields.is_empty(), "the whole key goes");
        dirty.acknowledge(&tasks[0]);
        assert_eq!((dirty.count, dirty.bytes), (0, 0));
    }

    #[test]
    fn fields_are_dirty_one_by_one() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        let (f, g) = (Slot::field("k", "f"), Slot::field("k", "g"));
        dirty.write(&f, &put("1"), now).unwrap();
        assert_eq!(text(dirty.read(&f, now)), some("1"));
        assert_eq!(text(dirty.read(&g, now)), None, "the server knows this one");
        assert!(!dirty.owns(&g));
        assert!(dirty.owns(&Slot::key("k")));
        dirty.write(&f, &Change::Remove, now).unwrap();
        assert_eq!(text(dirty.read(&f, now)), Some(None));
        assert_eq!(dirty.batch(9)[0].fields.len(), 1);
        dirty.write(&Slot::key("k"), &Change::Remove, now).unwrap();
        assert_eq!(text(dirty.read(&g, now)), Some(None), "the whole hash is gone");
        assert!(dirty.owns(&g));
    }

    #[test]
    fn a_field_of_a_text_is_refused_as_redis_does() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        dirty.write(&Slot::key("k"), &put("1"), now).unwrap();
        let f = Slot::field("k", "f");
        assert!(matches!(dirty.write(&f, &put("1"), now), Err(Refusal::WrongType)));
        assert!(matches!(dirty.read(&f, now), Some(Err(Refusal::WrongType))));
    }

    #[test]
    fn full_refuses_what_grows_and_loses_nothing() {
        let now = Instant::now();
        let mut dirty = Dirty::new(2, 10_000);
        dirty.write(&Slot::key("a"), &put("1"), now).unwrap();
        dirty.write(&Slot::key("b"), &put("1"), now).unwrap();
        assert!(matches!(dirty.write(&Slot::key("c"), &put("1"), now), Err(Refusal::Full)));
        dirty.write(&Slot::key("a"), &put("2"), now).unwrap();
        let mut dirty = Dirty::new(9, 2 * OVERHEAD);
        dirty.write(&Slot::key("a"), &put("12345678"), now).unwrap();
        assert!(matches!(dirty.write(&Slot::key("b"), &put(""), now), Err(Refusal::Full)));
        dirty.write(&Slot::key("a"), &Change::Remove, now).unwrap();
        assert_eq!(text(dirty.read(&Slot::key("a"), now)), Some(None));
        assert_eq!(text(dirty.read(&Slot::key("b"), now)), None);
    }

    #[test]
    fn a_write_during_the_recovery_keeps_its_key_dirty() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        let k = Slot::key("k");
        dirty.write(&k, &put("1"), now).unwrap();
        let tasks = dirty.batch(9);
        dirty.write(&k, &put("2"), now).unwrap();
        dirty.acknowledge(&tasks[0]);
        assert_eq!(text(dirty.read(&k, now)), some("2"));
        dirty.acknowledge(&dirty.batch(9).remove(0));
        assert_eq!(text(dirty.read(&k, now)), None);
    }

    /// Whatever is written, the books agree with what is held.
    #[test]
    fn the_books_agree_after_many_writes() {
        let (mut dirty, now) = (Dirty::new(40, 4_000), Instant::now());
        let mut seed = 7_u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for step in 0..20_000 {
            let key = format!("k{}", next(12));
            let slot = match next(2) {
                0 => Slot::key(key),
                _ => Slot::field(key, format!("f{}", next(5))),
            };
            let ttl = (next(3) == 0).then(|| Duration::from_millis(next(50)));
            let change = match next(3) {
                0 => Change::Remove,
                _ => {
                    Change::Put { value: vec![0; usize::try_from(next(300)).unwrap()].into(), ttl }
                }
            };
            let now = now + Duration::from_millis(step / 10);
            let _ = dirty.write(&slot, &change, now);
            if next(50) == 0 {
                for task in dirty.batch(usize::try_from(next(5)).unwrap()) {
                    dirty.acknowledge(&task);
                }
            }
            let count: usize = dirty.keys.values().map(|e| 1 + e.fields.len()).sum();
            let held = |(key, e): (&Bytes, &Entry)| {
                let fields = e
                    .fields
                    .iter()
                    .map(|(f, v)| f.len() + OVERHEAD + v.as_ref().map_or(0, Bytes::len));
                key.len()
                    + OVERHEAD
                    + e.whole.as_ref().map_or(0, Whole::len)
                    + fields.sum::<usize>()
            };
            let bytes: usize = dirty.keys.iter().map(held).sum();
            assert_eq!((dirty.count, dirty.bytes), (count, bytes));
            assert!(count <= 40 && bytes <= 4_000);
        }
    }
}
