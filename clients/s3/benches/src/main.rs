//! CPU and wall time of files up and down: `S3Client`, aws-sdk-s3 as its guide shows it, object_store, and a
//! get_object written with care, against a sink in a process of its own.
//!
//! The cases take turns in rounds of random order in one process, whose CPU time is read; printed are medians,
//! of the times and of the rounds' ratios. All of them carry a CRC: ours CRC-32 and the SDK its default,
//! object_store CRC-64/NVME, which costs the same (its downloads compare none). object_store does not sign
//! payloads here, as ours does not. Files lie in /dev/shm, so that no disk is measured.
//!
//! ```sh
//! cargo run --release --manifest-path clients/s3/benches/Cargo.toml -- [MiB] [rounds] [plain|tls] [delay in ms] [up|down]
//! ```
//!
//! Measure on a quiet machine, and more than once: the medians of 45 rounds differ by 4 % from process to process.
//!
//! The delay is added to each answer. With a direction and a peer in place of the rounds, as in `1024 up
//! mainstay`, it makes one transfer and prints how much memory that added at most, for which the page cache does
//! not count; with `1024 up serve` it only answers, at the address that it prints, until it is killed.

mod peers;
mod server;

use peers::{DOWN, Peers, UP};
use rustix::time::{ClockId, clock_gettime};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Runtime};

struct Arguments {
    mib: u64,
    rounds: usize,
    single: Option<(bool, String)>,
    tls: bool,
    delay: u64,
    /// Both without it.
    direction: Option<bool>,
}

impl Arguments {
    fn read() -> Self {
        let all: Vec<String> = std::env::args().skip(1).collect();
        let text = |n: usize| all.get(n).map_or("", String::as_str);
        let single = match text(1) {
            direction @ ("up" | "down") => Some((direction == "up", text(2).to_owned())),
            _ => None,
        };
        Self {
            mib: text(0).parse().unwrap_or(256),
            rounds: text(1).parse().unwrap_or(9),
            tls: single.is_none() && text(2) == "tls",
            delay: text(3).parse().unwrap_or(0),
            direction: ["up", "down"].contains(&text(4)).then(|| text(4) == "up"),
            single,
        }
    }
}

fn main() {
    let told = |name| std::env::var(name).ok();
    if told("BENCH_ROLE").as_deref() == Some("server") {
        return server::run(told("BENCH_DIRECTORY"), told("BENCH_DELAY"));
    }
    let arguments = Arguments::read();
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    match told("BENCH_ENDPOINT") {
        Some(endpoint) => return measure(&arguments, &endpoint, directory.path()),
        None if arguments.tls => server::certify(directory.path()),
        None => {}
    }
    // The sink, then this program again: it reads its trust from the environment, as its peers do.
    let again = || Command::new(std::env::current_exe().expect("this program"));
    let mut server = again();
    server.env("BENCH_ROLE", "server").env("BENCH_DELAY", arguments.delay.to_string());
    if arguments.tls {
        server.env("BENCH_DIRECTORY", directory.path());
    }
    let mut server = server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a server");
    // Open until this ends; waiting would close it.
    let _input = server.stdin.take();
    let mut address = String::new();
    let mut output = BufReader::new(server.stdout.take().expect("its output"));
    output.read_line(&mut address).expect("an address");
    let scheme = if arguments.tls { "https" } else { "http" };
    let endpoint = format!("{scheme}://localhost:{}", address.trim());
    if arguments.single.as_ref().is_some_and(|(_, peer)| peer == "serve") {
        println!("{endpoint}");
        let _ = server.wait();
        return;
    }
    let mut client = again();
    client
        .args(std::env::args().skip(1))
        .env("BENCH_ENDPOINT", endpoint)
        .env("BENCH_SERVER", server.id().to_string());
    if arguments.tls {
        client.env("SSL_CERT_FILE", directory.path().join(server::CERTIFICATE));
    }
    let mut client = client.spawn().expect("this program again");
    let _ = client.wait();
    let _ = server.kill();
    let _ = server.wait();
}

fn measure(arguments: &Arguments, endpoint: &str, directory: &Path) {
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
    let peers = Peers::new(endpoint, directory, arguments.mib);
    match &arguments.single {
        Some((up, peer)) => single(&runtime, &peers, *up, peer),
        None => rounds(&runtime, &peers, arguments),
    }
}

/// One transfer, and the memory that it took.
fn single(runtime: &Runtime, peers: &Peers, up: bool, peer: &str) {
    let before = kib("VmRSS");
    runtime.block_on(async {
        match up {
            true => peers.up(peer).await,
            false => peers.down(peer).await,
        }
    });
    let name = if up { "up" } else { "down" };
    println!("{peer} {name}: {} MiB more at most", kib("VmHWM").saturating_sub(before) / 1024);
}

fn rounds(runtime: &Runtime, peers: &Peers, arguments: &Arguments) {
    let all = UP.map(|peer| (true, peer)).into_iter().chain(DOWN.map(|peer| (false, peer)));
    let cases: Vec<(bool, &str)> =
        all.filter(|(up, _)| arguments.direction.is_none_or(|only| only == *up)).collect();
    // Of each case: CPU and wall, by round.
    let mut took = vec![(Vec::new(), Vec::new()); cases.len()];
    let mut order: Vec<usize> = (0..cases.len()).collect();
    let (mut sink, mut all) = (Duration::ZERO, Duration::ZERO);
    for round in 0..=arguments.rounds {
        fastrand::shuffle(&mut order);
        for &case in &order {
            let (up, peer) = cases[case];
            let (before, started, served) = (cpu(), Instant::now(), server_cpu());
            runtime.block_on(async {
                match up {
                    true => peers.up(peer).await,
                    false => peers.down(peer).await,
                }
            });
            let wall = started.elapsed();
            // The first round warms up.
            if round > 0 {
                took[case].0.push((cpu() - before).as_secs_f64());
                took[case].1.push(wall.as_secs_f64());
                if peer == "mainstay" {
                    (sink, all) = (sink + (server_cpu() - served), all + wall);
                }
            }
        }
    }
    let Arguments { mib, rounds, tls, delay, .. } = arguments;
    let over = if *tls { "TLS" } else { "plain" };
    println!("{mib} MiB, {rounds} rounds, {over}, {delay} ms added to each answer");
    println!("                        CPU s/GiB   wall s   ours / it: CPU   wall");
    for (case, (up, peer)) in cases.iter().enumerate() {
        let ours = cases.iter().position(|(same, _)| same == up).unwrap_or(0);
        let ratio = |of: fn(&(Vec<f64>, Vec<f64>)) -> &Vec<f64>| {
            let pairs = of(&took[ours]).iter().zip(of(&took[case]));
            median(pairs.map(|(ours, theirs)| ours / theirs).collect())
        };
        println!(
            "  {:<4} {peer:<16} {:>8.2} {:>8.3} {:>17.2} {:>6.2}",
            if *up { "up" } else { "down" },
            median(took[case].0.clone()) * 1024.0 / *mib as f64,
            median(took[case].1.clone()),
            ratio(|took| &took.0),
            ratio(|took| &took.1),
        );
    }
    let busy = sink.as_secs_f64() / all.as_secs_f64();
    println!("the sink, which has one thread, was busy for {:.0} % of our time", busy * 100.0);
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// User and system time of the sink, in hundredths of a second.
fn server_cpu() -> Duration {
    let process = std::env::var("BENCH_SERVER").unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(10 * fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>())
}

/// A line of this process's status.
fn kib(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find(|line| line.starts_with(name)).expect("its line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
