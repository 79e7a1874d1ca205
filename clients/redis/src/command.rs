//! What is sent: the commands, their names in errors, and the values they carry.

use bytes::Bytes;
use mainstay_policy::{Error, Idempotency, Operation};
use std::time::Duration;

/// What a command is about: a key, or one field of the hash at a key.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) key: Bytes,
    pub(crate) field: Option<Bytes>,
}

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
}

#[derive(Clone)]
pub(crate) enum Command {
    Read(Slot),
    Write(Slot, Change),
    /// Deletes what a client wrote while the server was away: the fields, or the key without any.
    Forget {
        key: Bytes,
        fields: Vec<Bytes>,
    },
    Ping,
}

pub(crate) enum Reply {
    Value(Option<Bytes>),
    /// Whether there was something to change.
    Changed(bool),
}

/// Every command here leaves the same state when it arrives twice.
pub(crate) const fn read(slot: &Slot) -> Operation {
    Operation::new(if slot.field.is_some() { "hget" } else { "get" }, Idempotency::Safe)
}

pub(crate) const fn write(slot: &Slot, change: &Change) -> Operation {
    let name = match (change, slot.field.is_some()) {
        (Change::Put { .. }, false) => "set",
        (Change::Put { .. }, true) => "hset",
        (Change::Remove, false) => "del",
        (Change::Remove, true) => "hdel",
    };
    Operation::new(name, Idempotency::Safe)
}

/// Not repeated by the policy: after a lost connection a settling pause comes first.
pub(crate) const RECOVER: Operation = Operation::new("recover", Idempotency::Unsafe);

/// A value that can be stored.
pub trait ToValue {
    /// The bytes to store.
    fn to_value(self) -> Bytes;
}

impl ToValue for Bytes {
    fn to_value(self) -> Bytes {
        self
    }
}

impl ToValue for String {
    fn to_value(self) -> Bytes {
        self.into()
    }
}

impl ToValue for Vec<u8> {
    fn to_value(self) -> Bytes {
        self.into()
    }
}

impl ToValue for &str {
    fn to_value(self) -> Bytes {
        Bytes::copy_from_slice(self.as_bytes())
    }
}

impl ToValue for &String {
    fn to_value(self) -> Bytes {
        self.as_str().to_value()
    }
}

impl ToValue for &[u8] {
    fn to_value(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl<const N: usize> ToValue for &[u8; N] {
    fn to_value(self) -> Bytes {
        self.as_slice().to_value()
    }
}

/// A type that a stored value can be read as.
pub trait FromValue: Sized {
    /// The value of these bytes.
    ///
    /// # Errors
    /// When the bytes are no such value.
    fn from_value(bytes: Bytes) -> Result<Self, Error>;
}

impl FromValue for Bytes {
    fn from_value(bytes: Bytes) -> Result<Self, Error> {
        Ok(bytes)
    }
}

impl FromValue for Vec<u8> {
    fn from_value(bytes: Bytes) -> Result<Self, Error> {
        Ok(bytes.into())
    }
}

impl FromValue for String {
    fn from_value(bytes: Bytes) -> Result<Self, Error> {
        let text = Self::from_utf8(bytes.into());
        text.map_err(|_| {
            Error::invalid("redis: the value is not UTF-8 text; read it as Vec<u8> or Bytes")
        })
    }
}
