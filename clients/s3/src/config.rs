//! The builder, and the SDK's settings: one attempt per attempt, one pool per runtime.

use crate::{
    Checksums, S3Client,
    client::{Driver, Link},
    credentials::Remembered,
};
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_s3::{
    Client,
    config::{
        self, BehaviorVersion, Config, Credentials, IdentityCache, Region,
        RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
        StalledStreamProtectionConfig,
        retry::{ReconnectMode, RetryConfig},
        timeout::TimeoutConfig,
    },
};
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, rustls_provider::CryptoMode},
};
use http::Uri;
use mainstay_policy::{
    ConfigError, Error, Kind, PerRuntime, Policy, PolicyBuilder, Settings, settings,
};
use std::{env, fmt, time::Duration};

/// DNS, TCP and TLS together; three quarters of an attempt's time, if that is less, so that "never sent" stays known.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Servers often close idle connections at 60 s or more.
const IDLE: Duration = Duration::from_secs(50);

type Tune = Box<dyn FnOnce(PolicyBuilder) -> PolicyBuilder + Send>;

/// Builds an [`S3Client`].
#[derive(Default)]
#[must_use]
pub struct S3ClientBuilder {
    name: Option<String>,
    endpoint_url: Option<String>,
    region: Option<String>,
    bucket: Option<String>,
    signing: Signing,
    session_token: Option<String>,
    addressing: Option<Addressing>,
    checksums: Checksums,
    sdk: Option<Client>,
    tune: Option<Tune>,
}

#[derive(Clone, Default)]
enum Signing {
    #[default]
    Chain,
    Keys {
        access: String,
        secret: String,
    },
    Provider(SharedCredentialsProvider),
    Anonymous,
}

/// Where a bucket's name goes in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Addressing {
    /// Into the path: `https://host/bucket/key`.
    Path,
    /// Into the host's name: `https://bucket.host/key`. The store's name has to resolve with it.
    VirtualHost,
}

impl fmt::Debug for S3ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3ClientBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl S3ClientBuilder {
    /// A name of its own: breaker and budget are then those of `s3:{name}`, not of the endpoint. For clients of one
    /// store with credentials of their own, which may be refused for the one and not for the other.
    ///
    /// Where settings name a store for it (`MAINSTAY_S3_{NAME}_ENDPOINT_URL` or `.._REGION`), those take the place
    /// of the settings without a name, of which it takes none then.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// A store other than AWS, such as `http://127.0.0.1:9000`. Default: `MAINSTAY_S3_ENDPOINT_URL`, or that of its
    /// [name](Self::name), `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, else AWS itself.
    pub fn endpoint_url(mut self, url: impl Into<String>) -> Self {
        self.endpoint_url = Some(url.into());
        self
    }

    /// Where the bucket's name goes. Default: into the path of a store with an endpoint URL, into
    /// the host's name of AWS.
    pub fn addressing(mut self, addressing: Addressing) -> Self {
        self.addressing = Some(addressing);
        self
    }

    /// The region. Default: `MAINSTAY_S3_REGION`, or that of its [name](Self::name), `AWS_REGION`,
    /// `AWS_DEFAULT_REGION`, else `us-east-1` if there is an endpoint URL. An endpoint of the
    /// settings holds beside a region from code, as `AWS_ENDPOINT_URL` does.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Access key and secret. Default: the SDK's chain (environment, profile, web identity,
    /// container, EC2), searched on first use for at most 5 s; a failed search is remembered for
    /// 10 s. What was found before is used until it expires.
    pub fn credentials(mut self, access: impl Into<String>, secret: impl Into<String>) -> Self {
        self.signing = Signing::Keys { access: access.into(), secret: secret.into() };
        self
    }

    /// The session token that goes with temporary [`Self::credentials`]. They end with the session:
    /// use [`Self::credentials_provider`] for those that are renewed.
    pub fn session_token(mut self, token: impl Into<String>) -> Self {
        self.session_token = Some(token.into());
        self
    }

    /// Where credentials come from, in place of the chain: asked on first use and when they expire,
    /// or when the store says that they have.
    pub fn credentials_provider(mut self, provider: impl ProvideCredentials + 'static) -> Self {
        self.signing = Signing::Provider(SharedCredentialsProvider::new(provider));
        self
    }

    /// Sends every request unsigned, for public buckets.
    pub fn anonymous(mut self) -> Self {
        self.signing = Signing::Anonymous;
        self
    }

    /// The bucket that [`S3Client::health_check`] asks for. Default: `MAINSTAY_S3_{NAME}_BUCKET` for a client with a
    /// [name](Self::name), else `MAINSTAY_S3_BUCKET` if code gives neither endpoint nor region: it is one of the
    /// store that settings name.
    pub fn bucket(mut self, bucket: impl Into<String>) -> Self {
        self.bucket = Some(bucket.into());
        self
    }

