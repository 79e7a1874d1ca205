//! Closes connections past their time, and opens those that are to be ready.

use super::{Link, Permit, Pool, lock};
use crate::backend::Backend;
use std::time::Duration;
use tokio::{runtime::Handle, task::AbortHandle};

/// Ends with the pool, at once and not when it next looks.
pub(super) struct Upkeep(Vec<AbortHandle>);

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

pub(super) fn start<DB: Backend>(pool: &Pool<DB>) {
    let tasks = keep(pool).into_iter();
    #[cfg(feature = "metrics")]
    let tasks = tasks.chain(super::numbers::start(pool));
    let _ = pool.0.upkeep.set(Upkeep(tasks.collect()));
}

/// Runs until the pool is gone or closed, or its runtime ends.
fn keep<DB: Backend>(pool: &Pool<DB>) -> Option<AbortHandle> {
    let (Ok(runtime), None) = (Handle::try_current(), &pool.0.adopted) else { return None };
    let limits = pool.0.limits;
    let shortest = limits.idle_timeout.min(limits.max_lifetime) / 2;
    let period = shortest.clamp(Duration::from_millis(100), Duration::from_secs(30));
    let weak = pool.downgrade();
    let task = runtime.spawn(async move {
        loop {
            match weak.upgrade() {
                Some(pool) if !pool.0.permits.is_closed() => {
                    pool.close_old();
                    pool.open_missing().await;
                }
                _ => return,
            }
            tokio::time::sleep(period).await;
        }
    });
    Some(task.abort_handle())
}

impl<DB: Backend> Pool<DB> {
    fn close_old(&self) {
        let limits = &self.0.limits;
        let spare = lock(&self.0.idle).len().saturating_sub(limits.min_connections as usize);
        let mut idle_too_long = 0;
        let old: Vec<_> = lock(&self.0.idle)
            .extract_if(.., |link| {
                // The first ones have been idle longest.
                let idle = link.idle_for() > limits.idle_timeout && idle_too_long < spare;
                idle_too_long += usize::from(idle);
                idle || self.is_stale(link)
            })
            .collect();
        old.into_iter().for_each(Link::close);
    }

    /// Quietly: a caller who needs one will say why there is none.
    async fn open_missing(&self) {
        while self.0.size.load(std::sync::atomic::Ordering::Relaxed) < self.0.limits.min_connections
        {
            let Some(_permit) = Permit::try_take(self) else { return };
            match self.dial_alone().await {
                Ok(link) => self.put(link),
                Err(_) => return,
            }
        }
    }
}
