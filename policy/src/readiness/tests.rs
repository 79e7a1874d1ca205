use super::*;
use crate::breaker::BreakerState;
use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    task::{Context, Waker},
};
use tokio::sync::Notify;

const MS: Duration = Duration::from_millis(1);

fn health(status: HealthStatus) -> Health {
    Health::new(status, Duration::ZERO, BreakerState::Closed, "asked")
}

/// A dependency that counts how often it was asked.
#[derive(Clone)]
struct Asked(Arc<AtomicU32>, HealthStatus);

impl Asked {
    fn new(status: HealthStatus) -> Self {
        Self(Arc::default(), status)
    }

    fn times(&self) -> u32 {
        self.0.load(SeqCst)
    }

    async fn answer(self) -> Health {
        self.0.fetch_add(1, SeqCst);
        sleep(50 * MS).await;
        health(self.1)
    }
}

/// ```text
/// probes, 1 ms apart, for 5 s | one round a second, whoever asks
/// ```
#[tokio::test(start_paused = true)]
async fn a_thousand_probes_a_second_cause_one_check_of_each_dependency_a_second() {
    let (db, mail) = (Asked::new(HealthStatus::Healthy), Asked::new(HealthStatus::Unhealthy));
    let readiness = Readiness::builder()
        .critical("db", db.clone(), Asked::answer)
        .optional("mail", mail.clone(), Asked::answer)
        .build();
    let mut probes = Vec::new();
    for _ in 0..5_000 {
        let readiness = readiness.clone();
        probes.push(tokio::spawn(async move { readiness.report().await.ready }));
        sleep(MS).await;
    }
    for probe in probes {
        assert!(probe.await.unwrap());
    }
    assert_eq!((db.times(), mail.times()), (5, 5));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_up_neither_ends_the_round_nor_begins_another() {
    let db = Asked::new(HealthStatus::Healthy);
    let readiness = Readiness::builder().critical("db", db.clone(), Asked::answer).build();
    for _ in 0..20 {
        assert!(timeout(MS, readiness.report()).await.is_err());
    }
    assert!(readiness.report().await.ready);
    assert_eq!(db.times(), 1);
}

#[tokio::test]
async fn only_a_critical_dependency_that_is_unhealthy_is_in_the_way() {
    use HealthStatus::{Degraded, Healthy, Unhealthy};
    for (critical, optional, ready, status) in [
        (Healthy, Healthy, true, Healthy),
        (Degraded, Healthy, true, Degraded),
        (Healthy, Unhealthy, true, Degraded),
        (Unhealthy, Healthy, false, Unhealthy),
    ] {
        let readiness = Readiness::builder()
            .critical("one", critical, |status| async move { health(status) })
            .optional("two", optional, |status| async move { health(status) })
            .build();
        let report = readiness.report().await;
        assert_eq!((report.ready, report.status()), (ready, status));
    }
}

/// Each is told of in its own words, and none holds up the others.
#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_or_panics_is_unhealthy() {
    let began = tokio::time::Instant::now();
    let readiness = Readiness::builder()
        .timeout(300 * MS)
        .critical("hangs", (), |()| std::future::pending())
        .timeout(400 * MS)
        .critical("hangs longer", (), |()| std::future::pending())
        .critical("panics", (), |()| async { panic!("s3cret") })
        .critical("answers", (), |()| async { health(HealthStatus::Healthy) })
        .build();
    let report = readiness.report().await;
    assert_eq!(began.elapsed(), 400 * MS, "all at once");
    let detail = |name: &str| report.checks[name].health.detail.clone();
    assert_eq!(detail("hangs"), "no result of the check within 300ms");
    assert_eq!(detail("panics"), "the check panicked");
    assert_eq!(report.checks["answers"].health.status, HealthStatus::Healthy);
    assert!(!report.ready);
    assert!(!serde_json::to_string(&report).unwrap().contains("s3cret"));
}

/// ```text
/// starting: not ready | serving: ready | draining: not ready, and nobody is asked any more
/// ```
#[tokio::test(start_paused = true)]
async fn a_process_is_ready_between_its_start_and_its_end() {
    let db = Asked::new(HealthStatus::Healthy);
    let readiness = Readiness::builder().starts_up().critical("db", db.clone(), Asked::answer);
    let readiness = readiness.build();
    assert!(readiness.last().is_none());
    let report = readiness.report().await;
    assert!(!report.ready && report.phase == Phase::Starting);
    readiness.started();
    assert!(readiness.report().await.ready);
    readiness.drain();
    readiness.started();
    for _ in 0..10 {
        sleep(Duration::from_secs(2)).await;
        let report = readiness.report().await;
        assert!(!report.ready && report.phase == Phase::Draining);
    }
    assert_eq!(db.times(), 1);
}

