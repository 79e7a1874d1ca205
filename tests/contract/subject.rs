//! What a promise needs of a client and of the server behind it.

use mainstay::{Effect, Error, Health, Policy, PolicyBuilder};
use mainstay_test_support::Proxy;
use std::{
    error::Error as StdError,
    fmt::Debug,
    future::Future,
    pin::Pin,
    sync::LazyLock,
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Runtime};

pub(crate) type Tune = fn(PolicyBuilder) -> PolicyBuilder;
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

pub(crate) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What each client's policy is like before a promise tunes it: quick, and with a breaker that stays
/// out of the way.
pub(crate) fn quick(policy: PolicyBuilder) -> PolicyBuilder {
    let policy = policy.timeout(ms(5_000)).base_delay(ms(1)).max_delay(ms(20));
    policy.failure_threshold(1_000).without_failure_rate().without_slow_rate()
}

/// One of the clients. A door is one way to call its server, by name.
pub(crate) trait Client: Clone + Debug + Send + Sync + 'static {
    /// All of them. Some make several calls, such as a session's.
    const DOORS: &'static [&'static str];
    /// A door of one call, which is idempotent: it is repeated after any failure.
    const REPEATED: &'static str;
    /// More doors of that kind.
    const REPEATED_TOO: &'static [&'static str];
    /// A door of one call that must not be repeated when its outcome is unknown.
    const ONCE: Option<&'static str>;
    /// What the client makes of an error of its driver.
    type Failure: StdError + 'static;
    /// The driver's own error.
    type Driver: StdError + 'static;

    fn policy(&self) -> &Policy;
    fn call(&self, door: &'static str) -> Work;
    async fn health(&self) -> Health;

    fn name(&self) -> &str {
        self.policy().name()
    }

    /// The server's answer, or its silence, is the cause, and no error of the driver.
    fn is_answer(_: &Error) -> bool {
        false
    }
}

/// A client and what it needs, so far as it is nobody else's.
pub(crate) trait Subject: Sized {
    type Client: Client;

    async fn start() -> Self;

    /// A client that shares nothing with another subject's; where it has a pool, of this size.
    fn client(&self, pool: u32, tune: Tune) -> Self::Client;
}

/// How a server answers from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// It does nothing and says so: whoever asks may ask again.
    NotNow,
    /// It says that this will never be done.
    Never,
    /// It takes what comes, and says nothing.
    Silent,
}

/// A client whose server is at the other end of a network.
pub(crate) trait Remote: Subject {
    /// The server speaks first: on a connection that says nothing, nothing is asked.
    const GREETS: bool;
    /// What a request may have done that is not answered in time.
    const UNANSWERED: &'static [Effect] = &[Effect::Unknown];

    fn proxy(&self) -> &Proxy;

    async fn set(&self, mood: Mood);

    /// How often the server was asked what this door asks, as it counts itself.
    async fn asked(&self, door: &'static str) -> u64;

    /// Drives a call whose first request arrives, is answered, and is never heard of again.
    async fn lose_reply(&self, call: Work) -> Result<(), Error> {
        let lost = self.proxy().lost();
        self.proxy().lose_next_reply();
        let end = call.await;
        assert_eq!(self.proxy().lost() - lost, 1, "one reply was lost");
        end
    }
}

/// Calls until it works, whatever the breaker made of it before.
pub(crate) async fn ready<C: Client>(client: &C) {
    let started = Instant::now();
    while let Err(error) = client.call(C::REPEATED).await {
        assert!(started.elapsed() < ms(60_000), "{}: {}", client.name(), mainstay::report(&error));
        client.policy().breaker().reset();
        tokio::task::yield_now().await;
    }
}

/// As long as a test waits for what should come at once: one that waits for ever has failed.
const PATIENCE: Duration = ms(20_000);

/// What this comes to, within that time.
pub(crate) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("never so: {what}"))
}

/// Waits until it is so, within that time.
pub(crate) async fn until(what: &str, so: impl Fn() -> bool) {
    let wait = async {
        while !so() {
            tokio::task::yield_now().await;
        }
    };
    in_time(what, wait).await;
}

/// Where the servers in this process live: no test's own runtime, whose tasks are counted.
pub(crate) fn servers() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });
    &RUNTIME
}
