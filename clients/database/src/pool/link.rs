//! One connection, and what the pool knows of it.

use super::Limits;
use crate::{backend::Backend, hosts::Connected};
use sqlx::{Connection, pool::PoolConnection};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

enum Held<DB: Backend> {
    Own(DB::Connection),
    /// Of a pool that was adopted: dropped, it goes back there.
    Lent(PoolConnection<DB>),
}

pub(crate) struct Link<DB: Backend> {
    held: Held<DB>,
    key: Option<DB::Key>,
    host: usize,
    read_only: bool,
    expires: Option<Instant>,
    answered: Instant,
    /// Something was sent on it and answered since it was made.
    used: bool,
    generation: u32,
    _counted: Option<Counted>,
}

impl<DB: Backend> Link<DB> {
    pub(super) fn new(
        connected: Connected<DB>,
        generation: u32,
        limits: &Limits,
        size: &Arc<AtomicU32>,
    ) -> Self {
        let Connected { connection, key, host } = connected;
        let now = Instant::now();
        size.fetch_add(1, Relaxed);
        Self {
            held: Held::Own(connection),
            key,
            host,
            read_only: false,
            expires: now.checked_add(spread(limits.max_lifetime)),
            answered: now,
            used: false,
            generation,
            _counted: Some(Counted(Arc::clone(size))),
        }
    }

    pub(super) fn lent(
        connection: PoolConnection<DB>,
        key: Option<DB::Key>,
        generation: u32,
    ) -> Self {
        Self {
            held: Held::Lent(connection),
            key,
            host: 0,
            read_only: false,
            expires: None,
            answered: Instant::now(),
            used: true,
            generation,
            _counted: None,
        }
    }

    pub(super) fn connection(&mut self) -> &mut DB::Connection {
        match &mut self.held {
            Held::Own(connection) => connection,
            Held::Lent(connection) => connection,
        }
    }

    /// No longer of the pool it was lent by, where its place is free at once.
    pub(super) fn kept(self) -> Self {
        match self.held {
            Held::Lent(connection) => Self { held: Held::Own(connection.detach()), ..self },
            Held::Own(_) => self,
        }
    }

    pub(super) const fn is_lent(&self) -> bool {
        matches!(self.held, Held::Lent(_))
    }

    pub(super) const fn key(&self) -> Option<&DB::Key> {
        self.key.as_ref()
    }

    pub(super) const fn host(&self) -> usize {
        self.host
    }

    pub(super) const fn read_only(&self) -> bool {
        self.read_only
    }

    pub(super) const fn generation(&self) -> u32 {
        self.generation
    }

    /// It came from the pool, where it may have died.
    pub(crate) const fn is_used(&self) -> bool {
        self.used
    }

    pub(super) fn is_expired(&self) -> bool {
        self.expires.is_some_and(|end| end <= Instant::now())
    }

    pub(crate) fn idle_for(&self) -> Duration {
        self.answered.elapsed()
    }

    pub(super) const fn last_answer(&self) -> Instant {
        self.answered
    }

    pub(super) fn answered(&mut self) {
        self.answered = Instant::now();
        self.used = true;
    }

    pub(super) async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection().ping().await
    }

    /// Has the server refuse writes from here on, or take them again.
    pub(super) async fn switch(&mut self, read_only: bool) -> Result<(), sqlx::Error> {
        if self.read_only == read_only {
            return Ok(());
        }
        let statement = crate::statement::Statement::text(DB::switch(read_only));
        DB::execute(self.connection(), statement).await?;
        self.read_only = read_only;
        Ok(())
    }

    /// Back to the pool it was lent by, or said good-bye to the server, without waiting.
    pub(super) fn close(self) {
        const LONGEST: Duration = Duration::from_secs(1);
        if let (Held::Own(connection), Ok(runtime)) = (self.held, Handle::try_current()) {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(LONGEST, connection.close()).await;
            });
        }
    }

    pub(super) fn into_inner(self) -> DB::Connection {
        match self.held {
            Held::Own(connection) => connection,
            Held::Lent(connection) => connection.detach(),
        }
    }

    /// Cut off, whatever the server is doing.
    pub(super) fn cut(self) {
        match self.held {
            Held::Own(connection) => drop(connection),
            // Frees the slot there at once.
            Held::Lent(connection) => drop(connection.detach()),
        }
    }
}

/// Connections made together do not end together.
fn spread(lifetime: Duration) -> Duration {
    lifetime.mul_f64(0.8 + 0.2 * fastrand::f64())
}

/// One in the pool's size.
struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
