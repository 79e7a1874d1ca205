//! Deadlines that every call inside them keeps, and what nested calls tell the calls around them.
//!
//! Both travel in a thread-local that is set while a future is polled. It does not cross
//! `tokio::spawn`: carry [`Deadline::current`] over by hand.

use crate::clock::{self, Instant};
use pin_project_lite::pin_project;
use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

/// A moment by which all calls in its scope end.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mainstay_policy::{Deadline, Kind, Policy};
/// use std::time::Duration;
///
/// let policy = Policy::builder(Kind::Api, "deadline-example").build()?;
/// let hang = || std::future::pending::<Result<(), std::io::Error>>();
/// let ended = Deadline::within(Duration::from_millis(5)).scope(policy.call(hang)).await;
/// assert!(ended.is_err_and(|error| error.is_timeout()));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The moment after `length` has passed from now.
    #[must_use]
    pub fn within(length: Duration) -> Self {
        Self(clock::now().after(length))
    }

    /// The deadline of the scope that is running, if there is one.
    #[must_use]
    pub fn current() -> Option<Self> {
        let deadline = Scope::current().deadline;
        (!deadline.is_never()).then_some(Self(deadline))
    }

    /// The time left; zero when it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.since(clock::now())
    }

    /// Runs `work` with this deadline, or with the one around it if that is earlier. Calls through
    /// a policy end by it; other code may ask for [`Deadline::current`]. The work itself is not
    /// cut off.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        Scoped { scope: Scope { deadline: self.0, handled: false, unknown: false }, work }
    }

    /// [`Deadline::scope`] for a closure that blocks.
    pub fn scope_blocking<T>(self, work: impl FnOnce() -> T) -> T {
        Scope { deadline: self.0, handled: false, unknown: false }.enter(work).0
    }
}

/// What surrounds the code that is running.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) deadline: Instant,
    /// A nested call that owned the retries has failed: nobody around it repeats.
    pub(crate) handled: bool,
    /// A nested call ended without knowing whether it happened.
    pub(crate) unknown: bool,
}

impl Scope {
    pub(crate) const NONE: Self = Self { deadline: Instant::NEVER, handled: false, unknown: false };

    pub(crate) fn current() -> Self {
        CURRENT.get()
    }

    /// Tells the attempt around this call how the call ended.
    pub(crate) fn mark(handled: bool, unknown: bool) {
        let now = CURRENT.get();
        CURRENT.set(Self {
            handled: now.handled || handled,
            unknown: now.unknown || unknown,
            ..now
        });
    }

    /// Runs `work` inside, and says what was marked meanwhile.
    pub(crate) fn enter<R>(self, work: impl FnOnce() -> R) -> (R, Self) {
        // Given back also when the work panics.
        struct Around(Scope);
        impl Drop for Around {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let around = Around(CURRENT.get());
        CURRENT.set(Self { deadline: self.deadline.min(around.0.deadline), ..self });
        let result = work();
        (result, CURRENT.get())
    }
}

thread_local! {
    static CURRENT: Cell<Scope> = const { Cell::new(Scope::NONE) };
}

pin_project! {
    struct Scoped<F> {
        scope: Scope,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // What a call in here could not do is also true of the attempt around the scope.
        let (polled, seen) = this.scope.enter(|| this.work.poll(cx));
        if seen.handled || seen.unknown {
            Scope::mark(seen.handled, seen.unknown);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_nested_deadlines_holds_and_leaves_with_its_scope() {
        assert_eq!(Deadline::current(), None);
        let left = || Deadline::current().map(Deadline::left);
        Deadline::within(5 * S)
            .scope(async {
                assert_eq!(left(), Some(5 * S));
                Deadline::within(9 * S).scope(async { assert_eq!(left(), Some(5 * S)) }).await;
                Deadline::within(S).scope(async { assert_eq!(left(), Some(S)) }).await;
                tokio::time::sleep(S).await;
                assert_eq!(left(), Some(4 * S));
                let carried = Deadline::current().unwrap();
                tokio::spawn(carried.scope(async move { assert_eq!(left(), Some(4 * S)) }))
                    .await
                    .unwrap();
            })
            .await;
        assert_eq!(Deadline::current(), None);
        assert_eq!(Deadline::within(Duration::MAX).scope_blocking(left), None);
    }

    #[tokio::test]
    async fn a_panic_leaves_no_scope_behind() {
        let panics = std::panic::catch_unwind(|| {
            Deadline::within(S).scope_blocking(|| panic!("as planned"));
        });
        assert!(panics.is_err());
        assert_eq!(Deadline::current(), None);
    }
}
