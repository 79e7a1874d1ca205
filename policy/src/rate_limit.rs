//! A cap on attempts over time: the generic cell rate algorithm, by `governor`.

use crate::clock::{self, Instant};
use governor::{
    RateLimiter,
    clock::{Clock, Reference},
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed},
};
use std::{num::NonZeroU32, time::Duration};

/// Our one reader of time, in the limiter's words.
#[derive(Clone, Copy, Debug)]
struct Ours;

impl Clock for Ours {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(clock::now().as_nanos())
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Ours, NoOpMiddleware<Nanos>>;

#[derive(Debug)]
pub(crate) struct RateLimit {
    limiter: Limiter,
    max_wait: Duration,
}

impl RateLimit {
    /// `calls` in every `per`, all of which may come at once.
    pub(crate) fn new(calls: NonZeroU32, per: Duration, max_wait: Duration) -> Option<Self> {
        let quota = governor::Quota::with_period(per / calls.get())?.allow_burst(calls);
        Some(Self { limiter: RateLimiter::direct_with_clock(quota, Ours), max_wait })
    }

    pub(crate) fn pass_now(&self) -> bool {
        self.limiter.check().is_ok()
    }

    /// `Err` is the wait that would be too long, or that cannot be measured. Of those who wait for the same
    /// turn one gets it, and the others wait on.
    pub(crate) async fn pass(&self, end: Instant) -> Result<(), Duration> {
        let last = self.last_turn();
        while let Some(wait) = self.wait(last, end)? {
            if !clock::has_timer() {
                return Err(wait);
            }
            clock::sleep(wait).await;
        }
        Ok(())
    }

    pub(crate) fn pass_blocking(&self, end: Instant) -> Result<(), Duration> {
        let last = self.last_turn();
        while let Some(wait) = self.wait(last, end)? {
            std::thread::sleep(wait);
        }
        Ok(())
    }

    /// Of the turns that may be waited for.
    fn last_turn(&self) -> Instant {
        clock::now().after(self.max_wait)
    }

    fn wait(&self, last: Instant, end: Instant) -> Result<Option<Duration>, Duration> {
        let Err(until) = self.limiter.check() else { return Ok(None) };
        let now = Ours.now();
        let wait: Duration = until.earliest_possible().duration_since(now).into();
        let turn = clock::now().after(wait);
        if turn > last || turn >= end { Err(wait) } else { Ok(Some(wait)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_one_a_period() {
        let three = NonZeroU32::new(3).unwrap();
        let limit = RateLimit::new(three, 3 * S, Duration::ZERO).unwrap();
        for _ in 0..3 {
            assert_eq!(limit.pass(Instant::NEVER).await, Ok(()));
        }
        assert_eq!(limit.pass(Instant::NEVER).await, Err(S));
        tokio::time::advance(S).await;
        assert_eq!(limit.pass(Instant::NEVER).await, Ok(()));
        assert_eq!(limit.pass(Instant::NEVER).await, Err(S));
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_where_it_may_and_not_past_the_deadline() {
        let limit = RateLimit::new(NonZeroU32::MIN, S, 5 * S).unwrap();
        let start = clock::now();
        assert_eq!(limit.pass(Instant::NEVER).await, Ok(()));
        assert_eq!(limit.pass(Instant::NEVER).await, Ok(()));
        assert_eq!(clock::now().since(start), S);
        assert!(limit.pass(clock::now().after(S / 2)).await.is_err());
    }

    #[test]
    fn where_there_is_no_timer_it_does_not_wait() {
        use std::{
            pin::pin,
            task::{Context, Poll, Waker},
        };
        let limit = RateLimit::new(NonZeroU32::MIN, S / 4, 5 * S).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        for passes in [true, false, false] {
            let pass = pin!(limit.pass(Instant::NEVER)).as_mut().poll(&mut cx).map(|p| p.is_ok());
            assert_eq!(pass, Poll::Ready(passes));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_misses_a_turn_waits_no_longer_for_it_than_the_others() {
        let limit = RateLimit::new(NonZeroU32::MIN, S, S).unwrap();
        let start = clock::now();
        let pass = || limit.pass(Instant::NEVER);
        let (a, b, c, d) = tokio::join!(pass(), pass(), pass(), pass());
        assert_eq!([a, b, c, d].iter().filter(|passed| passed.is_ok()).count(), 2);
        assert_eq!(clock::now().since(start), S);
    }
}
