//! The door from the client to its servers, whatever their number; fred stays behind it.
//!
//! One connection to each server ([`peer`]), with our own word on whether it is up. A cluster
//! ([`cluster`]) has one for each master, and sentinels ([`sentinel`]) say which one is master.

mod cluster;
mod driver;
mod peer;
mod sentinel;
mod slots;

pub(crate) use driver::milliseconds;

use crate::{
    classify::RedisFailure,
    command::{Command, IfAway},
    config::{Target, Topology},
    fallback::Fallback,
    recovery,
};
use cluster::Cluster;
use fred::error::{Error as Driver, ErrorKind};
use mainstay_policy::{Breaker, Policy};
use peer::{Limits, Peer, Sending};
use sentinel::Sentinel;
pub(crate) use slots::Address;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::AbortHandle;

/// Without an answer for this long a server counts as silent, and calls go to the fallback.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the first calls wait for the first connection.
const CONNECT_PATIENCE: Duration = Duration::from_millis(800);
/// How long before its caller's timeout an attempt ends here.
const MARGIN: Duration = Duration::from_millis(20);

/// Whether calls reach the server.
#[derive(Clone, Debug)]
pub(crate) enum Gate {
    Connecting,
    Open,
    /// Some nodes of a cluster are away; with which, and why, in words.
    Partly(String),
    /// With why, in words.
    Closed(String),
}

/// What the client and the link's own tasks share.
pub(crate) struct Line {
    servers: Servers,
    /// Its runtime has ended, or its client.
    is_gone: AtomicBool,
}

enum Servers {
    One(Peer),
    Cluster(Cluster),
    Sentinel(Sentinel),
}

/// The connections of one runtime; dropping it ends their tasks.
pub(crate) struct Link {
    line: Arc<Line>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.line.is_gone.store(true, Ordering::Release);
        // A client may hold the line longer than this, but nothing of a runtime.
        if let Servers::One(peer) = &self.line.servers {
            peer.end();
        }
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Link {
    /// Starts to connect. Must be called inside a runtime.
    pub(crate) fn start(
        target: Target,
        policy: &Policy,
        fallback: Option<Arc<Fallback>>,
    ) -> Result<Self, Driver> {
        let limits = Limits::new(policy.timeout(), fallback.is_some());
        let servers = match target.topology() {
            Topology::Cluster => Servers::Cluster(Cluster::new(target, limits)),
            Topology::Sentinel => Servers::Sentinel(Sentinel::new(target, limits)),
            Topology::One => Servers::One(Peer::start(target.config(), limits)?),
        };
        let line = Arc::new(Line { servers, is_gone: AtomicBool::new(false) });
        let mut tasks = Vec::new();
        if !matches!(line.servers, Servers::One(_)) {
            let line = Arc::clone(&line);
            tasks.push(tokio::spawn(async move { line.keep().await }).abort_handle());
        }
        if let Some(fallback) = fallback {
            let recovery = recovery::run(fallback, policy.clone(), Arc::clone(&line));
            tasks.push(tokio::spawn(recovery).abort_handle());
        }
        Ok(Self { line, tasks })
    }

    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Says QUIT, and connects no more.
    pub(crate) async fn close(&self, within: Duration) {
        for task in &self.tasks {
            task.abort();
        }
        match &self.line.servers {
            Servers::One(peer) => peer.close(within).await,
            Servers::Cluster(cluster) => cluster.close(within).await,
            Servers::Sentinel(sentinel) => sentinel.close(within).await,
        }
    }
}

impl Line {
    /// Nothing but one connection, which [`Link`] ends.
    pub(crate) const fn is_one(&self) -> bool {
        matches!(self.servers, Servers::One(_))
    }

    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    pub(crate) fn gate(&self) -> Gate {
        match &self.servers {
            Servers::One(peer) => peer.gate(),
            Servers::Cluster(cluster) => cluster.gate(),
            Servers::Sentinel(sentinel) => sentinel.gate(),
        }
    }

    /// Resolves once calls reach the server; of a cluster, any node.
    pub(crate) async fn until_up(&self) {
        match &self.servers {
            Servers::One(peer) => peer.until_up().await,
            Servers::Cluster(cluster) => cluster.until_up().await,
            Servers::Sentinel(sentinel) => sentinel.until_up().await,
        }
    }

    /// The server that a command is for is not reached because of the credentials.
    pub(crate) fn refuses_credentials(&self, command: &Command<'_>) -> bool {
        match &self.servers {
            Servers::One(peer) => peer.refuses_credentials(),
            Servers::Cluster(cluster) => cluster.refuses_credentials(command),
            Servers::Sentinel(sentinel) => sentinel.refuses_credentials(),
        }
    }

