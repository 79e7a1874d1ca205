//! From a call's end to the one error of all clients.

use super::*;
use std::io;

const S: Duration = Duration::from_secs(1);

/// What a client called in a user's operation ends with.
fn of_a_client(by: Decider) -> Error {
    let last = Some(io::Error::from(io::ErrorKind::ConnectionReset));
    Error::from_call(
        "database",
        "query",
        CallError::Stopped {
            by,
            attempts: 3,
            elapsed: S,
            effect: Effect::Transient,
            retry_after: Some(5 * S),
            last,
        },
    )
}

#[test]
fn what_the_outer_policy_decided_stands() {
    let error: Error = CallError::Stopped {
        by: Decider::Retry,
        attempts: 2,
        elapsed: 4 * S,
        effect: Effect::Unknown,
        retry_after: None,
        last: Some(of_a_client(Decider::Breaker)),
    }
    .into();
    assert_eq!((error.kind(), error.decider()), (ErrorKind::Stopped, Some(Decider::Retry)));
    assert_eq!((error.attempts(), error.elapsed()), (2, 4 * S));
    assert!(error.is_exhausted() && error.is_outcome_unknown());
    // The inner error with all it says, and the driver's below it.
    let inner = error.downcast_ref::<Error>().unwrap();
    assert_eq!((inner.decider(), inner.attempts()), (Some(Decider::Breaker), 3));
    let driver = error.downcast_ref::<io::Error>().unwrap();
    assert_eq!(driver.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(
        report(&error).to_string(),
        "call stopped after 2 attempts and 4.000s: no attempts left; it may have happened, so look \
         before repeating it: database: query stopped after 3 attempts and 1.000s: circuit breaker \
         open; try again in 5.0s"
    );
}

#[test]
fn what_an_inner_client_decided_stands_where_no_outer_policy_did() {
    let error = of_a_client(Decider::Breaker);
    let effect = error.effect();
    let error: Error = CallError::Backend { attempts: 1, elapsed: 2 * S, effect, error }.into();
    assert_eq!((error.kind(), error.decider()), (ErrorKind::Stopped, Some(Decider::Breaker)));
    assert!(error.is_circuit_open());
    assert_eq!(error.retry_after(), Some(5 * S));
    assert_eq!((error.attempts(), error.elapsed()), (1, 2 * S));
    assert!(error.downcast_ref::<io::Error>().is_some());
}

#[test]
fn a_refusal_and_a_foreign_error_convert_too() {
    let refused: CallError<io::Error> =
        CallError::Rejected { by: Decider::Breaker, retry_after: Some(S), opened_by: None };
    let error = Error::from(refused);
    assert!(error.is_rejected() && error.is_circuit_open());
    assert_eq!((error.attempts(), error.retry_after()), (0, Some(S)));
    assert!(error.source().is_none());

    let answered = CallError::Backend {
        attempts: 1,
        elapsed: S,
        effect: Effect::Permanent,
        error: io::Error::from(io::ErrorKind::NotFound),
    };
    let error = Error::from(answered);
    assert_eq!((error.kind(), error.decider()), (ErrorKind::Backend, None));
    assert!(error.downcast_ref::<io::Error>().is_some());
}

/// Whose own `source()` skips it.
#[test]
fn what_an_io_error_wraps_is_found_below_it() {
    #[derive(Debug, PartialEq)]
    struct Marker(u32);
    impl fmt::Display for Marker {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("marked")
        }
    }
    impl StdError for Marker {}

    let (attempts, elapsed, effect) = (1, S, Effect::Permanent);
    let error = io::Error::other(io::Error::other(Marker(7)));
    let error = Error::from(CallError::Backend { attempts, elapsed, effect, error });
    assert_eq!(error.downcast_ref(), Some(&Marker(7)));
    assert!(error.downcast_ref::<io::Error>().is_some());
    assert!(error.downcast_ref::<Error>().is_none(), "below it, and not itself");
}

#[test]
fn an_answer_that_is_no_use_was_sent_and_is_not_repeated() {
    let source = io::Error::other("s3cret");
    let error = Error::unusable("the answer is not JSON", Some(Box::new(source)));
    assert_eq!((error.kind(), error.decider()), (ErrorKind::Backend, None));
    assert_eq!((error.attempts(), error.effect()), (1, Effect::Permanent));
    assert_eq!(report(&error).to_string(), "the answer is not JSON");
    assert!(error.downcast_ref::<io::Error>().is_some());
    assert_eq!(error.verdict(), Verdict::permanent());
}

/// A user's own error, which may quote whatever a driver told it.
#[test]
fn a_report_prints_the_words_of_clients_and_of_nobody_else() {
    let (attempts, elapsed, effect) = (1, S, Effect::Permanent);
    let error = io::Error::other("s3cret");
    let foreign = Error::from(CallError::Backend { attempts, elapsed, effect, error });
    assert_eq!(report(&foreign).to_string(), "call failed after 1 attempt and 1.000s");
    assert_eq!(foreign.source().unwrap().to_string(), "s3cret");
    let error = foreign;
    let nested = Error::from(CallError::Backend { attempts, elapsed, effect, error });
    let said = "call failed after 1 attempt and 1.000s: call failed after 1 attempt and 1.000s";
    assert_eq!(report(&nested).to_string(), said);
}
