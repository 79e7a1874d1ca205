//! What is compared: ours and its peers at the same work, by the names that the tables use.

use backon::{ExponentialBuilder, Retryable};
use failsafe::futures::CircuitBreaker as _;
use mainstay_policy::{
    BreakGrowth, CallError, Classify, Idempotency, Kind, Operation, Policy, PolicyBuilder, Verdict,
};
use mainstay_policy_benches::Case;
use recloser::{AsyncRecloser, Recloser};
use std::{
    fmt,
    future::Future,
    hint::black_box,
    pin::{Pin, pin},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{sync::Semaphore, time::timeout};
use tower::{Layer, Service, service_fn};
use tower_resilience::{
    bulkhead::BulkheadLayer,
    circuitbreaker::CircuitBreakerLayer,
    retry::{RetryBudgetBuilder, RetryLayer},
    timelimiter::TimeLimiterLayer,
};

const ATTEMPT: Duration = Duration::from_secs(30);
const TOTAL: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(100_000);
const ATTEMPTS: usize = 3;
const PLACES: usize = 1_024;
const READ: Operation = Operation::new("read", Idempotency::Safe);

/// The only error there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fault")
    }
}

impl std::error::Error for Fault {}

impl Classify for Fault {
    fn classify(&self) -> Verdict {
        Verdict::transient()
    }
}

/// What the work answers: a load, which the optimiser can neither foresee nor must spill.
static ANSWER: AtomicU64 = AtomicU64::new(1);

/// The time, where a case is given it: a minute after some start.
static NOW: AtomicU64 = AtomicU64::new(60_000_000_000);

/// The dependency: ready after so many polls, and woken at once when a runtime polls it.
pub struct Work<const PENDING: u32>(u32);

impl<const PENDING: u32> Work<PENDING> {
    pub fn new() -> Self {
        Self(PENDING)
    }
}

impl<const PENDING: u32> Future for Work<PENDING> {
    type Output = Result<u64, Fault>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.0 == 0 {
            return Poll::Ready(Ok(ANSWER.load(Relaxed)));
        }
        self.0 -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

pub type Ready = Work<0>;
pub type PendingOnce = Work<1>;

/// The pipeline that a careful user would write.
pub struct ByHand {
    recloser: AsyncRecloser,
    places: Semaphore,
    backoff: ExponentialBuilder,
}

#[derive(Debug)]
pub enum HandError {
    Breaker,
    Timeout,
    Fault,
}

impl ByHand {
    pub fn new() -> &'static Self {
        let backoff = ExponentialBuilder::default().with_max_times(ATTEMPTS - 1).with_jitter();
        Box::leak(Box::new(Self {
            recloser: AsyncRecloser::from(Recloser::default()),
            places: Semaphore::new(PLACES),
            backoff,
        }))
    }

    pub async fn call<W>(&self, work: impl Fn() -> W) -> Result<u64, HandError>
    where
        W: Future<Output = Result<u64, Fault>>,
    {
        let attempt = || async {
            let _place = self.places.acquire().await.map_err(|_| HandError::Breaker)?;
            match timeout(ATTEMPT, work()).await {
                Ok(end) => end.map_err(|Fault| HandError::Fault),
                Err(_) => Err(HandError::Timeout),
            }
        };
        let gated = || async {
            self.recloser.call(attempt()).await.map_err(|error| match error {
                recloser::Error::Inner(inner) => inner,
                recloser::Error::Rejected => HandError::Breaker,
            })
        };
        let again = |error: &HandError| !matches!(error, HandError::Breaker);
        let retried = gated.retry(self.backoff).when(again);
        timeout(TOTAL, retried).await.unwrap_or(Err(HandError::Timeout))
    }
}

/// One policy of ours, which lives as long as the program.
fn ours(name: &str, change: impl FnOnce(PolicyBuilder) -> PolicyBuilder) -> &'static Policy {
    let builder = Policy::builder(Kind::Database, name).timeout(ATTEMPT).deadline(TOTAL);
    Box::leak(Box::new(change(builder).build().unwrap()))
}

/// All that the policy does by default.
pub fn whole() -> &'static Policy {
    ours("whole", |policy| policy)
}

/// One call of ours.
pub fn call<W>(
    policy: &Policy,
    work: impl Fn() -> W,
) -> impl Future<Output = Result<u64, CallError<Fault>>>
where
    W: Future<Output = Result<u64, Fault>>,
{
    policy.run(&READ, move |_| work())
}