    /// Whether the node of a cluster that has this key is up; of others only one is, or none.
    pub(crate) fn reaches(&self, key: &[u8]) -> bool {
        match &self.servers {
            Servers::Cluster(cluster) => cluster.reaches(key),
            Servers::One(_) | Servers::Sentinel(_) => true,
        }
    }

    /// Whether calls of this key reach a server.
    pub(crate) fn serves(&self, key: &[u8]) -> bool {
        match &self.servers {
            Servers::Cluster(cluster) => cluster.reaches(key),
            Servers::One(_) | Servers::Sentinel(_) => matches!(self.gate(), Gate::Open),
        }
    }

    /// Waits for the first connection, for no other.
    pub(crate) async fn until_tried(&self, limit: Duration) {
        match &self.servers {
            Servers::One(peer) => peer.until_tried(limit).await,
            Servers::Cluster(cluster) => cluster.until_tried(limit).await,
            Servers::Sentinel(sentinel) => sentinel.until_tried(limit).await,
        }
    }

    /// The policy, and with it the breaker, of the node of a cluster that a command is for. `None`:
    /// that of the client, which refuses for all nodes while somebody has isolated it.
    #[inline]
    pub(crate) fn policy(&self, command: &Command<'_>, client: &Policy) -> Option<Policy> {
        match &self.servers {
            Servers::Cluster(_) if client.breaker().is_isolated() => None,
            Servers::Cluster(cluster) => cluster.policy(command),
            Servers::One(_) | Servers::Sentinel(_) => None,
        }
    }

    /// Those of the nodes of a cluster, beside the client's own.
    pub(crate) fn breakers(&self) -> Vec<Breaker> {
        match &self.servers {
            Servers::Cluster(cluster) => cluster.breakers(),
            Servers::One(_) | Servers::Sentinel(_) => Vec::new(),
        }
    }

    /// Waits for the first connections to the servers of these commands, once for all of them, if they
    /// are being made. Gives the time left.
    pub(crate) async fn admit(
        &self,
        commands: &[Command<'_>],
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<Option<Duration>, RedisFailure> {
        match &self.servers {
            Servers::One(peer) => peer.admit(away, timeout).await,
            Servers::Cluster(cluster) => cluster.admit(commands, away, timeout).await,
            Servers::Sentinel(sentinel) => sentinel.admit(away, timeout).await,
        }
    }

    /// One command, once; a cluster's redirections are followed.
    ///
    /// # Cancel safety
    /// A write whose future is dropped may still be sent; a timeout takes it back.
    #[inline]
    pub(crate) fn send<'a>(
        &'a self,
        command: &'a Command<'a>,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Sending<'a> {
        match &self.servers {
            Servers::One(peer) => peer.send(command, false, away, timeout),
            Servers::Cluster(cluster) => Sending::apart(cluster.send(command, away, timeout)),
            Servers::Sentinel(sentinel) => Sending::apart(sentinel.send(command, away, timeout)),
        }
    }

    /// The servers that hold keys, to be asked one by one; a single one needs no name.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        match &self.servers {
            Servers::Cluster(cluster) => {
                cluster.addresses().into_iter().map(|address| Node(Some(address))).collect()
            }
            Servers::One(_) | Servers::Sentinel(_) => vec![Node(None)],
        }
    }

    /// What commands on several keys can be sent together: the same number is the same place.
    pub(crate) fn place(&self, key: &[u8]) -> u16 {
        match &self.servers {
            Servers::Cluster(_) => Cluster::slot(key),
            Servers::One(_) | Servers::Sentinel(_) => 0,
        }
    }

    /// What a topology does in the background.
    async fn keep(&self) {
        match &self.servers {
            Servers::One(_) => {}
            Servers::Cluster(cluster) => cluster.keep().await,
            Servers::Sentinel(sentinel) => sentinel.keep().await,
        }
    }
}

fn closed_by_us() -> Driver {
    Driver::new(ErrorKind::Canceled, "closed by this program")
}

/// Why the gate is closed.
fn words(cause: Option<Driver>) -> String {
    RedisFailure::closed(cause, IfAway::Fail).to_string()
}

/// A server of a cluster, or the only one there is.
#[derive(Clone)]
pub(crate) struct Node(Option<Address>);

impl Node {
    fn address(&self) -> Option<&Address> {
        self.0.as_ref()
    }
}
