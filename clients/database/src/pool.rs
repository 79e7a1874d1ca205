//! Connections of one runtime.
//!
//! Not sqlx's pool: that one pings a connection at every release, cannot say why none comes, and
//! does not let a connection be recognised, which is needed to cancel on the server what was given
//! up. Here a connection that answered moments ago is used as it is; one that has been idle longer,
//! or is suspect because another of its kind was lost, must answer a ping first. While the server is
//! down all who wait share one dial. A pool of the caller's own can be adopted (`adopted`).

mod adopted;
mod cancel;
mod lease;
mod link;
#[cfg(feature = "metrics")]
mod numbers;
mod upkeep;

pub(crate) use lease::{Lease, Marks, roll_back};
pub(crate) use link::Link;

use crate::{
    backend::{Backend, Options},
    classify::{DatabaseFailure, Phase},
    hosts::{ConnectError, Hosts, Target},
};
use cancel::Canceller;
use futures_util::{
    FutureExt,
    future::{BoxFuture, FusedFuture, Shared, WeakShared},
};
use lease::Permit;
use std::{
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU32,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};
use tokio::sync::{Notify, Semaphore};

/// A ping that takes longer says that the network is silent.
const PING: Duration = Duration::from_secs(1);

/// Limits of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_connections: u32,
    pub(crate) min_connections: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) acquire_timeout: Duration,
    /// Idle for longer, a connection must answer a ping before it is used.
    pub(crate) ping_after: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) max_lifetime: Duration,
}

/// What a caller will do with a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// The server is to refuse writes on it.
    pub(crate) read_only: bool,
    pub(crate) first: First,
}

/// The first thing sent on it, and what it means if the connection proves dead then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// BEGIN, which is as good as a ping: another connection is taken.
    Begin,
    /// Something that may be sent again.
    Repeatable,
    /// Something whose outcome would be unknown.
    Once,
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Connections that are open: idle, or in use.
    pub size: u32,
    /// Open and free.
    pub idle: u32,
    /// Lent to a caller, or being opened for one.
    pub in_use: u32,
    /// Callers who wait for one.
    pub waiting: u32,
    /// The most there may be.
    pub max: u32,
}

impl PoolStatus {
    pub(crate) const NONE: Self = Self { size: 0, idle: 0, in_use: 0, waiting: 0, max: 0 };

    pub(crate) const fn and(self, other: Self) -> Self {
        Self {
            size: self.size.saturating_add(other.size),
            idle: self.idle.saturating_add(other.idle),
            in_use: self.in_use.saturating_add(other.in_use),
            waiting: self.waiting.saturating_add(other.waiting),
            max: self.max.saturating_add(other.max),
        }
    }
}

impl fmt::Display for PoolStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, idle, in_use, waiting, max } = self;
        write!(f, "pool: {size} of {max} open, {idle} idle, {in_use} in use, {waiting} waiting")
    }
}

type Dial = BoxFuture<'static, Result<(), ConnectError>>;

struct Inner<DB: Backend> {
    hosts: Arc<Hosts<DB>>,
    adopted: Option<sqlx::Pool<DB>>,
    limits: Limits,
    /// One for each connection that may be in use.
    permits: Semaphore,
    /// The one used last is at the end, and goes out first.
    idle: Mutex<Vec<Link<DB>>>,
    size: Arc<AtomicU32>,
    in_use: AtomicU32,
    waiting: AtomicU32,
    /// Links of an older one are not used any more.
    generation: AtomicU32,
    /// Links that have not answered since then must do so first.
    suspect: Mutex<Option<Instant>>,
    is_suspect: AtomicBool,
    /// The last attempt to connect failed, or there was none.
    down: AtomicBool,
    dial: Mutex<Option<WeakShared<Dial>>>,
    canceller: Canceller<DB>,
    closed: AtomicBool,
    returned: Notify,
    /// sqlx's own, for code that wants one.
    escape: OnceLock<sqlx::Pool<DB>>,
    upkeep: OnceLock<upkeep::Upkeep>,
    #[cfg(feature = "metrics")]
    numbers: numbers::Numbers,
}

pub(crate) struct Pool<DB: Backend>(Arc<Inner<DB>>);

