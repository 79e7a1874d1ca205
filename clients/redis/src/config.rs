//! The builder, the settings and the singletons.

mod target;
#[cfg(feature = "tls")]
mod tls;

use crate::client::RedisClient;
use bytes::Bytes;
use mainstay_policy::{Error, Kind, PolicyBuilder, Singletons, settings};
use std::{fmt, time::Duration};
pub(crate) use target::{Target, Topology};

/// What the fallback does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    On,
    Off,
    ReadOnly,
}

/// How much the fallback may hold, and how old its answers may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct FallbackConfig {
    pub(crate) mode: Mode,
    pub(crate) counters: bool,
    pub(crate) max_entries: u64,
    pub(crate) max_bytes: u64,
    pub(crate) max_dirty_entries: usize,
    pub(crate) max_dirty_bytes: usize,
    pub(crate) max_stale: Duration,
}

impl Default for FallbackConfig {
    fn default() -> Self {
        Self {
            mode: Mode::On,
            counters: false,
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
        Self { mode: Mode::Off, ..Self::default() }
    }

    /// Reads are answered from memory while the server is away; a write is an error then.
    pub fn read_only() -> Self {
        Self { mode: Mode::ReadOnly, ..Self::default() }
    }

    /// Lets counters count in memory while the server is away, each process for itself. They begin
    /// with the value last seen, or 0, and **begin again at 0** once the server is back, as every key
    /// that was written meanwhile is deleted there: for rate limits and statistics, not for
    /// balances. Default: refused.
    pub const fn count_offline(mut self) -> Self {
        self.counters = true;
        self
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

impl FallbackConfig {
    pub(crate) fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }
}

/// What a key and a value may be.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    prefix: Bytes,
    max_key: usize,
    max_value: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { prefix: Bytes::new(), max_key: 4 * 1024, max_value: 8 * 1024 * 1024 }
    }
}

impl Limits {
    /// The key as the server has it.
    pub(crate) fn key(&self, key: &[u8]) -> Result<Bytes, Error> {
        self.short("key", key)?;
        Ok(if self.prefix.is_empty() { Bytes::copy_from_slice(key) } else { self.prefixed(key) })
    }

    #[inline(never)]
    fn prefixed(&self, key: &[u8]) -> Bytes {
        [&self.prefix[..], key].concat().into()
    }

    pub(crate) fn field(&self, field: &[u8]) -> Result<Bytes, Error> {
        self.short("field", field)?;
        Ok(Bytes::copy_from_slice(field))
    }

    fn short(&self, what: &str, text: &[u8]) -> Result<(), Error> {
        if text.len() <= self.max_key { Ok(()) } else { Err(self.too_long(what, text)) }
    }

    #[cold]
    fn too_long(&self, what: &str, text: &[u8]) -> Error {
        Error::invalid(format!(
            "redis: a {what} of {} bytes is over the limit of {}; use a shorter one, such as a hash \
             of it, or raise max_key_bytes",
            text.len(),
            self.max_key
        ))
    }

    pub(crate) fn value(&self, value: Bytes) -> Result<Bytes, Error> {
        if value.len() <= self.max_value { Ok(value) } else { Err(self.too_large(&value)) }
    }

    #[cold]
    fn too_large(&self, value: &Bytes) -> Error {
        Error::invalid(format!(
            "redis: a value of {} bytes is over the limit of {}; store it elsewhere or in parts, or \
             raise max_value_bytes",
            value.len(),
            self.max_value
        ))
    }

    /// A pattern of keys as the server has them; the prefix is no pattern.
    pub(crate) fn pattern(&self, pattern: &[u8]) -> Bytes {
        let mut whole = Vec::with_capacity(self.prefix.len() + pattern.len());
        for byte in &self.prefix {
            if b"*?[]^\\-".contains(byte) {
                whole.push(b'\\');
            }
            whole.push(*byte);
        }
        whole.extend(pattern);
        whole.into()
    }

    pub(crate) fn without_prefix(&self, key: Bytes) -> Bytes {
        let plain = key.strip_prefix(&self.prefix[..]).map(|plain| key.slice_ref(plain));
        plain.unwrap_or(key)
    }
}

