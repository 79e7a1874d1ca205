//! What memory can say of a key or field.

use crate::fallback::Refusal;
use bytes::Bytes;
use std::time::Instant;

/// How long a value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It was read from the server, which did not say.
    Unknown,
    Forever,
    Until(Instant),
}

impl Life {
    /// Lifetimes beyond the clock's range are for ever.
    pub(crate) fn of(ttl: Option<std::time::Duration>, from: Instant) -> Self {
        ttl.and_then(|ttl| from.checked_add(ttl)).map_or(Self::Forever, Self::Until)
    }

    pub(crate) fn is_over(self, now: Instant) -> bool {
        matches!(self, Self::Until(end) if end <= now)
    }
}

/// A value, when it was seen or written, and how long it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) value: Bytes,
    pub(crate) at: Instant,
    pub(crate) life: Life,
}

impl Held {
    /// With bytes of its own: a slice would keep the whole buffer that it was read into.
    pub(crate) fn alone(self) -> Self {
        Self { value: Bytes::copy_from_slice(&self.value), ..self }
    }
}

/// An answer of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known<T> {
    Here {
        what: T,
        at: Instant,
    },
    /// Deleted by this client, or expired.
    Absent,
    /// Nothing is known: told as a miss, but it is no statement about the server.
    Unknown,
}

impl<T> Known<T> {
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Known<U> {
        match self {
            Self::Here { what, at } => Known::Here { what: change(what), at },
            Self::Absent => Known::Absent,
            Self::Unknown => Known::Unknown,
        }
    }
}

impl Known<Held> {
    pub(crate) fn value(self) -> Known<Bytes> {
        self.map(|held| held.value)
    }
}

/// What the writes kept here say of a key.
pub(crate) enum Standing<T> {
    /// Nothing: ask the server.
    Clean,
    /// Some fields of it were written here, the rest is the server's.
    Mixed,
    Dirty(Result<Known<T>, Refusal>),
}

/// The fields of a hash.
pub(crate) type Pairs = Vec<(Bytes, Bytes)>;
