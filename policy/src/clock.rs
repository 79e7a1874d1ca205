//! The one reader of time.
//!
//! Time is the CPU's invariant counter where there is one (`quanta`), a third of the cost of the
//! operating system's. With feature `test-util` it is tokio's clock, which tests may pause.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant as StdInstant},
};
use tokio::time::{Instant as TokioInstant, Sleep};

/// A moment, in nanoseconds since this process first asked. All arithmetic saturates, and the last
/// moment stands for "never".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Instant(u64);

impl Instant {
    pub(crate) const NEVER: Self = Self(u64::MAX);

    pub(crate) fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(nanos(wait)))
    }

    pub(crate) const fn after_nanos(self, wait: u64) -> Self {
        Self(self.0.saturating_add(wait))
    }

    /// As [`Self::after`] where "never" means something else: the moment comes, if only at the end of time.
    pub(crate) fn once_after(self, wait: Duration) -> Self {
        self.after(wait).min(Self(u64::MAX - 1))
    }

    /// Zero when `self` is not after `earlier`.
    pub(crate) const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) const fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    pub(crate) const fn is_never(self) -> bool {
        self.0 == u64::MAX
    }

    /// Whole seconds.
    #[allow(clippy::cast_possible_truncation)] // 136 years.
    pub(crate) const fn second(self) -> u32 {
        (self.0 / 1_000_000_000) as u32
    }

    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) const fn of_nanos(nanos: u64) -> Self {
        Self(nanos)
    }
}

/// The length in nanoseconds; about 584 years at most.
pub(crate) fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(not(any(test, feature = "test-util")))]
#[inline]
#[allow(clippy::cast_possible_truncation)] // 292 years.
pub(crate) fn now() -> Instant {
    struct Ticks {
        clock: quanta::Clock,
        start: u64,
        /// The nanoseconds of one tick, times 2^63.
        length: u64,
    }
    static TICKS: LazyLock<Ticks> = LazyLock::new(|| {
        let clock = quanta::Clock::new();
        let (start, length) = (clock.raw(), clock.delta_as_nanos(0, 1 << 40) << 23);
        Ticks { clock, start, length }
    });
    let Ticks { clock, start, length } = &*TICKS;
    // Another processor's counter may be a little behind.
    let ticks = clock.raw().saturating_sub(*start);
    Instant(((u128::from(ticks) * u128::from(*length)) >> 63) as u64)
}

#[cfg(any(test, feature = "test-util"))]
pub(crate) fn now() -> Instant {
    Instant(nanos(TokioInstant::now().into_std().saturating_duration_since(*START)))
}

/// How far [`about_now`] may be off: a tick of the system's clock takes 10 ms at most.
pub(crate) const ABOUT: u64 = 25_000_000;

/// The time at a third of the price, for those who wait for something that is further away than
/// [`ABOUT`]: what the system noted at its last tick, and how far that was from [`now`] a second ago.
#[cfg(all(target_os = "linux", not(any(test, feature = "test-util"))))]
#[inline]
pub(crate) fn about_now() -> Instant {
    const STALE: u64 = 1_000_000_000;
    static AHEAD: AtomicI64 = AtomicI64::new(0);
    static MEASURED: AtomicU64 = AtomicU64::new(0);
    #[cold]
    #[inline(never)]
    fn measure(seen: u64) -> Instant {
        let own = now();
        AHEAD.store(own.0.wrapping_sub(seen).cast_signed(), Relaxed);
        MEASURED.store(seen, Relaxed);
        own
    }
    let Ok(tick) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE) else {
        return measure(0);
    };
    let (seconds, nanos) = (tick.tv_sec().cast_unsigned(), tick.tv_nsec().cast_unsigned());
    let seen = seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos);
    if seen.wrapping_sub(MEASURED.load(Relaxed)) > STALE {
        return measure(seen);
    }
    Instant(seen.wrapping_add_signed(AHEAD.load(Relaxed)))
}

#[cfg(not(all(target_os = "linux", not(any(test, feature = "test-util")))))]
pub(crate) fn about_now() -> Instant {
    now()
}

/// Not after the first question: a paused clock stands where it was stopped, so that what tests see
/// depends on no moment of the real one.
/// Long before it, since the paused clock of another test's runtime may have been stopped earlier.
static START: LazyLock<StdInstant> = LazyLock::new(|| {
    let now = StdInstant::now().min(TokioInstant::now().into_std());
    now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
});

/// A sleep until `when`, which must not be "never"; `now` was read a moment ago.
pub(crate) fn sleep_until(when: Instant, now: Instant) -> Sleep {
    tokio::time::sleep_until(on_tokio(when, now))
}

/// The same moment on tokio's clock. The two clocks drift apart by a few microseconds a second, so
/// their distance is measured again when the last measure is older than that allows.
fn on_tokio(when: Instant, now: Instant) -> TokioInstant {
    const STALE: u64 = 100_000_000;
    static AHEAD: AtomicI64 = AtomicI64::new(0);
    static MEASURED: AtomicU64 = AtomicU64::new(0);
    let measured = MEASURED.load(Relaxed);
    if measured == 0 || now.0.saturating_sub(measured) > STALE {
        // In this order: whoever is interrupted between the two sleeps too long, not too short.
        let own = self::now().0;
        let std = nanos(TokioInstant::now().into_std().saturating_duration_since(*START));
        AHEAD.store(std.cast_signed().wrapping_sub(own.cast_signed()), Relaxed);
        MEASURED.store(own.max(1), Relaxed);
    }
    let nanos = when.0.saturating_add_signed(AHEAD.load(Relaxed));
    // Tokio, too, has an end of time: about 30 years away is as good.
    let far = Duration::from_secs(1_000_000_000);
    let since = Duration::from_nanos(nanos);
    let start = TokioInstant::from_std(*START);
    start.checked_add(since).or_else(|| start.checked_add(far)).unwrap_or(start)
}

/// No wait outside a runtime, where there is no timer.
pub(crate) async fn sleep(duration: Duration) {
    if has_timer() {
        tokio::time::sleep(duration).await;
    }
}

/// Tokio panics without a runtime; a driver says what is wrong in its own error.
pub(crate) fn has_timer() -> bool {
    // A task has a runtime, and its number costs nothing: the handle is counted by all threads.
    tokio::task::try_id().is_some() || tokio::runtime::Handle::try_current().is_ok()
}
