//! Credentials of the environment, profile, web identity, ECS or EC2, looked for on first use.
//!
//! The SDK caches what it found, but not that it found nothing: each call would wait for an EC2
//! metadata service that is not there. Here a search takes at most 5 s and its failure is
//! remembered for 10 s. The lock makes it one search for any number of callers.

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, error::CredentialsError, future},
};
use aws_sdk_s3::config::Region;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

pub(crate) const LIMIT: Duration = Duration::from_secs(5);
const REMEMBERED: Duration = Duration::from_secs(10);

/// The default chain of the AWS SDK.
#[derive(Debug)]
pub(crate) struct Chain {
    region: Region,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chain: Option<DefaultCredentialsChain>,
    failed: Option<(Instant, Arc<CredentialsError>)>,
}

impl Chain {
    pub(crate) fn new(region: Region) -> Self {
        Self { region, state: Mutex::default() }
    }

    async fn load(&self) -> provider::Result {
        let mut state = self.state.lock().await;
        if let Some((when, error)) = &state.failed
            && when.elapsed() < REMEMBERED
        {
            return Err(CredentialsError::provider_error(Arc::clone(error)));
        }
        let found = tokio::time::timeout(LIMIT, self.search(&mut state.chain)).await;
        let error = match found {
            Ok(Ok(credentials)) => {
                state.failed = None;
                return Ok(credentials);
            }
            Ok(Err(error)) => error,
            Err(_) => CredentialsError::provider_timed_out(LIMIT),
        };
        let error = Arc::new(error);
        state.failed = Some((Instant::now(), Arc::clone(&error)));
        Err(CredentialsError::provider_error(error))
    }

    async fn search(
        &self,
        chain: &mut Option<DefaultCredentialsChain>,
    ) -> Result<Credentials, CredentialsError> {
        let chain = match chain {
            Some(chain) => chain,
            None => {
                let builder = DefaultCredentialsChain::builder().region(self.region.clone());
                chain.insert(builder.build().await)
            }
        };
        chain.provide_credentials().await
    }
}

impl ProvideCredentials for Chain {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.load())
    }
}
