//! What can be asked: each question says how the server is asked and what memory can tell.

use crate::{
    command::{Command, Raw, Slot},
    fallback::{Dirty, Known, Life, Pairs, Refusal, Shadow, Standing},
    value::Value,
};
use bytes::Bytes;
use mainstay_policy::Operation;
use std::time::{Duration, Instant};

/// A question about one key.
pub(crate) trait Query: Sync {
    /// The answer; what it is by default is a miss.
    type Found: Default + Send;
    fn key(&self) -> &Bytes;
    fn operation(&self) -> Operation;
    fn command(&self) -> Command<'_>;
    /// What the server's answer says.
    fn found(&self, reply: Value) -> Self::Found;
    /// What was written here and the server has not forgotten yet.
    fn dirty(&self, dirty: &Dirty, now: Instant) -> Standing<Self::Found>;
    /// Everything that memory knows, the server being away.
    fn memory(
        &self,
        dirty: &Dirty,
        shadow: &Shadow,
        now: Instant,
    ) -> Result<Known<Self::Found>, Refusal>;
    /// Whether an answer of the server is kept already.
    fn is_kept(&self, _: &Shadow, _: &Self::Found, _: Instant) -> bool {
        false
    }
    /// Keeps an answer of the server for later.
    fn keep(&self, shadow: &Shadow, found: &Self::Found, at: Instant);
}

/// GET or HGET.
pub(crate) struct Get(pub(crate) Slot);

impl Query for Get {
    type Found = Option<Bytes>;

    fn key(&self) -> &Bytes {
        &self.0.key
    }

    fn operation(&self) -> Operation {
        let name = if self.0.field.is_some() { "hget" } else { "get" };
        Operation::read(name)
    }

    fn command(&self) -> Command<'_> {
        Command::Read(&self.0)
    }

    fn found(&self, reply: Value) -> Option<Bytes> {
        reply.into_bytes()
    }

    fn dirty(&self, dirty: &Dirty, now: Instant) -> Standing<Option<Bytes>> {
        match dirty.read(&self.0, now) {
            // A text where only fields were written: the server says what else there is.
            Standing::Clean | Standing::Mixed => Standing::Clean,
            Standing::Dirty(known) => Standing::Dirty(known.map(|known| known.value().map(Some))),
        }
    }

    fn memory(
        &self,
        dirty: &Dirty,
        shadow: &Shadow,
        now: Instant,
    ) -> Result<Known<Option<Bytes>>, Refusal> {
        match self.dirty(dirty, now) {
            Standing::Dirty(known) => known,
            _ => shadow.read(&self.0, now).map(|known| known.value().map(Some)),
        }
    }

    fn is_kept(&self, shadow: &Shadow, found: &Option<Bytes>, at: Instant) -> bool {
        found.as_ref().is_some_and(|value| shadow.holds(&self.0, value, at))
    }

    fn keep(&self, shadow: &Shadow, found: &Option<Bytes>, at: Instant) {
        match found {
            Some(value) => shadow.seen(&self.0, value, at),
            None => shadow.seen_absent(&self.0),
        }
    }
}

/// EXISTS.
pub(crate) struct Exists {
    slot: Slot,
    command: Raw,
}

impl Exists {
    pub(crate) fn new(slot: Slot) -> Self {
        Self { command: Raw::keyed("EXISTS", vec![slot.key.clone()]), slot }
    }

    /// A hash is there too.
    fn of(
        known: Result<Known<Option<Bytes>>, Refusal>,
        hash: impl FnOnce() -> Option<Instant>,
    ) -> Result<Known<bool>, Refusal> {
        match known {
            Err(Refusal::WrongType) => match hash() {
                Some(at) => Ok(Known::Here { what: true, at }),
                None => Ok(Known::Unknown),
            },
            known => known.map(|known| known.map(|_| true)),
        }
    }
}

impl Query for Exists {
    type Found = bool;

    fn key(&self) -> &Bytes {
        &self.slot.key
    }

    fn operation(&self) -> Operation {
        Operation::read("exists")
    }

    fn command(&self) -> Command<'_> {
        Command::Raw(&self.command)
    }

    fn found(&self, reply: Value) -> bool {
        reply.is_positive()
    }

    fn dirty(&self, dirty: &Dirty, now: Instant) -> Standing<bool> {
        match dirty.read(&self.slot, now) {
            Standing::Clean => Standing::Clean,
            Standing::Mixed => Standing::Mixed,
            Standing::Dirty(known) => {
                let known = known.map(|known| known.value().map(Some));
                Standing::Dirty(Self::of(known, || dirty.hash(&self.slot.key)))
            }
        }
    }

    fn memory(&self, dirty: &Dirty, shadow: &Shadow, now: Instant) -> Result<Known<bool>, Refusal> {
        let key = &self.slot.key;
        let hash = || dirty.hash(key).max(shadow.hash(key));
        Self::of(Get(self.slot.clone()).memory(dirty, shadow, now), hash)
    }

    fn keep(&self, _: &Shadow, _: &bool, _: Instant) {}
}

/// How long a key still lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ttl {
    /// There is no such key.
    #[default]
    Missing,
    /// Until it is deleted.
    Forever,
    /// This long, to the millisecond.
    Left(Duration),
}

/// PTTL.
pub(crate) struct TtlOf {
    slot: Slot,
    command: Raw,
    /// It is no error that memory does not know.
    if_known: bool,
}