#[test]
fn a_round_that_dies_with_its_runtime_is_begun_again_on_the_next() {
    let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
    let hang = Arc::new((Notify::new(), AtomicU32::new(0)));
    let readiness = Readiness::builder().timeout(Duration::MAX).critical(
        "db",
        Arc::clone(&hang),
        |hang| async move {
            if hang.1.fetch_add(1, SeqCst) == 0 {
                hang.0.notify_one();
                std::future::pending::<()>().await;
            }
            health(HealthStatus::Healthy)
        },
    );
    let readiness = readiness.build();
    let first = runtime();
    let probe = readiness.clone();
    first.spawn(async move { probe.report().await });
    first.block_on(hang.0.notified());
    drop(first);
    assert!(runtime().block_on(async { readiness.report().await.ready }));
    assert_eq!(hang.1.load(SeqCst), 2);
}

/// ```text
/// runtime A: a round begins, then nobody waits there | B: waits as long as a check may, asks itself
/// ```
#[test]
fn a_round_in_a_runtime_that_stands_still_is_not_waited_for() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let db = Asked::new(HealthStatus::Healthy);
    let readiness = Readiness::builder()
        .timeout(400 * MS)
        .interval(Duration::ZERO)
        .critical("db", db.clone(), Asked::answer)
        .build();
    let still = runtime();
    still.block_on(async { assert!(timeout(MS, readiness.report()).await.is_err()) });
    let began = std::time::Instant::now();
    let report = runtime().block_on(async { timeout(60_000 * MS, readiness.report()).await });
    assert!(report.unwrap().ready);
    assert!(began.elapsed() < 30_000 * MS, "{:?}", began.elapsed());
    // What that one began ends once somebody waits there again, and disturbs nobody.
    assert!(still.block_on(readiness.report()).ready);
}

#[test]
fn after_its_runtime_has_ended_a_report_ends_too() {
    let readiness = Readiness::builder()
        .critical("db", Asked::new(HealthStatus::Healthy), Asked::answer)
        .build();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    drop(runtime);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(handle.block_on(readiness.report())));
    let report = told.recv_timeout(30_000 * MS).unwrap();
    assert!(!report.ready);
    assert_eq!(report.checks["db"].health.detail, "not asked, as this tokio runtime has ended");
}

/// ```text
/// runtime A: a round is under way | B, which has ended or has no timer: joins it, and ends with it
/// ```
#[test]
fn who_cannot_wait_in_time_joins_a_round_all_the_same() {
    let builder = tokio::runtime::Builder::new_multi_thread;
    let hang = Arc::new((Notify::new(), Notify::new()));
    let readiness = Readiness::builder().timeout(60_000 * MS).interval(Duration::ZERO).critical(
        "db",
        Arc::clone(&hang),
        |hang| async move {
            hang.0.notify_one();
            hang.1.notified().await;
            health(HealthStatus::Healthy)
        },
    );
    let readiness = readiness.build();
    let live = builder().enable_all().build().unwrap();
    let ended = builder().enable_all().build().unwrap();
    let without_timer = builder().build().unwrap();
    let handles = [ended.handle().clone(), without_timer.handle().clone()];
    drop(ended);
    for handle in handles {
        let first = readiness.clone();
        live.spawn(async move { first.report().await });
        live.block_on(hang.0.notified());
        let mut report = std::pin::pin!(readiness.report());
        let there = handle.enter();
        let mut context = Context::from_waker(Waker::noop());
        assert!(report.as_mut().poll(&mut context).is_pending(), "it has joined");
        drop(there);
        hang.1.notify_one();
        assert!(live.block_on(report).ready);
    }
}

/// The names of checks are the service's, those of breakers their clients'.
#[tokio::test(start_paused = true)]
async fn of_a_check_that_hangs_no_breaker_is_made_up() {
    let policy = crate::Policy::builder(crate::Kind::Api, "t-known").build().unwrap();
    policy.breaker().isolate();
    let readiness = Readiness::builder()
        .optional("t-known", (), |()| std::future::pending())
        .optional("t-called-otherwise", (), |()| std::future::pending());
    let report = readiness.build().report().await;
    assert_eq!(report.checks["t-known"].health.breaker, Some(BreakerState::Isolated));
    assert_eq!(report.checks["t-called-otherwise"].health.breaker, None);
}
