//! CPU of a GET and a SET of 100 bytes: fred alone with its own command timeout, and
//! `RedisClient` without and with its fallback, against a redis-server in a process of its own.
//!
//! The cases take turns in short rounds of random order on one thread, whose CPU time is read, fred's
//! own task included; printed is the median of the rounds' ratios to fred alone. "fred again" is the
//! noise. With feature `allocations` it counts these instead, which takes CPU of its own.
//!
//! ```sh
//! cargo run --release --manifest-path clients/redis/benches/Cargo.toml [rounds] [get or set] [tasks]
//! ```
//!
//! With the start of a peer's name, an operation, tasks and calls, as in `mainstay get 64 10000`, it
//! makes only these calls, for `valgrind --tool=callgrind` or `perf`.

mod server;

use bytes::Bytes;
use fred::types::config::{Config, TcpConfig};
use fred::{clients::Client, interfaces::ClientLike, interfaces::KeysInterface, types::Builder};
use mainstay_redis::{FallbackConfig, RedisClient, RedisState};
use rustix::time::{ClockId, clock_gettime};
use std::{hint::black_box, net::SocketAddr, time::Duration};
use tokio::{
    runtime::{Builder as Runtimes, Runtime},
    task::LocalSet,
};

#[derive(Clone)]
enum Peer {
    Fred(Client),
    Mainstay(RedisClient),
}

#[derive(Clone, Copy)]
enum Verb {
    Get,
    Set,
}

const KEYS: [&str; 8] = ["k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"];

impl Peer {
    async fn call(&self, verb: Verb, n: usize, value: &Bytes) -> usize {
        let key = KEYS[n % KEYS.len()];
        match (self, verb) {
            (Self::Fred(client), Verb::Get) => {
                client.get::<Option<Bytes>, _>(key).await.expect("an answer").map_or(0, |v| v.len())
            }
            (Self::Fred(client), Verb::Set) => {
                client.set::<(), _, _>(key, value.clone(), None, None, false).await.expect("OK");
                0
            }
            (Self::Mainstay(client), Verb::Get) => {
                client.get::<Bytes>(key).await.expect("an answer").map_or(0, |v| v.len())
            }
            (Self::Mainstay(client), Verb::Set) => {
                client.set(key, value.clone()).await.expect("OK");
                0
            }
        }
    }

    async fn many(&self, verb: Verb, calls: usize, tasks: usize) {
        let local = LocalSet::new();
        for _ in 0..tasks {
            let peer = self.clone();
            local.spawn_local(async move {
                let value = Bytes::from(vec![b'x'; 100]);
                for n in 0..calls / tasks {
                    black_box(peer.call(verb, n, &value).await);
                }
            });
        }
        local.await;
    }
}

async fn fred(server: SocketAddr) -> Client {
    let config = Config::from_url(&format!("redis://{server}")).expect("a URL");
    let mut builder = Builder::from_config(config);
    builder.with_performance_config(|config| {
        config.default_command_timeout = Duration::from_secs(5);
    });
    builder.with_connection_config(|config| {
        config.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
    });
    let client = builder.build().expect("settings");
    client.init().await.expect("a connection");
    client
}

async fn mainstay(name: &str, server: SocketAddr, fallback: FallbackConfig) -> RedisClient {
    let builder = RedisClient::builder().name(name).url(format!("redis://{server}"));
    let client = builder.fallback(fallback).build().expect("settings");
    let _ = client.get::<Bytes>("k").await;
    while client.state() != RedisState::Connected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(
    runtime: &Runtime,
    peers: &[(&str, Peer)],
    verb: Verb,
    calls: usize,
    tasks: usize,
    rounds: usize,
) {
    let round = |peer: &Peer| {
        let before = cpu();
        runtime.block_on(peer.many(verb, calls, tasks));
        (cpu() - before).as_secs_f64() / calls as f64
    };
    for (_, peer) in peers {
        round(peer);
    }
    let mut ratios = vec![Vec::new(); peers.len()];
    let mut seconds = vec![Vec::new(); peers.len()];
    let mut order: Vec<usize> = (0..peers.len()).collect();
    for _ in 0..rounds {
        fastrand::shuffle(&mut order);
        let mut took = vec![0.0; peers.len()];
        for &peer in &order {
            took[peer] = round(&peers[peer].1);
        }
        for (peer, took_) in took.iter().enumerate() {
            ratios[peer].push(took_ / took[0]);
            seconds[peer].push(*took_);
        }
    }
    for (n, (name, _)) in peers.iter().enumerate() {
        println!(
            "  {name:<24} {:>8.2} us {:>7.3} x",
            median(&mut seconds[n]) * 1e6,
            median(&mut ratios[n]),
        );
        #[cfg(feature = "allocations")]
        {
            let work = || runtime.block_on(peers[n].1.many(verb, calls, tasks));
            let count = allocation_counter::measure(work).count_total as f64 / calls as f64;
            println!("  {:<24} {count:>8.2} allocations", "");
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize| arguments.get(n).and_then(|text| text.parse().ok());
    let rounds = number(0).unwrap_or(60);
    let server = server::start();
    let runtime = Runtimes::new_current_thread().enable_all().build().expect("a runtime");
    let peers = runtime.block_on(async {
        let raw = Peer::Fred(fred(server.address).await);
        let plain = mainstay("plain", server.address, FallbackConfig::off()).await;
        let whole = mainstay("whole", server.address, FallbackConfig::new()).await;
        let seed = Bytes::from(vec![b'x'; 100]);
        for n in 0..KEYS.len() {
            raw.call(Verb::Set, n, &seed).await;
        }
        [
            ("fred", raw.clone()),
            ("fred again", raw),
            ("mainstay, no fallback", Peer::Mainstay(plain)),
            ("with fallback: mainstay", Peer::Mainstay(whole)),
        ]
    });
    if let (Some(wanted), None) = (arguments.first(), number(0)) {
        let peer = peers.iter().find(|(name, _)| name.starts_with(wanted.as_str()));
        let (_, peer) = peer.expect("the start of a peer's name");
        let is_set = arguments.get(1).is_some_and(|verb| verb == "set");
        let verb = if is_set { Verb::Set } else { Verb::Get };
        let (tasks, calls) = (number(2).unwrap_or(1), number(3).unwrap_or(10_000));
        return runtime.block_on(peer.many(verb, calls, tasks));
    }
    for (name, verb) in [("GET", Verb::Get), ("SET", Verb::Set)] {
        if arguments.get(1).is_some_and(|verb| !name.eq_ignore_ascii_case(verb)) {
            continue;
        }
        for tasks in [1, 64].into_iter().filter(|tasks| number(2).is_none_or(|n| n == *tasks)) {
            println!("{name}, {tasks} task{}", if tasks == 1 { "" } else { "s" });
            measure(&runtime, &peers, verb, 2_048, tasks, rounds);
        }
    }
}
