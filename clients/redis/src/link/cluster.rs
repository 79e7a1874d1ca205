//! A cluster: a connection to each master, each with a gate and a breaker of its own, so that one
//! that is gone takes nobody else's keys along.
//!
//! fred's own cluster mode is not used. One task of it reconnects to all nodes or to none: with one
//! of three masters killed, every key timed out for as long as that lasted.

use super::{
    CONNECT_PATIENCE, Gate, PATIENCE, closed_by_us,
    peer::{Limits, Peer},
    slots::{Address, Map, Master, Redirect},
    words,
};
use crate::{
    classify::{RedisFailure, is_auth, whole},
    command::{Command, IfAway, Raw, Route},
    config::Target,
    value::Value,
};
use fred::{
    error::{Error as Driver, ErrorKind},
    util::redis_keyslot,
};
use futures_util::future::{join_all, select_all};
use mainstay_policy::{Breaker, Policy};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};

/// A command is sent on from node to node so many times, as fred would.
const REDIRECTS: usize = 5;
/// Between two looks at the map while a node is away, and after a node has sent a command on.
const SOON: Duration = Duration::from_millis(250);
/// Between two looks at the map while all is well: for nodes that came or went unnoticed.
const LATER: Duration = Duration::from_secs(60);

/// A master as calls see it.
struct Node {
    master: Master,
    peer: Arc<Peer>,
    policy: Option<Policy>,
}

/// Somebody who can be asked for the map.
type Source = (Address, Arc<Peer>);

/// What calls read: a snapshot, replaced as a whole.
#[derive(Clone)]
struct Table {
    nodes: Vec<Arc<Node>>,
    owners: Arc<Vec<Option<u16>>>,
}

pub(super) struct Cluster {
    target: Target,
    limits: Limits,
    table: RwLock<Table>,
    /// Somebody saw that the map is not true any more.
    stale: Notify,
    /// Why there is no map.
    cause: Mutex<Option<Driver>>,
    /// The first map was read, or no node answered.
    tried: watch::Sender<bool>,
}

impl Cluster {
    pub(super) fn new(target: Target, limits: Limits) -> Self {
        Self {
            target,
            limits,
            table: RwLock::new(Table { nodes: Vec::new(), owners: Arc::new(Map::empty().owners) }),
            stale: Notify::new(),
            cause: Mutex::new(None),
            tried: watch::Sender::new(false),
        }
    }

    fn cause(&self) -> Option<Driver> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn table(&self) -> Table {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn slot(key: &[u8]) -> u16 {
        redis_keyslot(key)
    }

    /// The addresses of the masters.
    pub(super) fn addresses(&self) -> Vec<Address> {
        self.table().nodes.iter().map(|node| node.master.address.clone()).collect()
    }

    /// The policy, and with it the breaker, of the node that a command is for.
    pub(super) fn policy(&self, command: &Command<'_>) -> Option<Policy> {
        let owner = self.owner(command).filter(|_| !command.is_for_every_node());
        owner.and_then(|node| node.policy.clone())
    }

    pub(super) fn breakers(&self) -> Vec<Breaker> {
        let nodes = self.table().nodes;
        nodes.iter().filter_map(|node| Some(node.policy.as_ref()?.breaker().clone())).collect()
    }

    pub(super) fn reaches(&self, key: &[u8]) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.owner(redis_keyslot(key)).is_some_and(|node| node.peer.is_up())
    }

