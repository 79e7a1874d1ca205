//! What calls came to, and what is claimed of them.

use crate::{DEADLINE, app::PATIENCE, shop::Answer};
use axum::http::StatusCode;
use mainstay::{Deadline, Error, ErrorKind};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::{Builder, Runtime},
    time::sleep_until,
};

/// The calls of one client.
#[derive(Default)]
pub(crate) struct Tally {
    calls: AtomicU64,
    ok: AtomicU64,
    refused: AtomicU64,
    stopped: AtomicU64,
    unknown: AtomicU64,
    answered: AtomicU64,
    /// Successes since the last failure.
    in_a_row: AtomicU64,
    /// In microseconds, less what a bare timer was late.
    overrun: AtomicU64,
    stale: Mutex<Vec<String>>,
}

impl Tally {
    /// Makes a call that must end by the deadline, and counts what became of it.
    pub(crate) async fn count<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let end = self.timed(DEADLINE, Deadline::within(DEADLINE).scope(call)).await;
        self.note(match &end {
            Ok(_) => &self.ok,
            Err(error) if error.is_outcome_unknown() => &self.unknown,
            Err(error) if error.kind() == ErrorKind::Rejected => &self.refused,
            Err(error) if error.kind() == ErrorKind::Stopped => &self.stopped,
            Err(_) => &self.answered,
        });
        end
    }

    /// A request that the service must answer within its own patience, by what it answers.
    pub(crate) async fn answer(&self, request: impl Future<Output = Answer>) -> Answer {
        let answer = self.timed(PATIENCE, request).await;
        self.note(match answer.status {
            status if status.is_success() => &self.ok,
            _ if answer.may_have_happened() => &self.unknown,
            StatusCode::SERVICE_UNAVAILABLE => &self.refused,
            StatusCode::GATEWAY_TIMEOUT => &self.stopped,
            _ => &self.answered,
        });
        answer
    }

    /// How late it ends, less what a bare timer is late on a thread that no call can block.
    async fn timed<T>(&self, limit: Duration, call: impl Future<Output = T>) -> T {
        static TIMERS: LazyLock<Runtime> = LazyLock::new(|| {
            Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
        });
        let started = Instant::now();
        let late = move || started.elapsed().saturating_sub(limit);
        let timer = TIMERS.spawn(async move {
            sleep_until((started + limit).into()).await;
            late()
        });
        let end = call.await;
        let late = late();
        if late.is_zero() {
            timer.abort();
        } else {
            let own = late.saturating_sub(timer.await.unwrap());
            self.overrun.fetch_max(u64::try_from(own.as_micros()).unwrap_or(u64::MAX), Relaxed);
        }
        end
    }

    fn note(&self, end: &AtomicU64) {
        self.calls.fetch_add(1, Relaxed);
        end.fetch_add(1, Relaxed);
        if std::ptr::eq(end, &self.ok) {
            self.in_a_row.fetch_add(1, Relaxed);
        } else {
            self.in_a_row.store(0, Relaxed);
        }
    }

    /// Nothing has failed for a while.
    pub(crate) fn is_well(&self) -> bool {
        self.in_a_row.load(Relaxed) >= 20
    }

    pub(crate) fn ok(&self) -> u64 {
        self.ok.load(Relaxed)
    }

    pub(crate) fn worst_overrun(&self) -> Duration {
        Duration::from_micros(self.overrun.load(Relaxed))
    }

    /// A read gave something that it must not give.
    pub(crate) fn stale(&self, what: String) {
        self.stale.lock().unwrap().push(what);
    }

    pub(crate) fn check_reads(&self, claim: &str, claims: &mut Claims) {
        let stale = self.stale.lock().unwrap();
        claims.check(stale.is_empty(), &format!("{claim} {:?}", stale.first()));
    }

    pub(crate) fn print_head() {
        println!(
            "\n{:<9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>12}  faults",
            "", "calls", "ok", "refused", "stopped", "unknown", "answered", "overrun ms"
        );
    }

    pub(crate) fn print(&self, name: &str, faults: &BTreeMap<&'static str, u32>) {
        let n = |of: &AtomicU64| of.load(Relaxed);
        let faults: Vec<String> = faults.iter().map(|(fault, n)| format!("{n} {fault}")).collect();
        println!(
            "{name:<9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>12.1}  {}",
            n(&self.calls),
            n(&self.ok),
            n(&self.refused),
            n(&self.stopped),
            n(&self.unknown),
            n(&self.answered),
            self.worst_overrun().as_secs_f64() * 1_000.0,
            faults.join(", "),
        );
    }
}

pub(crate) type Shared = Arc<Tally>;

/// What must hold at the end.
#[derive(Default)]
pub(crate) struct Claims {
    broken: u32,
    lines: Vec<String>,
}

impl Claims {
    pub(crate) fn check(&mut self, holds: bool, claim: &str) {
        self.broken += u32::from(!holds);
        self.lines.push(format!("{} {claim}", if holds { "holds: " } else { "BROKEN:" }));
    }

    pub(crate) fn end(self) -> Result<(), Box<dyn std::error::Error>> {
        println!("\n{}", self.lines.join("\n"));
        if self.broken == 0 {
            Ok(())
        } else {
            Err(format!("{} claims do not hold", self.broken).into())
        }
    }
}
