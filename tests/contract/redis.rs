//! `RedisClient` without its fallback, which would answer in the server's place.

use crate::subject::{Client, Mood, Remote, Tune, Work, quick};
use mainstay::{Error, FallbackConfig, Health, Policy, RedisClient, RedisFailure};
use mainstay_test_support::{Proxy, Redis};

/// A server of its own.
pub(crate) struct Subject {
    pub(crate) redis: Redis,
    proxy: Proxy,
}

impl Subject {
    pub(crate) fn with(&self, fallback: FallbackConfig, tune: Tune) -> RedisClient {
        RedisClient::builder()
            .name(self.proxy.port().to_string())
            .url(Redis::url_at(self.proxy.addr()))
            .fallback(fallback)
            .policy(move |policy| tune(quick(policy)))
            .build()
            .unwrap()
    }
}

impl crate::subject::Subject for Subject {
    type Client = RedisClient;

    async fn start() -> Self {
        let redis = Redis::start();
        let proxy = Proxy::in_front_of(redis.address());
        Self { redis, proxy }
    }

    fn client(&self, _: u32, tune: Tune) -> RedisClient {
        self.with(FallbackConfig::off(), tune)
    }
}

impl Client for RedisClient {
    const DOORS: &'static [&'static str] =
        &["get", "set", "del", "hget", "hset", "hdel", "incrby", "getdel"];
    const REPEATED: &'static str = "set";
    const REPEATED_TOO: &'static [&'static str] = &["get", "del", "hset"];
    const ONCE: Option<&'static str> = Some("incrby");
    type Failure = RedisFailure;
    type Driver = fred::error::Error;

    fn policy(&self) -> &Policy {
        self.policy()
    }

    fn call(&self, door: &'static str) -> Work {
        let redis = self.clone();
        Box::pin(async move {
            match door {
                "get" => drop(redis.get::<String>("text").await?),
                "set" => redis.set("text", "value").await?,
                "del" => drop(redis.del("other").await?),
                "hget" => drop(redis.hget::<String>("hash", "field").await?),
                "hset" => redis.hset("hash", "field", "value").await?,
                "hdel" => drop(redis.hdel("hash", "other").await?),
                "incrby" => drop(redis.incr("count").await?),
                "getdel" => drop(redis.get_del::<String>("token").await?),
                other => panic!("{other}?"),
            }
            Ok::<_, Error>(())
        })
    }

    async fn health(&self) -> Health {
        self.health_check().await
    }
}

impl Remote for Subject {
    const GREETS: bool = true;

    fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    async fn set(&self, mood: Mood) {
        // Out of memory, or not allowed. Silent in earnest, it would not count what it is asked.
        let memory = if mood == Mood::NotNow { "1" } else { "0" };
        let set = if mood == Mood::Never { "-set" } else { "+set" };
        for order in
            [format!("CONFIG SET maxmemory {memory}"), format!("ACL SETUSER default {set}")]
        {
            assert_eq!(self.redis.say(&order), "+OK\r\n");
        }
        self.proxy.set(|faults| faults.replies.hold = mood == Mood::Silent);
    }

    async fn asked(&self, door: &'static str) -> u64 {
        let stats = self.redis.say("INFO commandstats");
        let Some((_, stats)) = stats.split_once(&format!("cmdstat_{door}:")) else { return 0 };
        let of = |what: &str| -> u64 {
            let (_, count) = stats.split_once(what).unwrap();
            count.split([',', '\r']).next().unwrap().parse().unwrap()
        };
        of("calls=") + of("rejected_calls=")
    }
}
