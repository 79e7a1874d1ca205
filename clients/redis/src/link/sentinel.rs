//! Sentinels: they say who is master, and calls go to him.
//!
//! fred's own sentinel mode is not used. It asks one sentinel after the other and starts with the
//! first each time, so that a frozen one keeps it from the others for ever.

use super::{
    CONNECT_PATIENCE, Gate, PATIENCE, closed_by_us,
    peer::{Limits, Peer},
    slots::{Address, text},
    words,
};
use crate::{
    classify::{self, RedisFailure},
    command::{Command, IfAway, Raw},
    config::Target,
    value::Value,
};
use bytes::Bytes;
use fred::error::{Error as Driver, ErrorKind};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Between two questions while there is no master that answers.
const SOON: Duration = Duration::from_millis(250);
/// Between two questions while all is well: a master that was deposed behind a broken network does
/// not know it yet.
const LATER: Duration = Duration::from_secs(5);

pub(super) struct Sentinel {
    target: Target,
    limits: Limits,
    master: RwLock<Option<(Address, Arc<Peer>)>>,
    /// Why there is none.
    cause: Mutex<Option<Driver>>,
    tried: watch::Sender<bool>,
}

impl Sentinel {
    pub(super) fn new(target: Target, limits: Limits) -> Self {
        Self {
            target,
            limits,
            master: RwLock::new(None),
            cause: Mutex::new(None),
            tried: watch::Sender::new(false),
        }
    }

    fn master(&self) -> Option<Arc<Peer>> {
        let master = self.master.read().unwrap_or_else(PoisonError::into_inner);
        master.as_ref().map(|(_, peer)| Arc::clone(peer))
    }

    fn cause(&self) -> Option<Driver> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn send(
        &self,
        command: &Command<'_>,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<Value, RedisFailure> {
        let (master, left) = self.until_found(away, timeout).await?;
        master.send(command, false, away, left).await
    }

    pub(super) async fn admit(
        &self,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<Option<Duration>, RedisFailure> {
        let (master, left) = self.until_found(away, timeout).await?;
        master.admit(away, left).await
    }

    /// The master, waited for if none was found yet, and the time left.
    async fn until_found(
        &self,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<(Arc<Peer>, Option<Duration>), RedisFailure> {
        if let Some(master) = self.master() {
            return Ok((master, timeout));
        }
        let began = Instant::now();
        let half = timeout.map_or(CONNECT_PATIENCE, |timeout| timeout / 2);
        self.until_tried(half.min(CONNECT_PATIENCE)).await;
        let left = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        match self.master() {
            Some(master) => Ok((master, left)),
            None if *self.tried.borrow() => Err(RedisFailure::closed(self.cause(), away)),
            None => Err(RedisFailure::connecting(away)),
        }
    }

    pub(super) fn gate(&self) -> Gate {
        match self.master() {
            Some(master) => master.gate(),
            None if *self.tried.borrow() => Gate::Closed(words(self.cause())),
            None => Gate::Connecting,
        }
    }

    pub(super) fn refuses_credentials(&self) -> bool {
        match self.master() {
            Some(master) => master.refuses_credentials(),
            None => self.cause().is_some_and(|cause| classify::is_auth(&cause)),
        }
    }

    pub(super) async fn until_up(&self) {
        loop {
            match self.master() {
                Some(master) => {
                    // It may be another by then.
                    if tokio::time::timeout(SOON, master.until_up()).await.is_ok() {
                        return;
                    }
                }
                None => tokio::time::sleep(SOON).await,
            }
        }
    }

    pub(super) async fn until_tried(&self, limit: Duration) {
        let tried = async {
            let mut tried = self.tried.subscribe();
            let _ = tried.wait_for(|tried| *tried).await;
            if let Some(master) = self.master() {
                master.until_tried(limit).await;
            }
        };
        let _ = tokio::time::timeout(limit, tried).await;
    }

    pub(super) async fn close(&self, within: Duration) {
        // Who comes before a master was found need not wait for one.
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(closed_by_us());
        self.tried.send_replace(true);
        if let Some(master) = self.master() {
            master.close(within).await;
        }
    }

    /// Follows the master; ends with the link.
    pub(super) async fn keep(&self) {
        let limits = self.limits.with_usual(PATIENCE);
        let start = |address| Peer::start(self.target.sentinel_at(address), limits).ok();
        let sentinels: Vec<Peer> = self.target.seeds().iter().filter_map(start).collect();
        loop {
            match self.ask(&sentinels).await {
                Ok(address) => self.adopt(address).await,
                Err(cause) => {
                    *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
                }
            }
            self.tried.send_replace(true);
            // So that clients of one master do not ask all at once.
            let soon = SOON + SOON.mul_f64(fastrand::f64());
            match self.master() {
                Some(master) if master.is_up() => {
                    // Both are no loss when dropped.
                    let _ = tokio::time::timeout(LATER, master.until_down()).await;
                    if !master.is_up() {
                        tokio::time::sleep(soon).await;
                    }
                }
                _ => tokio::time::sleep(soon).await,
            }
        }
    }

    /// All at once; the first that knows decides.
    async fn ask(&self, sentinels: &[Peer]) -> Result<Address, Driver> {
        let mut answers: FuturesUnordered<_> =
            sentinels.iter().map(|sentinel| self.ask_one(sentinel)).collect();
        let mut cause = Driver::new(ErrorKind::Sentinel, "no sentinel answers");
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(address) => return Ok(address),
                // A password that is refused is worth more to know than who else is silent.
                Err(error) if *cause.kind() == ErrorKind::Auth => drop(error),
                Err(error) => cause = error,
            }
        }
        Err(cause)
    }

