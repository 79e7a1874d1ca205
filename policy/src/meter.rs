//! What a dependency has done: counts of the last seconds, totals, and how long answers took.
//!
//! Memory is fixed and nothing here locks. A shard is owned by the first thread that counts in it, which
//! needs no locked addition for that; who finds it owned adds beside, and who does so often makes more
//! shards, so that an answer writes no line that another thread writes. Who needs a sum, which is
//! whoever just failed, reads them all.

mod latency;
mod tally;
mod thread;
mod window;

use crate::{clock::Instant, telemetry};
use latency::Latencies;
use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tally::Tally;
use thread::Owner;
pub(crate) use window::LONGEST as LONGEST_WINDOW;
use window::{Ring, Total};

const MOST_SHARDS: usize = 16;
/// After so many counts beside the owner of a shard there are twice as many shards.
const OFTEN: u64 = 64;
/// So many answers make a median worth keeping for a second.
const ENOUGH: u64 = 64;
/// Of the answers that were ready at once and quick, one in so many is timed.
const TIMED_ONE_IN: u32 = 8;

/// Attempts of the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// Of the attempts that ended, and of those cut short.
    pub(crate) slow: u64,
    /// Cut short by a drop or a deadline after they had become slow.
    pub(crate) cut: u64,
}

impl Counts {
    pub(crate) const fn attempts(&self) -> u64 {
        self.answered + self.failed
    }

    pub(crate) fn failure_rate(&self) -> f64 {
        share(self.failed, self.attempts())
    }

    pub(crate) fn slow_rate(&self) -> f64 {
        share(self.slow, self.attempts() + self.cut)
    }
}

#[allow(clippy::cast_precision_loss)] // Exact below 2^53 calls.
pub(crate) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[derive(Debug, Default)]
#[repr(align(128))] // Two lines: processors fetch them in pairs.
struct Shard {
    blocked: Tally,
    answered: Total,
    /// Answers that belong to no window.
    late: Tally,
    /// Answers that were ready at once until one is timed, itself included; 0 when all are, since the
    /// last one was not quick. Where metrics count each answer only the owner writes it.
    untimed: AtomicU32,
    latencies: Latencies,
}

#[derive(Debug, Default)]
#[repr(C)] // The first where the meter is: two instructions of each call.
pub(crate) struct Meter {
    first: Shard,
    /// Of each shard. Beside what hardly anybody writes, since everybody reads it.
    owners: [Owner; MOST_SHARDS],
    more: [OnceLock<Box<Shard>>; MOST_SHARDS - 1],
    /// One less than the shards in use, a power of two.
    mask: AtomicUsize,
    failed: Ring,
    slow: Ring,
    cut: Ring,
    /// Nanoseconds; 0 until the first answer.
    median: AtomicU64,
}

/// What one answer asks its caller to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Noted {
    Nothing,
    /// The median has been taken anew.
    Median,
}

/// Whether an answer that was ready at once is to be timed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Timed {
    /// It is counted already.
    No,
    /// And speaks for so many.
    OneOf(u32),
}

impl Meter {
    /// One answer, whose time stands for that of so many. `in_window`: it belongs to the breaker's
    /// present state.
    #[inline(always)]
    pub(crate) fn answered(&self, now: Instant, took: u64, like: u32, in_window: bool) -> Noted {
        let ((shard, owned), second) = (self.taken_shard(), now.second());
        let begins = !shard.answered.is_in(now) && shard.begin(second);
        shard.latencies.add(took, like);
        let seen = shard.answered.count().all() + shard.late.all();
        self.count(shard.tally(in_window), owned);
        if !begins && seen >= ENOUGH {
            return Noted::Nothing;
        }
        // Others may be counted in passing from here on.
        if seen + 1 >= ENOUGH {
            shard.answered.open(second);
        }
        self.take_median()
    }

    /// As [`Self::answered`] in the window, where there is nothing else to do; else false, and nothing
    /// is done.
    #[inline(always)]
    pub(crate) fn answered_in_passing(&self, now: Instant, took: u64, like: u32) -> bool {
        let (shard, owned) = self.shard();
        if !owned || !shard.answered.is_in(now) {
            return false;
        }
        shard.latencies.add(took, like);
        shard.answered.count().add();
        true
    }

    /// One answer that was ready at once, in the second in which it began. It is counted here unless it
    /// is to be timed: when it is no calm moment, or its turn. `in_window`: as for [`Self::answered`].
    #[inline(always)]
    pub(crate) fn answered_at_once(&self, began: Instant, calm: bool, in_window: bool) -> Timed {
        let (shard, owned) = self.shard();
        let left = shard.untimed.load(Relaxed);
        if left == 0 || !may_leave_untimed(owned) {
            return Timed::OneOf(1);
        }
        if !calm || left == 1 || !shard.answered.is_in(began) {
            return Timed::OneOf(TIMED_ONE_IN + 1 - left);
        }
        shard.untimed.store(left - 1, Relaxed);
        self.count(shard.tally(in_window), owned);
        Timed::No
    }

