//! Functions with an attribute, on a paused clock; what counts is how often their bodies run.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod arguments;
mod attempts;
mod signatures;

use mainstay_policy::{BreakerState, breaker};
use std::{
    io,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

/// Counts the runs of a body, and fails the first ones.
struct Runs(AtomicU32);

impl Runs {
    const fn none() -> Self {
        Self(AtomicU32::new(0))
    }

    fn count(&self) -> u32 {
        self.0.load(SeqCst)
    }

    /// The number of this run, from 1.
    fn next(&self) -> u32 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    /// The first two runs meet a refused connection.
    fn fail_twice(&self) -> io::Result<&'static str> {
        if self.next() < 3 { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok("success") }
    }
}

fn state(name: &str) -> BreakerState {
    breaker(name).unwrap_or_else(|| panic!("no breaker {name}")).state()
}
