//! A failover under clients with the usual settings: no call fails, none hangs, nothing older than a
//! write is read, and the new master is found soon.

use crate::{ms, text, until, until_true};
use mainstay_redis::{RedisClient, RedisState};
use mainstay_test_support::{Redis, RedisCluster, RedisSentinels};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{RwLock, RwLockWriteGuard, watch},
    task::JoinHandle,
};

/// How long after its election a master is in use: a break of the breaker, of two seconds at most then,
/// and room for a busy machine.
const SOON: Duration = ms(8_000);
/// How long a call takes: a second without an answer, and room for a busy machine.
const PATIENCE: Duration = ms(4_000);

/// With the defaults of a service that sets nothing but the URL.
fn usual(name: &str, url: String) -> RedisClient {
    RedisClient::builder().name(name).url(url).build().unwrap()
}

/// What tasks write and read all the time, each a key of its own.
struct Work {
    /// Held while nobody may be under way.
    pace: Arc<RwLock<()>>,
    enough: watch::Sender<bool>,
    tasks: Vec<JoinHandle<(String, u32, Duration)>>,
}

impl Work {
    fn begin(cache: &RedisClient, keys: impl IntoIterator<Item = String>) -> Self {
        let (pace, enough) = (Arc::<RwLock<()>>::default(), watch::Sender::new(false));
        let begin =
            |key| tokio::spawn(work(cache.clone(), key, Arc::clone(&pace), enough.subscribe()));
        let tasks = keys.into_iter().map(begin).collect();
        Self { pace, enough, tasks }
    }

    /// Nobody is under way until this is dropped, and the replica has all that was acknowledged: what it
    /// has not been told yet is lost with its master, and nobody promises it.
    async fn rest(&self, master: &Redis, replica: &Redis) -> RwLockWriteGuard<'_, ()> {
        let resting = self.pace.write().await;
        let of = |server: &Redis, name: &str| {
            let info = server.say("INFO replication");
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.parse::<u64>().ok())
        };
        // It has none while it is no replica yet.
        let told = async || {
            let at = of(replica, "slave_repl_offset:");
            at.is_some() && at == of(master, "master_repl_offset:")
        };
        until_true("replicated", ms(30_000), told).await;
        resting
    }

    /// How long the slowest call took. Each key has its last value, or was forgotten meanwhile.
    async fn end(self, cache: &RedisClient) -> Duration {
        self.enough.send_replace(true);
        let mut slowest = Duration::ZERO;
        for task in self.tasks {
            let (key, n, took) = task.await.unwrap();
            // The last one may have been on its way to the old master.
            until(cache, RedisState::Connected).await;
            let last = text(cache, &key).await;
            assert!(last.as_ref().is_none_or(|last| *last == n.to_string()), "{key} {n}: {last:?}");
            slowest = slowest.max(took);
        }
        slowest
    }
}

async fn work(
    cache: RedisClient,
    key: String,
    pace: Arc<RwLock<()>>,
    enough: watch::Receiver<bool>,
) -> (String, u32, Duration) {
    let (mut n, mut misses, mut slowest) = (0_u32, 0, Duration::ZERO);
    while !*enough.borrow() {
        let _going = pace.read().await;
        n += 1;
        let began = Instant::now();
        cache.set(&key, n.to_string()).await.unwrap();
        let written = began.elapsed();
        match text(&cache, &key).await {
            Some(read) => assert_eq!(read, n.to_string(), "{key}"),
            // Deleted at the new master, which was not told of it.
            None => misses += 1,
        }
        slowest = slowest.max(written).max(began.elapsed() - written);
        tokio::time::sleep(ms(1)).await;
    }
    assert!(misses < 5 + n / 100, "{misses} misses of {n}");
    (key, n, slowest)
}

/// Frozen in the midst of calls, so that what was sent is never answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_master_of_sentinels_costs_no_call_and_no_newer_value() {
    let mut redis = RedisSentinels::start();
    let cache = usual("t-failover-sentinel", redis.url());
    let work = Work::begin(&cache, (0..4).map(|n| format!("k{n}")));
    until(&cache, RedisState::Connected).await;
    let [master, replica] = &mut redis.servers;
    let resting = work.rest(master, replica).await;
    master.hang();
    drop(resting);
    until(&cache, RedisState::Degraded).await;
    redis.until_replaced();
    let replaced = Instant::now();
    until(&cache, RedisState::Connected).await;
    let found = replaced.elapsed();
    redis.servers[0].resume();
    let slowest = work.end(&cache).await;
    println!("found after {found:?}, slowest {slowest:?}");
    assert!(found < SOON && slowest < PATIENCE, "found after {found:?}, slowest {slowest:?}");
    cache.set("k0", "end").await.unwrap();
    assert_eq!(redis.servers[1].say("GET k0"), "$3\r\nend\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_master_of_a_cluster_costs_no_call_and_no_newer_value() {
    let mut cluster = RedisCluster::start(3, true);
    let cache = usual("t-failover-cluster", cluster.url());
    let keys = [(0, 0), (0, 1), (1, 0), (2, 0)].map(|(master, n)| cluster.key_of(master, n));
    let key = keys[0].clone();
    let work = Work::begin(&cache, keys);
    until(&cache, RedisState::Connected).await;
    let (masters, replicas) = cluster.nodes.split_at_mut(3);
    let resting = work.rest(&masters[0], &replicas[0]).await;
    masters[0].kill();
    drop(resting);
    until(&cache, RedisState::Degraded).await;
    let promoted = async || replicas[0].say("ROLE").contains("master");
    until_true("replaced", ms(20_000), promoted).await;
    let replaced = Instant::now();
    until(&cache, RedisState::Connected).await;
    let found = replaced.elapsed();
    let slowest = work.end(&cache).await;
    println!("found after {found:?}, slowest {slowest:?}");
    assert!(found < SOON && slowest < PATIENCE, "found after {found:?}, slowest {slowest:?}");
    cache.set(&key, "end").await.unwrap();
    assert_eq!(replicas[0].say(&format!("GET {key}")), "$3\r\nend\r\n");
}
