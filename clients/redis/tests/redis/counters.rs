//! Counters while the server is up and the network is not: what was acknowledged is counted, once.

use crate::{client, ms};
use mainstay_redis::RedisClient;
use mainstay_test_support::{Proxy, Redis};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

const ENOUGH: u32 = 3000;

#[derive(Default)]
struct Tally {
    acknowledged: AtomicU32,
    refused: AtomicU32,
}

/// Each increment has a key of its own, so that one that was done twice shows. Gives the keys of those
/// that may have been done.
async fn count(cache: RedisClient, tally: Arc<Tally>, task: u32) -> Vec<String> {
    let mut unknown = Vec::new();
    for n in 0.. {
        if tally.acknowledged.load(Ordering::SeqCst) >= ENOUGH {
            break;
        }
        let key = format!("n:{task}:{n}");
        match cache.incr(&key).await {
            Ok(sum) => {
                assert_eq!(sum, 1, "{key} was done before it was acknowledged");
                tally.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) if error.is_outcome_unknown() => unknown.push(key),
            // Certainly not done.
            Err(_) => drop(tally.refused.fetch_add(1, Ordering::SeqCst)),
        }
        tokio::task::yield_now().await;
    }
    unknown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_increment_is_lost_or_done_twice() {
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let cache = client("t-incr", proxy.addr());
    let tally = Arc::<Tally>::default();
    let tasks: Vec<_> =
        (0..8).map(|task| tokio::spawn(count(cache.clone(), Arc::clone(&tally), task))).collect();
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
    let (mut unknown, mut done) = (0, 0);
    for task in tasks {
        for key in task.await.unwrap() {
            unknown += 1;
            match redis.say(&format!("GET {key}")).as_str() {
                "$-1\r\n" => {}
                held => {
                    assert_eq!(held, "$1\r\n1\r\n", "{key}");
                    done += 1;
                }
            }
        }
    }
    let [sure, refused] =
        [&tally.acknowledged, &tally.refused].map(|count| count.load(Ordering::SeqCst));
    println!(
        "{sure} acknowledged, {done} of {unknown} unknown done, {refused} not, {faults} faults"
    );
    assert!(unknown > 0, "the faults were felt");
    // Every one that was acknowledged is there still, and none that was refused.
    assert_eq!(redis.say("DBSIZE"), format!(":{}\r\n", sure + done));
    let stats = redis.say("INFO commandstats");
    let calls = stats.split("cmdstat_incrby:calls=").nth(1).and_then(|s| s.split(',').next());
    assert_eq!(calls.map(str::parse), Some(Ok(sure + done)), "{stats}");
}
