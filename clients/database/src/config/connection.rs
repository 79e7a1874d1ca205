//! What is set for connections and their pool, in code, file and environment.

use super::{Limits, Tuning};
use mainstay_policy::{ConfigError, Error, Policy, Settings};
use std::{fmt, path::PathBuf, time::Duration};

/// How far the server is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsMode {
    /// Not encrypted.
    Disable,
    /// Encrypted if the server can; whoever stands between can prevent it.
    Prefer,
    /// Encrypted; the server may be anybody.
    Require,
    /// Its certificate is from an authority that is trusted.
    VerifyCa,
    /// And it is for the host of the URL.
    VerifyFull,
}

impl TlsMode {
    const NAMES: [(&'static str, Self); 5] = [
        ("disable", Self::Disable),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];
}

const POOLERS: [(&str, bool); 2] = [("transaction", true), ("none", false)];

/// What was set, as opposed to left at its default.
#[derive(Clone, Debug, Default)]
pub(super) struct Connection {
    pub(super) application_name: Option<String>,
    pub(super) max_connections: Option<u32>,
    pub(super) min_connections: Option<u32>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) acquire_timeout: Option<Duration>,
    pub(super) ping_after: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) statement_cache: Option<u32>,
    pub(super) tls: Option<TlsMode>,
    pub(super) tls_ca: Option<PathBuf>,
    pub(super) pooler: Option<bool>,
}

impl Connection {
    /// What code set, else what file and environment set for this client, else for all.
    ///
    /// # Errors
    /// Every value that cannot be used, at once.
    pub(super) fn over(self, settings: &Settings, name: Option<&str>) -> Result<Self, Error> {
        let mut reader = Reader { settings, name, problems: Vec::new() };
        let set = Self {
            application_name: self.application_name.or_else(|| reader.text("application_name")),
            max_connections: self.max_connections.or_else(|| reader.some("max_connections")),
            min_connections: self.min_connections.or_else(|| reader.count("min_connections")),
            connect_timeout: self.connect_timeout.or_else(|| reader.time("connect_timeout")),
            acquire_timeout: self.acquire_timeout.or_else(|| reader.time("acquire_timeout")),
            ping_after: self.ping_after.or_else(|| reader.time("ping_after")),
            idle_timeout: self.idle_timeout.or_else(|| reader.time("idle_timeout")),
            max_lifetime: self.max_lifetime.or_else(|| reader.time("max_lifetime")),
            statement_cache: self.statement_cache.or_else(|| reader.count("statement_cache")),
            tls: self.tls.or_else(|| reader.one_of("tls", &TlsMode::NAMES)),
            tls_ca: self.tls_ca.or_else(|| reader.text("tls_ca").map(PathBuf::from)),
            pooler: self.pooler.or_else(|| reader.one_of("pooler", &POOLERS)),
        };
        if reader.problems.is_empty() {
            Ok(set)
        } else {
            Err(Error::config(ConfigError::new(reader.problems)))
        }
    }

    pub(super) fn limits(&self) -> Result<Limits, Error> {
        let limits = Limits {
            max_connections: self.max_connections.unwrap_or(10),
            min_connections: self.min_connections.unwrap_or(0),
            connect_timeout: self.connect_timeout.unwrap_or(Duration::from_millis(900)),
            acquire_timeout: self.acquire_timeout.unwrap_or(Duration::from_secs(5)),
            ping_after: self.ping_after.unwrap_or(Duration::from_secs(1)),
            idle_timeout: self.idle_timeout.unwrap_or(Duration::from_secs(600)),
            max_lifetime: self.max_lifetime.unwrap_or(Duration::from_secs(1_800)),
        };
        let Limits { max_connections, min_connections, .. } = limits;
        let mut problems = Vec::new();
        if max_connections == 0 {
            problems.push("database: max_connections is 0; allowed: from 1".to_owned());
        } else if min_connections > max_connections {
            problems.push(format!(
                "database: min_connections is {min_connections}; allowed: up to max_connections, \
                 which is {max_connections}"
            ));
        }
        for (name, value) in [
            ("connect_timeout", limits.connect_timeout),
            ("acquire_timeout", limits.acquire_timeout),
            ("idle_timeout", limits.idle_timeout),
            ("max_lifetime", limits.max_lifetime),
        ] {
            if value.is_zero() {
                problems.push(format!("database: {name} is 0; allowed: more than 0"));
            }
        }
        if problems.is_empty() {
            Ok(limits)
        } else {
            Err(Error::config(ConfigError::new(problems)))
        }
    }

    pub(super) fn tuning(self, policy: Policy) -> Tuning {
        Tuning {
            application_name: self.application_name,
            policy: Some(policy),
            statement_cache: self.statement_cache.map(|n| n as usize),
            tls: self.tls,
            tls_ca: self.tls_ca,
            pooler: self.pooler.unwrap_or(false),
            ..Tuning::default()
        }
    }
}

struct Reader<'s> {
    settings: &'s Settings,
    name: Option<&'s str>,
    problems: Vec<String>,
}

impl Reader<'_> {
    /// The key that is set, this client's own first.
    fn key(&self, key: &str) -> Option<String> {
        let own = self.name.map(|name| Settings::own_key(name, key));
        let set = |key: &String| self.settings.is_set("database", key);
        own.filter(set).or_else(|| Some(key.to_owned()).filter(set))
    }

    fn take<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&Settings, &str) -> Result<Option<T>, ConfigError>,
    ) -> Option<T> {
        let key = self.key(key)?;
        read(self.settings, &key).unwrap_or_else(|error| {
            self.problems.extend_from_slice(error.problems());
            None
        })
    }

    fn count(&mut self, key: &str) -> Option<u32> {
        self.take(key, |settings, key| settings.count("database", key))
    }

    /// A count from 1.
    fn some(&mut self, key: &str) -> Option<u32> {
        self.take(key, |settings, key| match settings.count("database", key)? {
            Some(0) => {
                let allowed = "a whole number from 1";
                Err(ConfigError::new(vec![settings.problem("database", key, allowed)]))
            }
            count => Ok(count),
        })
    }

    fn time(&mut self, key: &str) -> Option<Duration> {
        self.take(key, |settings, key| settings.duration("database", key))
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let key = self.key(key)?;
        self.settings.connection("database", &key)
    }

    fn one_of<T: Copy + fmt::Debug>(&mut self, key: &str, all: &[(&str, T)]) -> Option<T> {
        let key = self.key(key)?;
        let text = self.settings.connection("database", &key)?;
        let found = all.iter().find(|(name, _)| text.trim().eq_ignore_ascii_case(name));
        if found.is_none() {
            let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
            let allowed = names.join(", ");
            self.problems.push(self.settings.problem("database", &key, &allowed));
        }
        found.map(|(_, value)| *value)
    }
}
