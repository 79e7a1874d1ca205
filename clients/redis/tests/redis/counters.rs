//! Counters while the server is up and the network is not: what was acknowledged is counted, once.

use crate::{client, ms};
use mainstay_redis::RedisClient;
use mainstay_test_support::{Proxy, Redis};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Instant,
};

#[derive(Default)]
struct Tally {
    acknowledged: AtomicI64,
    unknown: AtomicI64,
    /// Certainly not done.
    refused: AtomicI64,
}

async fn count(cache: RedisClient, tally: Arc<Tally>, until: i64) {
    while tally.acknowledged.load(Ordering::SeqCst) < until {
        let slot = match cache.incr("n").await {
            Ok(_) => &tally.acknowledged,
            Err(error) if error.is_outcome_unknown() => &tally.unknown,
            Err(_) => &tally.refused,
        };
        slot.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_increment_is_lost_or_done_twice() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let cache = client("t-incr", proxy.addr());
    let tally = Arc::<Tally>::default();
    let tasks: Vec<_> =
        (0..8).map(|_| tokio::spawn(count(cache.clone(), Arc::clone(&tally), 3000))).collect();
    let (mut next, mut faults, began) = (100, 0, Instant::now());
    while tasks.iter().any(|task| !task.is_finished()) {
        assert!(began.elapsed() < ms(120_000), "{:?}", tally.acknowledged);
        if tally.acknowledged.load(Ordering::SeqCst) >= next {
            next += 150;
            faults += 1;
            match faults % 2 {
                0 => proxy.cut(),
                _ => proxy.lose_next_reply(),
            }
        }
        tokio::task::yield_now().await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let held = redis.say("GET n");
    let held: i64 = held.lines().nth(1).unwrap().parse().unwrap();
    let (sure, maybe) =
        (tally.acknowledged.load(Ordering::SeqCst), tally.unknown.load(Ordering::SeqCst));
    println!("{held} counted, {sure} acknowledged, {maybe} unknown, {faults} faults");
    assert!(sure <= held, "{sure} were acknowledged, {held} are there");
    assert!(held <= sure + maybe, "{held} are there, {sure} and {maybe} unknown ones were sent");
    assert!(maybe > 0, "the faults were felt");
    // The server did each once that it counted.
    let stats = redis.say("INFO commandstats");
    let calls = stats.split("cmdstat_incrby:calls=").nth(1).and_then(|s| s.split(',').next());
    assert_eq!(calls.map(str::parse), Some(Ok(held)), "{stats}");
}
