//! The wait before a retry: `min(max_delay, base_delay * exponential_base^n)`, jitter inside the cap.
//!
//! The jitter kinds are those of "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

/// How the wait is spread, so that clients that failed together do not return together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Jitter {
    /// Anywhere between zero and the exponential wait.
    #[default]
    Full,
    /// Half of the exponential wait, and a random part of the other half.
    Equal,
    /// Between `base_delay` and three times the wait before, whatever the attempt's number.
    Decorrelated,
    /// Exactly the exponential wait.
    None,
}

impl Jitter {
    pub(crate) const NAMES: [(&'static str, Self); 4] = [
        ("full", Self::Full),
        ("equal", Self::Equal),
        ("decorrelated", Self::Decorrelated),
        ("none", Self::None),
    ];
}

/// A schedule of waits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Backoff {
    pub(crate) base_delay: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) exponential_base: f64,
    pub(crate) jitter: Jitter,
}

impl Backoff {
    /// The wait after attempt `attempt` (from 1), which began after a wait of `before`; `random` is
    /// in `0.0..1.0`.
    pub(crate) fn delay(&self, attempt: u32, before: Duration, random: f64) -> Duration {
        let exponent = f64::from(attempt.saturating_sub(1));
        let base = self.base_delay.as_secs_f64();
        let grown = self.exponential_base.powf(exponent);
        // Nothing stays nothing: times the infinite it would be no number.
        let wait = if self.base_delay.is_zero() { 0.0 } else { base * grown };
        let cap = self.max_delay.as_secs_f64();
        let wait = if wait.is_finite() { wait.min(cap) } else { cap };
        let wait = match self.jitter {
            Jitter::Full => wait * random,
            Jitter::Equal => wait / 2.0 + wait / 2.0 * random,
            Jitter::Decorrelated => {
                let most = (before.as_secs_f64().max(base) * 3.0).min(cap);
                base + (most - base).max(0.0) * random
            }
            Jitter::None => wait,
        };
        Duration::try_from_secs_f64(wait).unwrap_or(self.max_delay).min(self.max_delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ZERO: Duration = Duration::ZERO;

    fn schedule(jitter: Jitter) -> Backoff {
        Backoff {
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(10),
            exponential_base: 2.0,
            jitter,
        }
    }

    #[test]
    fn grows_until_the_cap() {
        let s = schedule(Jitter::None);
        let waits: Vec<u128> = (1..=6).map(|n| s.delay(n, ZERO, 0.9).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10_000]);
        assert_eq!(s.delay(u32::MAX, ZERO, 0.5), Duration::from_secs(10));
    }

    #[test]
    fn jitter_takes_its_share_of_the_wait() {
        for (jitter, least, middle) in [(Jitter::Full, 0, 1000), (Jitter::Equal, 1000, 1500)] {
            let s = schedule(jitter);
            assert_eq!(s.delay(3, ZERO, 0.0).as_millis(), least);
            assert_eq!(s.delay(3, ZERO, 0.5).as_millis(), middle);
            assert_eq!(s.delay(3, ZERO, 1.0).as_millis(), 2000);
        }
    }

    #[test]
    fn decorrelated_waits_depend_on_the_wait_before() {
        let s = schedule(Jitter::Decorrelated);
        let ms = Duration::from_millis;
        assert_eq!(s.delay(1, ZERO, 0.0), ms(500));
        assert_eq!(s.delay(1, ZERO, 1.0), ms(1500));
        assert_eq!(s.delay(9, ms(2000), 0.5), ms(3250));
        assert_eq!(s.delay(9, ms(9000), 1.0), ms(10_000));
    }

    proptest! {
        #[test]
        fn every_wait_is_within_the_cap(
            base in 0_u64..20_000,
            cap in 0_u64..20_000,
            exponential_base in 1.0..10.0_f64,
            attempt in 1_u32..,
            before in 0_u64..100_000,
            random in 0.0..1.0_f64,
            kind in 0_usize..4,
        ) {
            let ms = Duration::from_millis;
            let jitter = Jitter::NAMES[kind].1;
            let s = Backoff { base_delay: ms(base), max_delay: ms(cap), exponential_base, jitter };
            let wait = s.delay(attempt, ms(before), random);
            prop_assert!(wait <= s.max_delay);
            let plain = Backoff { jitter: Jitter::None, ..s }.delay(attempt, ZERO, 0.0);
            match jitter {
                Jitter::Full => prop_assert!(wait <= plain),
                Jitter::Equal => prop_assert!(wait <= plain && wait >= plain / 2),
                Jitter::Decorrelated => prop_assert!(wait >= s.base_delay.min(s.max_delay)),
                Jitter::None => prop_assert_eq!(wait, plain),
            }
        }
    }

    #[test]
    fn no_wait_stays_none_however_many_attempts_there_are() {
        let s = Backoff { base_delay: ZERO, ..schedule(Jitter::None) };
        for attempt in [1, 2, 1_025, 1_026, u32::MAX] {
            assert_eq!(s.delay(attempt, ZERO, 0.9), ZERO, "{attempt}");
        }
    }

    #[test]
    fn survives_the_largest_settings() {
        let s = Backoff {
            base_delay: Duration::MAX,
            max_delay: Duration::MAX,
            exponential_base: f64::MAX,
            jitter: Jitter::None,
        };
        assert_eq!(s.delay(u32::MAX, ZERO, 0.5), Duration::MAX);
    }
}
