//! What a recorder of the `metrics` facade sees of a pool.

use super::{accounts, ms};
use mainstay_database::SqliteDatabase;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Of this client: the last value of each gauge, and how many times each histogram was told.
fn seen(snapshotter: &Snapshotter, client: &str) -> HashMap<String, f64> {
    let mut values = HashMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let label = |name: &str| key.key().labels().find(|l| l.key() == name).map(|l| l.value());
        if label("mainstay.policy.name") != Some(client) {
            continue;
        }
        let name = match label("outcome") {
            Some(outcome) => format!("{} {outcome}", key.key().name()),
            None => key.key().name().to_owned(),
        };
        match value {
            DebugValue::Gauge(value) => _ = values.insert(name, value.into_inner()),
            DebugValue::Histogram(all) => _ = values.insert(name, all.len() as f64),
            DebugValue::Counter(_) => {}
        }
    }
    values
}

#[tokio::test]
async fn a_pool_tells_its_size_its_use_and_how_long_callers_wait() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let (dir, _db) = accounts("m-setup").await;
    let db = SqliteDatabase::builder()
        .name("m-pool")
        .url(format!("sqlite://{}", dir.path().join("a.db").display()))
        .max_connections(2)
        .acquire_timeout(ms(20_000))
        .build()
        .unwrap();
    // Both connections are open, one is free, and then both are taken and one caller waits.
    let (first, second) = tokio::try_join!(db.acquire(), db.acquire()).unwrap();
    drop(second);
    let acquired = std::cell::Cell::new(0.0);
    let until = |what: &'static str, gauges: [f64; 5]| {
        let (snapshotter, acquired) = (&snapshotter, &acquired);
        async move {
            let end = Instant::now() + Duration::from_secs(20);
            loop {
                let seen = seen(snapshotter, "database:m-pool");
                let told = seen.get("mainstay.pool.acquire.duration success");
                acquired.set(acquired.get() + told.unwrap_or(&0.0));
                let names = ["size", "idle", "in_use", "waiting", "limit"];
                let now = names.map(|name| seen.get(&format!("mainstay.pool.{name}")).copied());
                if now == gauges.map(Some) {
                    return;
                }
                assert!(Instant::now() < end, "{what}: {now:?}");
                tokio::task::yield_now().await;
            }
        }
    };
    until("one is free", [2.0, 1.0, 1.0, 0.0, 2.0]).await;
    let _third = db.acquire().await.unwrap();
    let mut fourth = Box::pin(db.acquire());
    assert!(!super::poll_once(&mut fourth).await);
    until("one caller waits", [2.0, 0.0, 2.0, 1.0, 2.0]).await;
    drop(first);
    let fourth = fourth.await.unwrap();
    drop(fourth);
    until("none waits", [2.0, 1.0, 1.0, 0.0, 2.0]).await;
    assert_eq!(acquired.get(), 4.0);
}
