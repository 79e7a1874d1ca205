//! A reset reaches the policies that attributes hold. In a process of its own, since it reaches all.
#![allow(missing_docs, clippy::unwrap_used)]

use mainstay_policy::{
    BreakerState, CallError, breaker, database_resilient, reset_resilience_state,
};

#[database_resilient(operation_name = "reset", failure_threshold = 1, max_attempts = 1)]
fn works(works: bool) -> Result<(), CallError<&'static str>> {
    if works { Ok(()) } else { Err("no") }
}

#[test]
fn a_reset_closes_the_breaker_and_the_policy_works_on() {
    let state = || breaker("database:reset").unwrap().state();
    for _ in 0..2 {
        assert!(works(false).is_err());
        assert!(works(true).unwrap_err().is_circuit_open());
        assert_eq!(state(), BreakerState::Open);
        reset_resilience_state();
        assert_eq!(state(), BreakerState::Closed);
        assert!(works(true).is_ok());
    }
}
