//! The client: cheap to clone, one base URL, one breaker for each origin.

use crate::{
    base_url::BaseUrl,
    builder::HttpClientBuilder,
    driver::{Connections, Driver},
    pace::Pace,
    request::Request,
};
use http::{HeaderMap, HeaderName, Method};
use mainstay_policy::{Error, PerRuntime, Policy, PolicyBuilder};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// As many as the policy engine keeps breakers for.
const MOST_ORIGINS: usize = 1_024;

/// Asked once for each request; the value of `traceparent`.
pub(crate) type TraceSource = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// What every request of a client is told.
pub(crate) struct Options {
    /// In bytes.
    pub(crate) max_body: usize,
    pub(crate) body_idle: Duration,
    pub(crate) redirects_elsewhere: bool,
    pub(crate) absolute_urls: bool,
    pub(crate) slow_down: bool,
    pub(crate) deadline_header: Option<HeaderName>,
    pub(crate) trace: Option<TraceSource>,
}

/// Where drivers come from.
pub(crate) enum Drivers {
    /// Ours: one for each runtime, since connections die with the runtime that made them.
    Built(Box<Connections>, PerRuntime<Result<Driver, Arc<Error>>>),
    Given(Driver),
}

pub(crate) struct Inner {
    pub(crate) base: Option<BaseUrl>,
    /// Of every request to the base's origin, and to no other.
    pub(crate) headers: HeaderMap,
    pub(crate) options: Options,
    pub(crate) policy: Policy,
    pub(crate) pace: Arc<Pace>,
    /// For the origins that only absolute URLs name.
    pub(crate) origin_policy: PolicyBuilder,
    pub(crate) origins: Mutex<HashMap<String, (Policy, Arc<Pace>)>>,
    pub(crate) drivers: Drivers,
}

/// An HTTP client for one base URL; clones share everything.
///
/// # Examples
/// ```no_run
/// # async fn main_() -> Result<(), mainstay_policy::Error> {
/// use mainstay_http::HttpClient;
///
/// let api = HttpClient::builder("https://api.example.com/v1").bearer_auth("t0ken").build()?;
/// let page = api.get("users").query(&[("page", 2)]).await?.error_for_status()?;
/// let names: Vec<String> = page.json()?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct HttpClient(pub(crate) Arc<Inner>);

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient").field("policy", &self.0.policy.name()).finish_non_exhaustive()
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident: $method:ident;)*) => {
        impl HttpClient {
            $(
                $(#[$doc])*
                pub fn $name(&self, path: &str) -> Request {
                    self.request(Method::$method, path)
                }
            )*
        }
    };
}

methods! {
    /// A GET of a path below the base URL.
    get: GET;
    /// A HEAD of a path below the base URL.
    head: HEAD;
    /// An OPTIONS of a path below the base URL.
    options: OPTIONS;
    /// A POST to a path below the base URL; see the crate's page for when it is repeated.
    post: POST;
    /// A PUT to a path below the base URL.
    put: PUT;
    /// A PATCH of a path below the base URL; repeated as POST is.
    patch: PATCH;
    /// A DELETE of a path below the base URL.
    delete: DELETE;
}

/// Somebody sends to its origin, or that asked to be left alone for a while, which a new one would not
/// know.
fn is_in_use(pace: &Arc<Pace>) -> bool {
    Arc::strong_count(pace) > 1 || pace.wait().is_some_and(|wait| !wait.is_zero())
}

impl HttpClient {
    /// A builder for this base URL: scheme, host, perhaps port and path. A user and password in it
    /// become an Authorization header, a query goes with every request.
    pub fn builder(base_url: &str) -> HttpClientBuilder {
        HttpClientBuilder::new(Some(base_url))
    }

    /// A builder for a client without a base URL, which takes absolute URLs only.
    pub fn builder_without_base() -> HttpClientBuilder {
        HttpClientBuilder::new(None)
    }

