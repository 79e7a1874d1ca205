//! The body runs once per attempt, and the policy decides how many there are.

use super::{Runs, state};
use mainstay_policy::{
    BreakerState, CallError, Classify, Decider, Effect, Error, Kind, Policy, Verdict,
    api_resilient, cache_resilient, database_resilient, file_resilient, ml_resilient, resilient,
};
use std::{io, time::Duration};
use tokio::time::{Instant, sleep};

/// The example of the reference system's documentation.
#[tokio::test(start_paused = true)]
async fn fails_twice_with_a_connection_error_and_succeeds_on_attempt_three() {
    static RUNS: Runs = Runs::none();

    #[database_resilient(operation_name = "test_operation")]
    async fn flaky_operation() -> Result<&'static str, CallError<io::Error>> {
        RUNS.fail_twice()
    }

    assert_eq!(flaky_operation().await.unwrap(), "success");
    assert_eq!(RUNS.count(), 3);
    assert_eq!(state("database:test_operation"), BreakerState::Closed);
}

#[test]
fn a_sync_function_is_repeated_too() {
    static RUNS: Runs = Runs::none();

    #[database_resilient(operation_name = "sync_operation", base_delay = 0.001, max_delay = 0.001)]
    fn flaky_operation() -> Result<&'static str, CallError<io::Error>> {
        RUNS.fail_twice()
    }

    assert_eq!(flaky_operation().unwrap(), "success");
    assert_eq!(RUNS.count(), 3);
    assert_eq!(state("database:sync_operation"), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn each_kind_has_its_attempts() {
    macro_rules! runs_of {
        ($(#[$attribute:meta])*) => {{
            static RUNS: Runs = Runs::none();
            $(#[$attribute])*
            async fn fails() -> Result<(), CallError<&'static str>> {
                RUNS.next();
                Err("no")
            }
            let error = fails().await.unwrap_err();
            assert!(error.is_exhausted());
            assert_eq!((error.attempts(), error.last()), (RUNS.count(), Some(&"no")));
            error.attempts()
        }};
    }
    assert_eq!(runs_of!(#[database_resilient(operation_name = "kinds")]), 3);
    assert_eq!(runs_of!(#[cache_resilient(operation_name = "kinds")]), 2);
    assert_eq!(runs_of!(#[api_resilient(operation_name = "kinds")]), 5);
    assert_eq!(runs_of!(#[file_resilient(operation_name = "kinds")]), 3);
    assert_eq!(runs_of!(#[ml_resilient(operation_name = "kinds")]), 2);
    assert_eq!(runs_of!(#[resilient(operation_name = "kinds")]), 3);
    assert_eq!(runs_of!(#[resilient(operation_name = "k", operation_type = "api")]), 5);
    for kind in ["database", "cache", "api", "file", "ml", "default"] {
        assert_eq!(state(&format!("{kind}:kinds")), BreakerState::Closed);
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Failure {
    Missing,
    Busy,
    GivenUp(Option<Decider>, u32),
}

impl From<CallError<Self>> for Failure {
    fn from(error: CallError<Self>) -> Self {
        match error {
            CallError::Backend { error, .. } => error,
            error => Self::GivenUp(error.decider(), error.attempts()),
        }
    }
}

fn is_busy(error: &Failure) -> bool {
    *error == Failure::Busy
}

#[tokio::test(start_paused = true)]
async fn another_error_is_made_from_the_calls() {
    #[database_resilient(operation_name = "from_form", retry_if = is_busy)]
    async fn find(id: u32) -> Result<u32, Failure> {
        match id {
            0 => Err(Failure::Missing)?,
            1 => return Err(Failure::Busy),
            _ => Ok(id),
        }
    }

    assert_eq!(find(7).await, Ok(7));
    assert_eq!(find(0).await, Err(Failure::Missing));
    assert_eq!(find(1).await, Err(Failure::GivenUp(Some(Decider::Retry), 3)));
}

#[test]
fn another_error_is_made_in_a_sync_function_too() {
    #[database_resilient(operation_name = "sync_from", base_delay = 0, retry_if = self::is_busy)]
    fn find(id: u32) -> Result<u32, Failure> {
        match id {
            0 => Err(Failure::Missing)?,
            1 => return Err(Failure::Busy),
            _ => Ok(id),
        }
    }

    assert_eq!(find(7), Ok(7));
    assert_eq!(find(0), Err(Failure::Missing));
    assert_eq!(find(1), Err(Failure::GivenUp(Some(Decider::Retry), 3)));
}

#[tokio::test(start_paused = true)]
async fn the_errors_own_classification_decides_where_it_is_asked() {
    static RUNS: Runs = Runs::none();

    #[derive(Debug)]
    struct Declined;
    impl Classify for Declined {
        fn classify(&self) -> Verdict {
            Verdict::permanent()
        }
    }

    #[api_resilient(operation_name = "classified", classify = true)]
    async fn charge() -> Result<(), CallError<Declined>> {
        RUNS.next();
        Err(Declined)
    }

    for _ in 0..9 {
        let error = charge().await.unwrap_err();
        assert!(matches!(error, CallError::Backend { attempts: 1, .. }), "{error:?}");
    }
    assert_eq!(RUNS.count(), 9);
    assert_eq!(state("api:classified"), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn retry_if_decides() {
    static RUNS: Runs = Runs::none();

    #[api_resilient(operation_name = "retry_if", retry_if = is_busy)]
    async fn find(failures: [Failure; 2]) -> Result<(), CallError<Failure>> {
        match failures.into_iter().nth((RUNS.next() - 1) as usize) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    // Busy is repeated; Missing is an answer, and says nothing against the service.
    let error = find([Failure::Busy, Failure::Missing]).await.unwrap_err();
    assert_eq!((error.attempts(), error.effect()), (2, Effect::Permanent));
    assert!(matches!(error, CallError::Backend { error: Failure::Missing, .. }));
    assert_eq!(RUNS.count(), 2);
    assert_eq!(state("api:retry_if"), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_idempotent_is_not_repeated_once_it_may_have_been_sent() {
    static RUNS: Runs = Runs::none();

    #[api_resilient(operation_name = "pay", idempotent = false)]
    async fn pay(kind: io::ErrorKind) -> Result<(), CallError<io::Error>> {
        RUNS.next();
        Err(kind.into())
    }

    let error = pay(io::ErrorKind::ConnectionReset).await.unwrap_err();
    assert_eq!((error.attempts(), RUNS.count()), (1, 1));
    assert!(error.is_outcome_unknown());
    // This one was never sent.
    let error = pay(io::ErrorKind::ConnectionRefused).await.unwrap_err();
    assert_eq!((error.attempts(), RUNS.count()), (5, 6));
    assert!(!error.is_outcome_unknown());
}

#[tokio::test(start_paused = true)]
async fn one_attempt_is_bounded_and_the_next_runs() {
    static RUNS: Runs = Runs::none();

    #[database_resilient(operation_name = "hangs", timeout_seconds = 2.5, jitter = "none")]
    async fn hangs_once() -> Result<u32, CallError<io::Error>> {
        let run = RUNS.next();
        if run == 1 {
            std::future::pending::<()>().await;
        }
        Ok(run)
    }

    let began = Instant::now();
    assert_eq!(hangs_once().await.unwrap(), 2);
    // The attempt, and the base delay of a database.
    assert_eq!(began.elapsed().as_millis(), 3_000);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_refuses_without_running_the_body() {
    static RUNS: Runs = Runs::none();

    #[cache_resilient(operation_name = "opens", failure_threshold = 2, max_attempts = 1)]
    async fn fails() -> Result<(), CallError<&'static str>> {
        RUNS.next();
        Err("no")
    }

    for _ in 0..2 {
        assert!(!fails().await.unwrap_err().is_circuit_open());
    }
    assert_eq!(state("cache:opens"), BreakerState::Open);
    let error = fails().await.unwrap_err();
    assert!(error.is_rejected() && error.is_circuit_open());
    assert_eq!(RUNS.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn shares_the_breaker_of_a_dependency() {
    #[api_resilient(dependency = "shared", failure_threshold = 1, max_attempts = 1)]
    async fn fails() -> Result<(), CallError<&'static str>> {
        Err("no")
    }

    assert!(fails().await.is_err());
    let policy = Policy::builder(Kind::Api, "shared").build().unwrap();
    assert_eq!(policy.breaker().state(), BreakerState::Open);
}

#[tokio::test(start_paused = true)]
async fn the_clients_error_is_made_from_the_calls() {
    #[database_resilient(operation_name = "nested_client", max_attempts = 2)]
    async fn query() -> Result<(), Error> {
        let policy = Policy::builder(Kind::Database, "nested-client-inner").build()?;
        let sent = policy.call(|| async { Err::<(), _>(io::Error::other("no")) }).await;
        Ok(sent?)
    }

    // The inner policy repeated it: the outer one does not.
    let error = query().await.unwrap_err();
    assert_eq!((error.attempts(), error.decider()), (1, Some(Decider::Retry)));
    assert_eq!(error.downcast_ref::<Error>().unwrap().attempts(), 3);
    assert!(error.downcast_ref::<io::Error>().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_runs_no_more() {
    static RUNS: Runs = Runs::none();

    #[api_resilient(operation_name = "dropped")]
    async fn slow() -> Result<(), CallError<&'static str>> {
        RUNS.next();
        sleep(Duration::from_secs(5)).await;
        Err("no")
    }

    let cut = tokio::time::timeout(Duration::from_secs(1), slow()).await;
    assert!(cut.is_err());
    sleep(Duration::from_secs(60)).await;
    assert_eq!(RUNS.count(), 1);
}
