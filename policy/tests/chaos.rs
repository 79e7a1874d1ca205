//! Faults on purpose: what users see of them in their own tests.
#![cfg(feature = "chaos")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use mainstay_policy::{Chaos, Decider, Kind, Policy};
use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};
use tokio::time::Instant;

const S: Duration = Duration::from_secs(1);

fn policy(name: &str) -> Policy {
    let policy = Policy::builder(Kind::Custom, name)
        .timeout(S)
        .base_delay(Duration::ZERO)
        .enable_budget(false)
        .build()
        .unwrap();
    policy.breaker().force_closed();
    policy
}

/// The ends of so many calls of an operation that always succeeds: error or not, and unknown or not.
async fn calls(policy: &Policy, n: u32, idempotent: bool, made: &AtomicU32) -> Vec<(bool, bool)> {
    let mut ends = Vec::new();
    for _ in 0..n {
        let end = policy.operation("op").idempotent(idempotent).call(|| async {
            made.fetch_add(1, SeqCst);
            Ok::<_, &str>(())
        });
        let end = end.await;
        ends.push((end.is_err(), end.is_err_and(|error| error.is_outcome_unknown())));
    }
    ends
}

#[tokio::test(start_paused = true)]
async fn a_refused_attempt_is_not_made_and_a_lost_one_is() {
    let policy = policy("chaos-kinds");
    let made = AtomicU32::new(0);
    let refused = Chaos::seeded(1).refuse(1.0).strike("chaos-kinds");
    assert_eq!(calls(&policy, 1, false, &made).await, [(true, false)]);
    assert_eq!(made.load(SeqCst), 0);
    drop(refused);
    let lost = Chaos::seeded(1).lose(1.0).strike("chaos-kinds");
    assert_eq!(calls(&policy, 1, false, &made).await, [(true, true)]);
    assert_eq!(made.swap(0, SeqCst), 1, "an unknown outcome is not repeated");
    assert_eq!(calls(&policy, 1, true, &made).await, [(true, true)]);
    assert_eq!(made.swap(0, SeqCst), 3, "unless it may be");
    drop(lost);
    assert_eq!(calls(&policy, 1, false, &made).await, [(false, false)]);
}

#[tokio::test(start_paused = true)]
async fn a_hang_ends_by_the_timeout_and_a_delay_is_as_long_as_it_says() {
    let policy = policy("chaos-time");
    let made = AtomicU32::new(0);
    let hangs = Chaos::seeded(1).hang(1.0).strike("chaos-time");
    let started = Instant::now();
    let end = policy.operation("op").idempotent(false).call(|| async { Ok::<_, &str>(()) }).await;
    assert_eq!(end.unwrap_err().decider(), Some(Decider::Timeout));
    assert!(started.elapsed() - S <= Duration::from_millis(5));
    drop(hangs);
    let _late = Chaos::seeded(1).delay(1.0, S / 2).strike("chaos-time");
    let started = Instant::now();
    assert_eq!(calls(&policy, 1, false, &made).await, [(false, false)]);
    assert!(started.elapsed() - S / 2 <= Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn one_seed_gives_the_same_faults_and_only_to_its_dependency() {
    let (policy, other) = (policy("chaos-seed"), policy("chaos-other"));
    let made = AtomicU32::new(0);
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        let _storm = Chaos::seeded(seed).refuse(0.3).lose(0.2).strike("chaos-seed");
        runs.push(calls(&policy, 50, false, &made).await);
        assert!(calls(&other, 50, false, &made).await.iter().all(|(failed, _)| !failed));
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    let lost = runs[0].iter().filter(|(_, unknown)| *unknown).count();
    assert!((3..20).contains(&lost), "{lost} of 50 at 20 %");
}

#[test]
fn calls_that_block_are_struck_too() {
    let policy = policy("chaos-blocking");
    let mut made = 0;
    let lost = Chaos::seeded(1).lose(1.0).strike("chaos-blocking");
    let end = policy.operation("op").idempotent(false).call_blocking(|| {
        made += 1;
        Ok::<_, &str>(())
    });
    assert!(end.unwrap_err().is_outcome_unknown());
    drop(lost);
    let refused = Chaos::seeded(1).refuse(1.0).strike("chaos-blocking");
    let end = policy.call_blocking(|| {
        made += 1;
        Ok::<_, &str>(())
    });
    assert!(end.is_err());
    assert_eq!(made, 1, "what is refused is not made");
    drop(refused);
    let _hangs = Chaos::seeded(1).hang(1.0).strike("chaos-blocking");
    let short = Policy::builder(Kind::Custom, "chaos-blocking")
        .timeout(Duration::from_millis(5))
        .max_attempts(1)
        .build()
        .unwrap();
    let end = short.call_blocking(|| Ok::<_, &str>(()));
    assert!(end.unwrap_err().is_timeout());
}
