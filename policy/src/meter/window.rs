//! Rings of one-second buckets. A bucket is one word, its second and its count, so that a reader
//! never takes the count of one second for another's.

use super::tally::Tally;
use crate::clock::Instant;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// A window is at most this long, less the second that is being written.
pub(crate) const LONGEST: u32 = 60;
const BUCKETS: usize = 64;
const COUNT: u64 = 0xffff_ffff;

type Buckets = [AtomicU64; BUCKETS];

const fn untouched() -> Buckets {
    [const { AtomicU64::new(0) }; BUCKETS]
}

/// Seconds are stored from 1: an untouched bucket belongs to none.
fn stamp(second: u32) -> u64 {
    u64::from(second.wrapping_add(1)) << 32
}

/// The buckets of the last `seconds`, `second` included.
fn window(buckets: &Buckets, second: u32, seconds: u32) -> impl Iterator<Item = u64> + use<'_> {
    let newest = u64::from(second) + 1;
    let oldest = newest.saturating_sub(u64::from(seconds.clamp(1, LONGEST)) - 1).max(1);
    let values = buckets.iter().map(|bucket| bucket.load(Acquire));
    values.filter(move |value| (oldest..=newest).contains(&(value >> 32)))
}

fn clear(buckets: &Buckets) {
    for bucket in buckets {
        bucket.store(0, Relaxed);
    }
}

/// Counts what is rare, second by second.
#[derive(Debug)]
pub(super) struct Ring(Buckets);

impl Default for Ring {
    fn default() -> Self {
        Self(untouched())
    }
}

