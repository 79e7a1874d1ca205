//! CPU and allocations of a GET: reqwest alone, `HttpClient`, and reqwest-middleware with
//! reqwest-retry, against a server on threads of its own.
//!
//! The cases take turns in short rounds of random order on one thread, whose CPU time is read;
//! printed is the median of the rounds' ratios to reqwest alone. "reqwest again" is the noise, and
//! "reqwest with timeout" is what a careful user writes: a timer for each request, as ours has.
//!
//! ```sh
//! cargo run --release --manifest-path clients/http/benches/Cargo.toml [rounds]
//! ```
//!
//! With the start of a peer's name, tasks and calls, as in `mainstay 64 10000`, it makes only these
//! calls of 200 bytes, for `valgrind --tool=callgrind` or `perf`; with `large` at the end, of 1 MiB.

mod server;

use mainstay_http::HttpClient;
use mainstay_policy::PolicyBuilder;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use reqwest_retry::{RetryTransientMiddleware, policies::ExponentialBackoff};
use rustix::time::{ClockId, clock_gettime};
use std::{hint::black_box, time::Duration};
use tokio::{
    runtime::{Builder, Runtime},
    task::{JoinSet, LocalSet},
};

/// Of an attempt, as `HttpClient` has it by default.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
enum Peer {
    Reqwest(reqwest::Client, String),
    Timeout(reqwest::Client, String),
    Mainstay(HttpClient, &'static str),
    Middleware(ClientWithMiddleware, String),
}

impl Peer {
    /// One GET, its body read: its length.
    async fn get(&self) -> usize {
        match self {
            Self::Reqwest(client, url) => {
                let answer = client.get(url).send().await.expect("the server answers");
                answer.bytes().await.expect("a body").len()
            }
            Self::Timeout(client, url) => {
                let answer = client.get(url).timeout(TIMEOUT).send().await;
                answer.expect("the server answers").bytes().await.expect("a body").len()
            }
            Self::Mainstay(client, path) => {
                client.get(path).await.expect("the server answers").bytes().len()
            }
            Self::Middleware(client, url) => {
                let answer = client.get(url).send().await.expect("the server answers");
                answer.bytes().await.expect("a body").len()
            }
        }
    }

    async fn many(&self, calls: usize, tasks: usize) {
        let (local, mut all) = (LocalSet::new(), JoinSet::new());
        for _ in 0..tasks {
            let peer = self.clone();
            let calls = async move {
                for _ in 0..calls / tasks {
                    black_box(peer.get().await);
                }
            };
            all.spawn_local_on(calls, &local);
        }
        // A call that fails ends the measurement.
        local.run_until(all.join_all()).await;
    }
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(runtime: &Runtime, peers: &[(&str, Peer)], calls: usize, tasks: usize, rounds: usize) {
    let round = |peer: &Peer| {
        let before = cpu();
        runtime.block_on(peer.many(calls, tasks));
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
    for (n, (name, peer)) in peers.iter().enumerate() {
        let calls = 512;
        let count = allocation_counter::measure(|| runtime.block_on(peer.many(calls, tasks)));
        println!(
            "  {name:<24} {:>8.2} us {:>7.3} x {:>8.2} allocations {:>10.0} bytes",
            median(&mut seconds[n]) * 1e6,
            median(&mut ratios[n]),
            count.count_total as f64 / calls as f64,
            count.bytes_total as f64 / calls as f64,
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize| arguments.get(n).and_then(|text| text.parse().ok());
    let rounds = number(0).unwrap_or(200);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let base = format!("http://{}", server::start());
    for (size, path, calls) in [("200 B", "/small", 512), ("1 MiB", "/large", 16)] {
        for tasks in [1, 64] {
            let calls = if tasks == 1 { calls } else { calls.max(128) };
            let url = format!("{base}{path}");
            // As it comes, but for the slow calls: 64 MiB at once on a machine that is too busy are
            // slow, which opens the breaker and would end the measurement.
            let mainstay = HttpClient::builder(&base).without_proxy();
            let mainstay = mainstay.policy(PolicyBuilder::without_slow_rate);
            let mainstay = mainstay.build().expect("a base URL");
            // The same connections' settings for all.
            let reqwest = runtime.block_on(async { mainstay.reqwest() }).expect("a runtime");
            let retry = RetryTransientMiddleware::new_with_policy(
                ExponentialBackoff::builder().build_with_max_retries(4),
            );
            let middleware = ClientBuilder::new(reqwest.clone()).with(retry).build();
            let peers = [
                ("reqwest", Peer::Reqwest(reqwest.clone(), url.clone())),
                ("reqwest again", Peer::Reqwest(reqwest.clone(), url.clone())),
                ("reqwest with timeout", Peer::Timeout(reqwest, url.clone())),
                ("mainstay", Peer::Mainstay(mainstay, path)),
                ("middleware and retry", Peer::Middleware(middleware, url)),
            ];
            if let (Some(wanted), None) = (arguments.first(), number(0)) {
                if arguments.last().is_some_and(|last| last == "large") != (size == "1 MiB") {
                    continue;
                }
                let peer = peers.iter().find(|(name, _)| name.starts_with(wanted.as_str()));
                let calls = number(2).unwrap_or(calls);
                let (_, peer) = peer.expect("the start of a peer's name");
                return runtime.block_on(peer.many(calls, number(1).unwrap_or(1)));
            }
            println!("{size}, {tasks} task{}", if tasks == 1 { "" } else { "s" });
            measure(&runtime, &peers, calls, tasks, rounds);
        }
    }
}