/// The same pipeline of tower-resilience.
fn tower_resilience<W>(
    work: fn() -> W,
) -> impl Service<(), Response = u64, Error: Send, Future: Send> + Clone + Send + 'static
where
    W: Future<Output = Result<u64, Fault>> + Send + 'static,
{
    let service = service_fn(move |()| work());
    let service = TimeLimiterLayer::builder().timeout_duration(ATTEMPT).build().layer(service);
    let places = BulkheadLayer::builder().max_concurrent_calls(PLACES).build().unwrap();
    let service = breaker_of_tower().layer(places.layer(service));
    let service = retry_of_tower().layer(service);
    TimeLimiterLayer::builder().timeout_duration(TOTAL).build().layer(service)
}

fn breaker_of_tower() -> CircuitBreakerLayer {
    let breaker = CircuitBreakerLayer::builder().wait_duration_in_open(LONG);
    breaker.slow_call_duration_threshold(ATTEMPT).build().unwrap()
}

fn retry_of_tower<E>() -> RetryLayer<(), u64, E> {
    let budget = RetryBudgetBuilder::new().token_bucket().max_tokens(50).build().unwrap();
    let retry = RetryLayer::builder().max_attempts(ATTEMPTS).budget(budget);
    retry.exponential_backoff(Duration::from_millis(500)).build()
}

/// A call of a tower service, which must be ready.
fn tower<S>(mut service: S) -> impl FnMut() -> S::Future + Clone + Send + 'static
where
    S: Service<(), Response = u64> + Clone + Send + 'static,
{
    move || {
        let _ = service.poll_ready(&mut Context::from_waker(Waker::noop()));
        service.call(())
    }
}

/// Lets `call` fail until it is refused.
fn open<F, E>(mut call: impl FnMut() -> F, is_refusal: impl Fn(&E) -> bool)
where
    F: Future<Output = Result<u64, E>>,
{
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..1_000 {
        if let Poll::Ready(Err(error)) = pin!(call()).poll(&mut cx)
            && is_refusal(&error)
        {
            return;
        }
    }
    unreachable!("1,000 failures open no breaker");
}

async fn fails() -> Result<u64, Fault> {
    Err(Fault)
}

/// Takes what is recorded, and does nothing with it.
#[cfg(feature = "metrics")]
mod recorder {
    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata,
        Recorder, SharedString, Unit,
    };
    use std::{hint::black_box, sync::Arc};

    pub struct Nowhere;

    impl CounterFn for Nowhere {
        fn increment(&self, value: u64) {
            black_box(value);
        }
        fn absolute(&self, value: u64) {
            black_box(value);
        }
    }

    impl GaugeFn for Nowhere {
        fn increment(&self, value: f64) {
            black_box(value);
        }
        fn decrement(&self, value: f64) {
            black_box(value);
        }
        fn set(&self, value: f64) {
            black_box(value);
        }
    }

    impl HistogramFn for Nowhere {
        fn record(&self, value: f64) {
            black_box(value);
        }
    }

    impl Recorder for Nowhere {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(Arc::new(Self))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(Arc::new(Self))
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(Arc::new(Self))
        }
    }
}

fn raw_time() -> u64 {
    static CLOCK: LazyLock<quanta::Clock> = LazyLock::new(quanta::Clock::new);
    CLOCK.raw()
}

/// Steps that make as many instructions as our breaker alone; six times as many, and a clock read, make
/// those of a whole call.
const SUMS: u64 = 4;

