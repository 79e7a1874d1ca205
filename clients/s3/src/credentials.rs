//! Credentials, looked for on first use and remembered.
//!
//! The SDK remembers what it found, but not that it found nothing, so each call would wait for an
//! EC2 metadata service that is not there; and what it remembers it cannot be told to forget when
//! the store says that it has expired. So its memory is off, and this one stands in its place: a
//! search takes at most 5 s, one serves any number of callers and goes on when they leave, and its
//! failure is remembered for 10 s. What was found before serves on until it expires or is refused.

use aws_config::{
    ecs::EcsCredentialsProvider, environment::EnvironmentVariableCredentialsProvider,
    imds::credentials::ImdsCredentialsProvider, profile::ProfileFileCredentialsProvider,
    provider_config::ProviderConfig, web_identity_token::WebIdentityTokenCredentialsProvider,
};
use aws_credential_types::{
    Credentials,
    provider::{
        self, ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future,
    },
};
use aws_sdk_s3::config::Region;
use futures_util::future::{BoxFuture, FutureExt, Shared, TryFutureExt};
use std::{
    error::Error as StdError,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::{runtime::Handle, task::JoinError};

const LIMIT: Duration = Duration::from_secs(5);
const REMEMBERED: Duration = Duration::from_secs(10);
/// So long before they expire new ones are looked for.
const BEFORE_EXPIRY: Duration = Duration::from_secs(10);
/// What does not say when it expires is looked for again after this.
const AT_MOST: Duration = Duration::from_secs(15 * 60);

type Found = Result<Credentials, Arc<CredentialsError>>;
/// The end of a task, which may panic in a provider or go with its runtime.
type Search = Shared<BoxFuture<'static, Result<Found, Arc<JoinError>>>>;

/// Credentials of one runtime, found anew when they are about to expire or have been refused.
#[derive(Clone)]
pub(crate) struct Remembered(Arc<Inner>);

struct Inner {
    source: Source,
    state: Mutex<State>,
}

enum Source {
    /// The default chain of the AWS SDK.
    Chain {
        region: Region,
        providers: OnceLock<Vec<(&'static str, SharedCredentialsProvider)>>,
    },
    Given(SharedCredentialsProvider),
}

#[derive(Default)]
struct State {
    found: Option<(Instant, Credentials)>,
    failed: Option<(Instant, Arc<CredentialsError>)>,
    /// It goes on when nobody waits for it: a probe has less time than it may need.
    search: Option<Search>,
}

impl State {
    fn known(&self) -> Option<Found> {
        if let Some((when, credentials)) = &self.found {
            let lasts = match credentials.expiry() {
                Some(expiry) => SystemTime::now() + BEFORE_EXPIRY < expiry,
                None => when.elapsed() < AT_MOST,
            };
            if lasts {
                return Some(Ok(credentials.clone()));
            }
        }
        let (when, error) = self.failed.as_ref()?;
        (when.elapsed() < REMEMBERED).then(|| self.in_place_of(error))
    }

    /// Where no new ones were found: those that have not expired yet.
    fn in_place_of(&self, error: &Arc<CredentialsError>) -> Found {
        let good = self.found.as_ref().map(|(_, credentials)| credentials);
        let good = good.filter(|c| c.expiry().is_none_or(|expiry| SystemTime::now() < expiry));
        good.cloned().ok_or_else(|| Arc::clone(error))
    }
}

impl Remembered {
    /// Environment, profile, web identity, container, EC2: the order of the SDK.
    pub(crate) fn chain(region: Region) -> Self {
        Self::new(Source::Chain { region, providers: OnceLock::new() })
    }

    pub(crate) fn given(provider: SharedCredentialsProvider) -> Self {
        Self::new(Source::Given(provider))
    }

    fn new(source: Source) -> Self {
        Self(Arc::new(Inner { source, state: Mutex::default() }))
    }

    /// Forgets credentials that were known at this time: the store has refused them as expired.
    pub(crate) fn forget(&self, known_at: Instant) {
        let mut state = self.state();
        if state.found.as_ref().is_some_and(|(when, _)| *when <= known_at) {
            state.found = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether they are being looked for.
    pub(crate) fn is_searching(&self) -> bool {
        self.state().search.is_some()
    }

    pub(crate) async fn load(&self) -> provider::Result {
        let search = {
            let mut state = self.state();
            if let Some(known) = state.known() {
                return known.map_err(CredentialsError::provider_error);
            }
            match &state.search {
                Some(search) => search.clone(),
                None => {
                    let runtime = Handle::try_current().map_err(CredentialsError::unhandled)?;
                    let search = runtime.spawn(self.clone().search()).map_err(Arc::new);
                    state.search.insert(search.boxed().shared()).clone()
                }
            }
        };
        match search.clone().await {
            Ok(found) => found.map_err(CredentialsError::provider_error),
            Err(broken_off) => {
                // The next who asks begins another, which those who waited with us leave alone.
                let mut state = self.state();
                state.search = state.search.take().filter(|other| !other.ptr_eq(&search));
                Err(CredentialsError::unhandled(broken_off))
            }
        }
    }

    async fn search(self) -> Found {
        let found = match &self.0.source {
            Source::Chain { region, providers } => {
                let providers = providers.get_or_init(|| chain(region));
                first(providers).await
            }
            Source::Given(provider) => first(&[("the given provider", provider.clone())]).await,
        };
        let now = Instant::now();
        let mut state = self.state();
        state.search = None;
        match found {
            Ok(credentials) => {
                state.failed = None;
                state.found = Some((now, credentials.clone()));
                Ok(credentials)
            }
            Err(error) => {
                let error = Arc::new(error);
                let found = state.in_place_of(&error);
                state.failed = Some((now, error));
                found
            }
        }
    }
}

fn chain(region: &Region) -> Vec<(&'static str, SharedCredentialsProvider)> {
    fn named(
        name: &'static str,
        provider: impl ProvideCredentials + 'static,
    ) -> (&'static str, SharedCredentialsProvider) {
        (name, SharedCredentialsProvider::new(provider))
    }
    let config = ProviderConfig::default().with_region(Some(region.clone()));
    let web_identity = WebIdentityTokenCredentialsProvider::builder();
    vec![
        named("environment", EnvironmentVariableCredentialsProvider::new()),
        named("profile", ProfileFileCredentialsProvider::builder().configure(&config).build()),
        named("web identity token", web_identity.configure(&config).build()),
        named("container", EcsCredentialsProvider::builder().configure(&config).build()),
        named("EC2 metadata", ImdsCredentialsProvider::builder().configure(&config).build()),
    ]
}

/// The first credentials; a provider that has none is passed over, one that fails ends the search,
/// as in the SDK's own chain.
async fn first(
    providers: &[(&'static str, SharedCredentialsProvider)],
) -> Result<Credentials, CredentialsError> {
    let mut tried = Vec::new();
    let end = tokio::time::Instant::now() + LIMIT;
    for (name, provider) in providers {
        let error = match tokio::time::timeout_at(end, provider.provide_credentials()).await {
            Ok(Ok(credentials)) => return Ok(credentials),
            Ok(Err(error)) => error,
            Err(_) => CredentialsError::provider_timed_out(LIMIT),
        };
        let (outcome, goes_on) = match &error {
            CredentialsError::CredentialsNotLoaded(_) => ("has none", true),
            CredentialsError::ProviderTimedOut(_) => ("no answer in time", false),
            CredentialsError::InvalidConfiguration(_) => ("its settings cannot be used", false),
            _ => ("failed", false),
        };
        tried.push((*name, outcome));
        if !goes_on {
            let source = Some(Box::new(error) as _);
            return Err(CredentialsError::provider_error(Tried { tried, source }));
        }
    }
    Err(CredentialsError::not_loaded(Tried { tried, source: None }))
}

/// Who was asked for credentials, and what came of it.
#[derive(Debug)]
pub(crate) struct Tried {
    tried: Vec<(&'static str, &'static str)>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, outcome)) in self.tried.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{name} ({outcome})")?;
        }
        Ok(())
    }
}

impl StdError for Tried {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembered(..)")
    }
}

impl ProvideCredentials for Remembered {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.load())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_policy::Error;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    /// Counts its calls, and gives credentials that are numbered, or what else it is told to.
    #[derive(Clone, Debug, Default)]
    struct Counting(Arc<(AtomicU32, Mutex<Answer>)>);

    #[derive(Clone, Copy, Debug, Default)]
    enum Answer {
        #[default]
        Lasting,
        Lasts(Duration),
        Fails,
        Hangs,
        Panics,
    }

    impl Counting {
        fn of(answer: Answer) -> (Self, Remembered) {
            let counting = Self::default();
            counting.then(answer);
            let remembered = Remembered::given(SharedCredentialsProvider::new(counting.clone()));
            (counting, remembered)
        }

        fn then(&self, answer: Answer) {
            *self.0.1.lock().unwrap() = answer;
        }

        fn asked(&self) -> u32 {
            self.0.0.load(SeqCst)
        }
    }

    impl ProvideCredentials for Counting {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let n = self.0.0.fetch_add(1, SeqCst) + 1;
            let answer = *self.0.1.lock().unwrap();
            let expiry = match answer {
                Answer::Lasts(time) => Some(SystemTime::now() + time),
                _ => None,
            };
            let found = Credentials::new(n.to_string(), "secret", None, expiry, "test");
            future::ProvideCredentials::new(async move {
                tokio::task::yield_now().await;
                match answer {
                    Answer::Fails => Err(CredentialsError::provider_error("s3cr3t")),
                    Answer::Hangs => std::future::pending().await,
                    Answer::Panics => panic!("as planned"),
                    _ => Ok(found),
                }
            })
        }
    }

    #[tokio::test]
    async fn one_search_serves_all_who_wait_and_those_after() {
        let (provider, remembered) = Counting::of(Answer::Lasting);
        let loads = futures_util::future::join_all((0..20).map(|_| remembered.load())).await;
        assert!(loads.iter().all(|found| found.as_ref().unwrap().access_key_id() == "1"));
        remembered.load().await.unwrap();
        assert_eq!(provider.asked(), 1);
    }

    #[tokio::test]
    async fn a_search_whose_first_waiter_leaves_goes_on_for_the_others() {
        let (provider, remembered) = Counting::of(Answer::Lasting);
        let mut leaves = Box::pin(remembered.load());
        assert!((&mut leaves).now_or_never().is_none());
        let stays = remembered.load();
        let (found, ()) = futures_util::future::join(stays, async { drop(leaves) }).await;
        assert_eq!(found.unwrap().access_key_id(), "1");
        assert_eq!(provider.asked(), 1);
    }

    #[tokio::test]
    async fn a_search_that_panics_is_an_error_and_the_next_begins_anew() {
        let (provider, remembered) = Counting::of(Answer::Panics);
        remembered.load().await.unwrap_err();
        provider.then(Answer::Lasting);
        assert_eq!(remembered.load().await.unwrap().access_key_id(), "2");
    }

    #[tokio::test]
    async fn who_waited_for_a_search_that_panicked_leaves_the_next_one_alone() {
        let (provider, remembered) = Counting::of(Answer::Panics);
        let (mut first, mut last) = (Box::pin(remembered.load()), Box::pin(remembered.load()));
        assert!((&mut first).now_or_never().is_none() && (&mut last).now_or_never().is_none());
        first.await.unwrap_err();
        provider.then(Answer::Hangs);
        assert!(remembered.load().now_or_never().is_none());
        last.await.unwrap_err();
        assert!(remembered.is_searching());
    }

    #[tokio::test]
    async fn what_expires_or_was_refused_is_looked_for_again() {
        let (provider, remembered) = Counting::of(Answer::Lasts(Duration::from_secs(9)));
        for n in 1..=2 {
            assert_eq!(remembered.load().await.unwrap().access_key_id(), n.to_string());
        }
        provider.then(Answer::Lasts(Duration::from_secs(3600)));
        for _ in 0..2 {
            assert_eq!(remembered.load().await.unwrap().access_key_id(), "3");
        }
        let before = Instant::now();
        remembered.forget(before);
        assert_eq!(remembered.load().await.unwrap().access_key_id(), "4");
        // Whoever was refused with the old ones does not drop the new ones.
        remembered.forget(before);
        assert_eq!(remembered.load().await.unwrap().access_key_id(), "4");
    }

    #[tokio::test]
    async fn what_has_not_expired_serves_on_while_nothing_new_is_found() {
        let (provider, remembered) = Counting::of(Answer::Lasts(Duration::from_secs(9)));
        assert_eq!(remembered.load().await.unwrap().access_key_id(), "1");
        provider.then(Answer::Fails);
        for _ in 0..2 {
            assert_eq!(remembered.load().await.unwrap().access_key_id(), "1");
            assert_eq!(provider.asked(), 2, "the failure is remembered");
        }
        // Unless the store has refused them.
        remembered.forget(Instant::now());
        remembered.load().await.unwrap_err();

        let (provider, remembered) = Counting::of(Answer::Lasts(Duration::ZERO));
        remembered.load().await.unwrap();
        provider.then(Answer::Fails);
        remembered.load().await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_remembered_and_names_who_was_asked() {
        let (provider, remembered) = Counting::of(Answer::Hangs);
        let started = tokio::time::Instant::now();
        for _ in 0..20 {
            let error = remembered.load().await.unwrap_err();
            let tried = Error::find_in::<Tried>(&error).unwrap().to_string();
            assert_eq!(tried, "the given provider (no answer in time)");
        }
        assert_eq!((started.elapsed(), provider.asked()), (LIMIT, 1));

        let (_, remembered) = Counting::of(Answer::Fails);
        let error = remembered.load().await.unwrap_err();
        let tried = Error::find_in::<Tried>(&error).unwrap().to_string();
        assert_eq!(tried, "the given provider (failed)");
    }
}
