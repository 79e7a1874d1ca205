//! The client: cheap to clone, one store, one breaker.

use crate::{
    Checksums,
    config::{Connection, S3ClientBuilder},
    credentials::Remembered,
    transfer::gate::Gate,
};
use aws_sdk_s3::Client;
use mainstay_policy::{
    ConfigError, Error, PerRuntime, Policy, PolicyBuilder, Settings, Singletons, settings,
};
use std::{fmt, sync::Arc};
use tokio::runtime::Handle;

struct Inner {
    driver: Driver,
    bucket: Option<String>,
    policy: Policy,
    checksums: Checksums,
    gate: Gate,
}

pub(crate) enum Driver {
    Own { connection: Connection, links: PerRuntime<Link> },
    Given(Client),
}

/// What one runtime sends through.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) sdk: Client,
    /// Where new credentials come from when these are refused as expired.
    pub(crate) credentials: Option<Remembered>,
}

/// A client of one S3 store; clones share everything.
#[derive(Clone)]
pub struct S3Client(Arc<Inner>);

impl fmt::Debug for S3Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Client").field("policy", &self.0.policy.name()).finish_non_exhaustive()
    }
}

impl S3Client {
    /// A builder, of the store that settings name unless it is told another.
    pub fn builder() -> S3ClientBuilder {
        S3ClientBuilder::default()
    }

    /// Adopts a client of the SDK; see [`S3ClientBuilder::sdk`].
    ///
    /// # Errors
    /// When it has no region to name its breaker after, or a setting cannot be used.
    pub fn from_sdk(sdk: Client) -> Result<Self, Error> {
        Self::builder().sdk(sdk).build()
    }

    pub(crate) fn new(
        driver: Driver,
        bucket: Option<String>,
        policy: PolicyBuilder,
        checksums: Checksums,
    ) -> Result<Self, Error> {
        let (policy, gate) = (policy.build()?, Gate::default());
        Ok(Self(Arc::new(Inner { driver, bucket, policy, checksums, gate })))
    }

    pub(crate) fn checksums(&self) -> Checksums {
        self.0.checksums
    }

    /// The places of the parts of all transfers.
    pub(crate) fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// The policy of this store.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// The configured bucket.
    #[must_use]
    pub fn bucket(&self) -> Option<&str> {
        self.0.bucket.as_deref()
    }

    /// The SDK's client of the current runtime, for what this client does not do. It makes one
    /// attempt per call; no policy guards it.
    ///
    /// # Errors
    /// When called outside a tokio runtime.
    pub fn sdk(&self) -> Result<Client, Error> {
        self.link().map(|link| link.sdk)
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        matches!(&self.0.driver, Driver::Own { connection, .. } if connection.is_anonymous())
    }

    pub(crate) fn link(&self) -> Result<Link, Error> {
        match &self.0.driver {
            Driver::Given(sdk) => Some(Link { sdk: sdk.clone(), credentials: None }),
            Driver::Own { connection, links } => {
                links.get_or_init(|| connection.connect(&self.0.policy))
            }
        }
        .ok_or_else(no_runtime)
    }
}

/// # Errors
/// Outside a tokio runtime, whose threads read and write files.
pub(crate) fn check_runtime() -> Result<(), Error> {
    Handle::try_current().map(drop).map_err(|_| no_runtime())
}

fn no_runtime() -> Error {
    Error::invalid("an S3 call needs a tokio runtime around it")
}

static DEFAULT: Singletons<S3Client> = Singletons::new();
static NAMED: Singletons<S3Client> = Singletons::new();

/// The client of `MAINSTAY_S3_ENDPOINT_URL`, `MAINSTAY_S3_REGION` and `MAINSTAY_S3_BUCKET`, and of
/// the usual `AWS_*` variables; built on first use, no I/O.
///
/// # Errors
/// When a setting is missing or cannot be used.
pub fn get_s3_client() -> Result<S3Client, Error> {
    DEFAULT.get_or_try_init("default", || S3Client::builder().build())
}

/// The client of `MAINSTAY_S3_{NAME}_ENDPOINT_URL`, `.._REGION` and `.._BUCKET`, of which one of
/// the first two must be set, with a breaker of its own, `s3:{name}`; built on first use, no I/O.
///
/// # Errors
/// When a setting is missing or cannot be used.
pub fn get_s3_client_named(name: &str) -> Result<S3Client, Error> {
    NAMED.get_or_try_init(name, || {
        let settings = settings()?;
        let keys = ["endpoint_url", "region"].map(|key| Settings::own_key(name, key));
        if keys.iter().all(|key| settings.connection("s3", key).is_none()) {
            let [url, region] = keys.map(|key| settings.variable("s3", &key));
            return Err(Error::config(ConfigError::new(vec![format!(
                "neither {url} nor {region} is set"
            )])));
        }
        S3Client::builder().name(name).build()
    })
}

/// Installs the client that [`get_s3_client`] gives.
pub fn set_s3_client(client: S3Client) {
    DEFAULT.set("default", client);
}

/// Installs the client that [`get_s3_client_named`] gives for this name.
pub fn set_s3_client_named(name: &str, client: S3Client) {
    NAMED.set(name, client);
}
