//! What the `metrics` facade hears of the two tiers.

use crate::{client, text};
use mainstay_test_support::Port;
use metrics::{SharedString, Unit};
use metrics_util::{
    CompositeKey,
    debugging::{DebugValue, DebuggingRecorder},
};

#[test]
fn reads_and_writes_are_counted_by_tier() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let nowhere = Port::reserve();
            let cache = client("t-numbers", nowhere.address());
            cache.set("k", "1").await.unwrap();
            assert_eq!(text(&cache, "k").await.as_deref(), Some("1"));
            assert_eq!(text(&cache, "other").await, None);
            cache.incr("n").await.unwrap_err();
        });
    });
    let all = seen.snapshot().into_vec();
    let value = |name: &str, tier| counted(&all, "redis:t-numbers", name, tier);
    assert_eq!(value("mainstay.redis.reads", Some("fallback")), Some(1.0));
    assert_eq!(value("mainstay.redis.reads", Some("none")), Some(1.0));
    assert_eq!(value("mainstay.redis.reads", Some("redis")), None);
    assert_eq!(value("mainstay.redis.writes", Some("fallback")), Some(1.0));
    assert_eq!(value("mainstay.redis.errors", None), Some(1.0));
    assert_eq!(value("mainstay.redis.dirty", None), Some(1.0));
}

#[cfg(feature = "test-servers")]
#[test]
fn writes_are_counted_one_by_one_by_who_took_them_and_so_is_the_recovery() {
    let recorder = DebuggingRecorder::new();
    let seen = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Each look takes what was counted.
    let (before, after) = metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let place = crate::degraded::Place::new();
            let url = format!("redis://{}", place.proxy.addr());
            let strict = crate::strict("t-strict-tiers", &url);
            let cache = client("t-tiers", place.proxy.addr());
            for client in [&strict, &cache] {
                client.set("a", "1").await.unwrap();
                client.mset([("b", "2"), ("c", "3")]).await.unwrap();
                assert_eq!(client.mget::<i64>(["a", "b"]).await.unwrap(), [Some(1), Some(2)]);
                client.del("lock").await.unwrap();
                assert!(client.set_if_absent("lock", "1").await.unwrap());
                assert_eq!(client.get_del::<i64>("lock").await.unwrap(), Some(1));
            }
            place.take_away(&cache).await;
            cache.set("a", "2").await.unwrap();
            cache.mset([("b", "3"), ("c", "4")]).await.unwrap();
            let before = seen.snapshot().into_vec();
            place.give_back(&cache).await;
            (before, seen.snapshot().into_vec())
        })
    });
    for (client, kept) in [("redis:t-strict-tiers", None), ("redis:t-tiers", Some(3.0))] {
        let value = |name: &str, tier| counted(&before, client, name, tier);
        assert_eq!(value("mainstay.redis.reads", Some("redis")), Some(2.0), "{client}");
        assert_eq!(value("mainstay.redis.writes", Some("redis")), Some(6.0), "{client}");
        assert_eq!(value("mainstay.redis.writes", Some("fallback")), kept, "{client}");
        assert_eq!(value("mainstay.redis.dirty", None), kept, "{client}");
        let recovered = counted(&after, client, "mainstay.redis.recovered", None);
        assert_eq!(recovered, kept, "{client}");
    }
}

type Seen = (CompositeKey, Option<Unit>, Option<SharedString>, DebugValue);

fn counted(all: &[Seen], policy: &str, name: &str, tier: Option<&str>) -> Option<f64> {
    let found = all.iter().find(|(key, ..)| {
        let labels: Vec<_> = key.key().labels().map(|l| (l.key(), l.value())).collect();
        key.key().name() == name
            && labels.contains(&("mainstay.policy.name", policy))
            && tier.is_none_or(|tier| labels.contains(&("tier", tier)))
    });
    match found.map(|(.., value)| value) {
        Some(DebugValue::Counter(n)) => Some(*n as f64),
        Some(DebugValue::Gauge(n)) => Some(n.into_inner()),
        _ => None,
    }
}
