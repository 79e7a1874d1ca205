//! The same rounds through a network that resets, closes and stops in the middle of parts and answers.

use super::{
    begun,
    faults::{Tally, round},
};
use crate::{builder, eventually, quick};
use mainstay_test_support::{
    Proxy,
    proxy::End,
    s3::{BUCKET, Sums},
};
use std::time::Duration;

const GROUPS: usize = 12;

/// Each connection ends after so many bytes one way; few of them are enough for a whole part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_in_mid_part_leave_whole_files_or_nothing() {
    let (store, memory, _, dir) = begun(Sums::Full).await;
    let address = store.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::in_front_of(address);
    let s3 = builder(&format!("http://{}", proxy.addr())).policy(|policy| {
        quick(policy)
            .timeout(Duration::from_millis(500))
            .max_attempts(6)
            .enable_circuit_breaker(false)
            .enable_budget(false)
    });
    let s3 = s3.build().unwrap();
    let (mut draw, mut all) = (fastrand::Rng::with_seed(7), Tally::default());
    for group in 0..GROUPS {
        let after = draw.u64(50_000..400_000);
        let end = [End::Reset, End::Close, End::Hang, End::HalfClose][group % 4];
        let up = group % 3 != 0;
        proxy.set(|faults| {
            faults.requests.after = up.then_some((after, end));
            faults.replies.after = (!up).then_some((after, end));
            faults.replies.slice = (group % 5 == 0).then_some(1_000);
        });
        let rounds = (0..4).map(|n| {
            let seed = 10_000 + (group * 4 + n) as u64;
            round(s3.clone(), memory.clone(), dir.path(), seed)
        });
        for tally in futures_util::future::join_all(rounds).await {
            all.add(&tally);
        }
    }
    println!("{all:?}");
    proxy.heal();
    // Aborts met the same network: what they could not do, clean-up does.
    s3.abort_uploads(BUCKET, "", Duration::ZERO).await.unwrap();
    eventually("no upload is left", || memory.uploads() == 0).await;
    let count = all.good + all.failed + all.dropped;
    assert!(count == GROUPS * 4 * 2 && all.good > count / 4, "{all:?}");
}
