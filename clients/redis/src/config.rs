//! The builder, the settings and the singletons.

use crate::{
    client::RedisClient,
    link::{self, Target},
};
use mainstay_policy::{Error, Kind, PolicyBuilder, Singletons, settings};
use std::{fmt, time::Duration};

/// How much the fallback may hold, and how old its answers may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct FallbackConfig {
    pub(crate) enabled: bool,
    pub(crate) max_entries: u64,
    pub(crate) max_bytes: u64,
    pub(crate) max_dirty_entries: usize,
    pub(crate) max_dirty_bytes: usize,
    pub(crate) max_stale: Duration,
}

impl Default for FallbackConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            max_entries: 10_000,
            max_bytes: 64 * 1024 * 1024,
            max_dirty_entries: 10_000,
            max_dirty_bytes: 16 * 1024 * 1024,
            max_stale: Duration::from_secs(60),
        }
    }
}

impl FallbackConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// No fallback: an outage is an error.
    pub fn off() -> Self {
        Self { enabled: false, ..Self::default() }
    }

    /// Values kept in memory, least recently used first out. Default: 10,000.
    pub const fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = entries;
        self
    }

    /// Bytes of values kept in memory. Default: 64 MiB.
    pub const fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Keys and fields written during one outage; a write beyond is refused. Default: 10,000.
    pub const fn max_dirty_entries(mut self, entries: usize) -> Self {
        self.max_dirty_entries = entries;
        self
    }

    /// Bytes written during one outage; a write beyond is refused. Default: 16 MiB.
    pub const fn max_dirty_bytes(mut self, bytes: usize) -> Self {
        self.max_dirty_bytes = bytes;
        self
    }

    /// How long after it was last seen a value of the server may still be served. Default: 60 s.
    pub const fn max_stale(mut self, age: Duration) -> Self {
        self.max_stale = age;
        self
    }
}

/// Builds a [`RedisClient`].
#[derive(Default)]
#[must_use]
pub struct RedisClientBuilder {
    name: Option<String>,
    url: Option<String>,
    fallback: FallbackConfig,
    policy: Option<Box<dyn FnOnce(PolicyBuilder) -> PolicyBuilder + Send>>,
}

impl fmt::Debug for RedisClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisClientBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl RedisClientBuilder {
    /// The server, as `redis://[user:password@]host[:6379][/database]`; also `valkey://`,
    /// `redis-cluster://`, `redis-sentinel://`, and `rediss://` with feature `tls`.
    ///
    /// Without one the client is a cache of this process alone.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// A name of its own: breaker and budget are then those of `redis:{name}`, not of `redis`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Changes the policy that the settings give, as in `.policy(|p| p.max_attempts(3))`.
    pub fn policy(
        mut self,
        change: impl FnOnce(PolicyBuilder) -> PolicyBuilder + Send + 'static,
    ) -> Self {
        self.policy = Some(Box::new(change));
        self
    }

    /// The fallback's limits, or [`FallbackConfig::off`].
    pub fn fallback(mut self, fallback: FallbackConfig) -> Self {
        self.fallback = fallback;
        self
    }

    /// Checks everything; does no I/O.
    ///
    /// # Errors
    /// A URL, setting or policy that cannot work, and what to write instead; never the URL itself.
    pub fn build(self) -> Result<RedisClient, Error> {
        let target = match self.url.as_deref() {
            Some(url) => Some(target(url)?),
            None if self.fallback.enabled => None,
            None => {
                return Err(Error::invalid(
                    "redis: neither a URL nor a fallback; set MAINSTAY_REDIS_URL, or leave the \
                     fallback on",
                ));
            }
        };
        let name = match &self.name {
            Some(name) => format!("redis:{name}"),
            None => "redis".to_owned(),
        };
        let mut policy = settings()?.policy(Kind::Cache, &name);
        if let Some(change) = self.policy {
            policy = change(policy).name(name);
        }
        Ok(RedisClient::new(target, policy.build()?, self.fallback))
    }
}