    #[inline(always)]
    fn count(&self, tally: &Tally, owned: bool) {
        if owned {
            tally.add();
        } else {
            self.count_beside(tally);
        }
    }

    /// The owner may be at work, or have counted once and never again: whoever counts often here gets a
    /// shard of his own.
    #[cold]
    #[inline(never)]
    fn count_beside(&self, tally: &Tally) {
        if tally.add_beside().is_multiple_of(OFTEN) {
            self.spread();
        }
    }

    /// Whether what was ready at once took so little time that others like it need not be timed.
    #[inline]
    pub(crate) fn tell_quick(&self, quick: bool) {
        let (shard, owned) = self.shard();
        if may_leave_untimed(owned) {
            let enough = shard.answered.count().all() + shard.late.all() >= ENOUGH;
            shard.untimed.store(if quick && enough { TIMED_ONE_IN } else { 0 }, Relaxed);
        }
    }

    pub(crate) fn failed(&self, now: Instant) {
        self.failed.add(now.second());
    }

    pub(crate) fn slow(&self, now: Instant) {
        self.slow.add(now.second());
    }

    pub(crate) fn cut(&self, now: Instant) {
        self.slow(now);
        self.cut.add(now.second());
    }

    #[inline(always)]
    pub(crate) fn blocked(&self) {
        let (shard, owned) = self.shard();
        if owned {
            shard.blocked.add();
        } else {
            self.blocked_beside();
        }
    }

    #[cold]
    fn blocked_beside(&self) {
        let (shard, owned) = self.taken_shard();
        self.count(&shard.blocked, owned);
    }

    /// The sums of the last `seconds`, the present one included.
    pub(crate) fn counts(&self, now: Instant, seconds: u32) -> Counts {
        let sum = |ring: &Ring| ring.sum(now.second(), seconds);
        Counts {
            answered: self.shards().map(|shard| shard.answered.sum(now.second(), seconds)).sum(),
            failed: sum(&self.failed),
            slow: sum(&self.slow),
            cut: sum(&self.cut),
        }
    }

    /// Empties the windows: what was seen before a transition does not count after it.
    pub(crate) fn clear(&self) {
        self.shards().for_each(|shard| shard.answered.clear());
        for ring in [&self.failed, &self.slow, &self.cut] {
            ring.clear();
        }
    }

    /// Answers since the start: for each operation that succeeded there is exactly one.
    pub(crate) fn answers(&self) -> u64 {
        self.shards().map(|shard| shard.answered.count().all() + shard.late.all()).sum()
    }

    pub(crate) fn blocked_total(&self) -> u64 {
        self.shards().map(|shard| shard.blocked.all()).sum()
    }

    /// How long this share of the answers of the last one or two minutes took at most, within an
    /// eighth; `None` before the first answer.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        Latencies::quantile(self.shards().map(|shard| &shard.latencies), share)
    }

    /// The observed median, at most a second old.
    pub(crate) fn median(&self) -> Option<Duration> {
        let nanos = self.median.load(Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    #[cold]
    fn take_median(&self) -> Noted {
        let median = self.quantile(0.5).map_or(0, crate::clock::nanos);
        self.median.store(median, Relaxed);
        Noted::Median
    }

    fn shards(&self) -> impl Iterator<Item = &Shard> + Clone {
        let more = self.more.iter().filter_map(|shard| shard.get().map(|s| &**s));
        std::iter::once(&self.first).chain(more)
    }

    /// The shard of this thread, and whether it owns that.
    #[inline(always)]
    fn shard(&self) -> (&Shard, bool) {
        let thread = thread::number();
        let [first, ..] = &self.owners;
        if first.is(thread) { (&self.first, true) } else { self.numbered(thread) }
    }

    /// As [`Self::shard`], of a thread that does not own the first.
    #[inline]
    fn numbered(&self, thread: usize) -> (&Shard, bool) {
        let number = thread & self.mask.load(Relaxed);
        let more = number.checked_sub(1).and_then(|n| self.more.get(n));
        let shard = more.map_or(&self.first, |slot| slot.get_or_init(Box::default));
        (shard, self.owners.get(number).is_some_and(|owner| owner.is(thread)))
    }

    /// As [`Self::shard`], after an attempt to own the one that belongs to its number, in the place of
    /// the one that it had.
    #[inline]
    fn taken_shard(&self) -> (&Shard, bool) {
        let thread = thread::number();
        match self.owners.get(thread & self.mask.load(Relaxed)) {
            Some(owner) if owner.is(thread) => self.shard(),
            _ => self.take_shard(),
        }
    }

    #[cold]
    #[inline(never)]
    fn take_shard(&self) -> (&Shard, bool) {
        let thread = thread::take_number();
        let number = thread & self.mask.load(Relaxed);
        if self.owners.get(number).is_some_and(|owner| owner.take(thread)) {
            let others = self.owners.iter().enumerate().filter(|(n, _)| *n != number);
            others.for_each(|(_, other)| other.give_back(thread));
        }
        self.shard()
    }

    /// Uses twice as many shards, if there are threads enough for them.
    #[cold]
    fn spread(&self) {
        static ENOUGH_FOR_ALL: OnceLock<usize> = OnceLock::new();
        let most = *ENOUGH_FOR_ALL.get_or_init(|| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            threads.saturating_mul(2).next_power_of_two().min(MOST_SHARDS)
        });
        let mask = self.mask.load(Relaxed);
        if (mask + 1) * 2 <= most {
            let _ = self.mask.compare_exchange(mask, mask * 2 + 1, Relaxed, Relaxed);
        }
    }
}

