//! The attributes that `mainstay` exports name that crate; here the engine goes by its name.
#![allow(missing_docs, clippy::unwrap_used)]

extern crate mainstay_policy as mainstay;

use mainstay::{BreakerState, CallError, Error, breaker};
use mainstay_macros::{database_resilient, resilient};
use std::io;

#[database_resilient(timeout_seconds = 2)]
async fn load(id: u32) -> Result<u32, CallError<io::Error>> {
    Ok(id)
}

#[resilient(operation_type = "ml", jitter = "equal", idempotent = false)]
fn train() -> Result<u32, Error> {
    Ok(1)
}

#[tokio::test]
async fn the_facades_attributes_work() {
    assert_eq!(load(7).await.unwrap(), 7);
    assert_eq!(train().unwrap(), 1);
    for name in ["database:facade::load", "ml:facade::train"] {
        assert_eq!(breaker(name).unwrap().state(), BreakerState::Closed);
    }
}
