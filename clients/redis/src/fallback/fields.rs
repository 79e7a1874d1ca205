//! The fields of a hash that were seen, and what they weigh.

use super::known::Held;
use bytes::Bytes;
use std::{collections::HashMap, time::Instant};

/// What a field takes beside its bytes: a share of a table whose slots hold key and value, and two
/// counts of owners.
const FIELD_OVERHEAD: u64 = 224 + 2 * 32;
/// What a hash takes beside its fields.
pub(super) const HASH_OVERHEAD: u64 = 112;

/// What the allocator takes for so many bytes.
pub(super) fn allocated(bytes: usize) -> u64 {
    match bytes as u64 {
        0 => 0,
        bytes => (bytes + 8).next_multiple_of(16).max(32),
    }
}

/// Whether these are all fields of a hash, and since when.
#[derive(Clone, Copy, Default)]
pub(super) enum Whole {
    #[default]
    Unknown,
    Since(Instant),
    /// They were, before the write of one that began last.
    Before(Instant),
}

impl Whole {
    pub(super) const fn since(self) -> Option<Instant> {
        match self {
            Self::Since(at) => Some(at),
            Self::Unknown | Self::Before(_) => None,
        }
    }

    /// A write of one of them begins.
    pub(super) const fn touched(self) -> Self {
        match self {
            Self::Since(at) => Self::Before(at),
            Self::Unknown | Self::Before(_) => Self::Unknown,
        }
    }
}

#[derive(Default)]
pub(crate) struct Fields {
    pub(super) seen: HashMap<Bytes, Held>,
    pub(super) bytes: u64,
    pub(super) whole: Whole,
    /// What the write that began last took, if nothing was seen of it since.
    pub(super) taken: Option<Bytes>,
}

impl Fields {
    pub(super) fn put(&mut self, field: &Bytes, held: Held) {
        self.was_seen(field);
        self.bytes += field_weight(field, &held);
        if let Some(old) = self.seen.insert(field.clone(), held) {
            self.bytes -= field_weight(field, &old);
        }
    }

    pub(super) fn remove(&mut self, field: &Bytes) -> Option<Held> {
        self.was_seen(field);
        let old = self.seen.remove(field)?;
        self.bytes -= field_weight(field, &old);
        Some(old)
    }

    /// Or written, or seen gone.
    fn was_seen(&mut self, field: &Bytes) {
        if self.taken.as_ref() == Some(field) {
            self.taken = None;
        }
    }
}

pub(super) fn field_weight(field: &Bytes, held: &Held) -> u64 {
    allocated(field.len()) + allocated(held.value.len()) + FIELD_OVERHEAD
}