impl TtlOf {
    pub(crate) fn new(slot: Slot) -> Self {
        Self { command: Raw::keyed("PTTL", vec![slot.key.clone()]), slot, if_known: false }
    }

    pub(crate) fn if_known(slot: Slot) -> Self {
        Self { if_known: true, ..Self::new(slot) }
    }

    fn of(known: Known<super::fallback::Held>, now: Instant) -> Result<Known<Ttl>, Refusal> {
        Ok(match known {
            Known::Here { what, at } => {
                let what = match what.life {
                    Life::Forever => Ttl::Forever,
                    Life::Until(end) => Ttl::Left(end.saturating_duration_since(now)),
                    Life::Unknown => return Err(Refusal::Unavailable),
                };
                Known::Here { what, at }
            }
            Known::Absent => Known::Absent,
            Known::Unknown => Known::Unknown,
        })
    }
}

/// Of a hash memory does not know how long it lives.
fn hash_is_unknown(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::WrongType => Refusal::Unavailable,
        other => other,
    }
}

impl Query for TtlOf {
    type Found = Ttl;

    fn key(&self) -> &Bytes {
        &self.slot.key
    }

    fn operation(&self) -> Operation {
        Operation::read("ttl")
    }

    fn command(&self) -> Command<'_> {
        Command::Raw(&self.command)
    }

    fn found(&self, reply: Value) -> Ttl {
        match reply {
            Value::Integer(-1) => Ttl::Forever,
            Value::Integer(ms) => {
                u64::try_from(ms).map_or(Ttl::Missing, |ms| Ttl::Left(Duration::from_millis(ms)))
            }
            _ => Ttl::Missing,
        }
    }

    fn dirty(&self, dirty: &Dirty, now: Instant) -> Standing<Ttl> {
        match dirty.read(&self.slot, now) {
            Standing::Clean => Standing::Clean,
            Standing::Dirty(Ok(known)) => Standing::Dirty(Self::of(known, now)),
            Standing::Mixed | Standing::Dirty(Err(_)) => Standing::Mixed,
        }
    }

    fn memory(&self, dirty: &Dirty, shadow: &Shadow, now: Instant) -> Result<Known<Ttl>, Refusal> {
        let known = match dirty.read(&self.slot, now) {
            Standing::Dirty(known) => known,
            Standing::Mixed => Err(Refusal::Unavailable),
            Standing::Clean => shadow.read(&self.slot, now),
        }
        .map_err(hash_is_unknown)
        .and_then(|known| Self::of(known, now));
        match known {
            Err(Refusal::Unavailable) if self.if_known => Ok(Known::Unknown),
            // The server may hold it.
            Ok(Known::Unknown) if !self.if_known && !shadow.is_all() => Err(Refusal::Unavailable),
            known => known,
        }
    }

    fn keep(&self, shadow: &Shadow, found: &Ttl, at: Instant) {
        match found {
            Ttl::Missing => shadow.seen_absent(&self.slot),
            Ttl::Forever => shadow.seen_life(&self.slot.key, Life::Forever),
            // From when it was asked: never longer than the server means.
            Ttl::Left(left) => shadow.seen_life(&self.slot.key, Life::of(Some(*left), at)),
        }
    }
}

/// HGETALL.
pub(crate) struct All {
    key: Bytes,
    command: Raw,
}

impl All {
    pub(crate) fn new(key: Bytes) -> Self {
        Self { command: Raw::keyed("HGETALL", vec![key.clone()]), key }
    }
}

impl Query for All {
    type Found = Pairs;

    fn key(&self) -> &Bytes {
        &self.key
    }

    fn operation(&self) -> Operation {
        Operation::read("hgetall")
    }

    fn command(&self) -> Command<'_> {
        Command::Raw(&self.command)
    }

    fn found(&self, reply: Value) -> Pairs {
        match reply {
            Value::Map(pairs) => pairs
                .into_iter()
                .filter_map(|(field, value)| Some((field.into_bytes()?, value.into_bytes()?)))
                .collect(),
            Value::Array(items) => {
                let mut items = items.into_iter().filter_map(Value::into_bytes);
                std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect()
            }
            _ => Pairs::new(),
        }
    }

    fn dirty(&self, dirty: &Dirty, now: Instant) -> Standing<Pairs> {
        dirty.read_all(&self.key, now)
    }

    fn memory(
        &self,
        dirty: &Dirty,
        shadow: &Shadow,
        now: Instant,
    ) -> Result<Known<Pairs>, Refusal> {
        match dirty.read_all(&self.key, now) {
            Standing::Dirty(known) => known,
            Standing::Clean => shadow.read_all(&self.key, now),
            // Without the rest of the hash, what was written here is no answer, nor is a miss.
            Standing::Mixed => match shadow.read_all(&self.key, now)? {
                Known::Here { what: mut pairs, at } => {
                    dirty.overlay(&self.key, &mut pairs);
                    Ok(if pairs.is_empty() {
                        Known::Absent
                    } else {
                        Known::Here { what: pairs, at }
                    })
                }
                _ => Err(Refusal::Unavailable),
            },
        }
    }

    fn keep(&self, shadow: &Shadow, found: &Pairs, at: Instant) {
        shadow.seen_all(&self.key, found, at);
    }
}