    /// A client over a reqwest client that exists, with the policy of the settings; use
    /// [`HttpClientBuilder::reqwest`] to say more.
    ///
    /// # Errors
    /// A base URL or settings that cannot be used.
    pub fn from_reqwest(base_url: &str, client: reqwest::Client) -> Result<Self, Error> {
        Self::builder(base_url).reqwest(client).build()
    }

    /// A request with any method. One that RFC 9110 does not know counts as a POST.
    pub fn request(&self, method: Method, path: &str) -> Request {
        Request::new(self.clone(), method, path)
    }

    /// The policy of the base URL's origin; without a base URL, the one that the policies of all
    /// origins are copies of, under the name `http`.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// How long a request to the base URL's origin would wait now, since the server asked for less
    /// load; `None` if it is just sent.
    #[must_use]
    pub fn slowed_for(&self) -> Option<Duration> {
        self.0.pace.wait()
    }

    /// The policy, and with it the breaker, and the pace of another origin.
    pub(crate) fn policy_of(&self, origin: &str) -> Result<(Policy, Arc<Pace>), Error> {
        let origins = || self.0.origins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = origins().get(origin) {
            return Ok(known.clone());
        }
        let policy = self.0.origin_policy.clone().name(format!("http:{origin}")).build()?;
        let pace = Pace::of(policy.name());
        let mut all = origins();
        if all.len() >= MOST_ORIGINS {
            // The breakers stay in the registry, by their names.
            let mut stays = false;
            all.retain(|_, (_, pace)| {
                is_in_use(pace) || {
                    stays = !stays;
                    stays
                }
            });
            if all.len() >= MOST_ORIGINS {
                all.clear();
            }
        }
        Ok(all.entry(origin.to_owned()).or_insert((policy, pace)).clone())
    }

    pub(crate) fn driver(&self) -> Result<Driver, Error> {
        match &self.0.drivers {
            Drivers::Given(driver) => Ok(driver.clone()),
            Drivers::Built(connections, per_runtime) => per_runtime
                .get_or_init(|| {
                    let client = connections.client(self.0.policy.timeout());
                    client.map(Driver::Reqwest).map_err(Arc::new)
                })
                .ok_or_else(|| Error::invalid("an HTTP call needs a tokio runtime around it"))?
                .map_err(|error| Error::invalid(error.to_string())),
        }
    }

    /// The driver of the current runtime: its connections die with the runtime. Used directly, it
    /// has none of the default headers, follows no redirect and repeats nothing.
    ///
    /// # Errors
    /// When called outside a tokio runtime, when TLS cannot be set up, or over a double.
    pub fn reqwest(&self) -> Result<reqwest::Client, Error> {
        match self.driver()? {
            Driver::Reqwest(client) => Ok(client),
            Driver::Double(_) => Err(Error::invalid("a test double stands in the driver's place")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HttpDouble, Reply};
    use mainstay_policy::Decider;

    #[test]
    fn who_asked_for_less_load_is_not_forgotten_for_others_that_come() {
        let _no_reset = crate::RESETS.lock();
        let double = HttpDouble::new(|r| match r.url.as_str() {
            "http://slow.example/" => Reply::status(429).with_header("retry-after", "30"),
            _ => Reply::status(200),
        });
        let client = HttpClient::builder_without_base().double(&double).build().unwrap();
        let slow = || client.get("http://slow.example/").deadline(Duration::from_secs(5));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            slow().await.unwrap_err();
            for n in 0..MOST_ORIGINS {
                client.get(&format!("http://tenant-{n}.example/")).await.unwrap();
            }
            assert_eq!(slow().await.unwrap_err().decider(), Some(Decider::Throttle));
        });
        let known = client.0.origins.lock().unwrap().len();
        assert!((MOST_ORIGINS / 2..=MOST_ORIGINS).contains(&known), "{known}");
    }
}
