//! What sends one request once: reqwest, or a test's double in its place.

use crate::{classify::HttpFailure, dns::CachedDns, double::HttpDouble};
use mainstay_policy::Error;
use std::{net::SocketAddr, time::Duration};

/// Sends a request, once, and follows no redirect.
#[derive(Clone)]
pub(crate) enum Driver {
    Reqwest(reqwest::Client),
    Double(HttpDouble),
}

impl Driver {
    /// The future does not hold the request, which is as large as everything else in it.
    pub(crate) fn execute(
        &self,
        request: reqwest::Request,
    ) -> impl Future<Output = Result<reqwest::Response, HttpFailure>> + Send {
        enum Sent<C, D> {
            Client(C),
            Double(D),
        }
        let sent = match self {
            Self::Reqwest(client) => Sent::Client(client.execute(request)),
            Self::Double(double) => Sent::Double(Box::pin(double.clone().execute(request))),
        };
        async move {
            match sent {
                Sent::Client(sent) => sent.await.map_err(HttpFailure::transport),
                Sent::Double(sent) => sent.await,
            }
        }
    }
}

/// How connections are made. A driver is built from it for each runtime.
#[derive(Clone)]
pub(crate) struct Connections {
    /// DNS, TCP and TLS together. `None`: [`CONNECT`], or less where an attempt may not take longer.
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) idle: Duration,
    pub(crate) most_idle: usize,
    pub(crate) http2_only: bool,
    pub(crate) compression: bool,
    pub(crate) dns: CachedDns,
    pub(crate) resolved: Vec<(String, SocketAddr)>,
    pub(crate) proxy: ProxyChoice,
    pub(crate) authorities: Vec<reqwest::Certificate>,
    pub(crate) only_these_authorities: bool,
    pub(crate) identity: Option<reqwest::Identity>,
}

#[derive(Clone)]
pub(crate) enum ProxyChoice {
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`.
    Environment,
    None,
    These(Vec<reqwest::Proxy>),
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            connect_timeout: None,
            // Servers often close idle connections at 60 s or more.
            idle: Duration::from_secs(50),
            most_idle: 64,
            http2_only: false,
            compression: true,
            dns: CachedDns::new(Duration::from_secs(10)),
            resolved: Vec::new(),
            proxy: ProxyChoice::Environment,
            authorities: Vec::new(),
            only_these_authorities: false,
            identity: None,
        }
    }
}

const CONNECT: Duration = Duration::from_secs(3);

impl Connections {
    /// `attempt` is how long one may take.
    pub(crate) fn client(&self, attempt: Option<Duration>) -> Result<reqwest::Client, Error> {
        // What a dead connection of HTTP/2 costs: all requests are on it.
        const PING: Duration = Duration::from_secs(15);
        const PONG: Duration = Duration::from_secs(5);
        let connect_timeout = self.connect_timeout.unwrap_or_else(|| {
            // Below the attempt's, so that "never sent" stays known.
            attempt.map_or(CONNECT, |attempt| CONNECT.min(attempt / 4 * 3))
        });
        let mut builder = reqwest::Client::builder()
            .retry(reqwest::retry::never())
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(connect_timeout)
            .pool_idle_timeout(self.idle)
            .pool_max_idle_per_host(self.most_idle)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PONG)
            .gzip(self.compression)
            .brotli(self.compression)
            .zstd(self.compression)
            .dns_resolver(self.dns.within(connect_timeout));
        for (host, address) in &self.resolved {
            builder = builder.resolve(host, *address);
        }
        if self.http2_only {
            builder = builder.http2_prior_knowledge();
        }
        match &self.proxy {
            ProxyChoice::Environment => {}
            ProxyChoice::None => builder = builder.no_proxy(),
            ProxyChoice::These(proxies) => {
                builder = proxies.iter().cloned().fold(builder, reqwest::ClientBuilder::proxy);
            }
        }
        let authorities = self.authorities.iter().cloned();
        builder = if self.only_these_authorities {
            builder.tls_certs_only(authorities)
        } else {
            builder.tls_certs_merge(authorities)
        };
        if let Some(identity) = &self.identity {
            builder = builder.identity(identity.clone());
        }
        let what =
            "TLS could not be set up; check the system's CA store, and the certificates given";
        builder.build().map_err(|_| Error::invalid(what))
    }
}
