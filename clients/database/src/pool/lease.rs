//! One connection, out of the pool, and what becomes of it when it is given back.

use super::{Link, Pool};
use crate::{backend::Backend, classify::DatabaseFailure, statement::Statement};
use sqlx_core::transaction::TransactionManager;
use std::{
    sync::atomic::Ordering::{Relaxed, SeqCst},
    time::Duration,
};
use tokio::runtime::Handle;

/// The right to use one connection.
pub(super) struct Permit<DB: Backend> {
    pool: Pool<DB>,
    /// Another one has it now.
    handed_over: bool,
}

impl<DB: Backend> Permit<DB> {
    pub(super) fn try_take(pool: &Pool<DB>) -> Option<Self> {
        pool.0.permits.try_acquire().ok()?.forget();
        Some(Self::taken(pool))
    }

    pub(super) async fn take(pool: &Pool<DB>) -> Result<Self, DatabaseFailure> {
        if let Some(permit) = Self::try_take(pool) {
            return Ok(permit);
        }
        let _waiting = Waiting::new(pool);
        let permit = pool.0.permits.acquire().await;
        permit.map_err(|_| DatabaseFailure::closed())?.forget();
        Ok(Self::taken(pool))
    }

    fn taken(pool: &Pool<DB>) -> Self {
        pool.0.in_use.fetch_add(1, Relaxed);
        Self { pool: pool.clone(), handed_over: false }
    }

    pub(super) const fn pool(&self) -> &Pool<DB> {
        &self.pool
    }

    fn hand_over(&mut self) -> Self {
        Self {
            pool: self.pool.clone(),
            handed_over: std::mem::replace(&mut self.handed_over, true),
        }
    }
}

impl<DB: Backend> Drop for Permit<DB> {
    fn drop(&mut self) {
        if self.handed_over {
            return;
        }
        let inner = &*self.pool.0;
        inner.in_use.fetch_sub(1, SeqCst);
        inner.permits.add_permits(1);
        if inner.closed.load(SeqCst) {
            inner.returned.notify_waiters();
        }
    }
}

struct Waiting<'p, DB: Backend>(&'p Pool<DB>);

impl<'p, DB: Backend> Waiting<'p, DB> {
    fn new(pool: &'p Pool<DB>) -> Self {
        pool.0.waiting.fetch_add(1, Relaxed);
        Self(pool)
    }
}

impl<DB: Backend> Drop for Waiting<'_, DB> {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// One connection, out of the pool.
pub(crate) struct Lease<DB: Backend> {
    link: Option<Link<DB>>,
    permit: Permit<DB>,
    pub(crate) marks: Marks,
}

/// What is to become of a connection when it is given back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// A statement is under way or was abandoned: nobody may use this connection again.
    pub(crate) unfinished: bool,
    /// What is under way is not cancelled: COMMIT, or nothing, as the connection is lost.
    pub(crate) quiet: bool,
    /// A transaction is open, to be rolled back before anyone else has the connection.
    pub(crate) open: bool,
    /// Rows may still be coming, to be read away before COMMIT.
    pub(crate) rest: bool,
    /// They are those of a stream: as many as there are, and the server is still at work on them.
    pub(crate) streaming: bool,
    /// In order, and not what the next caller expects: closed when given back.
    pub(crate) changed: bool,
}

impl Marks {
    /// The server has answered, to the last row.
    pub(crate) const fn at_rest(&mut self) {
        (self.unfinished, self.rest, self.streaming) = (false, false, false);
    }
}

impl<DB: Backend> Lease<DB> {
    pub(super) fn new(link: Link<DB>, permit: Permit<DB>) -> Self {
        Self { link: Some(link), permit, marks: Marks::default() }
    }

    pub(crate) fn connection(&mut self) -> Option<&mut DB::Connection> {
        self.link.as_mut().map(Link::connection)
    }

    /// The connection, its marks, and where it came from.
    pub(crate) fn parts(&mut self) -> (Option<&mut DB::Connection>, &mut Marks, &Pool<DB>) {
        let connection = self.link.as_mut().map(Link::connection);
        (connection, &mut self.marks, self.permit.pool())
    }

    /// The connection itself; this lease keeps its place in the pool.
    pub(crate) fn take(&mut self) -> Option<DB::Connection> {
        self.link.take().map(Link::into_inner)
    }

    pub(crate) const fn link(&self) -> Option<&Link<DB>> {
        self.link.as_ref()
    }

    pub(crate) const fn pool(&self) -> &Pool<DB> {
        self.permit.pool()
    }

    /// Gives the connection up: what it is doing is cancelled on the server, unless it is quiet.
    pub(crate) fn abandon(&mut self) {
        self.marks.unfinished = true;
        if let Some(link) = self.link.take() {
            let pool = self.permit.pool();
            if self.marks.quiet {
                link.cut();
            } else {
                pool.cancel(link);
            }
        }
    }

    /// Gives the connection up: it is doing nothing, or nothing that matters.
    pub(crate) fn discard(&mut self) {
        self.marks.unfinished = true;
        if let Some(link) = self.link.take() {
            link.cut();
        }
    }
}

/// To the beginning: a savepoint that was forgotten comes off first.
pub(crate) async fn roll_back<DB: Backend>(
    connection: &mut DB::Connection,
) -> Result<(), sqlx::Error> {
    while DB::TransactionManager::get_transaction_depth(connection) > 0 {
        DB::TransactionManager::rollback(connection).await?;
    }
    Ok(())
}

impl<DB: Backend> Drop for Lease<DB> {
    fn drop(&mut self) {
        // The driver would read a stream's rows away before the next statement, without a pause.
        if self.marks.unfinished || self.marks.streaming {
            self.abandon();
            return;
        }
        let Some(mut link) = self.link.take() else { return };
        if self.marks.changed {
            link.kept().close();
            return;
        }
        let Marks { open, rest, .. } = self.marks;
        if !open && !rest {
            self.permit.pool().put(link);
            return;
        }
        // Not left to the next caller: until then it would hold its locks, or be read away on the
        // next one's time. The permit goes along.
        const ROLLBACK: Duration = Duration::from_secs(2);
        /// A few rows are read by then; of many, the server is told to stop.
        const REST: Duration = Duration::from_millis(100);
        let Ok(runtime) = Handle::try_current() else { return link.cut() };
        let permit = self.permit.hand_over();
        runtime.spawn(async move {
            let rolled_back = async {
                let connection = link.connection();
                if !open {
                    DB::execute(connection, Statement::text("select 1")).await?;
                }
                roll_back::<DB>(connection).await
            };
            match tokio::time::timeout(if open { ROLLBACK } else { REST }, rolled_back).await {
                Ok(Ok(())) => permit.pool().put(link),
                Ok(Err(_)) => link.cut(),
                Err(_) => permit.pool().cancel(link),
            }
        });
    }
}