/// Longer lifetimes would overflow the server's clock.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A lifetime that Redis can keep.
pub(crate) fn lifetime(ttl: Duration) -> Result<Duration, Error> {
    if ttl.is_zero() {
        return Err(Error::invalid("redis: a lifetime (ttl) of 0; use del to remove a key"));
    }
    if ttl > MAX_TTL {
        return Err(Error::invalid(
            "redis: a lifetime (ttl) over 100 years; leave it out for a value that stays",
        ));
    }
    Ok(ttl)
}

/// Where the server is.
#[derive(Default)]
enum Server {
    #[default]
    OfSettings,
    At(String),
    None,
}

/// Builds a [`RedisClient`].
#[derive(Default)]
#[must_use]
pub struct RedisClientBuilder {
    name: Option<String>,
    server: Server,
    fallback: FallbackConfig,
    limits: Limits,
    policy: Option<Box<dyn FnOnce(PolicyBuilder) -> PolicyBuilder + Send>>,
    #[cfg(feature = "tls")]
    authorities: Option<Vec<u8>>,
}

impl fmt::Debug for RedisClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisClientBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl RedisClientBuilder {
    /// Where the server is. Default: `MAINSTAY_REDIS_{NAME}_URL` for a client with a name, else
    /// `MAINSTAY_REDIS_URL`, else `REDIS_URL`; with none of them the client is a cache of this process
    /// alone. A warning says either: that, and that a client with a name takes the server of all.
    ///
    /// | URL | for |
    /// |---|---|
    /// | `redis://[user:password@]host[:6379][/database]` | one server |
    /// | `redis-cluster://[user:password@]host:port[?node=host:port&node=..]` | a cluster: some of its nodes, from which the others are learned |
    /// | `redis-sentinel://[user:password@]host[:26379][/database]?sentinelServiceName=name[&node=host:port..]` | sentinels, all of which should be named; user and password are those of the servers, `sentinelUsername` and `sentinelPassword` those of the sentinels |
    /// | `rediss://`, `rediss-cluster://`, `rediss-sentinel://` | the same over TLS (feature `tls`), certificates verified; `ssl_ca_certs=/path/to/ca.pem` names the authorities to trust in place of the system's |
    ///
    /// `valkey` and `valkeys` may stand for `redis` and `rediss`, and several hosts may be written
    /// as `host:port,host:port` too. In user and password write `%3A`, `%2F`, `%3F`, `%23` and `%40`
    /// for `:`, `/`, `?`, `#` and `@`.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.server = Server::At(url.into());
        self
    }

    /// A cache of this process alone, whatever the settings say; for tests, and for a process that has
    /// nobody to share it with.
    pub fn without_server(mut self) -> Self {
        self.server = Server::None;
        self
    }

    /// Trusts these authorities alone, PEM, in place of the system's and of the URL's
    /// `ssl_ca_certs`. For URLs with TLS. Certificates are always verified.
    #[cfg(feature = "tls")]
    pub fn trust_only(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities = Some(pem.into());
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

    /// Put before every key, as in `"shop:"`. Default: none.
    pub fn key_prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.limits.prefix = Bytes::copy_from_slice(prefix.as_ref());
        self
    }

    /// Longest key, and field of a hash, in bytes, without the prefix. Default: 4 KiB.
    pub const fn max_key_bytes(mut self, bytes: usize) -> Self {
        self.limits.max_key = bytes;
        self
    }

    /// Largest value to store, in bytes; Redis itself refuses 512 MiB. Default: 8 MiB.
    pub const fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.limits.max_value = bytes;
        self
    }

    /// Checks everything; does no I/O.
    ///
    /// # Errors
    /// A URL, setting or policy that cannot work, and what to write instead; never the URL itself.
    pub fn build(self) -> Result<RedisClient, Error> {
        let settings = settings()?;
        let on_purpose = matches!(self.server, Server::None);
        let url = match self.server {
            Server::At(url) => Some(url),
            Server::None => None,
            Server::OfSettings => settings.url("redis", self.name.as_deref()),
        };
        let variable = settings.variable("redis", "url");
        if url.is_none() && self.fallback.mode != Mode::On {
            return Err(Error::invalid(format!(
                "redis: neither a URL nor a fallback that takes writes; set {variable}, give the \
                 builder url(..), or leave the fallback on"
            )));
        }
        let name = match &self.name {
            Some(name) => format!("redis:{name}"),
            None => "redis".to_owned(),
        };
        let mut policy = settings.policy(Kind::Cache, &name);
        if let Some(change) = self.policy {
            policy = change(policy).name(name.as_str());
        }
        let target = match url.as_deref() {
            Some(url) => {
                let parsed = target::parse(url)?;
                #[cfg(feature = "tls")]
                let tls = tls::config(&parsed, self.authorities.as_deref())?;
                let set_up = |_config: &mut fred::types::config::Config| {
                    #[cfg(feature = "tls")]
                    {
                        _config.tls = tls;
                    }
                };
                Some(parsed.into_target(set_up, policy.clone(), &name))
            }
            None if on_purpose => None,
            None => {
                tracing::warn!(
                    db.system.name = "redis",
                    mainstay.policy.name = name,
                    "redis: no URL is set ({variable} or REDIS_URL): a cache of this process alone, \
                     which no other sees; without_server() says that it is meant"
                );
                None
            }
        };
        Ok(RedisClient::new(target, policy.build()?, self.fallback, self.limits))
    }
}

