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
            self.clear(turn);
            // The other one is of the turn before, or was when that was the last one begun.
            if turn - before > PLACES as u32 {
                self.clear(before_that(turn));
            }
        }
    }

    fn clear(&self, turn: u32) {
        self.of(turn).for_each(|count| count.store(0, Relaxed));
    }

    /// The histogram of this turn, or of the one two turns away.
    fn of(&self, turn: u32) -> impl Iterator<Item = &AtomicU32> {
        self.counts.iter().skip(turn as usize & PLACES).take(PLACES)
    }

    /// Of the newest turn that a shard has begun, and of the one before.
    pub(super) fn quantile<'a>(
        shards: impl Iterator<Item = &'a Self> + Clone,
        share: f64,
    ) -> Option<Duration> {
        let newest = shards.clone().map(|shard| shard.turn.load(Relaxed)).max()?;
        let mut sums = [0_u64; BUCKETS];
        for shard in shards {
            // Where a shard has not begun a turn, it holds one of two turns before.
            let begun = shard.turn.load(Relaxed);
            let wanted = [newest, before_that(newest)].into_iter().filter(|turn| *turn <= begun);
            for counts in wanted.map(|turn| shard.of(turn)) {
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

const fn before_that(turn: u32) -> u32 {
    turn.wrapping_sub(PLACES as u32)
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
        // After a pause, of any number of turns, nothing is left of what was before it.
        (0..100).for_each(|_| add(131, 1_000_000));
        add(64 * 101, 9_000_000);
        assert!(close(median(&one), 9), "{:?}", median(&one));
        add(u32::MAX, u64::MAX);
        assert!(Latencies::quantile([&one].into_iter(), 1.0).unwrap() > Duration::from_secs(200));
    }

    /// Its thread has ended, or has other things to do.
    #[test]
    fn a_quantile_forgets_what_a_shard_holds_that_goes_on_no_more() {
        let (rests, goes_on) = (Latencies::default(), Latencies::default());
        let add = |one: &Latencies, second, ms: u64| {
            one.begin(second);
            one.add(ms * 1_000_000, 100);
        };
        // Turns 0 to 3.
        for (second, rested, expected) in
            [(1, Some(200), 200), (70, Some(131), 200), (130, None, 131), (200, None, 9)]
        {
            if let Some(ms) = rested {
                add(&rests, second, ms);
            }
            add(&goes_on, second, 9);
            let high = Latencies::quantile([&rests, &goes_on].into_iter(), 0.99).unwrap();
            let off = high.as_millis().abs_diff(expected);
            assert!(off <= expected / 8, "{high:?} in second {second}");
        }
    }
}
