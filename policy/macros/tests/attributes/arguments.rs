//! Each argument reaches the policy.

use super::{Runs, state};
use mainstay_policy::{BreakerState, CallError, get_resilience_health, resilient};
use std::{future::pending, time::Duration};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn waits_grow_as_they_are_told() {
    #[resilient(
        operation_type = "custom",
        operation_name = "waits",
        max_attempts = 4,
        base_delay = 0.1,
        exponential_base = 3,
        max_delay = 0.5,
        jitter = false
    )]
    async fn fails() -> Result<(), CallError<&'static str>> {
        Err("no")
    }

    let began = Instant::now();
    let error = fails().await.unwrap_err();
    assert_eq!(error.attempts(), 4);
    // Not 900 ms: that is over the longest wait.
    assert_eq!(began.elapsed(), (100 + 300 + 500) * MS);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_jitter_stays_within_the_longest_wait() {
    macro_rules! waited {
        ($jitter:literal) => {{
            #[resilient(
                                                                operation_name = "jitter",
                                                                enable_circuit_breaker = false,
                                                                max_attempts = 2,
                                                                base_delay = 1,
                                                                max_delay = 1,
                                                                jitter = $jitter
                                                            )]
            async fn fails() -> Result<(), CallError<&'static str>> {
                Err("no")
            }
            let began = Instant::now();
            assert!(fails().await.unwrap_err().is_exhausted());
            began.elapsed().as_millis()
        }};
    }
    assert_eq!(waited!("none"), 1_000);
    assert_eq!(waited!(false), 1_000);
    assert!(waited!("full") <= 1_001);
    assert!(waited!(true) <= 1_001);
    assert!((500..=1_001).contains(&waited!("equal")));
    assert!(waited!("decorrelated") <= 1_001);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_the_whole_call() {
    #[resilient(operation_name = "deadline", timeout_seconds = 2, deadline_seconds = 3.5)]
    async fn hangs() -> Result<(), CallError<&'static str>> {
        pending().await
    }

    let began = Instant::now();
    assert!(hangs().await.unwrap_err().is_timeout());
    assert!(began.elapsed() <= 3_502 * MS, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn everything_can_be_switched_off() {
    static RUNS: Runs = Runs::none();

    #[resilient(
        operation_name = "off",
        timeout_seconds = 1,
        deadline_seconds = 0.5,
        failure_threshold = 1,
        enable_timeout = false,
        enable_retry = false,
        enable_circuit_breaker = false
    )]
    async fn slow_failure() -> Result<(), CallError<&'static str>> {
        RUNS.next();
        tokio::time::sleep(Duration::from_secs(10)).await;
        Err("no")
    }

    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(slow_failure().await.unwrap_err().attempts(), 1);
        assert_eq!(began.elapsed(), 10_000 * MS);
    }
    assert_eq!(RUNS.count(), 3);
    assert_eq!(state("default:off"), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_recovers_when_it_is_told() {
    #[resilient(
        operation_name = "recovers",
        max_attempts = 1,
        failure_threshold = 1,
        recovery_timeout = 0.2
    )]
    async fn works(works: bool) -> Result<(), CallError<&'static str>> {
        if works { Ok(()) } else { Err("no") }
    }

    assert!(works(false).await.is_err());
    assert!(works(true).await.unwrap_err().is_circuit_open());
    tokio::time::sleep(250 * MS).await;
    assert!(works(true).await.is_ok());
    assert_eq!(state("default:recovers"), BreakerState::Closed);
}

/// What two types in one module can both have.
mod repository {
    use mainstay_policy::{CallError, database_resilient};

    pub(super) struct Users;
    pub(super) struct Orders<T>(pub(super) T);

    #[database_resilient]
    pub(super) async fn get() -> Result<(), CallError<&'static str>> {
        Ok(())
    }

    // An attribute that puts the body into a block of its own, on either side.
    #[database_resilient]
    #[tracing::instrument]
    pub(super) async fn spanned() -> Result<(), CallError<&'static str>> {
        Ok(())
    }

    #[tracing::instrument]
    #[database_resilient]
    pub(super) async fn spans() -> std::io::Result<()> {
        Ok(())
    }

    #[database_resilient]
    pub(super) fn get_sync() -> Result<(), CallError<&'static str>> {
        Ok(())
    }

    impl Users {
        #[database_resilient]
        pub(super) async fn get(&self) -> Result<(), CallError<&'static str>> {
            Ok(())
        }
    }

    impl<T: Sync> Orders<T> {
        #[database_resilient]
        pub(super) async fn get(&self) -> Result<(), CallError<&'static str>> {
            let _ = &self.0;
            Ok(())
        }
    }
}

#[tokio::test]
async fn a_functions_path_is_its_name() {
    let here = module_path!();
    repository::get().await.unwrap();
    repository::get_sync().unwrap();
    repository::spanned().await.unwrap();
    repository::spans().await.unwrap();
    repository::Users.get().await.unwrap();
    repository::Orders(1).get().await.unwrap();
    repository::Orders("").get().await.unwrap();
    let all = get_resilience_health().circuit_breakers;
    let calls = |name: &str| {
        all.iter().find(|(key, _)| key.contains(name)).map(|(key, breaker)| {
            let ours = format!("database:{here}::repository::");
            (key.strip_prefix(&*ours).unwrap_or(key), breaker.total_calls)
        })
    };
    assert_eq!(calls("repository::get"), Some(("get", 1)));
    assert_eq!(calls("get_sync"), Some(("get_sync", 1)));
    assert_eq!(calls("spanned"), Some(("spanned", 1)));
    assert_eq!(calls("spans"), Some(("spans", 1)));
    assert_eq!(calls("Users"), Some(("Users::get", 1)));
    // How the compiler writes its parameter is its own business.
    assert!(matches!(calls("Orders"), Some((name, 2)) if name.ends_with("::get")));
}
