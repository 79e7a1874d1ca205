//! Cache-aside: from the cache, else from its source, by one caller for all that wait.
//!
//! A value near the end of its life is loaded again by some caller before it is gone, with a chance
//! that rises as the end comes near and as loading takes longer: XFetch (Vattani, Chierichetti,
//! Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015), with its beta of 1.

use crate::{
    answer::Source,
    client::RedisClient,
    command::{Change, Slot},
    config::lifetime,
    query::{Get, Ttl, TtlOf},
    value::{FromValue, ToValue},
};
use bytes::Bytes;
use mainstay_policy::{CallError, Deadline, Decider, Effect, Error, ErrorKind, Operation};
use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt,
    future::{Future, IntoFuture, poll_fn},
    hash::{BuildHasher, RandomState},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};
use tokio::sync::watch;

const LOAD: Operation = Operation::new("get_or_load", mainstay_policy::Idempotency::Safe);
/// How many durations of loads are remembered; keys that share one share an estimate.
const ESTIMATES: usize = 512;

type Flights = HashMap<Bytes, watch::Receiver<Option<Landed>>>;

/// The loads under way in this process, and how long they take.
pub(crate) struct Loads {
    /// Those whose value nobody has written over since they began.
    flights: Mutex<Flights>,
    /// How many these are, for writes to look at: most often none.
    open: AtomicUsize,
    hasher: RandomState,
    /// Microseconds.
    took: [AtomicU64; ESTIMATES],
}

impl Default for Loads {
    fn default() -> Self {
        Self {
            flights: Mutex::default(),
            open: AtomicUsize::new(0),
            hasher: RandomState::new(),
            took: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

#[derive(Clone)]
enum Landed {
    Loaded(Bytes),
    Failed(LoadFailure),
}

/// The loader's error, shared by all who waited for it; it is the source.
#[derive(Clone)]
pub struct LoadFailure(Arc<dyn StdError + Send + Sync>);

impl fmt::Debug for LoadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadFailure")
    }
}

impl fmt::Display for LoadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the loader failed, and there was no value recent enough to stand in for it")
    }
}

impl StdError for LoadFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

enum Seat<'a> {
    Leader(Flight<'a>),
    Waiter(watch::Receiver<Option<Landed>>),
}

/// A load under way; dropped without a word, it sends those who wait to load themselves.
struct Flight<'a> {
    loads: &'a Loads,
    key: Bytes,
    tell: watch::Sender<Option<Landed>>,
}

impl Flight<'_> {
    /// Nothing was written to its key since it began.
    fn is_current(&self) -> bool {
        self.is_in(&self.loads.flights())
    }

    fn is_in(&self, flights: &Flights) -> bool {
        let hear = self.tell.subscribe();
        flights.get(&self.key).is_some_and(|flight| flight.same_channel(&hear))
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.loads.change(|flights| {
            if self.is_in(flights) {
                flights.remove(&self.key);
            }
        });
    }
}

impl Loads {
    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Flights) -> T) -> T {
        let mut flights = self.flights();
        let result = change(&mut flights);
        self.open.store(flights.len(), Ordering::Relaxed);
        result
    }

    fn seat(&self, key: &Bytes) -> Seat<'_> {
        self.change(|flights| {
            if let Some(flight) = flights.get(key) {
                return Seat::Waiter(flight.clone());
            }
            let (tell, hear) = watch::channel(None);
            flights.insert(key.clone(), hear);
            Seat::Leader(Flight { loads: self, key: key.clone(), tell })
        })
    }

    /// A write: a load under way may have read what was there before, so that nobody joins it from
    /// now on, and its value is not sent any more.
    #[inline]
    pub(crate) fn outdate(&self, key: &Bytes) {
        if self.open.load(Ordering::Relaxed) > 0 {
            self.outdate_one(key);
        }
    }

    #[cold]
    #[inline(never)]
    fn outdate_one(&self, key: &Bytes) {
        self.change(|flights| drop(flights.remove(key)));
    }

    pub(crate) fn outdate_all(&self) {
        self.change(HashMap::clear);
    }

    fn estimate(&self, key: &Bytes) -> &AtomicU64 {
        let hash = self.hasher.hash_one(key) % ESTIMATES as u64;
        &self.took[usize::try_from(hash).unwrap_or_default()]
    }
}

/// Whether to load a value that still lives this long, if the last load took that long: with `draw`
/// from 0 (excluded) to 1.
fn is_due(left: Duration, took: Duration, draw: f64) -> bool {
    took.as_secs_f64() * -draw.max(f64::MIN_POSITIVE).ln() >= left.as_secs_f64()
}

