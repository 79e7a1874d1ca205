use super::{super::Redis, tls::Tls};
use crate::{Authority, Port, process::within_limit};
use std::net::{IpAddr, SocketAddr};

/// The slots of a cluster.
const SLOTS: usize = 16_384;

/// A cluster of masters that share the slots evenly, each perhaps with replicas.
///
/// A master that is away leaves the others at work (no full coverage is asked for), and is replaced
/// by its replica after about a second.
#[derive(Debug)]
pub struct RedisCluster {
    /// The masters first, in the order of their slots, then the replicas: that of master `n` is
    /// `masters + n`.
    pub nodes: Vec<Redis>,
    masters: usize,
    /// None without TLS.
    tls: Vec<Port>,
    buses: Vec<Port>,
}

impl RedisCluster {
    /// So many masters, each with a replica if wanted.
    #[must_use]
    pub fn start(masters: usize, replicas: bool) -> Self {
        Self::start_with(masters, replicas, &[])
    }

    /// With these arguments for every node.
    #[must_use]
    pub fn start_with(masters: usize, replicas: bool, arguments: &[&str]) -> Self {
        let count = if replicas { 2 * masters } else { masters };
        let buses: Vec<Port> = (0..count).map(|_| Port::reserve()).collect();
        let start = |bus: &Port| {
            let bus = bus.number().to_string();
            Redis::start_with(&[&own(&bus)[..], arguments].concat())
        };
        let nodes: Vec<Redis> = buses.iter().map(start).collect();
        let cluster = Self { nodes, masters, tls: Vec::new(), buses };
        cluster.join();
        cluster
    }

