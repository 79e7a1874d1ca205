//! Where to connect: what a URL says, checked word by word, and never shown.

use crate::link::Address;
use fred::types::config::{Config, Server, ServerConfig};
use mainstay_policy::{Error, Policy, PolicyBuilder};
use percent_encoding::percent_decode_str;
use std::{fmt, sync::Arc};

const ALLOWED: &str = "allowed: redis://[user:password@]host[:port][/database], and for more than \
                       one server redis-cluster://host:port?node=host:port and \
                       redis-sentinel://host:port/database?sentinelServiceName=name; rediss, \
                       rediss-cluster and rediss-sentinel for TLS";

const UNREADABLE: &str = "the user, password or database in the URL cannot be read (a database is a \
                          number; in a password write %3A, %2F, %3F, %23 and %40 for : / ? # and @)";

/// How the servers are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topology {
    One,
    Cluster,
    Sentinel,
}

/// Holds credentials, so it is never printed.
#[derive(Clone)]
pub(crate) struct Target(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    topology: Topology,
    /// Where to begin: the server, some of a cluster's nodes, or the sentinels.
    seeds: Vec<Address>,
    /// Credentials, database and TLS of the servers.
    template: Config,
    sentinel: Sentinel,
    policy: Option<PolicyBuilder>,
    name: String,
}

#[derive(Clone, Default)]
struct Sentinel {
    service: String,
    username: Option<String>,
    password: Option<String>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// What a URL says, before TLS is set up.
pub(super) struct Parsed {
    inner: Inner,
    pub(super) tls: bool,
    /// `ssl_ca_certs`: a file of certificates to trust in place of the system's.
    pub(super) authorities: Option<String>,
}

impl Target {
    pub(crate) fn topology(&self) -> Topology {
        self.0.topology
    }

    pub(crate) fn seeds(&self) -> &[Address] {
        &self.0.seeds
    }

    pub(crate) fn service(&self) -> &str {
        &self.0.sentinel.service
    }

    /// For the first of them.
    pub(crate) fn config(&self) -> Config {
        match self.0.seeds.first() {
            Some(address) => self.config_at(address, None),
            // No URL is without a host.
            None => self.0.template.clone(),
        }
    }

    /// For one server; `hostname` is what its certificate says if that is not its address.
    pub(crate) fn config_at(&self, address: &Address, hostname: Option<&str>) -> Config {
        let server = server(address, hostname);
        Config { server: ServerConfig::Centralized { server }, ..self.0.template.clone() }
    }

    pub(crate) fn sentinel_at(&self, address: &Address) -> Config {
        let Sentinel { username, password, .. } = self.0.sentinel.clone();
        Config { username, password, database: None, ..self.config_at(address, None) }
    }

    /// A node of a cluster has a breaker and a budget of its own, under the client's name and its
    /// address. `None` is the client's.
    pub(crate) fn policy_of(&self, address: &Address) -> Option<Policy> {
        let builder = self.0.policy.clone()?;
        builder.name(format!("{}@{address}", self.0.name)).build().ok()
    }
}

#[cfg(not(feature = "tls"))]
fn server(address: &Address, _: Option<&str>) -> Server {
    Server::new(address.host.as_str(), address.port)
}

#[cfg(feature = "tls")]
fn server(address: &Address, hostname: Option<&str>) -> Server {
    let mut server = Server::new(address.host.as_str(), address.port);
    server.tls_server_name = hostname.map(Into::into);
    server
}

impl Parsed {
    /// With what TLS needs, and the policy that the nodes' are copies of.
    pub(super) fn into_target(
        self,
        set_up: impl FnOnce(&mut Config),
        policy: PolicyBuilder,
        name: &str,
    ) -> Target {
        let mut inner = self.inner;
        set_up(&mut inner.template);
        inner.policy = Some(policy);
        name.clone_into(&mut inner.name);
        Target(Arc::new(inner))
    }
}

fn refuse(problem: impl fmt::Display) -> Error {
    Error::invalid(format!("redis: {problem}; {ALLOWED}"))
}

/// The URL may hold a password, so nothing but a scheme or the name of a parameter is ever shown.
pub(super) fn parse(url: &str) -> Result<Parsed, Error> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(refuse("the URL has no scheme"));
    };
    let (tls, topology) = match scheme {
        "redis" | "valkey" => (false, Topology::One),
        "rediss" | "valkeys" => (true, Topology::One),
        "redis-cluster" | "valkey-cluster" => (false, Topology::Cluster),
        "rediss-cluster" | "valkeys-cluster" => (true, Topology::Cluster),
        "redis-sentinel" | "valkey-sentinel" => (false, Topology::Sentinel),
        "rediss-sentinel" | "valkeys-sentinel" => (true, Topology::Sentinel),
        _ => {
            let plain = scheme.len() <= 16 && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
            let shown = if plain { format!("`{scheme}`") } else { "unknown".to_owned() };
            return Err(refuse(format_args!("the URL's scheme is {shown}")));
        }
    };
    if tls && !cfg!(feature = "tls") {
        return Err(Error::invalid(format!(
            "redis: the URL's scheme is `{scheme}`, which needs feature `tls` of mainstay-redis"
        )));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or_default();
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    let port = if topology == Topology::Sentinel { 26_379 } else { 6_379 };
    // The first host may be a list of them, as other clients write it.
    let mut seeds = Vec::new();
    for host in hosts.split(',') {
        seeds.push(
            address(host, port)
                .ok_or_else(|| refuse("a host or port in the URL cannot be read"))?,
        );
    }
    // The rest is the driver's to read, for one server.
    let user = &authority[..authority.len() - hosts.len()];
    let path = &rest[authority.len()..];
    let template =
        Config::from_url(&format!("redis://{user}host{path}")).map_err(|_| refuse(UNREADABLE))?;
    let mut parsed = Parsed {
        inner: Inner {
            topology,
            seeds,
            template,
            sentinel: Sentinel::default(),
            policy: None,
            name: String::new(),
        },
        tls,
        authorities: None,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        parsed.set(name, &decoded(value)?, port)?;
    }
    parsed.check()
}