/// Four sums at once: work that shares nothing, and keeps a core as busy as ours.
#[inline]
fn sums(steps: u64) -> u64 {
    let seed = ANSWER.load(Relaxed);
    let mut sums = [seed, seed + 1, seed + 2, seed + 3];
    for step in 0..black_box(steps) {
        for sum in &mut sums {
            *sum = (*sum ^ step).rotate_left(7).wrapping_add(seed);
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// A policy that each caller, and so each thread, has for himself.
struct Own(&'static Policy);

impl Own {
    fn new() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        Self(ours(&format!("own {}", MADE.fetch_add(1, Relaxed)), |policy| policy))
    }

    fn call(&self) -> impl Future<Output = Result<u64, CallError<Fault>>> + use<> {
        call(self.0, Ready::new)
    }
}

impl Clone for Own {
    fn clone(&self) -> Self {
        Self::new()
    }
}

pub fn all() -> Vec<Case> {
    #[cfg(feature = "metrics")]
    let _ = metrics::set_global_recorder(recorder::Nowhere);
    let mut cases = vec![
        Case::new("bare, ready", Ready::new),
        Case::new("bare, pending once", PendingOnce::new),
        Case::new("nothing shared", || std::future::ready(Ok::<_, Fault>(sums(SUMS)))),
        Case::new("nothing shared, and a clock read", || {
            std::future::ready(Ok::<_, Fault>(sums(6 * SUMS).wrapping_add(raw_time())))
        }),
        Case::new("two clock reads", || {
            let first = black_box(raw_time());
            std::future::ready(Ok::<_, Fault>(raw_time().wrapping_sub(first)))
        }),
    ];
    cases.extend(closed());
    cases.extend(refused());
    cases.extend(retries());
    cases.extend(pipelines());
    cases
}

/// A breaker alone, closed.
fn closed() -> Vec<Case> {
    let recloser: &AsyncRecloser = Box::leak(Box::new(Recloser::default().into()));
    let failsafe = failsafe::Config::new().build();
    // Else the optimiser sees that nobody sets it.
    let now = black_box(&NOW);
    let alone = |p: PolicyBuilder| p.enable_timeout(false).enable_retry(false);
    // Two, since each has a time of its own, and the earlier one would always be late.
    let (given, policy) = (ours("the time given", alone), ours("breaker alone", alone));
    vec![
        Case::new("closed: recloser", || recloser.call(Ready::new())),
        Case::new("closed: recloser again", || recloser.call(Ready::new())),
        Case::new("closed: failsafe", move || failsafe.call(Ready::new())),
        Case::new("closed: TR", tower(breaker_of_tower().layer(service_fn(|()| Ready::new())))),
        Case::new("closed: ours, the time given", || {
            mainstay_policy::__bench::guarded(given, now.load(Relaxed), Ready::new())
        }),
        Case::new("closed: ours", || call(policy, Ready::new)),
    ]
}

/// A breaker alone, open.
fn refused() -> Vec<Case> {
    let recloser = Recloser::custom().closed_len(10).open_wait(LONG).build();
    let recloser: &AsyncRecloser = Box::leak(Box::new(recloser.into()));
    open(|| recloser.call(fails()), |error| matches!(error, recloser::Error::Rejected));
    let breaks = failsafe::backoff::constant(LONG);
    let failsafe = failsafe::failure_policy::consecutive_failures(3, breaks);
    let failsafe = failsafe::Config::new().failure_policy(failsafe).build();
    open(|| failsafe.call(fails()), |error| matches!(error, failsafe::Error::Rejected));
    let mut service = tower(breaker_of_tower().layer(service_fn(|()| fails())));
    open(&mut service, |error| error.is_circuit_open());
    let policy = ours("open", |p| {
        let once = p.failure_threshold(1).enable_retry(false).enable_timeout(false);
        once.recovery_timeout(LONG).break_growth(BreakGrowth::Fixed)
    });
    open(|| call(policy, fails), CallError::is_circuit_open);
    vec![
        Case::new("refused: recloser", || recloser.call(Ready::new())),
        Case::new("refused: failsafe", move || failsafe.call(Ready::new())),
        Case::new("refused: TR", service),
        Case::new("refused: ours", || call(policy, Ready::new)),
    ]
}

/// Retries alone, of calls that do not fail.
fn retries() -> Vec<Case> {
    let backoff = ExponentialBuilder::default().with_max_times(ATTEMPTS - 1).with_jitter();
    let nothing = |p: PolicyBuilder| p.enable_timeout(false).enable_circuit_breaker(false);
    let nothing_at_all = ours("nothing", |p| nothing(p).enable_retry(false));
    let policy = ours("retry alone", nothing);
    vec![
        Case::new("retry: backon", move || Ready::new.retry(backoff).when(|_| true)),
        Case::new("retry: TR", tower(retry_of_tower().layer(service_fn(|()| Ready::new())))),
        Case::new("retry: ours", || call(policy, Ready::new)),
        Case::new("ours, all switched off", || call(nothing_at_all, Ready::new)),
    ]
}

fn pipelines() -> Vec<Case> {
    let (hand, policy, own) = (ByHand::new(), whole(), Own::new());
    let placed = ours("with a bulkhead", |p| p.max_concurrent(1_024));
    vec![
        Case::new("ready: by hand", || hand.call(Ready::new)),
        Case::new("ready: TR", tower(tower_resilience(Ready::new))),
        Case::new("ready: ours", || call(policy, Ready::new)),
        Case::new("ready: ours, a policy for each thread", move || own.call()),
        Case::new("ready: ours with a bulkhead", || call(placed, Ready::new)),
        Case::new("pending once: by hand", || hand.call(PendingOnce::new)),
        Case::new("pending once: TR", tower(tower_resilience(PendingOnce::new))),
        Case::new("pending once: ours", || call(policy, PendingOnce::new)),
        Case::new("pending once: ours with a bulkhead", || call(placed, PendingOnce::new)),
    ]
}
