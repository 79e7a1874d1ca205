//! What the `metrics` facade hears of the two tiers.

use crate::{client, text};
use mainstay_test_support::Port;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

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
    let value = |name: &str, tier: Option<&str>| {
        let found = all.iter().find(|(key, ..)| {
            let labels: Vec<_> = key.key().labels().map(|l| (l.key(), l.value())).collect();
            key.key().name() == name
                && labels.contains(&("mainstay.policy.name", "redis:t-numbers"))
                && tier.is_none_or(|tier| labels.contains(&("tier", tier)))
        });
        match found.map(|(.., value)| value) {
            Some(DebugValue::Counter(n)) => Some(*n as f64),
            Some(DebugValue::Gauge(n)) => Some(n.into_inner()),
            _ => None,
        }
    };
    assert_eq!(value("mainstay.redis.reads", Some("fallback")), Some(1.0));
    assert_eq!(value("mainstay.redis.reads", Some("none")), Some(1.0));
    assert_eq!(value("mainstay.redis.reads", Some("redis")), None);
    assert_eq!(value("mainstay.redis.writes", Some("fallback")), Some(1.0));
    assert_eq!(value("mainstay.redis.errors", None), Some(1.0));
    assert_eq!(value("mainstay.redis.dirty", None), Some(1.0));
}
