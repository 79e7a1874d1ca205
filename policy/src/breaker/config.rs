//! What a breaker is told by the policy that uses it.

use crate::clock;
use std::time::Duration;

/// Attempts that took less are never slow.
const SLOW_FLOOR: Duration = Duration::from_millis(250);
/// Slow is this many times the median.
const SLOW_FACTOR: u32 = 10;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BreakerConfig {
    /// Failed operations in a row that open it.
    pub(crate) failure_threshold: u32,
    /// The share of failed attempts that opens it.
    pub(crate) failure_rate: Option<f64>,
    /// The share of slow attempts that opens it.
    pub(crate) slow_rate: Option<f64>,
    /// `None`: ten times the median, within 250 ms and the attempt timeout.
    pub(crate) slow_after: Option<Duration>,
    /// Rates of fewer attempts mean nothing.
    pub(crate) minimum_calls: u32,
    /// The length of the window in seconds.
    pub(crate) window: u32,
    pub(crate) recovery_timeout: Duration,
    pub(crate) grow_breaks: bool,
    pub(crate) probes: u32,
    /// When a probe has not reported by then the next one is let in, so that it cannot block recovery.
    pub(crate) probe_lease: Duration,
    pub(crate) ramp: bool,
    pub(crate) attempt_timeout: Option<Duration>,
}

impl BreakerConfig {
    /// In nanoseconds, given the observed median.
    pub(crate) fn slow_after(&self, median: Option<Duration>) -> u64 {
        let most = self.attempt_timeout.unwrap_or(Duration::MAX);
        let slow = self.slow_after.unwrap_or_else(|| {
            let tenfold = median.map_or(Duration::ZERO, |m| m.saturating_mul(SLOW_FACTOR));
            tenfold.max(SLOW_FLOOR).min(most)
        });
        clock::nanos(slow)
    }
}
