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
/// It holds in the task that awaits the scope, and not in one that is spawned inside: a task begins without
/// a deadline. Take [`Deadline::current`] along, and give the task a scope of its own.
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
    /// cut off. `tokio::spawn` inside `work` begins a task without it, to which it is carried by hand:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use mainstay_policy::Deadline;
    /// use std::time::Duration;
    ///
    /// let handler = async {
    ///     let alone = tokio::spawn(async { Deadline::current().is_some() });
    ///     let in_time = async { Deadline::current().is_some() };
    ///     let carried = Deadline::current().map(|deadline| tokio::spawn(deadline.scope(in_time)));
    ///     (alone, carried)
    /// };
    /// let (alone, carried) = Deadline::within(Duration::from_secs(2)).scope(handler).await;
    /// assert!(!alone.await?);
    /// assert!(carried.ok_or("no deadline")?.await?);
    /// # Ok(()) }
    /// ```
    pub fn scope<F: IntoFuture>(self, work: F) -> impl Future<Output = F::Output> {
        Scoped { deadline: self, work: work.into_future() }
    }

    /// [`Deadline::scope`] for a closure that blocks.
    pub fn scope_blocking<T>(self, work: impl FnOnce() -> T) -> T {
        let _inside = self.enter();
        work()
    }

    /// What follows ends by it, until the guard goes. What a call in there could not do is also true
    /// of the attempt around it, so all else of the scope stays.
    fn enter(self) -> Shortened {
        CURRENT.with(|current| {
            let around = current.deadline.get();
            current.deadline.set(self.0.min(around));
            Shortened(around)
        })
    }
}

/// Gives the deadline around it back, also when the work panics.
struct Shortened(Instant);

impl Drop for Shortened {
    fn drop(&mut self) {
        CURRENT.with(|current| current.deadline.set(self.0));
    }
}

/// What surrounds the code that is running.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) deadline: Instant,
    pub(crate) marks: Marks,
}

/// What nested calls have told the attempt around them, in one word: two bits, and the address of a breaker,
/// which leaves room for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks(usize);

impl Marks {
    pub(crate) const NONE: Self = Self(0);
    /// A nested call that owned the retries has failed: nobody around it repeats.
    const HANDLED: usize = 1;
    /// A nested call ended without knowing whether it happened.
    const UNKNOWN: usize = 2;
    pub(crate) const BITS: usize = Self::HANDLED | Self::UNKNOWN;

    pub(crate) const fn new(handled: bool, unknown: bool) -> Self {
        Self(if handled { Self::HANDLED } else { 0 } | if unknown { Self::UNKNOWN } else { 0 })
    }

    /// And the breaker at this address has counted the failure.
    pub(crate) const fn counted_by(self, breaker: usize) -> Self {
        Self(self.0 & Self::BITS | breaker & !Self::BITS)
    }

    pub(crate) const fn is_handled(self) -> bool {
        self.0 & Self::HANDLED != 0
    }

    pub(crate) const fn is_unknown(self) -> bool {
        self.0 & Self::UNKNOWN != 0
    }

    /// Of the breakers that have counted a failure the last one is remembered.
    pub(crate) const fn is_counted_by(self, breaker: usize) -> bool {
        self.0 & !Self::BITS == breaker
    }

    const fn and(self, more: Self) -> Self {
        let bits = (self.0 | more.0) & Self::BITS;
        let breaker = if more.0 > Self::BITS { more.0 } else { self.0 };
        Self(bits | breaker & !Self::BITS)
    }
}

impl Scope {
    pub(crate) const fn until(deadline: Instant) -> Self {
        Self { deadline, marks: Marks::NONE }
    }

    #[inline]
    pub(crate) fn current() -> Self {
        CURRENT.with(Current::get)
    }

    /// Tells the attempt around this call how the call ended.
    pub(crate) fn mark(marks: Marks) {
        CURRENT.with(|current| current.marks.set(current.marks.get().and(marks)));
    }

    /// Surrounds what follows, until the guard goes.
    #[inline]
    pub(crate) fn enter(self) -> Entered {
        CURRENT.with(|current| {
            let around = current.get();
            current.set(Self { deadline: self.deadline.min(around.deadline), ..self });
            Entered(around)
        })
    }
}

/// Gives the scope around it back, also when the work panics.
pub(crate) struct Entered(Scope);

impl Entered {
    /// What was marked meanwhile.
    #[inline]
    pub(crate) fn leave(self) -> Marks {
        CURRENT.with(|current| current.marks.get())
    }
}

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        CURRENT.with(|current| current.set(self.0));
    }
}

/// A [`Scope`] that can be changed. Its fields are cells of their own, because a whole one would be
/// copied in one piece: a load that spans stores of a moment ago waits 10 ns for them.
struct Current {
    deadline: Cell<Instant>,
    marks: Cell<Marks>,
}

impl Current {
    #[inline]
    fn get(&self) -> Scope {
        Scope { deadline: self.deadline.get(), marks: self.marks.get() }
    }

    #[inline]
    fn set(&self, to: Scope) {
        self.deadline.set(to.deadline);
        self.marks.set(to.marks);
    }
}

thread_local! {
    static CURRENT: Current = const {
        Current { deadline: Cell::new(Instant::NEVER), marks: Cell::new(Marks::NONE) }
    };
}

pin_project! {
    struct Scoped<F> {
        deadline: Deadline,
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _inside = this.deadline.enter();
        this.work.poll(cx)
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
