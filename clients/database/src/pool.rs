//! Connections of one runtime: sqlx's pool, and beside it the dial that finds out why none comes.
//!
//! sqlx hides a refused connection behind its own retries until its time is up. So a caller who
//! waits joins one shared dial, whose error ends the wait; when the server does answer it, the wait
//! goes on. A lease whose statement was left unfinished is detached: sqlx would wait for the
//! server to finish it, and might read its rest as the next caller's answer.

use crate::{
    backend::{Backend, Options, Sealed, Tuning},
    classify::{DatabaseFailure, Phase},
};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use sqlx::{Connection, pool::PoolConnection, pool::PoolOptions};
use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// A new connection on this machine takes less, so that no dial is made in vain.
const BEFORE_DIAL: Duration = Duration::from_millis(10);

/// Limits of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_connections: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
}

#[derive(Clone)]
enum DialError {
    Driver(Arc<sqlx::Error>),
    Silent(Duration),
}

type Dial = BoxFuture<'static, Result<(), DialError>>;

struct Inner<DB: Backend> {
    pool: sqlx::Pool<DB>,
    options: Options<DB>,
    limits: Limits,
    in_use: Arc<AtomicU32>,
    dial: Mutex<Option<WeakShared<Dial>>>,
}

pub(crate) struct Pool<DB: Backend>(Arc<Inner<DB>>);

impl<DB: Backend> Clone for Pool<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Backend> Pool<DB> {
    /// No I/O; needs a runtime.
    pub(crate) fn new(options: Options<DB>, tuning: Tuning, limits: Limits) -> Self {
        let tuning = Arc::new(tuning);
        let mut pool = PoolOptions::new()
            .max_connections(limits.max_connections)
            // Ours ends first and says why.
            .acquire_timeout(limits.acquire_timeout.saturating_add(Duration::from_secs(1)))
            // A connection lost to a silent network comes back no later than this.
            .max_lifetime(Duration::from_secs(300))
            .after_connect(move |connection, _| {
                let tuning = Arc::clone(&tuning);
                Box::pin(async move { <DB as Sealed>::greet(connection, &tuning).await })
            });
        if DB::in_memory(&options) {
            pool = pool.min_connections(1).max_lifetime(None).idle_timeout(None);
        }
        let pool = pool.connect_lazy_with(options.clone());
        let in_use = Arc::default();
        Self(Arc::new(Inner { pool, options, limits, in_use, dial: Mutex::new(None) }))
    }

    pub(crate) fn sqlx(&self) -> &sqlx::Pool<DB> {
        &self.0.pool
    }

    pub(crate) fn in_use(&self) -> u32 {
        self.0.in_use.load(Ordering::Relaxed)
    }

    /// A connection that answered a ping just now, or the reason why there is none.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn acquire(
        &self,
        limit: Option<Duration>,
    ) -> Result<Lease<DB>, DatabaseFailure> {
        let limits = self.0.limits;
        let limit = limit.map_or(limits.acquire_timeout, |l| l.min(limits.acquire_timeout));
        let started = Instant::now();
        match tokio::time::timeout(limit, self.wait()).await {
            Ok(result) => result,
            Err(_) => {
                let (in_use, waited) = (self.in_use(), started.elapsed());
                Err(if in_use >= limits.max_connections {
                    DatabaseFailure::pool_exhausted(in_use, limits.max_connections, waited)
                } else {
                    DatabaseFailure::timed_out(Phase::Acquire, limit)
                })
            }
        }
    }

    async fn wait(&self) -> Result<Lease<DB>, DatabaseFailure> {
        let mut patience = BEFORE_DIAL;
        loop {
            let mut acquire = pin!(self.0.pool.acquire());
            if let Ok(result) = tokio::time::timeout(patience, &mut acquire).await {
                return self.lease(result);
            }
            if self.in_use() >= self.0.limits.max_connections {
                // Busy, which says nothing of the server.
                return self.lease(acquire.await);
            }
            tokio::select! {
                biased;
                result = &mut acquire => return self.lease(result),
                dialled = self.dial() => match dialled {
                    // sqlx may be asleep between two of its own attempts, or may be waiting on a
                    // connection that is dead: start afresh, less eagerly each time.
                    Ok(()) => patience = patience.saturating_mul(4),
                    Err(DialError::Driver(error)) => {
                        return Err(DatabaseFailure::connect::<DB>(error));
                    }
                    Err(DialError::Silent(waited)) => return Err(DatabaseFailure::silent(waited)),
                },
            }
        }
    }

    /// A round trip on an idle connection, else a new connection that is closed again.
    pub(crate) async fn probe(&self) -> Result<(), DatabaseFailure> {
        if let Some(connection) = self.0.pool.try_acquire() {
            let mut lease = self.lease(Ok(connection))?;
            lease.unfinished = true;
            if let (Some(connection), unfinished) = lease.parts()
                && connection.ping().await.is_ok()
            {
                *unfinished = false;
                return Ok(());
            }
            // It may have died while idle; the server is asked below.
        }
        self.dial().await.map_err(|error| match error {
            DialError::Driver(error) => DatabaseFailure::connect::<DB>(error),
            DialError::Silent(waited) => DatabaseFailure::silent(waited),
        })
    }

    fn lease(
        &self,
        acquired: Result<PoolConnection<DB>, sqlx::Error>,
    ) -> Result<Lease<DB>, DatabaseFailure> {
        let connection =
            acquired.map_err(|error| DatabaseFailure::driver::<DB>(error, Phase::Acquire))?;
        self.0.in_use.fetch_add(1, Ordering::Relaxed);
        let in_use = Arc::clone(&self.0.in_use);
        Ok(Lease { connection: Some(connection), unfinished: false, in_use })
    }

    /// One dial at a time, shared by all who wait, ended when nobody does.
    fn dial(&self) -> Shared<Dial> {
        let mut slot = self.0.dial.lock().unwrap_or_else(PoisonError::into_inner);
        let running = slot.as_ref().and_then(WeakShared::upgrade);
        // A finished one tells how it was, not how it is.
        if let Some(dial) = running.filter(|dial| dial.peek().is_none()) {
            return dial;
        }
        let (options, limit) = (self.0.options.clone(), self.0.limits.connect_timeout);
        let connect = async move {
            match tokio::time::timeout(limit, DB::Connection::connect_with(&options)).await {
                Ok(Ok(connection)) => {
                    drop(connection);
                    Ok(())
                }
                Ok(Err(error)) => Err(DialError::Driver(Arc::new(error))),
                Err(_) => Err(DialError::Silent(limit)),
            }
        };
        let dial = connect.boxed().shared();
        *slot = dial.downgrade();
        dial
    }
}

/// One connection, out of the pool.
pub(crate) struct Lease<DB: Backend> {
    connection: Option<PoolConnection<DB>>,
    /// A statement is under way or was abandoned: nobody may use this connection again.
    unfinished: bool,
    in_use: Arc<AtomicU32>,
}

impl<DB: Backend> Lease<DB> {
    /// The connection and its mark.
    pub(crate) fn parts(&mut self) -> (Option<&mut DB::Connection>, &mut bool) {
        (self.connection.as_deref_mut(), &mut self.unfinished)
    }

    /// Never to be used again.
    pub(crate) const fn discard(&mut self) {
        self.unfinished = true;
    }
}

impl<DB: Backend> Drop for Lease<DB> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.unfinished
        {
            // Frees the pool's slot at once, whatever the server is doing.
            drop(connection.detach());
        }
        self.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}
