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
    /// Exactly the exponential wait.
    None,
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
    /// The wait after attempt `attempt` (from 1); `random` is in `0.0..1.0`.
    pub(crate) fn delay(&self, attempt: u32, random: f64) -> Duration {
        let exponent = f64::from(attempt.saturating_sub(1));
        let wait = self.base_delay.as_secs_f64() * self.exponential_base.powf(exponent);
        let cap = self.max_delay.as_secs_f64();
        let wait = if wait.is_finite() { wait.min(cap) } else { cap };
        let wait = match self.jitter {
            Jitter::Full => wait * random,
            Jitter::Equal => wait / 2.0 + wait / 2.0 * random,
            Jitter::None => wait,
        };
        Duration::try_from_secs_f64(wait).unwrap_or(self.max_delay).min(self.max_delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let waits: Vec<u128> = (1..=6).map(|n| s.delay(n, 0.9).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10_000]);
        assert_eq!(s.delay(u32::MAX, 0.5), Duration::from_secs(10));
    }

    #[test]
    fn jitter_stays_inside_the_cap() {
        for n in [1, 3, 9, 1_000_000] {
            for random in [0.0, 0.3, 0.999_999] {
                let plain = schedule(Jitter::None).delay(n, random);
                assert!(schedule(Jitter::Full).delay(n, random) <= plain);
                let equal = schedule(Jitter::Equal).delay(n, random);
                assert!(equal >= plain / 2 && equal <= plain);
            }
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
        assert_eq!(s.delay(u32::MAX, 0.5), Duration::MAX);
    }
}
