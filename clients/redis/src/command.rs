//! What is sent: the commands, their names in errors, and the values they carry.

use crate::link::Node;
use bytes::Bytes;
use mainstay_policy::{Idempotency, Operation};
use std::{borrow::Cow, time::Duration};

/// What a command is about: a key, or one field of the hash at a key.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) key: Bytes,
    pub(crate) field: Option<Bytes>,
}

#[cfg(test)]
impl Slot {
    pub(crate) fn key(key: impl AsRef<[u8]>) -> Self {
        Self { key: Bytes::copy_from_slice(key.as_ref()), field: None }
    }

    pub(crate) fn field(key: impl AsRef<[u8]>, field: impl AsRef<[u8]>) -> Self {
        Self { field: Some(Bytes::copy_from_slice(field.as_ref())), ..Self::key(key) }
    }
}

/// What a write does to its slot.
#[derive(Clone)]
pub(crate) enum Change {
    /// SET or HSET; only a whole key has a lifetime.
    Put { value: Bytes, ttl: Option<Duration> },
    /// DEL or HDEL.
    Remove,
    /// EXPIRE, or without a lifetime PERSIST; whole keys only.
    Expire(Option<Duration>),
    /// INCRBY or HINCRBY.
    Add(i64),
}

/// What becomes of a command while the server is away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfAway {
    /// The fallback answers it: a wait for the server helps nobody.
    FallBack,
    /// Only the server can do it: it is worth repeating.
    Fail,
}

/// What the link is asked to send. Those beside `Raw` are apart because fred has calls for them that
/// share a flush with their neighbours, and they are nearly all there is.
#[derive(Clone, Copy)]
pub(crate) enum Command<'a> {
    /// GET or HGET.
    Read(&'a Slot),
    /// SET or HSET; only a whole key has a lifetime.
    Put {
        slot: &'a Slot,
        value: &'a Bytes,
        ttl: Option<Duration>,
    },
    /// DEL or HDEL.
    Remove(&'a Slot),
    /// PEXPIRE, or PERSIST without a lifetime.
    Expire(&'a Bytes, Option<Duration>),
    /// INCRBY or HINCRBY.
    Add(&'a Slot, i64),
    Raw(&'a Raw),
}

impl Command<'_> {
    /// The key that says which node of a cluster has it.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self {
            Self::Read(slot) | Self::Put { slot, .. } | Self::Remove(slot) | Self::Add(slot, _) => {
                Some(&slot.key)
            }
            Self::Expire(key, _) => Some(key),
            Self::Raw(Raw { args, route: Route::Key(n), .. }) => args.get(*n).map(|key| &key[..]),
            Self::Raw(_) => None,
        }
    }

    pub(crate) const fn is_for_every_node(&self) -> bool {
        matches!(self, Self::Raw(Raw { route: Route::Every, .. }))
    }
}

/// Any command, as it is sent.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) name: Cow<'static, str>,
    pub(crate) args: Vec<Bytes>,
    pub(crate) route: Route,
}

/// Which server of a cluster a command is for.
#[derive(Clone)]
pub(crate) enum Route {
    /// That of the key which is this argument.
    Key(usize),
    Node(Node),
    Any,
    /// All that hold keys.
    Every,
}

impl Raw {
    /// A command whose first argument is its key.
    pub(crate) fn keyed(name: &'static str, args: Vec<Bytes>) -> Self {
        Self { name: Cow::Borrowed(name), args, route: Route::Key(0) }
    }

    pub(crate) const fn ping() -> Self {
        Self { name: Cow::Borrowed("PING"), args: Vec::new(), route: Route::Any }
    }

    /// Sent just before a command to the node that a cluster is moving its key to.
    pub(crate) const fn asking() -> Self {
        Self { name: Cow::Borrowed("ASKING"), args: Vec::new(), route: Route::Any }
    }

    pub(crate) const fn cluster_slots() -> Self {
        Self { name: Cow::Borrowed("CLUSTER SLOTS"), args: Vec::new(), route: Route::Any }
    }

    /// Asks a sentinel.
    pub(crate) fn master_of(service: Bytes) -> Self {
        let name = Cow::Borrowed("SENTINEL GET-MASTER-ADDR-BY-NAME");
        Self { name, args: vec![service], route: Route::Any }
    }

    pub(crate) const fn role() -> Self {
        Self { name: Cow::Borrowed("ROLE"), args: Vec::new(), route: Route::Any }
    }

    /// Deletes these fields, or the key without any.
    pub(crate) fn forget(key: &Bytes, fields: &[Bytes]) -> Self {
        let name = if fields.is_empty() { "DEL" } else { "HDEL" };
        Self::keyed(name, std::iter::once(key).chain(fields).cloned().collect())
    }
}

impl Change {
    pub(crate) const fn operation(&self, slot: &Slot) -> Operation {
        let (field, same) = (slot.field.is_some(), Idempotency::Safe);
        // All but the last leave the same state when they arrive twice.
        let (name, idempotency) = match (self, field) {
            (Self::Put { .. }, false) => ("set", same),
            (Self::Put { .. }, true) => ("hset", same),
            (Self::Remove, false) => ("del", same),
            (Self::Remove, true) => ("hdel", same),
            (Self::Expire(Some(_)), _) => ("expire", same),
            (Self::Expire(None), _) => ("persist", same),
            (Self::Add(_), false) => ("incr", Idempotency::Unsafe),
            (Self::Add(_), true) => ("hincr", Idempotency::Unsafe),
        };
        Operation::new(name, idempotency)
    }

    pub(crate) const fn command<'a>(&'a self, slot: &'a Slot) -> Command<'a> {
        match self {
            Self::Put { value, ttl } => Command::Put { slot, value, ttl: *ttl },
            Self::Remove => Command::Remove(slot),
            Self::Expire(ttl) => Command::Expire(&slot.key, *ttl),
            Self::Add(n) => Command::Add(slot, *n),
        }
    }
}

/// Not repeated by the policy: after a lost connection a settling pause comes first.
pub(crate) const RECOVER: Operation =
    Operation::new("recover", Idempotency::Unsafe).timed_by_driver();