impl<DB: Backend> Clone for Pool<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<DB: Backend> Pool<DB> {
    /// No I/O; needs a runtime. The name is for metrics.
    pub(crate) fn new(
        #[cfg_attr(not(feature = "metrics"), allow(unused))] name: &str,
        hosts: Arc<Hosts<DB>>,
        limits: Limits,
        adopted: Option<sqlx::Pool<DB>>,
    ) -> Self {
        let pool = Self(Arc::new(Inner {
            hosts,
            adopted,
            limits,
            permits: Semaphore::new(limits.max_connections as usize),
            idle: Mutex::default(),
            size: Arc::default(),
            in_use: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            suspect: Mutex::new(None),
            is_suspect: AtomicBool::new(false),
            down: AtomicBool::new(true),
            dial: Mutex::new(None),
            canceller: Canceller::new(),
            closed: AtomicBool::new(false),
            returned: Notify::new(),
            escape: OnceLock::new(),
            upkeep: OnceLock::new(),
            #[cfg(feature = "metrics")]
            numbers: numbers::Numbers::of(name),
        }));
        upkeep::start(&pool);
        pool
    }

    /// sqlx's pool: the adopted one, else one of its own with the same settings.
    pub(crate) fn sqlx(&self) -> Option<sqlx::Pool<DB>> {
        if let Some(adopted) = &self.0.adopted {
            return Some(adopted.clone());
        }
        let options: &Options<DB> = self.0.hosts.first()?;
        let limits = self.0.limits;
        let make = || {
            sqlx::pool::PoolOptions::new()
                .max_connections(limits.max_connections)
                .acquire_timeout(limits.acquire_timeout)
                .connect_lazy_with(options.clone())
        };
        Some(self.0.escape.get_or_init(make).clone())
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let inner = &*self.0;
        let in_use = inner.in_use.load(Relaxed);
        let waiting = inner.waiting.load(Relaxed);
        let max = inner.limits.max_connections;
        let (size, idle) = match &inner.adopted {
            None => (inner.size.load(Relaxed), u32::try_from(lock(&inner.idle).len()).unwrap_or(0)),
            Some(pool) => {
                // sqlx counts below zero for an instant.
                let idle = u32::try_from(pool.num_idle()).unwrap_or(0).min(pool.size());
                (pool.size(), idle)
            }
        };
        PoolStatus { size, idle, in_use, waiting, max }
    }

    /// Nothing of a session lasts beyond a transaction.
    pub(crate) fn is_pooler(&self) -> bool {
        self.0.hosts.tuning().pooler
    }

    /// Of replicas: that they refuse writes says nothing about them.
    pub(crate) fn is_for_reading(&self) -> bool {
        use Target::{PreferStandby, ReadOnly, Standby};
        matches!(self.0.hosts.tuning().target, ReadOnly | Standby | PreferStandby)
    }

    /// A read-only statement needs a transaction to say so in.
    pub(crate) fn reads_in_transaction(&self) -> bool {
        self.is_pooler() || self.0.adopted.is_some()
    }

    /// A connection in order, or the reason why there is none.
    ///
    /// # Cancel safety
    /// Nothing is lost but a connection that was being asked whether it lives.
    pub(crate) async fn acquire(
        &self,
        limit: Option<Duration>,
        want: Want,
    ) -> Result<Lease<DB>, DatabaseFailure> {
        #[cfg(feature = "metrics")]
        let started = Instant::now();
        let lease = self.get(limit, want).await;
        #[cfg(feature = "metrics")]
        self.0.numbers.acquired(started.elapsed(), lease.is_ok());
        lease
    }

    async fn get(&self, limit: Option<Duration>, want: Want) -> Result<Lease<DB>, DatabaseFailure> {
        if let Some(lease) = self.at_once(want) {
            return Ok(lease);
        }
        let limits = self.0.limits;
        let limit = limit.map_or(limits.acquire_timeout, |l| l.min(limits.acquire_timeout));
        let started = Instant::now();
        match tokio::time::timeout(limit, self.wait(want)).await {
            Ok(result) => result,
            Err(_) => {
                let (status, waited) = (self.status(), started.elapsed());
                Err(if status.in_use >= status.max {
                    DatabaseFailure::pool_exhausted(status.in_use, status.max, waited)
                } else {
                    DatabaseFailure::timed_out(Phase::Acquire, limit)
                })
            }
        }
    }