    /// Whether requests carry checksums and answers are compared with them. Default: on. Some stores that
    /// are not Amazon's refuse them: then off, which leaves lengths and TLS to guard the bytes.
    pub fn checksums(mut self, checksums: Checksums) -> Self {
        self.checksums = checksums;
        self
    }

    /// Changes the policy that the settings give.
    pub fn policy(
        mut self,
        tune: impl FnOnce(PolicyBuilder) -> PolicyBuilder + Send + 'static,
    ) -> Self {
        self.tune = Some(Box::new(tune));
        self
    }

    /// A client of the SDK to send through, with its retries switched off. Its own endpoint,
    /// region, credentials and timeouts stay; [`Self::endpoint_url`] then only names the breaker. Settings of a store
    /// are not read.
    pub fn sdk(mut self, sdk: Client) -> Self {
        self.sdk = Some(sdk);
        self
    }

    /// Checks everything; does no I/O.
    ///
    /// # Errors
    /// An endpoint, region or policy that cannot work, and what to write instead.
    pub fn build(self) -> Result<S3Client, Error> {
        let settings = settings()?;
        let set = match self.sdk {
            Some(_) => Store::default(),
            None => Store::read(&settings, self.name.as_deref()),
        };
        let adopted = self.sdk.is_some();
        let is_set_here = self.endpoint_url.is_some() || self.region.is_some();
        let endpoint = self.endpoint_url.or(set.endpoint_url).or_else(|| {
            let from_env =
                || environment("AWS_ENDPOINT_URL_S3").or(environment("AWS_ENDPOINT_URL"));
            if adopted { None } else { from_env() }
        });
        let of_sdk = self.sdk.as_ref().and_then(|sdk| sdk.config().region().cloned());
        let region = self.region.or(set.region).map(Region::new).or(of_sdk).or_else(|| {
            let named = environment("AWS_REGION").or(environment("AWS_DEFAULT_REGION"));
            named.or(endpoint.is_some().then(|| "us-east-1".to_owned())).map(Region::new)
        });
        let Some(region) = region else {
            let [region, url] = ["region", "endpoint_url"].map(|key| settings.variable("s3", key));
            return Err(Error::config(ConfigError::new(vec![format!(
                "there is neither region nor endpoint for S3; set {region} or AWS_REGION, or {url} for a \
                 store of your own"
            )])));
        };
        let shared = set.bucket.filter(|_| !is_set_here);
        let bucket = self.bucket.or(set.own_bucket).or(shared);
        let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if region.as_ref().is_empty() || !region.as_ref().bytes().all(valid) {
            return Err(Error::invalid(
                "the S3 region holds other than letters, digits and `-`; write it as eu-central-1",
            ));
        }
        let signing = self.signing.with(self.session_token)?;
        let endpoint_name = match &endpoint {
            Some(url) => origin(url)?,
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        let name = format!("s3:{}", self.name.unwrap_or(endpoint_name));
        let policy = settings.policy(Kind::File, &name);
        let policy = match self.tune {
            Some(tune) => tune(policy).name(name),
            None => policy,
        };
        let driver = match self.sdk {
            Some(sdk) => {
                let config = sdk.config().to_builder().retry_config(retries());
                Driver::Given(Client::from_conf(with(self.checksums, config).build()))
            }
            None => {
                let (addressing, checksums) = (self.addressing, self.checksums);
                let connection = Connection { endpoint, region, signing, addressing, checksums };
                Driver::Own { connection, links: PerRuntime::new() }
            }
        };
        S3Client::new(driver, bucket, policy, self.checksums)
    }
}

impl Signing {
    /// # Errors
    /// Credentials that no store can accept.
    fn with(self, session_token: Option<String>) -> Result<Signature, Error> {
        let (access, secret) = match self {
            Self::Keys { access, secret } => (access, secret),
            _ if session_token.is_some() => {
                return Err(Error::invalid(
                    "a session token was given without credentials; give access key and secret too",
                ));
            }
            Self::Chain => return Ok(Signature::Chain),
            Self::Provider(provider) => return Ok(Signature::Provider(provider)),
            Self::Anonymous => return Ok(Signature::None),
        };
        for (what, value) in [
            ("access key", Some(&access)),
            ("secret", Some(&secret)),
            ("session token", session_token.as_ref()),
        ] {
            // They become headers; a line break comes from a file that was read whole.
            if value.is_some_and(|v| v.is_empty() || !v.bytes().all(|b| b.is_ascii_graphic())) {
                return Err(Error::invalid(format!(
                    "the S3 {what} is empty or holds spaces or line breaks; give it as it was issued"
                )));
            }
        }
        Ok(Signature::Keys(Credentials::new(access, secret, session_token, None, "mainstay")))
    }
}

/// The store that file and environment name.
#[derive(Default)]
struct Store {
    endpoint_url: Option<String>,
    region: Option<String>,
    bucket: Option<String>,
    /// Of the client's name.
    own_bucket: Option<String>,
}

impl Store {
    /// That of this name, if there is one, else that of all. Never some of each: a region of AWS with the endpoint
    /// of another store would be neither.
    fn read(settings: &Settings, name: Option<&str>) -> Self {
        let get = |key: &str| settings.connection("s3", key);
        let own = |key| name.and_then(|name| get(&Settings::own_key(name, key)));
        let own_bucket = own("bucket");
        match (own("endpoint_url"), own("region")) {
            (None, None) => Self {
                endpoint_url: get("endpoint_url"),
                region: get("region"),
                bucket: get("bucket"),
                own_bucket,
            },
            (endpoint_url, region) => Self { endpoint_url, region, bucket: None, own_bucket },
        }
    }
}

fn environment(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Scheme, host and port; never what may be a credential.
fn origin(url: &str) -> Result<String, Error> {
    let invalid = |why| {
        Error::invalid(format!(
            "the S3 endpoint URL {why}; write it as https://host or http://host:port"
        ))
    };
    let uri: Uri = url.parse().map_err(|_| invalid("is not a URL"))?;
    let scheme = match uri.scheme_str() {
        Some(scheme @ ("http" | "https")) => scheme,
        _ => return Err(invalid("does not begin with http:// or https://")),
    };
    match uri.authority() {
        Some(a) if a.as_str().contains('@') => Err(invalid("holds credentials")),
        Some(a) if !a.host().is_empty() => Ok(format!("{scheme}://{a}")),
        _ => Err(invalid("has no host")),
    }
}

fn retries() -> RetryConfig {
    // By default the SDK drops the connection after each transient error.
    RetryConfig::disabled().with_reconnect_mode(ReconnectMode::ReuseAllConnections)
}

fn with(checksums: Checksums, config: config::Builder) -> config::Builder {
    match checksums {
        Checksums::On => config,
        Checksums::Off => config
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired),
    }
}

/// What the SDK is built from, once per runtime.
#[derive(Clone)]
pub(crate) struct Connection {
    endpoint: Option<String>,
    region: Region,
    signing: Signature,
    addressing: Option<Addressing>,
    checksums: Checksums,
}

#[derive(Clone)]
enum Signature {
    Chain,
    Provider(SharedCredentialsProvider),
    Keys(Credentials),
    None,
}

impl Connection {
    pub(crate) const fn is_anonymous(&self) -> bool {
        matches!(self.signing, Signature::None)
    }