impl RedisClient {
    /// The value at a key, else that of the loader, which is stored for `ttl`:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mainstay_policy::Error> {
    /// # let cache = mainstay_redis::RedisClient::builder().name("loading").without_server().build()?;
    /// use std::time::Duration;
    ///
    /// let load = || async { Ok::<_, std::io::Error>("Berlin".to_owned()) };
    /// let city: String = cache.get_or_load("city:1", Duration::from_secs(600), load).await?;
    /// assert_eq!(city, "Berlin");
    /// # Ok(()) }
    /// ```
    ///
    /// - Of the callers in this process one loads and the others get what it got, its error too. If
    ///   the one who loads is dropped, another begins.
    /// - A write of the key by this client while it is loaded is newer: who calls after it loads again,
    ///   and what was loaded before is not stored. Each runtime has a connection of its own: of a
    ///   client in several of them, what was on its way already may arrive after the write. `expire`
    ///   and `persist` are no such writes.
    /// - Near the end of its life a value is loaded again by one caller while the others still get
    ///   it, sooner the longer loading takes.
    /// - A server that is away or refuses the credentials fails nobody: the value comes from memory
    ///   or from the loader.
    /// - A stored value that is no `T` is loaded again and replaced.
    ///
    /// # Errors
    /// On `.await`: the loader's error as [`Error::downcast_ref`], unless the value was loaded early and
    /// is still alive, or [`stale_if_error`](Load::stale_if_error) has one for it; a key of another
    /// type; a lifetime of 0 or over 100 years; a deadline around the call, while another caller loads.
    ///
    /// # Cancel safety
    /// Dropping the future drops the loader's; what was loaded by then may still be stored.
    pub fn get_or_load<T, E, F, Fut>(
        &self,
        key: impl AsRef<[u8]>,
        ttl: Duration,
        loader: F,
    ) -> Load<F>
    where
        T: FromValue + ToValue,
        E: StdError + Send + Sync + 'static,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let slot = self.slot(key, None);
        Load { client: self.clone(), slot, ttl, stale: Duration::ZERO, loader }
    }
}

/// A value to get or load: await it.
#[must_use = "nothing is sent until it is awaited"]
pub struct Load<F> {
    client: RedisClient,
    slot: Result<Slot, Error>,
    ttl: Duration,
    stale: Duration,
    loader: F,
}

impl<F> fmt::Debug for Load<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

impl<F> Load<F> {
    /// When the loader fails, a value that ended up to this long ago still stands in. The value is
    /// stored for that much longer, so a plain [`get`](RedisClient::get) finds it that long too; give
    /// all calls for a key the same. Default: 0.
    pub const fn stale_if_error(mut self, bound: Duration) -> Self {
        self.stale = bound;
        self
    }
}

/// What the cache has.
enum Cached {
    Nothing,
    Fresh { value: Bytes, left: Option<Duration> },
    Stale(Bytes),
}

impl<T, E, F, Fut> IntoFuture for Load<F>
where
    T: FromValue + ToValue + Send + 'static,
    E: StdError + Send + Sync + 'static,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
{
    type Output = Result<T, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { client, slot, ttl, stale, loader } = self;
            let (slot, ttl, kept) = (slot?, lifetime(ttl)?, lifetime(ttl.saturating_add(stale))?);
            let fell_back = AtomicBool::new(false);
            let what = Wanted { client: &client, slot, ttl, kept, fell_back };
            what.get(loader).await
        })
    }
}

struct Wanted<'a> {
    client: &'a RedisClient,
    slot: Slot,
    ttl: Duration,
    /// Its lifetime, and how long it may stand in for a failed load.
    kept: Duration,
    /// It was answered in the server's place, which counts once, however often memory is asked.
    fell_back: AtomicBool,
}