    /// The common case: a connection that answered just now, and no timer.
    fn at_once(&self, want: Want) -> Option<Lease<DB>> {
        if self.0.adopted.is_some() {
            return None;
        }
        let permit = Permit::try_take(self)?;
        let link = {
            let mut idle = lock(&self.0.idle);
            let link = idle.last()?;
            if link.read_only() != want.read_only
                || self.is_stale(link)
                || self.must_ping(link, want)
            {
                return None;
            }
            idle.pop()?
        };
        Some(Lease::new(link, permit))
    }

    async fn wait(&self, want: Want) -> Result<Lease<DB>, DatabaseFailure> {
        let permit = Permit::take(self).await?;
        if let Some(pool) = &self.0.adopted {
            return Ok(Lease::new(self.borrow(pool).await?, permit));
        }
        while let Some(mut link) = self.pop(want.read_only) {
            if self.must_ping(&link, want) {
                match tokio::time::timeout(PING, link.ping()).await {
                    Ok(Ok(())) => link.answered(),
                    Ok(Err(_)) => {
                        self.suspect();
                        continue;
                    }
                    // The others would each be asked as long, and be as silent.
                    Err(_) => {
                        self.evict();
                        continue;
                    }
                }
            }
            if link.switch(want.read_only).await.is_ok() {
                return Ok(Lease::new(link, permit));
            }
            self.suspect();
        }
        let mut link = self.connect().await.map_err(ConnectError::into_failure::<DB>)?;
        let switched = link.switch(want.read_only).await;
        switched.map_err(|error| DatabaseFailure::driver::<DB>(error, Phase::Acquire))?;
        Ok(Lease::new(link, permit))
    }

    /// The last one used of this kind, else the last one used. Those past their time are closed.
    fn pop(&self, read_only: bool) -> Option<Link<DB>> {
        loop {
            let link = {
                let mut idle = lock(&self.0.idle);
                let place = idle.iter().rposition(|link| link.read_only() == read_only);
                match place {
                    Some(place) => idle.remove(place),
                    None => idle.pop()?,
                }
            };
            if !self.is_stale(&link) {
                return Some(link);
            }
            link.close();
        }
    }

    fn must_ping(&self, link: &Link<DB>, want: Want) -> bool {
        /// A write must not meet a connection that the server closed, say, a minute ago.
        const FOR_WHAT_IS_SENT_ONCE: Duration = Duration::from_millis(20);
        let idle = link.idle_for();
        let suspected = self.0.is_suspect.load(Relaxed)
            && lock(&self.0.suspect).is_some_and(|since| link.last_answer() <= since);
        match want.first {
            First::Begin => suspected && idle > self.0.limits.ping_after,
            First::Repeatable => suspected || idle > self.0.limits.ping_after,
            First::Once => suspected || idle > self.0.limits.ping_after.min(FOR_WHAT_IS_SENT_ONCE),
        }
    }

    fn is_stale(&self, link: &Link<DB>) -> bool {
        link.generation() != self.0.generation.load(Relaxed) || link.is_expired()
    }

    /// A connection was lost: others that have been idle since may be lost too.
    pub(crate) fn suspect(&self) {
        *lock(&self.0.suspect) = Some(Instant::now());
        self.0.is_suspect.store(true, Relaxed);
    }

    /// All connections there are go, those in use when they come back.
    pub(crate) fn evict(&self) {
        self.0.generation.fetch_add(1, Relaxed);
        let idle = std::mem::take(&mut *lock(&self.0.idle));
        idle.into_iter().for_each(Link::close);
    }

    /// After the link is back, whoever waits finds it.
    fn put(&self, mut link: Link<DB>) {
        link.answered();
        let inner = &*self.0;
        let too_many = inner.size.load(Relaxed) > inner.limits.max_connections;
        // Who closes the pool, or has all connections go, takes what is idle out under this lock,
        // after saying so.
        let mut idle = lock(&inner.idle);
        if link.is_lent() || too_many || inner.closed.load(SeqCst) || self.is_stale(&link) {
            drop(idle);
            link.close();
            return;
        }
        idle.push(link);
    }

    async fn connect(&self) -> Result<Link<DB>, ConnectError> {
        if self.0.down.load(Relaxed) {
            self.dial().await?;
            if let Some(link) = self.pop(false) {
                return Ok(link);
            }
        }
        self.dial_alone().await
    }

