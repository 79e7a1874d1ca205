//! A ring of one-second buckets. A bucket is one word, its second and its count, so that a reader
//! never takes the count of one second for another's.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A window is at most this long, less the second that is being written.
pub(crate) const LONGEST: u32 = 60;
const BUCKETS: usize = 64;
const COUNT: u64 = 0xffff_ffff;

#[derive(Debug)]
pub(super) struct Ring([AtomicU64; BUCKETS]);

impl Default for Ring {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }
}

#[derive(Clone, Copy)]
pub(super) struct Added {
    /// It is the first of its second.
    pub(super) first: bool,
    /// Another thread wrote the same bucket in the same moment.
    pub(super) met_another: bool,
}

impl Ring {
    #[inline]
    pub(super) fn add(&self, second: u32) -> Added {
        // Seconds are stored from 1: an untouched bucket belongs to none.
        let stamp = u64::from(second.wrapping_add(1)) << 32;
        let mut added = Added { first: false, met_another: false };
        let Some(bucket) = self.0.get(second as usize % BUCKETS) else { return added };
        let mut seen = bucket.load(Relaxed);
        loop {
            // A thread that read its clock long ago adds to what is there now.
            added.first = seen & !COUNT < stamp;
            let next = if added.first { stamp | 1 } else { seen + 1 };
            match bucket.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return added,
                Err(now) => {
                    added.met_another |= now != seen;
                    seen = now;
                }
            }
        }
    }

    /// What the last `seconds` hold, `second` included.
    pub(super) fn sum(&self, second: u32, seconds: u32) -> u64 {
        let newest = u64::from(second) + 1;
        let oldest = newest.saturating_sub(u64::from(seconds.clamp(1, LONGEST)) - 1);
        let counts = self.0.iter().map(|bucket| {
            let value = bucket.load(Relaxed);
            if (oldest..=newest).contains(&(value >> 32)) { value & COUNT } else { 0 }
        });
        counts.sum()
    }

    pub(super) fn clear(&self) {
        for bucket in &self.0 {
            bucket.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_ring_sums_what_a_log_of_every_call_sums(
            steps in prop::collection::vec((0_u32..30, 0_u32..5), 1..100),
            seconds in 1_u32..=60,
        ) {
            let (ring, mut log, mut second) = (Ring::default(), Vec::new(), 0);
            for (step, calls) in steps {
                second += step;
                for _ in 0..calls {
                    ring.add(second);
                    log.push(second);
                }
                let naive = log.iter().filter(|then| second - **then < seconds).count();
                prop_assert_eq!(ring.sum(second, seconds), naive as u64);
            }
        }
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        let ring = Ring::default();
        ring.add(0);
        assert_eq!(ring.sum(0, 60), 1);
        ring.add(u32::MAX - 1);
        assert_eq!(ring.sum(u32::MAX - 1, 0), 1);
    }
}