impl Ring {
    pub(super) fn add(&self, second: u32) {
        let stamp = stamp(second);
        let Some(bucket) = self.0.get(second as usize % BUCKETS) else { return };
        let mut seen = bucket.load(Relaxed);
        loop {
            // A thread that read its clock long ago adds to what is there now.
            let next = if seen & !COUNT < stamp { stamp | 1 } else { seen + 1 };
            match bucket.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// What the last `seconds` hold, `second` included.
    pub(super) fn sum(&self, second: u32, seconds: u32) -> u64 {
        window(&self.0, second, seconds).map(|value| value & COUNT).sum()
    }

    pub(super) fn clear(&self) {
        clear(&self.0);
    }
}

/// Counts what is frequent: one counter, and for each second what it showed when that began.
#[derive(Debug)]
pub(super) struct Total {
    count: Tally,
    /// When the second began, in nanoseconds, that was opened last; [`NONE`] when none was.
    second: AtomicU64,
    starts: Buckets,
}

const SECOND: u64 = 1_000_000_000;
/// 292 years away.
const NONE: u64 = 1 << 63;

impl Default for Total {
    fn default() -> Self {
        Self { count: Tally::default(), second: AtomicU64::new(NONE), starts: untouched() }
    }
}

impl Total {
    /// Whether this is in the second that was opened last.
    #[inline]
    pub(super) fn is_in(&self, now: Instant) -> bool {
        // Acquired: who adds in a second adds after its start was noted.
        now.as_nanos().wrapping_sub(self.second.load(Acquire)) < SECOND
    }

    /// Notes the start of `second`; false when that, or a later one, has begun already.
    pub(super) fn begin(&self, second: u32) -> bool {
        let Some(start) = self.starts.get(second as usize % BUCKETS) else { return false };
        let (seen, stamp) = (start.load(Acquire), stamp(second));
        let value = stamp | self.count.all() & COUNT;
        // A thread that read its clock long ago adds to the second that is there now.
        seen < stamp && start.compare_exchange(seen, value, AcqRel, Acquire).is_ok()
    }

    /// From now on [`Self::is_in`] knows this second, which has begun.
    pub(super) fn open(&self, second: u32) {
        self.second.store(u64::from(second) * SECOND, Release);
    }

    /// What was added, second or not.
    #[inline]
    pub(super) const fn count(&self) -> &Tally {
        &self.count
    }

    /// What the last `seconds` hold, `second` included.
    pub(super) fn sum(&self, second: u32, seconds: u32) -> u64 {
        // In 32 bits, which no window fills. The start that is furthest back counts, and not that of the
        // oldest second: a thread that read its clock long ago may have begun that one last.
        let is_before = |one: u64, other: u64| other.wrapping_sub(one) & COUNT <= COUNT / 2;
        let starts = window(&self.starts, second, seconds);
        let first = starts.reduce(|one, other| if is_before(one, other) { one } else { other });
        // Read last: no start shows more than there is now.
        first.map_or(0, |start| self.count.all().wrapping_sub(start) & COUNT)
    }

    pub(super) fn clear(&self) {
        clear(&self.starts);
        self.second.store(NONE, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: u32) -> Instant {
        Instant::of_nanos(u64::from(second) * SECOND)
    }

    #[test]
    fn a_second_is_one_second_long() {
        let total = Total::default();
        assert!(!total.is_in(at(0)) && !total.is_in(Instant::NEVER));
        total.begin(7);
        assert!(!total.is_in(at(7)), "nobody has opened it");
        total.open(7);
        let around =
            [at(7), at(7).after_nanos(SECOND - 1), at(8), Instant::of_nanos(7 * SECOND - 1)];
        assert_eq!(around.map(|now| total.is_in(now)), [true, true, false, false]);
    }

    proptest! {
        #[test]
        fn windows_sum_what_a_log_of_every_call_sums(
            steps in prop::collection::vec((0_u32..30, 0_u32..5), 1..100),
            seconds in 1_u32..=60,
        ) {
            let (ring, total) = (Ring::default(), Total::default());
            let (mut log, mut second) = (Vec::new(), 0);
            for (step, calls) in steps {
                second += step;
                for _ in 0..calls {
                    ring.add(second);
                    if !total.is_in(at(second)) {
                        total.begin(second);
                        total.open(second);
                    }
                    total.count.add();
                    log.push(second);
                }
                let naive = log.iter().filter(|then| second - **then < seconds).count() as u64;
                prop_assert_eq!(ring.sum(second, seconds), naive);
                prop_assert_eq!(total.sum(second, seconds), naive);
                prop_assert_eq!(total.count.all(), log.len() as u64);
            }
        }
    }

    #[test]
    fn what_was_cleared_counts_no_more_and_what_follows_does() {
        let total = Total::default();
        total.begin(7);
        total.open(7);
        total.count.add();
        total.clear();
        assert_eq!((total.sum(7, 10), total.is_in(at(7))), (0, false));
        assert!(total.begin(7));
        total.count.add();
        assert_eq!((total.sum(7, 10), total.count.all()), (1, 2));
        assert!(!total.begin(7), "it has begun");
    }

    #[test]
    fn a_second_that_is_begun_late_takes_nothing_from_the_next() {
        let total = Total::default();
        total.begin(4);
        (0..10).for_each(|_| total.count.add());
        assert!(total.begin(1), "by a thread that was held up");
        total.count.add();
        assert_eq!(total.sum(4, 10), 11);
    }

    #[test]
    fn a_second_that_begins_while_it_is_summed_is_not_endless() {
        let (total, second) = (Total::default(), AtomicU64::new(0));
        const SECONDS: u32 = 800;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for now in 0..SECONDS {
                    second.store(u64::from(now), Relaxed);
                    total.begin(now);
                    if now % 8 == 0 {
                        // Where there is one processor, the other thread goes on in mid-sum.
                        std::thread::yield_now();
                    }
                    total.count.add();
                }
            });
            while total.count.all() < u64::from(SECONDS) {
                // Those to come, too, since some begin meanwhile.
                let soon = u32::try_from(second.load(Relaxed)).unwrap() + 30;
                assert!(total.sum(soon, 60) <= u64::from(SECONDS));
            }
        });
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        let (ring, total) = (Ring::default(), Total::default());
        for second in [0, u32::MAX - 1] {
            ring.add(second);
            total.begin(second);
            total.count.add();
            assert_eq!((ring.sum(second, 60), total.sum(second, 0)), (1, 1));
        }
    }
}
