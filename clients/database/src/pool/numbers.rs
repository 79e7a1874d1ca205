//! What of a pool goes to the `metrics` facade (feature `metrics`), labelled `mainstay.policy.name`.
//!
//! | name | kind | |
//! |---|---|---|
//! | `mainstay.pool.size` | gauge | connections that are open |
//! | `mainstay.pool.idle` | gauge | open and free |
//! | `mainstay.pool.in_use` | gauge | lent to a caller, or being opened for one |
//! | `mainstay.pool.waiting` | gauge | callers who wait for one |
//! | `mainstay.pool.limit` | gauge | the most there may be |
//! | `mainstay.pool.acquire.duration` | histogram, seconds | also labelled `outcome`: success, failure |
//!
//! Gauges are set once a second, so that no statement pays for them; with a pool in several runtimes
//! the last one to look is what is seen. A recorder may be installed at any time.

use super::{Pool, PoolStatus};
use crate::backend::Backend;
use metrics::{Key, Label, Level, Metadata, Unit};
use std::time::Duration;
use tokio::{runtime::Handle, task::AbortHandle};

const BETWEEN: Duration = Duration::from_secs(1);
const GAUGES: [(&str, &str); 5] = [
    ("mainstay.pool.size", "Connections that are open."),
    ("mainstay.pool.idle", "Connections that are open and free."),
    ("mainstay.pool.in_use", "Connections lent to a caller, or being opened for one."),
    ("mainstay.pool.waiting", "Callers who wait for a connection."),
    ("mainstay.pool.limit", "The most connections there may be."),
];
const ACQUIRE: &str = "mainstay.pool.acquire.duration";
static METADATA: Metadata<'static> = Metadata::new("mainstay", Level::INFO, Some(module_path!()));

/// The names of one pool's metrics, put together once.
pub(super) struct Numbers {
    gauges: [Key; 5],
    acquired: Key,
    failed: Key,
}

impl Numbers {
    pub(super) fn of(policy: &str) -> Self {
        let name = || Label::new("mainstay.policy.name", policy.to_owned());
        let acquire = |outcome| {
            Key::from_parts(ACQUIRE, vec![name(), Label::from_static_parts("outcome", outcome)])
        };
        Self {
            gauges: GAUGES.map(|(gauge, _)| Key::from_parts(gauge, vec![name()])),
            acquired: acquire("success"),
            failed: acquire("failure"),
        }
    }

    /// How long a caller waited for a connection, whether or not he got one.
    pub(super) fn acquired(&self, took: Duration, got: bool) {
        let key = if got { &self.acquired } else { &self.failed };
        metrics::with_recorder(|recorder| {
            recorder.register_histogram(key, &METADATA).record(took.as_secs_f64());
        });
    }

    fn tell(&self, status: PoolStatus) {
        let PoolStatus { size, idle, in_use, waiting, max } = status;
        metrics::with_recorder(|recorder| {
            for (key, value) in self.gauges.iter().zip([size, idle, in_use, waiting, max]) {
                recorder.register_gauge(key, &METADATA).set(f64::from(value));
            }
        });
    }
}

/// Sets the gauges until the pool is gone, or its runtime ends.
pub(super) fn start<DB: Backend>(pool: &Pool<DB>) -> Option<AbortHandle> {
    let runtime = Handle::try_current().ok()?;
    let weak = pool.downgrade();
    let task = runtime.spawn(async move {
        while let Some(pool) = weak.upgrade() {
            describe();
            pool.0.numbers.tell(pool.status());
            drop(pool);
            tokio::time::sleep(BETWEEN).await;
        }
    });
    Some(task.abort_handle())
}

fn describe() {
    for (gauge, meaning) in GAUGES {
        metrics::describe_gauge!(gauge, Unit::Count, meaning);
    }
    metrics::describe_histogram!(
        ACQUIRE,
        Unit::Seconds,
        "How long callers waited for a connection."
    );
}
