//! Ends on the server what was given up here.
//!
//! A statement whose future was dropped, or whose time is up, would run on at the server and hold
//! its locks. Its connection comes here: one side connection at a time tells the server to cancel
//! all that have come, and only then are they closed, so that the server cannot have given their
//! numbers to others meanwhile. SQLite is told without a side connection.

use super::{Lease, Link, Permit, Pool, lock};
use crate::backend::Backend;
use std::{sync::Mutex, time::Duration};
use tokio::runtime::Handle;

/// For the side connection, and for what it says. Longer, the network is silent.
const LONGEST: Duration = Duration::from_secs(2);
/// More are cut off without a word: the server has other worries.
const MOST: usize = 1_000;

pub(super) struct Canceller<DB: Backend>(Mutex<Queue<DB>>);

struct Queue<DB: Backend> {
    given_up: Vec<Link<DB>>,
    running: bool,
}

impl<DB: Backend> Canceller<DB> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Queue { given_up: Vec::new(), running: false }))
    }
}

impl<DB: Backend> Pool<DB> {
    /// Takes a connection whose statement nobody waits for. Does not wait.
    pub(super) fn cancel(&self, link: Link<DB>) {
        let link = link.kept();
        let Some(key) = link.key() else { return link.cut() };
        if DB::stop(key) {
            return link.cut();
        }
        let Ok(runtime) = Handle::try_current() else { return link.cut() };
        let mut queue = lock(&self.0.canceller.0);
        if queue.given_up.len() >= MOST {
            drop(queue);
            return link.cut();
        }
        queue.given_up.push(link);
        if !std::mem::replace(&mut queue.running, true) {
            let pool = self.clone();
            runtime.spawn(async move { pool.cancel_all().await });
        }
    }

    async fn cancel_all(&self) {
        // Also when the runtime ends in mid-work: another may want to begin.
        struct Running<'p, DB: Backend>(&'p Pool<DB>);
        impl<DB: Backend> Drop for Running<'_, DB> {
            fn drop(&mut self) {
                lock(&self.0.0.canceller.0).running = false;
            }
        }
        let running = Running(self);
        loop {
            let (host, batch) = {
                let mut queue = lock(&self.0.canceller.0);
                let Some(host) = queue.given_up.first().map(Link::host) else {
                    queue.running = false;
                    std::mem::forget(running);
                    return;
                };
                let batch = queue.given_up.extract_if(.., |link| link.host() == host);
                (host, batch.collect::<Vec<_>>())
            };
            let keys: Vec<_> = batch.iter().filter_map(|link| link.key().cloned()).collect();
            let told = self.tell_server(host, keys);
            if tokio::time::timeout(LONGEST, told).await.is_err() {
                tracing::debug!(statements = batch.len(), "could not be cancelled in time");
            }
            batch.into_iter().for_each(Link::cut);
        }
    }

    /// On an idle connection to that host, else on a new one.
    async fn tell_server(&self, host: usize, keys: Vec<DB::Key>) {
        if let Some(mut lease) = self.side(host)
            && let Some(connection) = lease.connection()
        {
            if DB::cancel(connection, keys.clone()).await.is_ok() {
                lease.marks.unfinished = false;
                return;
            }
            lease.discard();
        }
        if let Ok((mut connected, _)) = self.0.hosts.connect_to(host).await {
            let _ = DB::cancel(&mut connected.connection, keys).await;
        }
    }

    fn side(&self, host: usize) -> Option<Lease<DB>> {
        let permit = Permit::try_take(self)?;
        let mut idle = lock(&self.0.idle);
        let place = idle.iter().rposition(|link| link.host() == host && !self.is_stale(link))?;
        let mut lease = Lease::new(idle.remove(place), permit);
        drop(idle);
        lease.marks.unfinished = true;
        // Whatever comes of it, nobody cancels the cancelling.
        lease.marks.quiet = true;
        Some(lease)
    }
}