/// Two threads that meet at one shard may time one a little later, or count it as one more or less that
/// was not timed, which matters only to metrics.
const fn may_leave_untimed(owned: bool) -> bool {
    owned || !telemetry::counts()
}

impl Shard {
    #[inline(always)]
    const fn tally(&self, in_window: bool) -> &Tally {
        if in_window { self.answered.count() } else { &self.late }
    }

    /// The first answer of a second.
    #[cold]
    fn begin(&self, second: u32) -> bool {
        let begins = self.answered.begin(second);
        if begins {
            self.latencies.begin(second);
        }
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::of_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn windows_slide_and_totals_stay() {
        let meter = Meter::default();
        for second in 0..20 {
            meter.answered(at(second), 1_000_000, 1, true);
            meter.failed(at(second));
        }
        meter.cut(at(19));
        let counts = meter.counts(at(19), 10);
        assert_eq!(counts, Counts { answered: 10, failed: 10, slow: 1, cut: 1 });
        assert_eq!(meter.counts(at(25), 10).answered, 4);
        assert_eq!(meter.counts(at(10_000), 10), Counts::default());
        meter.clear();
        assert_eq!(meter.counts(at(19), 10), Counts::default());
        assert_eq!(meter.answers(), 20);
    }

    #[test]
    fn of_quick_answers_one_in_eight_is_timed_and_speaks_for_the_rest() {
        let meter = Meter::default();
        let mut timed = 0;
        let answer = |took: u64| match meter.answered_at_once(at(1), true, true) {
            Timed::No => false,
            Timed::OneOf(like) => {
                meter.answered(at(1), took, like, true);
                meter.tell_quick(took < 1_000_000);
                true
            }
        };
        assert!((0..ENOUGH).all(|_| answer(5_000)), "until the median is known");
        for _ in 0..8_000 {
            timed += u32::from(answer(5_000));
        }
        assert_eq!((timed, meter.answers()), (1_000, 8_000 + ENOUGH));
        assert_eq!(meter.counts(at(1), 10).answered, 8_000 + ENOUGH);
        // A slow one is seen within eight, and from then on all are.
        let before = (0..9).take_while(|_| !answer(90_000_000)).count();
        assert_eq!(before, 7);
        assert!((0..100).all(|_| answer(90_000_000)));
        assert!(answer(5_000));
        assert!(!answer(5_000));
        // One slow one spoke for those before it, and each for itself: about 1 %.
        assert!(meter.quantile(0.97).is_some_and(|seen| seen < Duration::from_micros(6)));
        assert!(meter.quantile(0.99).is_some_and(|seen| seen > Duration::from_millis(70)));
    }

    #[test]
    fn threads_that_meet_lose_no_answer() {
        let meter = Meter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..50_000 {
                        meter.answered(at(n / 10_000), 1_000, 1, true);
                    }
                });
            }
        });
        assert_eq!(meter.answers(), 200_000);
        assert_eq!(meter.counts(at(4), 10).answered, 200_000);
    }

    #[test]
    fn threads_that_take_shards_from_each_other_lose_no_refusal() {
        let meter = Meter::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..50_000 {
                        meter.blocked();
                        // As often as they can: each then finds another shard, owned or not.
                        if n % 100 == 0 {
                            meter.mask.store(n / 100 % 4, Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(meter.blocked_total(), 200_000);
    }

    #[test]
    fn a_thread_owns_one_shard_and_others_count_beside() {
        let meter = Meter::default();
        meter.blocked();
        assert!(meter.shard().1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                meter.blocked();
                assert!(!meter.shard().1);
            });
        });
        assert_eq!(meter.blocked_total(), 2);
        meter.mask.store(MOST_SHARDS - 1, Relaxed);
        meter.blocked();
        assert_eq!(meter.owners.iter().filter(|owner| owner.is(thread::number())).count(), 1);
        assert_eq!(meter.blocked_total(), 3);
    }

    /// As the main thread of a service, which made one call when it started.
    #[test]
    fn who_counts_often_beside_an_owner_that_counts_no_more_makes_a_second_shard() {
        let meter = Meter::default();
        meter.blocked();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (1..OFTEN).for_each(|_| meter.blocked());
                assert_eq!(meter.mask.load(Relaxed), 0);
                meter.blocked();
                assert_eq!(meter.mask.load(Relaxed), 1);
            });
        });
        assert_eq!(meter.blocked_total(), 1 + OFTEN);
    }
}