    /// Masters that tell clients where they speak TLS: one for each of these names, with a certificate
    /// of this authority for it. A name that is no address is told to clients too.
    #[must_use]
    pub fn start_with_tls(authority: &Authority, names: &[&str]) -> Self {
        let (mut nodes, mut tls, mut buses) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            let (port, bus) = (Port::reserve(), Port::reserve());
            let number = bus.number().to_string();
            let mut arguments = [&own(&number)[..], &["--tls-cluster", "yes"]].concat();
            if name.parse::<IpAddr>().is_err() {
                arguments.extend(["--cluster-announce-hostname", name]);
            }
            let node = Tls::start_on(port, authority, name, &arguments);
            nodes.push(node.server);
            tls.push(node.port);
            buses.push(bus);
        }
        let cluster = Self { nodes, masters: names.len(), tls, buses };
        cluster.join();
        cluster
    }

    /// Where a node speaks TLS.
    #[must_use]
    pub fn tls(&self, node: usize) -> SocketAddr {
        self.tls[node].address()
    }

    fn join(&self) {
        let (first, others) = self.nodes.split_first().unwrap();
        for (n, node) in self.nodes.iter().enumerate() {
            // Nodes that meet with one epoch would first have to settle who is right.
            ok(node, &format!("CLUSTER SET-CONFIG-EPOCH {}", n + 1));
        }
        for (n, node) in self.nodes[..self.masters].iter().enumerate() {
            let slots = (n * SLOTS / self.masters, (n + 1) * SLOTS / self.masters - 1);
            ok(node, &format!("CLUSTER ADDSLOTSRANGE {} {}", slots.0, slots.1));
        }
        for (n, (node, bus)) in others.iter().zip(&self.buses[1..]).enumerate() {
            let port = self.tls.get(n + 1).map_or(node.address().port(), Port::number);
            ok(first, &format!("CLUSTER MEET 127.0.0.1 {port} {}", bus.number()));
        }
        let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
        self.until("they know each other", |node| {
            let info = node.say("CLUSTER INFO");
            let served = info.contains("cluster_slots_ok:16384\r");
            served && info.contains("cluster_state:ok") && info.contains(&known)
        });
        for (n, node) in self.nodes[self.masters..].iter().enumerate() {
            let id = self.id(n);
            // Until it knows that this is a master.
            let follows = || node.say(&format!("CLUSTER REPLICATE {id}")).starts_with("+OK");
            assert!(within_limit(follows), "no replica of {n}");
        }
        if self.nodes.len() > self.masters {
            for node in &self.nodes[self.masters..] {
                let linked = || node.say("INFO replication").contains("master_link_status:up");
                assert!(within_limit(linked), "a replica without its master");
            }
            let all = self.nodes.len() - self.masters;
            self.until("they know the replicas", |node| {
                node.say("CLUSTER NODES").matches(" slave").count()
                    + node.say("CLUSTER NODES").matches("myself,slave").count()
                    >= all
            });
        }
    }

    fn until(&self, what: &str, holds: impl Fn(&Redis) -> bool) {
        for node in &self.nodes {
            assert!(within_limit(|| holds(node)), "not {what}: {}", node.say("CLUSTER INFO"));
        }
    }

    /// The cluster's name for this node.
    #[must_use]
    pub fn id(&self, node: usize) -> String {
        let answer = self.nodes[node].say("CLUSTER MYID");
        answer.lines().nth(1).unwrap().to_owned()
    }

    /// The master of a key, by the slots they began with.
    #[must_use]
    pub fn owner(&self, key: &str) -> usize {
        let slot = self.slot(key);
        (0..self.masters).find(|n| slot < (n + 1) * SLOTS / self.masters).unwrap()
    }

    /// The slot of a key.
    #[must_use]
    pub fn slot(&self, key: &str) -> usize {
        let up = self.nodes.iter().find(|node| node.is_running()).unwrap();
        let answer = up.say(&format!("CLUSTER KEYSLOT {key}"));
        answer.trim_start_matches(':').trim().parse().unwrap()
    }

    /// A key that this master has, the `n`th of its kind.
    #[must_use]
    pub fn key_of(&self, master: usize, n: usize) -> String {
        let keys = (0..).map(|i| format!("key{i}"));
        keys.filter(|key| self.owner(key) == master).nth(n).unwrap()
    }

    /// For a client that is told of all.
    #[must_use]
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    /// Gives a slot and its keys from one master to another while clients look on: they are told
    /// ASK for a key that has gone, and MOVED when this returns.
    pub fn start_to_move(&self, slot: usize, from: usize, to: usize) -> Move<'_> {
        let (source, target) = (self.id(from), self.id(to));
        ok(&self.nodes[to], &format!("CLUSTER SETSLOT {slot} IMPORTING {source}"));
        ok(&self.nodes[from], &format!("CLUSTER SETSLOT {slot} MIGRATING {target}"));
        Move { cluster: self, slot, from, to }
    }
}

/// A slot on its way from one master to another.
#[derive(Debug)]
#[must_use]
pub struct Move<'a> {
    cluster: &'a RedisCluster,
    slot: usize,
    from: usize,
    to: usize,
}

impl Move<'_> {
    /// Takes one key over.
    pub fn key(&self, key: &str) {
        let port = self.cluster.nodes[self.to].address().port();
        ok(&self.cluster.nodes[self.from], &format!("MIGRATE 127.0.0.1 {port} {key} 0 1000"));
    }

    /// All keys are over: everybody is told.
    pub fn finish(self) {
        let target = self.cluster.id(self.to);
        for node in [self.to, self.from] {
            let slot = self.slot;
            ok(&self.cluster.nodes[node], &format!("CLUSTER SETSLOT {slot} NODE {target}"));
        }
    }
}

/// What makes a node of a server, with its bus on this port: by default it is the server's plus 10,000,
/// which may be none.
const fn own(bus: &str) -> [&str; 10] {
    [
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        bus,
        "--cluster-node-timeout",
        "800",
        "--cluster-require-full-coverage",
        "no",
        "--cluster-replica-validity-factor",
        "0",
    ]
}

fn ok(node: &Redis, command: &str) {
    let answer = node.say(command);
    assert!(answer.starts_with("+OK"), "{command}: {answer}");
}