impl Wanted<'_> {
    async fn get<T, E, F, Fut>(&self, loader: F) -> Result<T, Error>
    where
        T: FromValue + ToValue,
        E: StdError + Send + Sync + 'static,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let loads = &self.client.0.loads;
        let last;
        let flight = loop {
            let stale;
            match self.cached::<T>().await? {
                Cached::Fresh { value, left } => {
                    let took = loads.estimate(&self.slot.key).load(Ordering::Relaxed);
                    let took = Duration::from_micros(took);
                    if !left.is_some_and(|left| is_due(left, took, fastrand::f64())) {
                        return T::from_value(value);
                    }
                    match loads.seat(&self.slot.key) {
                        Seat::Leader(flight) => {
                            last = Some(value);
                            break flight;
                        }
                        Seat::Waiter(_) => return T::from_value(value),
                    }
                }
                Cached::Stale(value) => stale = Some(value),
                Cached::Nothing => stale = None,
            }
            match loads.seat(&self.slot.key) {
                Seat::Leader(flight) => {
                    // Another may have landed since we looked.
                    if let Cached::Fresh { value, .. } = self.cached::<T>().await? {
                        flight.tell.send_replace(Some(Landed::Loaded(value.clone())));
                        return T::from_value(value);
                    }
                    last = stale;
                    break flight;
                }
                Seat::Waiter(hear) => match self.landed(hear).await? {
                    Some(Landed::Loaded(value)) => return T::from_value(value),
                    Some(Landed::Failed(failure)) => return self.stand_in(stale, failure),
                    // It was dropped: look again, and maybe load.
                    None => {}
                },
            }
        };
        let began = Instant::now();
        match loader().await {
            Ok(value) => {
                let value = value.to_value()?;
                let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                loads.estimate(&self.slot.key).store(took, Ordering::Relaxed);
                self.keep(&flight, value.clone()).await;
                flight.tell.send_replace(Some(Landed::Loaded(value.clone())));
                T::from_value(value)
            }
            Err(error) => {
                let failure = LoadFailure(Arc::new(error));
                flight.tell.send_replace(Some(Landed::Failed(failure.clone())));
                self.stand_in(last, failure)
            }
        }
    }

    /// A cache that fails does not fail its callers; a key that is no cache's does.
    async fn cached<T: FromValue>(&self) -> Result<Cached, Error> {
        let (value, ttl) = (Get(self.slot.clone()), TtlOf::if_known(self.slot.clone()));
        let counted = Some(&self.fell_back);
        let (answer, ttl) =
            tokio::join!(self.client.look(&value, counted), self.client.look(&ttl, counted));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if self.is_mistake(&error) => return Err(error),
            Err(_) => return Ok(Cached::Nothing),
        };
        let Some(value) = answer.value else { return Ok(Cached::Nothing) };
        if T::from_value(value.clone()).is_err() {
            return Ok(Cached::Nothing);
        }
        let left = match ttl {
            Ok(ttl) if ttl.source != Source::Nobody => match ttl.value {
                Ttl::Left(left) => Some(left),
                _ => None,
            },
            _ => None,
        };
        // A lifetime that another gave may be longer than ours.
        let spare = self.kept - self.ttl;
        Ok(match left.map(|left| left.checked_sub(spare)) {
            None => Cached::Fresh { value, left: None },
            Some(Some(left)) if !left.is_zero() => Cached::Fresh { value, left: Some(left) },
            Some(_) => Cached::Stale(value),
        })
    }

    fn is_mistake(&self, error: &Error) -> bool {
        let failure = error.downcast_ref::<crate::RedisFailure>();
        error.kind() == ErrorKind::InvalidInput
            || failure.is_some_and(crate::RedisFailure::is_wrong_type)
    }

    async fn keep(&self, flight: &Flight<'_>, value: Bytes) {
        let Ok(value) = self.client.limits().value(value) else {
            tracing::debug!(db.system.name = "redis", "a loaded value is over the limit; not kept");
            return;
        };
        let change = Change::Put { value: value.clone(), ttl: Some(self.kept) };
        let counted = Some(&self.fell_back);
        let (mut storing, mut in_doubt) =
            (pin!(self.client.apply(&self.slot, &change, None, counted)), false);
        // A write outdates this before it is sent itself: ours is then sent no more, or was the first of
        // the two on their connection. In the middle of a poll, in which user code may run, so that no
        // lock is held, nobody knows which was first.
        let kept = poll_fn(|cx| {
            if !flight.is_current() {
                return Poll::Ready(None);
            }
            let polled = storing.as_mut().poll(cx).map(Some);
            in_doubt |= !flight.is_current();
            polled
        });
        if let Some(Err(error)) = kept.await {
            tracing::debug!(db.system.name = "redis", %error, "a loaded value could not be kept");
        }
        if in_doubt {
            let found = self.client.look(&Get(self.slot.clone()), counted).await;
            if found.is_ok_and(|found| found.value == Some(value)) {
                // A miss is loaded again.
                let _ = self.client.apply(&self.slot, &Change::Remove, None, counted).await;
            }
        }
    }

    async fn landed(
        &self,
        mut hear: watch::Receiver<Option<Landed>>,
    ) -> Result<Option<Landed>, Error> {
        let began = Instant::now();
        let landed = async move {
            let landed = hear.wait_for(Option::is_some).await;
            landed.ok().and_then(|landed| landed.clone())
        };
        let Some(deadline) = Deadline::current() else { return Ok(landed.await) };
        tokio::time::timeout(deadline.left(), landed).await.map_err(|_| {
            self.error(CallError::Stopped {
                by: Decider::Deadline,
                attempts: 0,
                elapsed: began.elapsed(),
                effect: Effect::NeverSent,
                retry_after: None,
                last: None,
            })
        })
    }

    fn stand_in<T: FromValue>(&self, last: Option<Bytes>, error: LoadFailure) -> Result<T, Error> {
        match last {
            Some(value) => T::from_value(value),
            None => Err(self.error(CallError::Backend {
                attempts: 1,
                elapsed: Duration::ZERO,
                effect: Effect::Permanent,
                error,
            })),
        }
    }

    fn error(&self, error: CallError<LoadFailure>) -> Error {
        Error::from_call(self.client.policy().name(), LOAD.name(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_of_an_early_load_rises_to_the_end() {
        let (secs, took) = (Duration::from_secs, Duration::from_secs(1));
        let share = |left: Duration| {
            (1..=1000).filter(|n| is_due(left, took, f64::from(*n) / 1000.0)).count()
        };
        assert_eq!(share(secs(60)), 0);
        // exp(-left / took)
        assert!((45..=55).contains(&share(secs(3))), "{}", share(secs(3)));
        assert!((363..=373).contains(&share(secs(1))), "{}", share(secs(1)));
        assert_eq!(share(Duration::ZERO), 1000);
        assert!(!is_due(secs(1), Duration::ZERO, 0.5), "nothing is known of how long it takes");
    }
}