const SCHEMES: [&str; 10] = [
    "redis",
    "rediss",
    "valkey",
    "valkeys",
    "redis-cluster",
    "rediss-cluster",
    "valkey-cluster",
    "valkeys-cluster",
    "redis-sentinel",
    "valkey-sentinel",
];

/// The URL may hold a password, so nothing but a scheme is ever shown.
fn target(url: &str) -> Result<Target, Error> {
    let allowed = "allowed: redis://[user:password@]host[:port][/database], also rediss, \
                   redis-cluster and redis-sentinel";
    let Some((scheme, _)) = url.split_once("://") else {
        return Err(Error::invalid(format!("redis: the URL has no scheme; {allowed}")));
    };
    if !SCHEMES.contains(&scheme) {
        let plain = scheme.len() <= 16 && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
        let shown = if plain { format!("`{scheme}`") } else { "unknown".to_owned() };
        return Err(Error::invalid(format!("redis: the URL's scheme is {shown}; {allowed}")));
    }
    if !cfg!(feature = "tls") && (scheme.starts_with("rediss") || scheme.starts_with("valkeys")) {
        return Err(Error::invalid(format!(
            "redis: the URL's scheme is `{scheme}`, which needs feature `tls` of mainstay-redis"
        )));
    }
    link::target(url).ok_or_else(|| {
        Error::invalid(format!(
            "redis: host, port or database in the URL cannot be read; {allowed}"
        ))
    })
}

static DEFAULT: Singletons<RedisClient> = Singletons::new();
static NAMED: Singletons<RedisClient> = Singletons::new();

/// The client of `MAINSTAY_REDIS_URL`, else `REDIS_URL`; no I/O.
///
/// With neither set it is a cache of this process alone, and its health is degraded.
///
/// # Errors
/// When a setting cannot be used.
pub fn get_redis_client() -> Result<RedisClient, Error> {
    DEFAULT.get_or_try_init("default", || {
        let url = settings()?.connection("redis", "url");
        RedisClientBuilder { url, ..Default::default() }.build()
    })
}

/// The client of `MAINSTAY_REDIS_{NAME}_URL`, with a breaker of its own; no I/O.
///
/// # Errors
/// When that setting is missing or a setting cannot be used.
pub fn get_redis_client_named(name: &str) -> Result<RedisClient, Error> {
    NAMED.get_or_try_init(name, || {
        let url = settings()?.named_url("redis", name)?;
        RedisClient::builder().name(name).url(url).build()
    })
}

/// Installs the client that [`get_redis_client`] gives.
pub fn set_redis_client(client: RedisClient) {
    DEFAULT.set("default", client);
}

/// The clients that the getters have given so far, for a shutdown to [`close`](RedisClient::close).
#[must_use]
pub fn all_redis_clients() -> Vec<RedisClient> {
    [DEFAULT.all(), NAMED.all()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_urls_are_named_without_their_secrets() {
        let urls = [
            "http://user:s3cret@host",
            "user:s3cret@host",
            "s3cret s3cret s3cret://host",
            "redis://user:s3cret@host:notaport",
        ];
        for url in urls {
            let error = RedisClient::builder().url(url).build().unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(!text.contains("s3cret"), "{text}");
            assert!(text.contains("redis://"), "{text}");
        }
        let error = RedisClient::builder().url("http://host").build().unwrap_err();
        assert!(error.to_string().contains("`http`"), "{error}");
    }

    #[test]
    fn good_urls_build_without_a_runtime() {
        for url in ["redis://h", "redis://u:p@h:1/2", "valkey://h", "redis-cluster://h:1?node=i:2"]
        {
            RedisClient::builder().name("t-url").url(url).build().unwrap();
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_without_its_feature_says_so() {
        let error = RedisClient::builder().url("rediss://h").build().unwrap_err();
        assert!(error.to_string().contains("`tls`"), "{error}");
    }

    #[test]
    fn neither_url_nor_fallback_is_refused() {
        assert!(RedisClient::builder().fallback(FallbackConfig::off()).build().is_err());
    }
}
