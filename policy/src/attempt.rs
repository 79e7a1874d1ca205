//! One attempt: its number and its share of the time left.

use std::time::Duration;

/// What an operation knows about the attempt it is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    number: u32,
    /// In nanoseconds; the largest value stands for "no limit".
    left: u64,
}

impl Attempt {
    #[inline]
    pub(crate) const fn new(number: u32, left: u64) -> Self {
        Self { number, left }
    }

    /// The number of this attempt, from 1.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// How long this attempt may take: the attempt timeout or the time left, whichever is less.
    ///
    /// `None` means that timeouts are switched off and no deadline is set.
    #[must_use]
    pub const fn timeout(&self) -> Option<Duration> {
        match self.left {
            u64::MAX => None,
            left => Some(Duration::from_nanos(left)),
        }
    }
}