    async fn dial_alone(&self) -> Result<Link<DB>, ConnectError> {
        let generation = self.0.generation.load(Relaxed);
        let connected = self.0.hosts.connect().await;
        self.0.down.store(connected.is_err(), Relaxed);
        let (limits, size) = (&self.0.limits, &self.0.size);
        connected.map(|connected| Link::new(connected, generation, limits, size))
    }

    /// One dial at a time, shared by all who wait, ended when nobody does. Its connection is put by
    /// for whoever takes it.
    fn dial(&self) -> Shared<Dial> {
        let mut slot = lock(&self.0.dial);
        let running = slot.as_ref().and_then(WeakShared::upgrade);
        // A finished one tells how it was, not how it is.
        if let Some(dial) = running.filter(|dial| dial.peek().is_none()) {
            return dial;
        }
        let pool = self.downgrade();
        let dial = async move {
            let Some(pool) = pool.upgrade() else { return Ok(()) };
            let link = pool.dial_alone().await?;
            pool.put(link);
            Ok(())
        };
        let dial = dial.boxed().shared();
        *slot = dial.downgrade();
        dial
    }

    /// A round trip on an idle connection, else on a new one that is closed again: it takes no
    /// caller's place. Of an idle one that is silent nobody knows whose fault that is, so both are
    /// asked then.
    pub(crate) async fn probe(&self) -> Result<(), DatabaseFailure> {
        /// A packet that was lost has come by then.
        const PATIENCE: Duration = Duration::from_millis(250);
        /// When a new connection has failed: the idle one may be slow, and in order.
        const LONGER: Duration = Duration::from_millis(750);
        if self.0.closed.load(SeqCst) {
            return Err(DatabaseFailure::closed());
        }
        let started = tokio::time::Instant::now();
        let mut idle = pin!(self.ping_idle().fuse());
        let answered = tokio::time::timeout(PATIENCE, &mut idle).await;
        if answered == Ok(true) {
            return Ok(());
        }
        tokio::select! {
            biased;
            true = &mut idle => Ok(()),
            reached = self.0.hosts.reach() => {
                if reached.is_ok() && answered.is_err() {
                    self.suspect();
                } else if !idle.is_terminated()
                    && tokio::time::timeout_at(started + LONGER, idle).await == Ok(true)
                {
                    return Ok(());
                }
                reached.map_err(ConnectError::into_failure::<DB>)
            }
        }
    }

    /// Whether an idle connection answers; one that fails, or is given up, is closed.
    async fn ping_idle(&self) -> bool {
        let free = || Some((Permit::try_take(self)?, self.pop(false)?));
        let Some((permit, link)) = free().filter(|_| self.0.adopted.is_none()) else {
            return false;
        };
        let mut lease = Lease::new(link, permit);
        (lease.marks.unfinished, lease.marks.quiet) = (true, true);
        let Some(connection) = lease.connection() else { return false };
        let answered = DB::prove(connection, self.0.hosts.tuning()).await.is_ok();
        (lease.marks.unfinished, lease.marks.quiet) = (!answered, !answered);
        if !answered {
            self.suspect();
        }
        answered
    }

    /// No more connections from now on; idle ones are closed at once, the others as they come back,
    /// which is waited for this long.
    pub(crate) async fn close(&self, within: Duration) {
        self.0.closed.store(true, SeqCst);
        self.0.permits.close();
        self.evict();
        let all_back = async {
            loop {
                let returned = self.0.returned.notified();
                if self.0.in_use.load(SeqCst) == 0 {
                    break;
                }
                returned.await;
            }
            if let Some(pool) = self.0.adopted.as_ref().or_else(|| self.0.escape.get()) {
                pool.close().await;
            }
        };
        let _ = tokio::time::timeout(within, all_back).await;
    }

    fn downgrade(&self) -> WeakPool<DB> {
        WeakPool(Arc::downgrade(&self.0))
    }
}

struct WeakPool<DB: Backend>(Weak<Inner<DB>>);

impl<DB: Backend> WeakPool<DB> {
    fn upgrade(&self) -> Option<Pool<DB>> {
        self.0.upgrade().map(Pool)
    }
}