static DEFAULT: Singletons<RedisClient> = Singletons::new();
static NAMED: Singletons<RedisClient> = Singletons::new();

/// The client of `MAINSTAY_REDIS_URL`, else `REDIS_URL`; no I/O.
///
/// With neither set it is a cache of this process alone, which a warning says, and its health is
/// degraded.
///
/// # Errors
/// When a setting cannot be used.
pub fn get_redis_client() -> Result<RedisClient, Error> {
    DEFAULT.get_or_try_init("default", || RedisClient::builder().build())
}

/// The client of `MAINSTAY_REDIS_{NAME}_URL`, with a breaker of its own; no I/O.
///
/// # Errors
/// When that setting is missing or a setting cannot be used.
pub fn get_redis_client_named(name: &str) -> Result<RedisClient, Error> {
    NAMED.get_or_try_init(name, || {
        let url = settings()?.named_url("redis", name, "url")?;
        RedisClient::builder().name(name).url(url).build()
    })
}

/// Installs the client that [`get_redis_client`] gives.
pub fn set_redis_client(client: RedisClient) {
    DEFAULT.set("default", client);
}

/// Installs the client that [`get_redis_client_named`] gives for this name.
pub fn set_redis_client_named(name: &str, client: RedisClient) {
    NAMED.set(name, client);
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
            "redis://user:s3cret",
            "redis://user:s3cret@host/notadatabase",
            "redis://user:s3?cret@host",
            "redis://user:s3/cret@host",
            "redis://user:1?s3cret=2@host",
            "http://user:s3cret@host",
            "user:s3cret@host",
            "s3cret s3cret s3cret://host",
            "redis://user:s3cret@host:notaport",
        ];
        for url in urls {
            let error = RedisClient::builder().url(url).build().unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(!text.contains("s3cret"), "{text}");
            assert!(text.contains("allowed"), "{text}");
        }
        let error = RedisClient::builder().url("http://host").build().unwrap_err();
        assert!(error.to_string().contains("`http`"), "{error}");
    }

    #[test]
    fn good_urls_build_without_a_runtime() {
        for url in [
            "redis://h",
            "redis://u:p@h:1/2",
            "redis://[::1]:1",
            "valkey://h",
            "redis-cluster://h:1?node=i:2",
            "redis-cluster://:p@h:1,i:2",
            "valkey-cluster://h:1",
            "valkey-sentinel://h?sentinelServiceName=m&sentinelUsername=u&sentinelPassword=p",
            "redis-sentinel://h:1?sentinelServiceName=m&node=i:2&sentinelPassword=p%26q",
        ] {
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
        let builder = RedisClient::builder().without_server();
        assert!(builder.fallback(FallbackConfig::off()).build().is_err());
    }
}