impl Parsed {
    fn set(&mut self, name: &str, value: &str, port: u16) -> Result<(), Error> {
        let inner = &mut self.inner;
        let of_sentinels = || {
            if inner.topology == Topology::Sentinel {
                Ok(())
            } else {
                Err(refuse(format_args!("`{name}` is for redis-sentinel URLs")))
            }
        };
        match name {
            "node" if inner.topology != Topology::One => {
                let node = address(value, port);
                inner.seeds.push(node.ok_or_else(|| refuse("a `node` of the URL cannot be read"))?);
            }
            "sentinelServiceName" => {
                of_sentinels()?;
                value.clone_into(&mut inner.sentinel.service);
            }
            "sentinelUsername" => {
                of_sentinels()?;
                inner.sentinel.username = Some(value.to_owned());
            }
            "sentinelPassword" => {
                of_sentinels()?;
                inner.sentinel.password = Some(value.to_owned());
            }
            "ssl_ca_certs" if self.tls => self.authorities = Some(value.to_owned()),
            "ssl_ca_certs" => {
                return Err(refuse("`ssl_ca_certs` in a URL without TLS; write rediss"));
            }
            "ssl_cert_reqs" | "insecure" | "insecure_skip_verify" => {
                return Err(Error::invalid(
                    "redis: certificates are always verified; for one of your own, name the \
                     authority with `ssl_ca_certs=/path/to/ca.pem` or RedisClientBuilder's \
                     `trust_only`",
                ));
            }
            _ => {
                // Its name is not shown: it may be half a password with a question mark in it.
                return Err(Error::invalid(
                    "redis: the URL has a parameter that is not known here; allowed: node \
                     (cluster and sentinel), sentinelServiceName, sentinelUsername, \
                     sentinelPassword (sentinel), ssl_ca_certs (TLS); in a password, write ? as \
                     %3F and / as %2F",
                ));
            }
        }
        Ok(())
    }

    fn check(self) -> Result<Self, Error> {
        let inner = &self.inner;
        if inner.topology == Topology::One && inner.seeds.len() > 1 {
            return Err(refuse("the URL has several hosts, but redis:// is for one server"));
        }
        if inner.topology == Topology::Sentinel && inner.sentinel.service.is_empty() {
            return Err(Error::invalid(
                "redis: the URL names no service; add ?sentinelServiceName= and the name that \
                 the sentinels know the master by, often mymaster",
            ));
        }
        if inner.topology == Topology::Cluster && inner.template.database.is_some_and(|n| n != 0) {
            return Err(Error::invalid(
                "redis: a cluster has no database but 0; leave the number out of the URL",
            ));
        }
        Ok(self)
    }
}

/// `host`, `host:port` or `[::1]:port`.
fn address(text: &str, port: u16) -> Option<Address> {
    let (host, number) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, number)) => (host, Some(number)),
            None => (text, None),
        },
    };
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if host.is_empty() || !host.bytes().all(known) {
        return None;
    }
    let port = number.map_or(Some(port), |number| number.parse().ok().filter(|n| *n != 0))?;
    Some(Address { host: host.to_owned(), port })
}

fn decoded(value: &str) -> Result<String, Error> {
    let text = percent_decode_str(value).decode_utf8();
    text.map(Into::into).map_err(|_| refuse("a parameter of the URL is not UTF-8 text"))
}
