//! On the processor's and the system's own clocks, which `test-util` replaces: refusals by the time of
//! the last tick name the same moment all along, and end at it.
#![cfg(not(feature = "test-util"))]
#![allow(missing_docs, clippy::unwrap_used)]

use mainstay_policy::{BreakGrowth, Kind, Policy};
use std::time::{Duration, Instant};

/// A tick, and what the clocks drift apart.
const ABOUT: Duration = Duration::from_millis(30);

#[test]
fn refusals_name_one_moment_and_a_probe_passes_then() {
    let policy = Policy::builder(Kind::Custom, "real-clock")
        .failure_threshold(1)
        .enable_retry(false)
        .recovery_timeout(Duration::from_millis(300))
        .break_growth(BreakGrowth::Fixed)
        .build()
        .unwrap();
    assert!(policy.call_blocking(|| Err::<(), _>("down")).is_err());
    // However often this thread is interrupted, the moment lies between these.
    let (mut earliest, mut latest) = (Instant::now(), Instant::now() + Duration::from_secs(9));
    let mut refusals = 0_u32;
    let passed = loop {
        let before = Instant::now();
        match policy.call_blocking(|| Ok::<_, &str>(Instant::now())) {
            Ok(passed) => break passed,
            Err(refusal) => {
                assert!(refusal.cause().is_some_and(|cause| cause.reason == "failures in a row"));
                let wait = refusal.retry_after().unwrap();
                earliest = earliest.max(before + wait - ABOUT.min(wait));
                latest = latest.min(Instant::now() + wait + ABOUT);
                refusals += 1;
            }
        }
    };
    assert!(refusals > 0);
    assert!(earliest <= latest, "{:?} apart", earliest - latest);
    assert!(passed + ABOUT >= earliest, "{:?} early", earliest - passed);
}
