//! From what the user says to a checked client.

use crate::{
    base_url::{self, BaseUrl},
    client::{Drivers, HttpClient, Inner, Options, TraceSource},
    double::HttpDouble,
    driver::{Connections, Driver, ProxyChoice},
    pace::Pace,
    trace,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use mainstay_policy::{Error, Kind, PerRuntime, PolicyBuilder, settings};
use std::{fmt, net::SocketAddr, path::Path, sync::Arc, time::Duration};

type ChangePolicy = Box<dyn FnOnce(PolicyBuilder) -> PolicyBuilder + Send>;

/// Builds an [`HttpClient`]. What cannot work is an error of [`Self::build`], not of a setter.
#[must_use]
pub struct HttpClientBuilder {
    base_url: Option<String>,
    name: Option<String>,
    headers: HeaderMap,
    options: Options,
    connections: Connections,
    given: Option<Driver>,
    policy: Option<ChangePolicy>,
    /// The first one; the rest is built as if it had worked.
    problem: Option<String>,
}

/// "For ever" as a limit that can be added to a time.
const fn bounded(limit: Duration) -> Duration {
    const DECADE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
    if limit.as_secs() < DECADE.as_secs() { limit } else { DECADE }
}

impl fmt::Debug for HttpClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClientBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl HttpClientBuilder {
    pub(crate) fn new(base_url: Option<&str>) -> Self {
        Self {
            base_url: base_url.map(str::to_owned),
            name: None,
            headers: HeaderMap::new(),
            options: Options {
                max_body: 16 * 1024 * 1024,
                body_idle: Duration::from_secs(30),
                redirects_elsewhere: false,
                absolute_urls: base_url.is_none(),
                slow_down: true,
                deadline_header: None,
                trace: None,
            },
            connections: Connections::default(),
            given: None,
            policy: None,
            problem: None,
        }
    }

    fn refuse(mut self, problem: impl Into<String>) -> Self {
        self.problem.get_or_insert(problem.into());
        self
    }

    fn secret(mut self, name: HeaderName, value: Option<HeaderValue>) -> Self {
        let Some(mut value) = value else {
            return self.refuse(format!(
                "the default header {name} holds characters that HTTP forbids, such as a line break"
            ));
        };
        value.set_sensitive(true);
        self.headers.insert(name, value);
        self
    }

    /// A name of its own: breaker and budget are then those of `http:{name}`, not of the origin.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// A header of every request, such as `x-api-key`; never sent to another origin.
    pub fn default_header(self, name: &str, value: &str) -> Self {
        match HeaderName::try_from(name) {
            Ok(name) => self.secret(name, HeaderValue::try_from(value).ok()),
            Err(_) => {
                self.refuse("the name of a default header holds characters that HTTP forbids")
            }
        }
    }

    /// `Authorization: Bearer ...` in every request; never sent to another origin.
    pub fn bearer_auth(self, token: &str) -> Self {
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        self.secret(header::AUTHORIZATION, value.ok())
    }

    /// `Authorization: Basic ...` in every request; never sent to another origin.
    pub fn basic_auth(self, user: &str, password: &str) -> Self {
        let value = base_url::basic(user.as_bytes(), password.as_bytes());
        self.secret(header::AUTHORIZATION, value)
    }

    /// The longest body that is read, in bytes after decompression. Default: 16 MiB. A body from
    /// [`Request::stream`](crate::Request::stream) has no limit unless the request sets one.
    pub const fn max_body(mut self, bytes: usize) -> Self {
        self.options.max_body = bytes;
        self
    }

    /// How long the next piece of a body may take. Default: 30 s.
    pub const fn body_idle(mut self, limit: Duration) -> Self {
        self.options.body_idle = bounded(limit);
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

    /// Takes absolute URLs in a path's place: each origin has a breaker of its own, and another than
    /// the base's gets none of the default headers. Default: refused, so that a path from elsewhere
    /// cannot choose the host.
    pub const fn allow_absolute_urls(mut self) -> Self {
        self.options.absolute_urls = true;
        self
    }

    /// Follows redirects to other origins too, though never from https to http, and without the
    /// default headers, Authorization and Cookie, nor what a request sends in their place. An answer
    /// there, or a connection or body that breaks, does not count against the server that sent us
    /// there; an attempt that runs out of time does. Default: such a redirect is the response.
    pub const fn follow_redirects_elsewhere(mut self) -> Self {
        self.options.redirects_elsewhere = true;
        self
    }

    /// Does not hold requests back when the server asks for less load: each call then heeds only what
    /// it was told itself. Default: every request to that origin slows down.
    pub const fn without_slow_down(mut self) -> Self {
        self.options.slow_down = false;
        self
    }

    /// A header in which each attempt tells the server how many milliseconds are left for it, such
    /// as `x-request-timeout-ms`, so that it stops working for a caller who has gone. Default: none.
    pub fn deadline_header(mut self, name: &str) -> Self {
        match HeaderName::try_from(name) {
            Ok(name) => self.options.deadline_header = Some(name),
            Err(_) => return self.refuse("the deadline header's name is not one that HTTP allows"),
        }
        self
    }

    /// Sends a W3C `traceparent` with every request: what `current` gives, such as the span of an
    /// OpenTelemetry context, or a new trace where it gives `None` or no `traceparent`. All attempts
    /// of a request carry the same one. Default: none.
    ///
    /// # Examples
    /// ```
    /// # fn main_() -> Result<(), mainstay_policy::Error> {
    /// let api = mainstay_http::HttpClient::builder("https://api.example.com")
    ///     .trace_context(|| None) // every request begins a trace
    ///     .build()?;
    /// # Ok(()) }
    /// ```
    pub fn trace_context(
        mut self,
        current: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let source: TraceSource = Arc::new(move || {
            let current = current().filter(|value| trace::is_valid(value));
            Some(current.unwrap_or_else(trace::new_traceparent))
        });
        self.options.trace = Some(source);
        self
    }

    /// How long a connection may take to be made: DNS, TCP and TLS together. Default: 3 s, or three
    /// quarters of the policy's attempt timeout if that is less. Keep it below that, and below
    /// [`Request::timeout`](crate::Request::timeout), or a connection that hangs counts as "perhaps
    /// sent". It stays what it was at the first request when a reload changes the policy's timeout.
    pub const fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connections.connect_timeout = Some(limit);
        self
    }

    /// How long a connection without a request is kept, and how many for each host. Default: 50 s,
    /// since servers often close them after 60 s, and 64.
    pub const fn keep_idle(mut self, limit: Duration, most: usize) -> Self {
        self.connections.idle = bounded(limit);
        self.connections.most_idle = most;
        self
    }

    /// How long an address that was looked up is used before it is looked up again; it also stands
    /// in when that fails, or takes longer than half a second, or than half of the time to connect.
    /// After 30 s without an answer it is looked up anew. Default: 10 s.
    pub fn keep_dns(mut self, limit: Duration) -> Self {
        self.connections.dns = crate::dns::CachedDns::new(limit);
        self
    }

    /// Connects to this address for this host, without a lookup. The port is the URL's.
    pub fn resolve(mut self, host: &str, address: SocketAddr) -> Self {
        self.connections.resolved.push((host.to_owned(), address));
        self
    }

    /// Speaks HTTP/2 from the first byte, also without TLS. Default: HTTP/2 where a TLS server
    /// offers it, else HTTP/1.1.
    pub const fn http2_only(mut self) -> Self {
        self.connections.http2_only = true;
        self
    }

    /// Asks for no compressed answers. Default: gzip, brotli and zstd are asked for and undone.
    pub const fn without_compression(mut self) -> Self {
        self.connections.compression = false;
        self
    }

    /// Sends all requests through this proxy, `http://[user:password@]host:port`. Default: what
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    pub fn proxy(mut self, url: &str) -> Self {
        // The driver would go past one of another scheme, without a word.
        let http = url.split_once("://").is_none_or(|(scheme, _)| {
            ["http", "https"].iter().any(|http| scheme.eq_ignore_ascii_case(http))
        });
        let Some(proxy) = reqwest::Proxy::all(url).ok().filter(|_| http) else {
            return self.refuse("the proxy's URL cannot be used; write it as http://host:port");
        };
        match &mut self.connections.proxy {
            ProxyChoice::These(proxies) => proxies.push(proxy),
            other => *other = ProxyChoice::These(vec![proxy]),
        }
        self
    }

    /// Uses no proxy, whatever the environment says.
    pub fn without_proxy(mut self) -> Self {
        self.connections.proxy = ProxyChoice::None;
        self
    }

    /// Trusts these authorities beside the system's: certificates in PEM.
    pub fn ca_certificates(mut self, pem: &[u8]) -> Self {
        match reqwest::Certificate::from_pem_bundle(pem) {
            Ok(found) if !found.is_empty() => self.connections.authorities.extend(found),
            _ => return self.refuse("the CA certificates hold no certificate in PEM"),
        }
        self
    }

    /// [`Self::ca_certificates`] from a file, which is read now.
    pub fn ca_file(self, path: impl AsRef<Path>) -> Self {
        match std::fs::read(path.as_ref()) {
            Ok(pem) => self.ca_certificates(&pem),
            Err(error) => {
                let path = path.as_ref().display();
                self.refuse(format!("the CA file {path} cannot be read: {}", error.kind()))
            }
        }
    }

    /// Trusts only the authorities of [`Self::ca_certificates`], not the system's.
    pub const fn only_these_authorities(mut self) -> Self {
        self.connections.only_these_authorities = true;
        self
    }

    /// Shows this certificate to servers that ask for one (mTLS): its chain and its private key, in
    /// PEM.
    pub fn client_certificate(mut self, pem: &[u8]) -> Self {
        match reqwest::Identity::from_pem(pem) {
            Ok(identity) => self.connections.identity = Some(identity),
            Err(_) => {
                return self.refuse(
                    "the client certificate is not a certificate and an unencrypted private key \
                     in PEM",
                );
            }
        }
        self
    }

    /// Uses this reqwest client in place of one of ours. Its connections belong to the runtime that
    /// made them, its connection settings are its own, and what it repeats, redirects or adds to
    /// requests is out of our sight: build it with `retry::never()`, `redirect::Policy::none()` and
    /// without default headers or a timeout.
    pub fn reqwest(mut self, client: reqwest::Client) -> Self {
        self.given = Some(Driver::Reqwest(client));
        self
    }

    /// Puts a test's double in the place of the network.
    pub fn double(mut self, double: &HttpDouble) -> Self {
        self.given = Some(Driver::Double(double.clone()));
        self
    }

    /// Checks everything; does no I/O.
    ///
    /// # Errors
    /// A base URL, header, certificate, setting or policy that cannot work, and what to write
    /// instead; never a value that may be secret.
    pub fn build(mut self) -> Result<HttpClient, Error> {
        if let Some(problem) = self.problem {
            return Err(Error::invalid(format!("the HTTP client: {problem}")));
        }
        let base = match &self.base_url {
            Some(text) => {
                let (base, authorization) = BaseUrl::parse(text)?;
                if let Some(value) = authorization {
                    self.headers.entry(header::AUTHORIZATION).or_insert(value);
                }
                Some(base)
            }
            None => None,
        };
        if self.connections.only_these_authorities && self.connections.authorities.is_empty() {
            let what =
                "the HTTP client: only_these_authorities() without any; give ca_certificates";
            return Err(Error::invalid(what));
        }
        let name = match (&self.name, &base) {
            (Some(name), _) => format!("http:{name}"),
            (None, Some(base)) => format!("http:{}", base.origin()),
            (None, None) => "http".to_owned(),
        };
        let mut origin_policy = settings()?.policy(Kind::Api, &name);
        if let Some(change) = self.policy {
            origin_policy = change(origin_policy);
        }
        let policy = origin_policy.clone().name(name).build()?;
        let drivers = match self.given {
            Some(driver) => Drivers::Given(driver),
            None => Drivers::Built(Box::new(self.connections), PerRuntime::new()),
        };
        Ok(HttpClient(Arc::new(Inner {
            base,
            headers: self.headers,
            options: self.options,
            pace: Pace::of(policy.name()),
            policy,
            origin_policy,
            origins: std::sync::Mutex::default(),
            drivers,
        })))
    }
}
