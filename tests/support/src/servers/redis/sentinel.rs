use super::{
    super::{Redis, Server},
    Program, Redis as RedisProgram, Resp,
};
use crate::process::{command, find, within_limit};
use rustix::process::Signal;
use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

/// How a sentinel is run.
#[derive(Debug)]
pub enum Sentinel {}

impl Program for Sentinel {
    const NAME: &'static str = "redis-server --sentinel";
    const STOP: Signal = Signal::TERM;

    fn prepare(dir: &Path) {
        // It keeps what it learns in there, and so must be able to write it.
        let file = dir.join("sentinel.conf");
        fs::write(&file, "").unwrap();
        crate::process::give(&file);
    }

    fn command(dir: &Path, port: u16) -> Command {
        let mut command = command(&find("redis-server", "redis-server", &[]), dir);
        command.args(["sentinel.conf", "--sentinel", "--bind", "127.0.0.1"]);
        command.args(["--port", &port.to_string(), "--loglevel", "warning"]);
        command
    }

    fn is_ready(stream: TcpStream) -> io::Result<bool> {
        RedisProgram::is_ready(stream)
    }

    fn url(address: SocketAddr) -> String {
        format!("redis-sentinel://{address}?sentinelServiceName={SERVICE}")
    }
}

impl Resp for Sentinel {}

const SERVICE: &str = "mymaster";

/// A master, its replica, and three sentinels that replace the one by the other when it is away for
/// half a second. They call the master `mymaster`.
#[derive(Debug)]
pub struct RedisSentinels {
    /// The master and the replica, to begin with.
    pub servers: [Redis; 2],
    /// Those who watch.
    pub sentinels: Vec<Server<Sentinel>>,
}

impl RedisSentinels {
    /// New ones, the replica in step.
    #[must_use]
    pub fn start() -> Self {
        let master = Redis::start();
        let port = master.address().port().to_string();
        // A resync need not wait for company.
        let own = ["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"];
        let replica = Redis::start_with(&own);
        let linked = || replica.say("INFO replication").contains("master_link_status:up");
        assert!(within_limit(linked), "the replica has no master");
        let sentinels: Vec<Server<Sentinel>> = (0..3).map(|_| Server::start()).collect();
        for sentinel in &sentinels {
            let ok = |command: &str| {
                let answer = sentinel.say(command);
                assert!(answer.starts_with("+OK"), "{command}: {answer}");
            };
            ok(&format!("SENTINEL MONITOR {SERVICE} 127.0.0.1 {port} 2"));
            ok(&format!("SENTINEL SET {SERVICE} down-after-milliseconds 500"));
            ok(&format!("SENTINEL SET {SERVICE} failover-timeout 3000"));
        }
        for sentinel in &sentinels {
            let ready = || {
                let info = sentinel.say("INFO sentinel");
                info.contains("slaves=1,sentinels=3")
            };
            assert!(within_limit(ready), "{}", sentinel.say("INFO sentinel"));
        }
        Self { servers: [master, replica], sentinels }
    }

    /// For a client that is told of all sentinels.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|s| s.address().to_string()).collect();
        format!("redis-sentinel://{}?sentinelServiceName={SERVICE}", hosts.join(","))
    }

    /// Waits until the replica is master.
    pub fn until_replaced(&self) {
        // A sentinel that promotes a server cuts its connections, this one perhaps.
        let role = || super::reply(self.servers[1].tell("ROLE"));
        let master = || role().is_ok_and(|role| role.contains("master"));
        assert!(within_limit(master), "no failover");
    }
}