    async fn ask_one(&self, sentinel: &Peer) -> Result<Address, Driver> {
        let silent = || Driver::new(ErrorKind::Sentinel, "no sentinel answers");
        sentinel.until_tried(PATIENCE).await;
        if !sentinel.is_up() {
            let cause = sentinel.cause().filter(|cause| *cause.kind() == ErrorKind::Auth);
            return Err(cause.unwrap_or_else(silent));
        }
        let name = Bytes::copy_from_slice(self.target.service().as_bytes());
        let question = Raw::master_of(name);
        let command = Command::Raw(&question);
        let call = sentinel.send(&command, false, IfAway::FallBack, Some(PATIENCE));
        let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, call).await else {
            return Err(silent());
        };
        let address = match &answer {
            Value::Array(address) => match &address[..] {
                [host, port] => text(host)
                    .zip(text(port).and_then(|port| port.parse().ok()))
                    .map(|(host, port)| Address { host: host.to_owned(), port }),
                _ => None,
            },
            _ => None,
        };
        address.ok_or_else(|| Driver::new(ErrorKind::Sentinel, classify::NO_SUCH_MASTER))
    }

    /// Goes to this master, unless he is known or is none yet: a sentinel names the new one a moment
    /// before he knows.
    async fn adopt(&self, address: Address) {
        let known = {
            let master = self.master.read().unwrap_or_else(PoisonError::into_inner);
            master.as_ref().is_some_and(|(known, _)| *known == address)
        };
        if known {
            return;
        }
        let Ok(peer) = Peer::start(self.target.config_at(&address, None), self.limits) else {
            return;
        };
        peer.until_tried(PATIENCE).await;
        let is_first = self.master().is_none();
        if peer.is_up() {
            let role = Raw::role();
            let role = Command::Raw(&role);
            let call = peer.send(&role, false, IfAway::FallBack, Some(PATIENCE));
            let is_master = match tokio::time::timeout(PATIENCE, call).await {
                Ok(Ok(Value::Array(role))) => {
                    role.first().and_then(text).is_some_and(|role| role == "master")
                }
                // Not allowed to ask: the sentinel's word has to do.
                Ok(Err(error)) => {
                    error.server_text().is_some_and(|text| text.starts_with("NOPERM"))
                }
                _ => false,
            };
            if !is_master {
                return;
            }
        } else if !is_first && !peer.cause().is_some_and(|cause| classify::is_auth(&cause)) {
            // The one that is known may come back sooner.
            return;
        }
        tracing::info!(db.system.name = "redis", server.address = %address, "master");
        let new = Some((address, Arc::new(peer)));
        *self.master.write().unwrap_or_else(PoisonError::into_inner) = new;
    }
}
