//! What the `metrics` facade hears of the two tiers (feature `metrics`), beside what it hears of the
//! policy.
//!
//! | name | kind | labels besides `mainstay.policy.name` |
//! |---|---|---|
//! | `mainstay.redis.reads` | counter | `tier`: redis, fallback, none (a miss that says nothing) |
//! | `mainstay.redis.writes` | counter | `tier`: redis, fallback |
//! | `mainstay.redis.errors` | counter | commands that ended with one |
//! | `mainstay.redis.recovered` | counter | keys written while degraded, deleted at the server since |
//! | `mainstay.redis.dirty` | gauge | keys written while degraded and not deleted there yet |
//!
//! Of `mget` and `mset` each key counts, of `get_or_load` each question. What `run`, `pipeline` and
//! `scan` send is neither a read nor a write here.

/// Who served a call.
#[derive(Clone, Copy)]
pub(crate) enum Tier {
    Redis,
    Fallback,
    Nobody,
}

#[cfg(not(feature = "metrics"))]
mod off {
    use super::Tier;

    #[derive(Clone)]
    pub(crate) struct Numbers;

    impl Numbers {
        pub(crate) const fn of(_: &str) -> Self {
            Self
        }

        pub(crate) const fn read(&self, _: Tier) {}

        pub(crate) const fn wrote(&self, _: Tier) {}

        pub(crate) const fn failed(&self) {}

        pub(crate) const fn recovered(&self, _: usize) {}

        pub(crate) const fn dirty(&self, _: usize) {}
    }
}

#[cfg(feature = "metrics")]
mod on {
    use super::Tier;
    use metrics::{Key, Label, Level, Metadata};
    use std::sync::Arc;

    static META: Metadata<'static> =
        Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

    /// The keys of our metrics. The recorder is asked each time, so that one may be installed late.
    #[derive(Clone)]
    pub(crate) struct Numbers(Arc<Keys>);

    struct Keys {
        reads: [Key; 3],
        writes: [Key; 2],
        errors: Key,
        recovered: Key,
        dirty: Key,
    }

    impl Numbers {
        pub(crate) fn of(policy: &str) -> Self {
            let name = Label::new("mainstay.policy.name", policy.to_owned());
            let key = |metric: &'static str| Key::from_parts(metric, vec![name.clone()]);
            let tier = |metric: &'static str, tier: &'static str| {
                Key::from_parts(metric, vec![name.clone(), Label::new("tier", tier)])
            };
            Self(Arc::new(Keys {
                reads: ["redis", "fallback", "none"].map(|t| tier("mainstay.redis.reads", t)),
                writes: ["redis", "fallback"].map(|t| tier("mainstay.redis.writes", t)),
                errors: key("mainstay.redis.errors"),
                recovered: key("mainstay.redis.recovered"),
                dirty: key("mainstay.redis.dirty"),
            }))
        }

        pub(crate) fn read(&self, tier: Tier) {
            count(&self.0.reads[tier as usize], 1);
        }

        pub(crate) fn wrote(&self, tier: Tier) {
            if let Some(key) = self.0.writes.get(tier as usize) {
                count(key, 1);
            }
        }

        pub(crate) fn failed(&self) {
            count(&self.0.errors, 1);
        }

        pub(crate) fn recovered(&self, keys: usize) {
            count(&self.0.recovered, keys as u64);
        }

        #[allow(clippy::cast_precision_loss, reason = "gauges are floats")]
        pub(crate) fn dirty(&self, keys: usize) {
            metrics::with_recorder(|r| r.register_gauge(&self.0.dirty, &META)).set(keys as f64);
        }
    }

    fn count(key: &Key, n: u64) {
        metrics::with_recorder(|r| r.register_counter(key, &META)).increment(n);
    }
}

#[cfg(not(feature = "metrics"))]
pub(crate) use off::Numbers;
#[cfg(feature = "metrics")]
pub(crate) use on::Numbers;