    pub(crate) fn connect(&self, policy: &Policy) -> Link {
        let attempt = policy.timeout().unwrap_or(Duration::MAX);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(attempt / 4 * 3))
            .disable_read_timeout()
            .disable_operation_timeout()
            .disable_operation_attempt_timeout()
            .build();
        let mut config = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(self.region.clone())
            .retry_config(retries())
            .timeout_config(timeouts)
            // Ours is in `stall`.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .identity_cache(IdentityCache::no_cache())
            .http_client(http_client());
        if let Some(endpoint) = &self.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let by_path = match self.addressing {
            Some(addressing) => addressing == Addressing::Path,
            None => self.endpoint.is_some(),
        };
        config = config.force_path_style(by_path);
        let credentials = match &self.signing {
            Signature::Chain => Some(Remembered::chain(self.region.clone())),
            Signature::Provider(provider) => Some(Remembered::given(provider.clone())),
            Signature::Keys(_) | Signature::None => None,
        };
        let config = match (&self.signing, &credentials) {
            (Signature::Keys(keys), _) => config.credentials_provider(keys.clone()),
            (_, Some(credentials)) => config.credentials_provider(credentials.clone()),
            (_, None) => config.allow_no_auth(),
        };
        let sdk = Client::from_conf(with(self.checksums, config).build());
        Link { sdk, credentials }
    }
}

/// With proxies of the environment, which the SDK's shorter ways of building one leave out.
fn http_client() -> SharedHttpClient {
    Builder::new().pool_idle_timeout(IDLE).build_with_connector_fn(|settings, components| {
        let mut connector = Connector::builder().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|c| c.sleep_impl()));
        connector.set_proxy_config(Some(ProxyConfig::from_env()));
        connector.build()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_named_without_path_and_never_with_credentials() {
        assert_eq!(origin("http://127.0.0.1:9000/x").unwrap(), "http://127.0.0.1:9000");
        for bad in ["", "localhost", "ftp://host", "http://key:secret@host", "http://", "a b"] {
            let error = origin(bad).unwrap_err().to_string();
            assert!(error.contains("https://host"), "{bad}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
