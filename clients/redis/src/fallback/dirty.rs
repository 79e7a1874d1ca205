//! What this client wrote while the server was away: the newest value or tombstone of each key or
//! hash field. Bounded and never evicted: a write that does not fit is refused.
//!
//! A function of calls and of the time they carry; the lock is the owner's.

use super::{
    Refusal,
    known::{Held, Known, Pairs, Standing},
};
use crate::command::Slot;
use bytes::Bytes;
use std::{collections::HashMap, time::Instant};

/// What an entry costs beside its bytes.
const OVERHEAD: usize = 64;

enum Whole {
    Gone,
    /// With when it gets stale, if its lifetime is all of it that was written here.
    Text(Held, Option<Instant>),
}

impl Whole {
    fn live(&self, now: Instant) -> Option<&Held> {
        match self {
            Self::Text(held, stale)
                if !held.life.is_over(now) && stale.is_none_or(|at| now <= at) =>
            {
                Some(held)
            }
            // An expired value is still newer than what the server holds: a tombstone.
            _ => None,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(held, _) => held.value.len(),
            Self::Gone => 0,
        }
    }
}

struct Entry {
    /// `None`: only the fields below are dirty.
    whole: Option<Whole>,
    /// `None`: a tombstone.
    fields: HashMap<Bytes, Option<Held>>,
    sequence: u64,
    bytes: usize,
    /// How often the server could not be told.
    passes: u32,
}

impl Entry {
    fn is_hash(&self) -> bool {
        self.fields.values().any(Option::is_some)
    }
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

    /// Whether anything of this key was written here.
    pub(crate) fn touches(&self, key: &Bytes) -> bool {
        self.keys.contains_key(key)
    }

    pub(crate) fn stale(&self, key: &Bytes) -> Option<Instant> {
        match self.keys.get(key)?.whole {
            Some(Whole::Text(_, stale)) => stale,
            _ => None,
        }
    }

    /// The text at this key is not told after that.
    pub(crate) fn gets_stale(&mut self, key: &Bytes, at: Instant) {
        if let Some(Entry { whole: Some(Whole::Text(_, stale)), .. }) = self.keys.get_mut(key) {
            *stale = Some(at);
        }
    }

    /// What is known of a slot, if anything of it was written here.
    pub(crate) fn read(&self, slot: &Slot, now: Instant) -> Standing<Held> {
        let Some(entry) = self.keys.get(&slot.key) else { return Standing::Clean };
        let here = |held: &Held| Known::Here { what: held.clone(), at: held.at };
        let text = entry.whole.as_ref().map(|whole| whole.live(now));
        Standing::Dirty(match (&slot.field, text) {
            (None, Some(Some(held))) => Ok(here(held)),
            (None, _) if entry.is_hash() => Err(Refusal::WrongType),
            (None, Some(None)) => Ok(Known::Absent),
            (None, None) => return Standing::Mixed,
            (Some(_), Some(Some(_))) => Err(Refusal::WrongType),
            (Some(field), whole) => match entry.fields.get(field) {
                Some(held) => Ok(held.as_ref().map_or(Known::Absent, here)),
                None if whole.is_some() => Ok(Known::Absent),
                None => return Standing::Clean,
            },
        })
    }

    /// When anything of a hash was written here last.
    pub(crate) fn hash(&self, key: &Bytes) -> Option<Instant> {
        self.keys.get(key)?.fields.values().flatten().map(|held| held.at).max()
    }

    /// All fields of a hash, if the server's are of no account any more.
    pub(crate) fn read_all(&self, key: &Bytes, now: Instant) -> Standing<Pairs> {
        let Some(entry) = self.keys.get(key) else { return Standing::Clean };
        let Some(whole) = &entry.whole else { return Standing::Mixed };
        if whole.live(now).is_some() {
            return Standing::Dirty(Err(Refusal::WrongType));
        }
        let mut pairs = Vec::new();
        self.overlay(key, &mut pairs);
        let at = entry.fields.values().flatten().map(|held| held.at).max();
        Standing::Dirty(Ok(at.map_or(Known::Absent, |at| Known::Here { what: pairs, at })))
    }

    /// Puts the fields written here over those seen before.
    pub(crate) fn overlay(&self, key: &Bytes, pairs: &mut Pairs) {
        let Some(entry) = self.keys.get(key) else { return };
        pairs.retain(|(field, _)| !entry.fields.contains_key(field));
        let written = entry.fields.iter();
        pairs.extend(
            written.filter_map(|(f, held)| Some((f.clone(), held.as_ref()?.value.clone()))),
        );
    }

    /// Whether a write of this slot must stay here: sent now, it would be deleted by the recovery,
    /// or hidden by what is here.
    pub(crate) fn owns(&self, slot: &Slot) -> bool {
        self.keys.get(&slot.key).is_some_and(|entry| match &slot.field {
            None => true,
            Some(field) => entry.whole.is_some() || entry.fields.contains_key(field),
        })
    }

