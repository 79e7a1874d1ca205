//! Connections of an sqlx pool that the caller brought along.
//!
//! sqlx hides a refused connection behind its own retries until its time is up. So a caller who
//! waits dials beside the pool: an error there ends the wait; when the server answers, it goes on.

use super::{Link, Pool};
use crate::{
    backend::Backend,
    classify::{DatabaseFailure, Phase},
    hosts::ConnectError,
};
use std::{pin::pin, sync::atomic::Ordering::Relaxed, time::Duration};

/// A new connection on this machine takes less, so that no dial is made in vain.
const BEFORE_DIAL: Duration = Duration::from_millis(10);

impl<DB: Backend> Pool<DB> {
    pub(super) async fn borrow(&self, pool: &sqlx::Pool<DB>) -> Result<Link<DB>, DatabaseFailure> {
        let lent = |result: Result<_, sqlx::Error>| {
            let generation = self.0.generation.load(Relaxed);
            result
                .map(|connection| Link::lent(connection, generation))
                .map_err(|error| DatabaseFailure::driver::<DB>(error, Phase::Acquire))
        };
        let mut patience = BEFORE_DIAL;
        loop {
            let mut acquire = pin!(pool.acquire());
            if let Ok(result) = tokio::time::timeout(patience, &mut acquire).await {
                return lent(result);
            }
            tokio::select! {
                biased;
                result = &mut acquire => return lent(result),
                dialled = self.0.hosts.connect() => match dialled {
                    // sqlx may be asleep between two of its own attempts, or may be waiting on a
                    // connection that is dead: start afresh, less eagerly each time.
                    Ok(_) => patience = patience.saturating_mul(4),
                    Err(error) => return Err(ConnectError::into_failure::<DB>(error)),
                },
            }
        }
    }
}
