//! Connections of an sqlx pool that the caller brought along.
//!
//! sqlx hides a refused connection behind its own retries until its time is up. So a caller who
//! waits dials beside the pool: an error there ends the wait; when the server answers, it goes on.
//!
//! Such a connection is asked each time who it is to the server, one round trip, since nothing here
//! would know it again: what is given up on it can then be cancelled there.

use super::{Link, Pool};
use crate::{
    backend::Backend,
    classify::{self, DatabaseFailure, Phase},
    hosts::ConnectError,
};
use sqlx::pool::PoolConnection;
use std::{pin::pin, sync::atomic::Ordering::Relaxed, time::Duration};

/// A new connection on this machine takes less, so that no dial is made in vain.
const BEFORE_DIAL: Duration = Duration::from_millis(10);

/// A connection that is being asked. Given up meanwhile it is closed: the answer would be in the next
/// caller's way.
struct Asked<DB: Backend>(Option<PoolConnection<DB>>);

impl<DB: Backend> Drop for Asked<DB> {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

impl<DB: Backend> Pool<DB> {
    pub(super) async fn borrow(&self, pool: &sqlx::Pool<DB>) -> Result<Link<DB>, DatabaseFailure> {
        loop {
            let mut asked = Asked(Some(self.borrow_any(pool).await?));
            let Some(connection) = &mut asked.0 else { return Err(DatabaseFailure::unusable()) };
            match DB::greet(connection, self.0.hosts.tuning()).await {
                Ok(greeting) => {
                    let generation = self.0.generation.load(Relaxed);
                    let link = asked.0.take().map(|c| Link::lent(c, greeting.key, generation));
                    return link.ok_or_else(DatabaseFailure::unusable);
                }
                // It had died while idle, and leaves the pool: another one.
                Err(error) if !classify::keeps_connection::<DB>(&error) => {}
                Err(error) => return Err(DatabaseFailure::driver::<DB>(error, Phase::Acquire)),
            }
        }
    }

    async fn borrow_any(
        &self,
        pool: &sqlx::Pool<DB>,
    ) -> Result<PoolConnection<DB>, DatabaseFailure> {
        let lent = |result: Result<_, sqlx::Error>| {
            result.map_err(|error| DatabaseFailure::driver::<DB>(error, Phase::Acquire))
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
