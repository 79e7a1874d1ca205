//! What the fallback costs: a GET of 100 bytes while the breaker is open, and the memory that ten
//! million distinct keys take, of several sizes.
//!
//! ```sh
//! cargo run --release -p mainstay-redis --example fallback_cost [keys]
//! ```

use mainstay_redis::{FallbackConfig, RedisClient, Source};
use std::{
    error::Error,
    hint::black_box,
    process::Command,
    time::{Duration, Instant},
};

/// For what else the process takes meanwhile, the value that is being written among it.
const REST: u64 = 1024 * 1024;
/// Bytes of a key and of a value.
const SIZES: [(usize, usize); 5] = [(12, 0), (12, 100), (12, 1000), (12, 10_000), (250, 100)];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<u64> =
        std::env::args().skip(1).map(|n| n.parse()).collect::<Result<_, _>>()?;
    if let [keys, key, value] = arguments[..] {
        return memory(keys, key.try_into()?, value.try_into()?).await;
    }
    speed().await?;
    let keys = arguments.first().copied().unwrap_or(10_000_000);
    for (key, value) in SIZES {
        // A process each, as what one has freed is there for the next to take.
        let sizes = [keys.to_string(), key.to_string(), value.to_string()];
        let status = Command::new(std::env::current_exe()?).args(sizes).status()?;
        assert!(status.success(), "{status}");
    }
    Ok(())
}

async fn speed() -> Result<(), Box<dyn Error>> {
    // Nobody listens there.
    let cache = RedisClient::builder()
        .name("cost")
        .url("redis://127.0.0.1:1")
        .policy(|policy| policy.recovery_timeout(Duration::from_secs(3600)))
        .build()?;
    cache.set("key", "x".repeat(100)).await?;
    cache.policy().breaker().isolate();
    let answer = cache.get_answer::<String>("key").await?;
    assert_eq!((answer.value.map(|v| v.len()), answer.source), (Some(100), Source::Fallback));
    let mut rounds = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        for _ in 0..1_000 {
            black_box(cache.get::<bytes::Bytes>("key").await?);
        }
        rounds.push(began.elapsed() / 1_000);
    }
    rounds.sort();
    println!("a GET of 100 bytes from the fallback, refused by the breaker: {:?}", rounds[100]);
    Ok(())
}

async fn memory(keys: u64, key: usize, value: usize) -> Result<(), Box<dyn Error>> {
    let bound = 64 * 1024 * 1024;
    let config = FallbackConfig::new().max_bytes(bound).max_entries(1_000_000);
    let cache = RedisClient::builder().name("memory").without_server().fallback(config).build()?;
    let before = resident()?;
    let (began, mut most) = (Instant::now(), 0);
    for n in 0..keys {
        cache.set(format!("{n:0key$}"), vec![b'x'; value]).await?;
        if n % 10_000 == 0 {
            most = most.max(resident()?.saturating_sub(before));
        }
    }
    let (entries, bytes) = cache.fallback_size();
    println!(
        "{keys} keys of {key} bytes with {value} in {:.1?}: {entries} held, {} KiB by its own count, {} KiB resident \
         at most, bound {} KiB",
        began.elapsed(),
        bytes / 1024,
        most / 1024,
        bound / 1024,
    );
    assert!(most <= bound + REST, "more than the bound is resident");
    Ok(())
}

/// Bytes of this process in memory (Linux).
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: u64 = line.trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