    /// Takes a value, or a tombstone; the owner has checked the type.
    pub(crate) fn write(
        &mut self,
        slot: &Slot,
        held: Option<Held>,
        now: Instant,
    ) -> Result<(), Refusal> {
        match &slot.field {
            None => self.write_key(&slot.key, held),
            Some(field) => self.write_field(&slot.key, field, held, now),
        }
    }

    fn write_key(&mut self, key: &Bytes, held: Option<Held>) -> Result<(), Refusal> {
        let whole = held.map_or(Whole::Gone, |held| Whole::Text(held, None));
        let bytes = key.len() + OVERHEAD + whole.len();
        let old = self.keys.get(key);
        let (old_count, old_bytes) = old.map_or((0, 0), |e| (1 + e.fields.len(), e.bytes));
        self.admit(1, old_count, bytes, old_bytes)?;
        let sequence = self.sequence;
        let entry =
            Entry { whole: Some(whole), fields: HashMap::new(), sequence, bytes, passes: 0 };
        self.keys.insert(key.clone(), entry);
        Ok(())
    }

    fn write_field(
        &mut self,
        key: &Bytes,
        field: &Bytes,
        held: Option<Held>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let cost = |held: &Option<Held>| {
            field.len() + OVERHEAD + held.as_ref().map_or(0, |held| held.value.len())
        };
        let (mut count, mut bytes, mut old_count, mut old_bytes) = (1, cost(&held), 0, 0);
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
            passes: 0,
        });
        entry.sequence = sequence;
        entry.bytes = entry.bytes + bytes - old_bytes;
        entry.fields.insert(field.clone(), held);
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

    #[cfg(test)]
    pub(crate) fn batch(&self, size: usize) -> Vec<Task> {
        self.batch_where(size, |_| true)
    }

    /// Some of what the servers must forget that can be told so; first what was passed over least.
    pub(crate) fn batch_where(&self, size: usize, reached: impl Fn(&Bytes) -> bool) -> Vec<Task> {
        let task = |(key, entry): (&Bytes, &Entry)| Task {
            key: key.clone(),
            fields: match entry.whole {
                Some(_) => Vec::new(),
                None => entry.fields.keys().cloned().collect(),
            },
            sequence: entry.sequence,
        };
        let mut keys: Vec<_> = self.keys.iter().filter(|(key, _)| reached(key)).collect();
        if size < keys.len() {
            keys.select_nth_unstable_by_key(size, |(_, entry)| entry.passes);
        }
        keys.into_iter().take(size).map(task).collect()
    }

    /// The server that has this key could not be told.
    pub(crate) fn pass_over(&mut self, task: &Task) {
        if let Some(entry) = self.keys.get_mut(&task.key) {
            entry.passes = entry.passes.saturating_add(1);
        }
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
    use super::{super::known::Life, *};
    use std::time::Duration;

    fn put(value: &str) -> Option<Held> {
        Some(Held {
            value: Bytes::copy_from_slice(value.as_bytes()),
            at: Instant::now(),
            life: Life::Forever,
        })
    }

    /// What is read: `?` for what the server knows, `-` for what is gone.
    fn read(dirty: &Dirty, slot: &Slot, now: Instant) -> String {
        match dirty.read(slot, now) {
            Standing::Clean => "?".to_owned(),
            Standing::Mixed => "mixed".to_owned(),
            Standing::Dirty(Err(refusal)) => format!("{refusal:?}"),
            Standing::Dirty(Ok(Known::Here { what, .. })) => {
                String::from_utf8(what.value.into()).unwrap()
            }
            Standing::Dirty(Ok(_)) => "-".to_owned(),
        }
    }

    #[test]
    fn the_newest_write_wins_and_a_tombstone_is_an_answer() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        let k = Slot::key("k");
        assert_eq!(read(&dirty, &k, now), "?");
        dirty.write(&k, put("1"), now).unwrap();
        dirty.write(&k, put("2"), now).unwrap();
        assert_eq!(read(&dirty, &k, now), "2");
        dirty.write(&k, None, now).unwrap();
        assert_eq!(read(&dirty, &k, now), "-");
        assert!(dirty.owns(&k));
    }

    #[test]
    fn an_expired_value_stays_dirty() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        let k = Slot::key("k");
        let later = now + Duration::from_secs(1);
        let held = put("v").map(|held| Held { life: Life::Until(later), ..held });
        dirty.write(&k, held, now).unwrap();
        assert_eq!(read(&dirty, &k, now), "v");
        assert_eq!(read(&dirty, &k, later), "-");
        assert_eq!(dirty.batch(9).len(), 1);
        // Then it may become a hash.
        dirty.write(&Slot::field("k", "f"), put("1"), later).unwrap();
        assert_eq!(read(&dirty, &Slot::field("k", "f"), later), "1");
        assert_eq!(read(&dirty, &k, later), "WrongType");
        let tasks = dirty.batch(9);
        assert!(tasks[0].fields.is_empty(), "the whole key goes");
        dirty.acknowledge(&tasks[0]);
        assert_eq!((dirty.count, dirty.bytes), (0, 0));
    }

    #[test]
    fn fields_are_dirty_one_by_one() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        let (f, g) = (Slot::field("k", "f"), Slot::field("k", "g"));
        dirty.write(&f, put("1"), now).unwrap();
        assert_eq!(read(&dirty, &f, now), "1");
        assert_eq!(read(&dirty, &g, now), "?", "the server knows this one");
        assert!(matches!(dirty.read_all(&Bytes::from("k"), now), Standing::Mixed));
        assert!(!dirty.owns(&g));
        assert!(dirty.owns(&Slot::key("k")));
        dirty.write(&f, None, now).unwrap();
        assert_eq!(read(&dirty, &f, now), "-");
        assert_eq!(read(&dirty, &Slot::key("k"), now), "mixed");
        assert_eq!(dirty.batch(9)[0].fields.len(), 1);
        dirty.write(&Slot::key("k"), None, now).unwrap();
        assert_eq!(read(&dirty, &g, now), "-", "the whole hash is gone");
        assert!(dirty.owns(&g));
        dirty.write(&g, put("2"), now).unwrap();
        let all = dirty.read_all(&Bytes::from("k"), now);
        let Standing::Dirty(Ok(Known::Here { what, .. })) = all else { panic!("all is known") };
        assert_eq!(what, [(Bytes::from("g"), Bytes::from("2"))]);
    }

    #[test]
    fn a_field_of_a_text_is_of_the_wrong_type() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        dirty.write(&Slot::key("k"), put("1"), now).unwrap();
        assert_eq!(read(&dirty, &Slot::field("k", "f"), now), "WrongType");
    }

    #[test]
    fn full_refuses_what_grows_and_loses_nothing() {
        let now = Instant::now();
        let mut dirty = Dirty::new(2, 10_000);
        dirty.write(&Slot::key("a"), put("1"), now).unwrap();
        dirty.write(&Slot::key("b"), put("1"), now).unwrap();
        assert_eq!(dirty.write(&Slot::key("c"), put("1"), now), Err(Refusal::Full));
        dirty.write(&Slot::key("a"), put("2"), now).unwrap();
        let mut dirty = Dirty::new(9, 2 * OVERHEAD);
        dirty.write(&Slot::key("a"), put("12345678"), now).unwrap();
        assert_eq!(dirty.write(&Slot::key("b"), put(""), now), Err(Refusal::Full));
        dirty.write(&Slot::key("a"), None, now).unwrap();
        assert_eq!(read(&dirty, &Slot::key("a"), now), "-");
        assert_eq!(read(&dirty, &Slot::key("b"), now), "?");
    }

    #[test]
    fn a_write_during_the_recovery_keeps_its_key_dirty() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        let k = Slot::key("k");
        dirty.write(&k, put("1"), now).unwrap();
        let tasks = dirty.batch(9);
        dirty.write(&k, put("2"), now).unwrap();
        dirty.acknowledge(&tasks[0]);
        assert_eq!(read(&dirty, &k, now), "2");
        dirty.acknowledge(&dirty.batch(9).remove(0));
        assert_eq!(read(&dirty, &k, now), "?");
    }

    #[test]
    fn what_cannot_be_told_lets_the_others_pass() {
        let (mut dirty, now) = (Dirty::new(10, 10_000), Instant::now());
        for key in ["a", "b", "c"] {
            dirty.write(&Slot::key(key), put("1"), now).unwrap();
        }
        let first = dirty.batch(1).remove(0);
        dirty.pass_over(&first);
        for _ in 0..2 {
            let next = dirty.batch(1).remove(0);
            assert_ne!(next.key, first.key);
            dirty.acknowledge(&next);
        }
        assert_eq!(dirty.batch(1).remove(0).key, first.key);
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
            let now = now + Duration::from_millis(step / 10);
            let slot = match next(2) {
                0 => Slot::key(key),
                _ => Slot::field(key, format!("f{}", next(5))),
            };
            let life = match next(3) {
                0 => Life::Until(now + Duration::from_millis(next(50))),
                _ => Life::Forever,
            };
            let value = Bytes::from(vec![0; usize::try_from(next(300)).unwrap()]);
            let held = (next(3) > 0).then_some(Held { value, at: now, life });
            let _ = dirty.write(&slot, held, now);
            if next(50) == 0 {
                for task in dirty.batch(usize::try_from(next(5)).unwrap()) {
                    dirty.acknowledge(&task);
                }
            }
            let count: usize = dirty.keys.values().map(|e| 1 + e.fields.len()).sum();
            let held = |(key, e): (&Bytes, &Entry)| {
                let length = |held: &Option<Held>| held.as_ref().map_or(0, |h| h.value.len());
                let fields = e.fields.iter().map(|(f, held)| f.len() + OVERHEAD + length(held));
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