    /// The node that a command is for, as far as is known.
    fn owner(&self, command: &Command<'_>) -> Option<Arc<Node>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        match command.key() {
            Some(key) => table.owner(redis_keyslot(key)),
            None => match command {
                Command::Raw(Raw { route: Route::Node(node), .. }) => {
                    let wanted = node.address()?;
                    table.nodes.iter().find(|node| node.master.address == *wanted)
                }
                // Anyone will do, best one that is there.
                _ => table.nodes.iter().find(|node| node.peer.is_up()).or(table.nodes.first()),
            },
        }
        .map(Arc::clone)
    }

    pub(super) async fn send(
        &self,
        command: &Command<'_>,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<Value, RedisFailure> {
        let (mut node, timeout) = self.until_found(command, away, timeout).await?;
        if command.is_for_every_node() {
            let nodes = self.table().nodes;
            let sent = nodes.iter().map(|node| node.peer.send(command, false, away, timeout));
            let answers = whole(join_all(sent).await)?;
            let some_did = answers.iter().any(Result::is_ok);
            let answer = answers.into_iter().reduce(Result::and).unwrap_or(Ok(Value::Nil));
            return answer.map_err(|error| if some_did { error.refused_in_part() } else { error });
        }
        let began = Instant::now();
        let left = || timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        let mut asking = false;
        for _ in 0..REDIRECTS {
            let answer = node.peer.send(command, asking, away, left()).await;
            let Err(error) = answer else { return answer };
            let Some(redirect) =
                error.server_text().and_then(|text| Redirect::read(text, &node.master.address))
            else {
                return Err(error);
            };
            // Either way the node did nothing.
            node = self.follow(&redirect).ok_or(error)?;
            asking = redirect.once;
        }
        node.peer.send(command, asking, away, left()).await
    }

    /// With one of their nodes away none is sent, so that they are not done in part.
    pub(super) async fn admit(
        &self,
        commands: &[Command<'_>],
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<Option<Duration>, RedisFailure> {
        let mut left = timeout;
        for command in commands {
            let (node, rest) = self.until_found(command, away, left).await?;
            left = node.peer.admit(away, rest).await?;
        }
        Ok(left)
    }

    /// The node that a command is for, waited for if there is no map yet, and the time left.
    async fn until_found(
        &self,
        command: &Command<'_>,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<(Arc<Node>, Option<Duration>), RedisFailure> {
        let began = Instant::now();
        if !*self.tried.borrow() {
            let half = timeout.map_or(CONNECT_PATIENCE, |timeout| timeout / 2);
            self.until_tried(half.min(CONNECT_PATIENCE)).await;
        }
        let left = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        if let Some(node) = self.owner(command) {
            return Ok((node, left));
        }
        self.stale.notify_one();
        Err(if *self.tried.borrow() {
            RedisFailure::closed(self.cause(), away)
        } else {
            RedisFailure::connecting(away)
        })
    }

    /// The node that a redirection names. MOVED changes the map for this slot at once, the rest of
    /// it is read again in the background.
    fn follow(&self, redirect: &Redirect) -> Option<Arc<Node>> {
        self.stale.notify_one();
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let known = table.nodes.iter().position(|node| node.master.address == redirect.to);
        let number = match known {
            Some(number) => number,
            None => {
                let master = Master { address: redirect.to.clone(), hostname: None };
                let node = self.start(master).ok()?;
                table.nodes.push(Arc::new(node));
                table.nodes.len() - 1
            }
        };
        if !redirect.once {
            let owners = Arc::make_mut(&mut table.owners);
            owners[usize::from(redirect.slot)] = u16::try_from(number).ok();
        }
        Some(Arc::clone(&table.nodes[number]))
    }

    fn start(&self, master: Master) -> Result<Node, Driver> {
        let Master { address, hostname } = &master;
        let config = self.target.config_at(address, hostname.as_deref());
        let policy = self.target.policy_of(address);
        Ok(Node { peer: Arc::new(Peer::start(config, self.limits)?), policy, master })
    }

    pub(super) fn gate(&self) -> Gate {
        let nodes = self.table().nodes;
        if nodes.is_empty() {
            return if *self.tried.borrow() {
                Gate::Closed(words(self.cause()))
            } else {
                Gate::Connecting
            };
        }
        let mut away = Vec::new();
        let mut connecting = false;
        for node in &nodes {
            match node.peer.gate() {
                Gate::Open => {}
                Gate::Connecting => connecting = true,
                Gate::Closed(why) | Gate::Partly(why) => {
                    away.push(format!("{}: {why}", node.master.address));
                }
            }
        }
        let all = nodes.len();
        match away.len() {
            0 if connecting => Gate::Connecting,
            0 => Gate::Open,
            some if some == all => Gate::Closed(away.join("; ")),
            some => Gate::Partly(format!("{some} of {all} masters away: {}", away.join("; "))),
        }
    }

    /// The node that a command is for, or all of them if none told where that is.
    pub(super) fn refuses_credentials(&self, command: &Command<'_>) -> bool {
        match self.owner(command) {
            Some(node) => node.peer.refuses_credentials(),
            None => self.cause().is_some_and(|cause| is_auth(&cause)),
        }
    }

    /// Resolves once a node is up.
    pub(super) async fn until_up(&self) {
        loop {
            let nodes = self.table().nodes;
            if nodes.is_empty() {
                tokio::time::sleep(SOON).await;
                continue;
            }
            let ups = nodes.iter().map(|node| Box::pin(node.peer.until_up()));
            // The map may have changed meanwhile.
            if tokio::time::timeout(SOON, select_all(ups)).await.is_ok() {
                return;
            }
        }
    }

    /// Waits for the first map, and for its nodes' first connections.
    pub(super) async fn until_tried(&self, limit: Duration) {
        let tried = async {
            let mut tried = self.tried.subscribe();
            let _ = tried.wait_for(|tried| *tried).await;
            for node in self.table().nodes {
                node.peer.until_tried(limit).await;
            }
        };
        let _ = tokio::time::timeout(limit, tried).await;
    }

    pub(super) async fn close(&self, within: Duration) {
        // Who comes before there is a map need not wait for one.
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(closed_by_us());
        self.tried.send_replace(true);
        let nodes = self.table().nodes;
        join_all(nodes.iter().map(|node| node.peer.close(within))).await;
    }

    /// Keeps the map true; ends with the link.
    pub(super) async fn keep(&self) {
        // Connections that only the map was asked on, kept until there is one.
        let mut seeds = self.start_seeds();
        let mut turn = 0;
        loop {
            let asked = self.sources(&seeds, turn);
            turn += 1;
            match self.read_map(asked).await {
                Some(map) => {
                    self.adopt(map);
                    seeds.clear();
                }
                // All that is known is gone: back to where the URL leads.
                None if seeds.is_empty() => seeds = self.start_seeds(),
                None => {}
            }
            self.tried.send_replace(true);
            // So that clients of one cluster do not ask all at once.
            let jitter = SOON.mul_f64(fastrand::f64());
            let pause = tokio::time::sleep(SOON + jitter);
            if self.table().nodes.iter().all(|node| node.peer.is_up()) && seeds.is_empty() {
                tokio::select! {
                    () = self.stale.notified() => pause.await,
                    () = self.any_down() => pause.await,
                    () = tokio::time::sleep(LATER) => {}
                }
            } else {
                pause.await;
            }
        }
    }

    async fn any_down(&self) {
        let nodes = self.table().nodes;
        let downs = nodes.iter().map(|node| Box::pin(node.peer.until_down()));
        select_all(downs).await;
    }

    fn start_seeds(&self) -> Vec<Source> {
        let start = |address: &Address| {
            let peer = Peer::start(self.target.config_at(address, None), self.limits).ok()?;
            Some((address.clone(), Arc::new(peer)))
        };
        self.target.seeds().iter().filter_map(start).collect()
    }

    /// Whom to ask for the map, in this order: one of another each time, since one that was cut off
    /// from the others has an old map and does not know.
    fn sources(&self, seeds: &[Source], turn: usize) -> Vec<Source> {
        let nodes = self.table().nodes;
        let source = |node: &Arc<Node>| (node.master.address.clone(), Arc::clone(&node.peer));
        let mut sources: Vec<Source> = nodes.iter().map(source).collect();
        let shift = turn.checked_rem(sources.len()).unwrap_or(0);
        sources.rotate_left(shift);
        sources.extend(seeds.iter().cloned());
        sources
    }

    async fn read_map(&self, sources: Vec<Source>) -> Option<Map> {
        let slots = Raw::cluster_slots();
        let command = Command::Raw(&slots);
        let mut cause = Driver::new(ErrorKind::Cluster, "no node answers");
        for (address, peer) in sources {
            peer.until_tried(PATIENCE).await;
            if !peer.is_up() {
                cause = peer.cause().unwrap_or(cause);
                continue;
            }
            let call = peer.send(&command, false, IfAway::FallBack, Some(PATIENCE));
            match tokio::time::timeout(PATIENCE, call).await {
                Ok(Ok(answer)) => match Map::read(&answer, &address) {
                    Some(map) => return Some(map),
                    None => cause = Driver::new(ErrorKind::Cluster, "no node has a slot"),
                },
                // Such as a server that is in no cluster.
                Ok(Err(error)) => cause = error.into_driver().unwrap_or(cause),
                Err(_) => {}
            }
        }
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
        None
    }

    /// Nodes that stay keep their connections; those of nodes that are gone end with their last call.
    fn adopt(&self, map: Map) {
        let mut known: HashMap<Address, Arc<Node>> = {
            let nodes = self.table().nodes;
            nodes.into_iter().map(|node| (node.master.address.clone(), node)).collect()
        };
        let mut nodes = Vec::with_capacity(map.masters.len());
        for master in map.masters {
            let node = match known.remove(&master.address) {
                Some(node) if node.master.hostname == master.hostname => Some(node),
                _ => self.start(master).ok().map(Arc::new),
            };
            let Some(node) = node else { return };
            nodes.push(node);
        }
        *self.table.write().unwrap_or_else(PoisonError::into_inner) =
            Table { nodes, owners: Arc::new(map.owners) };
        if !known.is_empty() {
            let count = known.len();
            tracing::info!(db.system.name = "redis", count, "nodes left the cluster's map");
        }
        // Nobody calls them any more, so that an open breaker of theirs would never close.
        known.values().filter_map(|node| node.policy.as_ref()).for_each(Policy::retire);
    }
}

impl Table {
    fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        let number = self.owners.get(usize::from(slot)).copied().flatten()?;
        self.nodes.get(usize::from(number))
    }
}
