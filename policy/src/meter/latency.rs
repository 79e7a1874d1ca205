//! How long answers took: four buckets to each doubling, from 1 us to about 5 minutes, so that a
//! quantile is right within an eighth. Two histograms take turns, a minute each.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

const BUCKETS: usize = 112;
/// Seconds that one histogram is written.
const TURN: u32 = 64;
/// Places of one histogram, some of them unused, so that this bit of a place says whose it is.
const PLACES: usize = 128;

#[derive(Debug)]
pub(super) struct Latencies {
    /// The number of the turn, times [`PLACES`].
    turn: AtomicU32,
    counts: [AtomicU32; 2 * PLACES],
}

impl Default for Latencies {
    fn default() -> Self {
        Self { turn: AtomicU32::new(0), counts: [const { AtomicU32::new(0) }; 2 * PLACES] }
    }
}

impl Latencies {
    #[inline]
    pub(super) fn add(&self, nanos: u64, answers: u32) {
        let place = self.turn.load(Relaxed) as usize & PLACES | bucket(nanos);
        if let Some(count) = self.counts.get(place) {
            // Where two threads meet one may be lost, which no quantile notices.
            count.store(count.load(Relaxed).wrapping_add(answers), Relaxed);
        }
    }

    /// To be called when a second begins: forgets what is two turns old.
    pub(super) fn begin(&self, second: u32) {
        let turn = (second / TURN).wrapping_mul(PLACES as u32);
        let before = self.turn.load(Relaxed);
        // Late threads of the turn before leave it as it is.
        if before < turn && self.turn.compare_exchange(before, turn, Relaxed, Relaxed).is_ok() {
            let own = self.counts.iter().skip(turn as usize & PLACES).take(PLACES);
            own.for_each(|count| count.store(0, Relaxed));
        }
    }

    pub(super) fn quantile<'a>(
        shards: impl Iterator<Item = &'a Self>,
        share: f64,
    ) -> Option<Duration> {
        let mut sums = [0_u64; BUCKETS];
        for latencies in shards {
            for counts in latencies.counts.chunks(PLACES) {
                for (sum, count) in sums.iter_mut().zip(counts) {
                    *sum += u64::from(count.load(Relaxed));
                }
            }
        }
        let total: u64 = sums.iter().sum();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation
        )]
        let mut rank = (total as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        for (n, count) in sums.iter().enumerate() {
            if rank <= *count {
                return Some(Duration::from_nanos(middle(n)));
            }
            rank -= count;
        }
        None
    }
}

/// Units of 1,024 ns: the first four buckets are one wide, and from there four share a doubling.
#[inline]
fn bucket(nanos: u64) -> usize {
    let units = nanos >> 10;
    if units < 4 {
        return units as usize & 3;
    }
    let doubling = 63 - units.leading_zeros() as usize;
    let quarter = (units >> (doubling - 2)) as usize & 3;
    ((doubling - 1) * 4 + quarter).min(BUCKETS - 1)
}

fn middle(bucket: usize) -> u64 {
    let (doubling, quarter) = (bucket / 4 + 1, bucket as u64 % 4);
    if bucket < 4 {
        return bucket as u64 * 1024 + 512;
    }
    let width = 1024_u64 << (doubling - 2);
    (4 + quarter) * width + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_middle_of_a_bucket_is_near_what_fell_into_it(nanos in 4096_u64..300_000_000_000) {
            let seen = middle(bucket(nanos));
            prop_assert!(seen.abs_diff(nanos) <= nanos / 8, "{seen} for {nanos}");
        }
    }

    #[test]
    fn a_quantile_forgets_what_is_two_turns_old() {
        let one = Latencies::default();
        let add = |second, nanos| {
            one.begin(second);
            one.add(nanos, 1);
        };
        let median = |l: &Latencies| Latencies::quantile([l].into_iter(), 0.5);
        assert_eq!(median(&one), None);
        (0..100).for_each(|_| add(1, 1_000_000));
        let close = |seen: Option<Duration>, ms: u64| {
            seen.is_some_and(|d| {
                d.as_micros().abs_diff(u128::from(ms) * 1000) < 125 * u128::from(ms)
            })
        };
        assert!(close(median(&one), 1), "{:?}", median(&one));
        (0..300).for_each(|_| add(70, 9_000_000));
        assert!(close(median(&one), 9));
        assert!(close(Latencies::quantile([&one].into_iter(), 0.1), 1));
        add(130, 9_000_000);
        assert!(close(Latencies::quantile([&one].into_iter(), 0.01), 9));
        add(u32::MAX, u64::MAX);
        assert!(Latencies::quantile([&one].into_iter(), 1.0).unwrap() > Duration::from_secs(200));
    }
}
