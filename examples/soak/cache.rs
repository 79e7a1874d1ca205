//! Keys that one worker each writes and reads: a value read is never older than the last one written.

use crate::{
    Shift,
    tally::{Shared, Tally},
};
use mainstay::RedisClient;
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::sleep};

const WORKERS: u64 = 8;
const KEYS: usize = 20;
const PAUSE: Duration = Duration::from_millis(5);

pub(crate) fn work(cache: &RedisClient, shift: &Shift, workers: &mut JoinSet<()>) -> Shared {
    let tally = Shared::new(Tally::default());
    for worker in 0..WORKERS {
        let (cache, shift, tally) = (cache.clone(), shift.clone(), Arc::clone(&tally));
        workers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(worker);
            let mut written = [0_u64; KEYS];
            for n in 1_u64.. {
                let Some(round) = shift.round().await else { return };
                let key = random.usize(0..KEYS);
                let name = format!("soak:{worker}:{key}");
                if random.bool() {
                    let write = async {
                        if key.is_multiple_of(2) {
                            cache.set(&name, n.to_string()).await
                        } else {
                            cache.hset(&name, "field", n.to_string()).await.map(drop)
                        }
                    };
                    if tally.count(write).await.is_ok() {
                        written[key] = n;
                    }
                } else {
                    let read = async {
                        if key.is_multiple_of(2) {
                            cache.get::<String>(&name).await
                        } else {
                            cache.hget::<String>(&name, "field").await
                        }
                    };
                    if let Ok(Some(value)) = tally.count(read).await {
                        let value: u64 = value.parse().expect("what was written");
                        if value < written[key] {
                            tally.stale(format!("{name}: {value} after {}", written[key]));
                        }
                    }
                }
                drop(round);
                sleep(PAUSE).await;
            }
        });
    }
    tally
}
