//! Which breakers have let in the attempts around a call. What runs inside a probe, or inside one of the
//! few calls of a ramp, is part of it: its breaker has answered for that already, and a refusal would let
//! the probe fail by our own hand, every time.
//!
//! Only breakers that are not plainly closed note what they let in, so that other calls pay nothing.

use std::cell::RefCell;

/// A breaker's word for an attempt: its address, and its generation then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    pub(super) breaker: usize,
    pub(super) generation: u64,
}

thread_local! {
    /// As deep as such attempts surround each other: two or three.
    static AROUND: RefCell<Vec<Admission>> = const { RefCell::new(Vec::new()) };
}

impl Admission {
    /// Surrounds what follows, until the guard goes.
    pub(crate) fn enter(self) -> Inside {
        let push = |around: &RefCell<Vec<Self>>| {
            let mut around = around.borrow_mut();
            around.push(self);
            around.len() - 1
        };
        Inside(AROUND.try_with(push).unwrap_or_default())
    }

    /// Those around this thread's work, to be carried to another thread.
    pub(crate) fn all() -> Vec<Self> {
        AROUND.try_with(|around| around.borrow().clone()).unwrap_or_default()
    }

    pub(super) fn is_around(self) -> bool {
        AROUND.try_with(|around| around.borrow().contains(&self)).unwrap_or_default()
    }
}

/// How many there were before; they are so many again when it goes, also when the work panics.
#[derive(Debug)]
pub(crate) struct Inside(usize);

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = AROUND.try_with(|around| around.borrow_mut().truncate(self.0));
    }
}
