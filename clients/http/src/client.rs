//! The client: cheap to clone, one base URL, one breaker for its origin.

use crate::{base_url::BaseUrl, request::Request};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mainstay_policy::{
    ConfigError, Error, Kind, PerRuntime, Policy, PolicyBuilder, Singletons, settings,
};
use std::{fmt, sync::Arc, time::Duration};

/// DNS, TCP and TLS together; below any attempt timeout, so that "never sent" stays known.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Servers often close idle connections at 60 s or more.
const IDLE: Duration = Duration::from_secs(50);
const MAX_BODY: usize = 16 * 1024 * 1024;
const MAX_REDIRECTS: usize = 5;

tokio::task_local! {
    /// Whether the request being sent may be redirected. After a redirect, "never sent" would be
    /// true of the second hop only, while the first may have done the work: so a request that must
    /// not be repeated is not redirected. Unset means no.
    pub(crate) static FOLLOW: bool;
}

struct Inner {
    base: BaseUrl,
    headers: HeaderMap,
    max_body: usize,
    policy: Policy,
    drivers: PerRuntime<Option<reqwest::Client>>,
}

/// An HTTP client for one base URL; clones share everything.
#[derive(Clone)]
pub struct HttpClient(Arc<Inner>);

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").field("policy", &self.0.policy.name()).finish_non_exhaustive()
    }
}

impl HttpClient {
    /// A builder for this base URL.
    pub fn builder(base_url: &str) -> HttpClientBuilder {
        HttpClientBuilder {
            base_url: base_url.to_owned(),
            headers: Vec::new(),
            max_body: MAX_BODY,
            policy: None,
        }
    }

    /// A GET of a path below the base URL.
    pub fn get(&self, path: &str) -> Request {
        Request::new(self.clone(), Method::GET, path)
    }

    /// A HEAD of a path below the base URL.
    pub fn head(&self, path: &str) -> Request {
        Request::new(self.clone(), Method::HEAD, path)
    }

    /// A POST to a path below the base URL; see the crate's page for when it is repeated.
    pub fn post(&self, path: &str) -> Request {
        Request::new(self.clone(), Method::POST, path)
    }

    /// A PUT to a path below the base URL.
    pub fn put(&self, path: &str) -> Request {
        Request::new(self.clone(), Method::PUT, path)
    }

    /// A PATCH of a path below the base URL; repeated as POST is.
    pub fn patch(&self, path: &str) -> Request {
        Request::new(self.clone(), Method::PATCH, path)
    }

    /// A DELETE of a path below the base URL.
    pub fn delete(&self, path: &str) -> Request {
        Request::new(self.clone(), Method::DELETE, path)
    }

    /// The policy of this origin.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    pub(crate) fn base(&self) -> &BaseUrl {
        &self.0.base
    }

    pub(crate) fn max_body(&self) -> usize {
        self.0.max_body
    }

    /// The driver of the current runtime: its connections die with the runtime. Used directly, it
    /// follows no redirect.
    ///
    /// # Errors
    /// When called outside a tokio runtime, or when the platform's TLS cannot be set up.
    pub fn reqwest(&self) -> Result<reqwest::Client, Error> {
        let inner = &self.0;
        inner
            .drivers
            .get_or_init(|| driver(inner.headers.clone()))
            .ok_or_else(|| Error::invalid("an HTTP call needs a tokio runtime around it"))?
            .ok_or_else(|| Error::invalid("TLS could not be set up; check the system's CA store"))
    }
}

fn driver(headers: HeaderMap) -> Option<reqwest::Client> {
    let same_origin = reqwest::redirect::Policy::custom(|attempt| {
        let stays =
            attempt.previous().last().map(reqwest::Url::origin) == Some(attempt.url().origin());
        let follow = FOLLOW.try_with(|follow| *follow).unwrap_or(false);
        // Otherwise the redirect itself is the answer; default headers stay on their origin.
        if !stays || !follow {
            attempt.stop()
        } else if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("too many redirects")
        } else {
            attempt.follow()
        }
    });
    reqwest::Client::builder()
        .default_headers(headers)
        .retry(reqwest::retry::never())
        .redirect(same_origin)
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE)
        .build()
        .ok()
}

/// Builds an [`HttpClient`].
#[must_use]
pub struct HttpClientBuilder {
    base_url: String,
    headers: Vec<(String, String)>,
    max_body: usize,
    policy: Option<PolicyBuilder>,
}

impl fmt::Debug for HttpClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClientBuilder").finish_non_exhaustive()
    }
}

impl HttpClientBuilder {
    /// A header of every request, such as `authorization`; never sent to another origin.
    pub fn default_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The longest body that is read, in bytes. Default: 16 MiB.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// The policy, in place of the settings'; its name is set to this origin's.
    pub fn policy(mut self, policy: PolicyBuilder) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Checks everything; does no I/O.
    ///
    /// # Errors
    /// A base URL, header or policy that cannot work, and what to write instead.
    pub fn build(self) -> Result<HttpClient, Error> {
        let base = BaseUrl::parse(&self.base_url)?;
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers {
            let parsed = (HeaderName::try_from(&name), HeaderValue::try_from(&value));
            let (Ok(name), Ok(mut value)) = parsed else {
                let what = "a default header holds characters that HTTP does not allow";
                return Err(Error::invalid(what));
            };
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let name = format!("http:{}", base.origin());
        let policy = match self.policy {
            Some(policy) => policy.name(name),
            None => settings()?.policy(Kind::Api, &name),
        };
        let (policy, max_body, drivers) = (policy.build()?, self.max_body, PerRuntime::new());
        Ok(HttpClient(Arc::new(Inner { base, headers, max_body, policy, drivers })))
    }
}

static DEFAULT: Singletons<HttpClient> = Singletons::new();
static BY_URL: Singletons<HttpClient> = Singletons::new();

/// The client of `MAINSTAY_HTTP_BASE_URL`; no I/O.
///
/// # Errors
/// When the setting is missing or cannot be used.
pub fn get_http_client() -> Result<HttpClient, Error> {
    DEFAULT.get_or_try_init("default", || match settings()?.connection("http", "base_url") {
        Some(base) => HttpClient::builder(&base).build(),
        None => Err(Error::config(ConfigError::new(vec![
            "MAINSTAY_HTTP_BASE_URL is not set; set it, or use get_http_client_for".to_owned(),
        ]))),
    })
}

/// The client of this base URL, built from settings on first use; no I/O.
///
/// # Errors
/// When the base URL or a setting cannot be used.
pub fn get_http_client_for(base_url: &str) -> Result<HttpClient, Error> {
    BY_URL.get_or_try_init(base_url, || HttpClient::builder(base_url).build())
}

/// Installs the client that [`get_http_client`] gives.
pub fn set_http_client(client: HttpClient) {
    DEFAULT.set("default", client);
}
