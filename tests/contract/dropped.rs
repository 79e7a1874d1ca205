//! A call may be dropped at any await: what it held comes back, and the breaker learns nothing.

use crate::subject::{Client, Mood, Remote, Subject, Tune, Work, ms, ready, until};
use mainstay::{BreakerState, Decider, Error, Event, get_resilience_health, observe};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Whatever is lost is missed at once: there is one of everything, and no second attempt.
const ONE_OF_EACH: Tune = |policy| {
    let policy = policy.max_attempts(1).max_concurrent(1).failure_threshold(1);
    // A probe that was slow when it was dropped has failed, and this machine may be slow.
    policy.recovery_timeout(ms(1)).ramp(false).slow_after(ms(5_000))
};

each!(at_any_await_it_gives_everything_back: database mariadb sqlite redis http s3);

async fn at_any_await_it_gives_everything_back<S: Subject>() {
    let server = S::start().await;
    let client = server.client(1, ONE_OF_EACH);
    ready(&client).await;
    for door in S::Client::DOORS {
        for before in [BreakerState::Closed, BreakerState::HalfOpen] {
            for polls in 0.. {
                if before == BreakerState::HalfOpen {
                    half_open(&client).await;
                }
                let tokens = client.policy().retries_left();
                let end = Polled { call: client.call(door), left: polls }.await;
                let what = format!("{} {door}, {before:?}, after {polls} polls", client.name());
                if let Some(end) = end {
                    end.unwrap_or_else(|error| panic!("{what}: {}", mainstay::report(&error)));
                    break;
                }
                assert!(client.policy().retries_left() >= tokens, "{what}");
                given_back(&client, door, before, &what).await;
            }
        }
    }
    let health = get_resilience_health();
    let breaker = &health.circuit_breakers[client.name()];
    assert_eq!((breaker.retries, breaker.timeouts), (0, 0), "{breaker:?}");
}

async fn given_back<C: Client>(client: &C, door: &str, before: BreakerState, what: &str) {
    let state = client.policy().breaker().state();
    // The first call of a door that makes several was a probe that succeeded.
    let of_one_call =
        C::ONCE == Some(door) || C::REPEATED == door || C::REPEATED_TOO.contains(&door);
    let may_have_closed = !of_one_call && state == BreakerState::Closed;
    assert!(state == before || may_have_closed, "{what}: {state:?}");
    let started = Instant::now();
    let next = client.call(C::REPEATED).await;
    next.unwrap_or_else(|error| panic!("{what}: {}", mainstay::report(&error)));
    assert!(started.elapsed() < ms(4_900), "{what}: {:?}", started.elapsed());
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed, "{what}");
}

/// Opens the breaker without the server, and waits for the end of the break.
async fn half_open<C: Client>(client: &C) {
    let refused = || async { Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionRefused)) };
    client.policy().call(refused).await.unwrap_err();
    let is_half_open = || client.policy().breaker().state() == BreakerState::HalfOpen;
    until("the breaker is half-open", is_half_open).await;
}

/// A call that is dropped once it has been polled so often; `None` then.
struct Polled {
    call: Work,
    left: u32,
}

impl Future for Polled {
    type Output = Option<Result<(), Error>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        match self.call.as_mut().poll(context) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

each!(while_it_waits_to_retry_the_budget_gets_its_token_back: database mariadb redis http s3);

async fn while_it_waits_to_retry_the_budget_gets_its_token_back<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, |policy| {
        let wait = Duration::from_secs(2);
        policy.max_attempts(2).base_delay(wait).max_delay(wait).jitter(mainstay::Jitter::None)
    });
    ready(&client).await;
    server.set(Mood::NotNow).await;
    let (waits, retrying) = (Arc::new(Notify::new()), client.name().to_owned());
    let told = Arc::clone(&waits);
    let _subscription = observe(move |event: &Event| {
        if matches!(event, Event::Retrying { dependency, .. } if **dependency == *retrying) {
            told.notify_one();
        }
    });
    let tokens = client.policy().retries_left();
    let mut call = client.call(S::Client::REPEATED);
    tokio::select! {
        end = &mut call => panic!("{}: it did not wait: {end:?}", client.name()),
        () = waits.notified() => {}
    }
    drop(call);
    let left = client.policy().retries_left();
    assert!(left >= tokens && tokens > 0, "{}: {left} of {tokens}", client.name());
}

each!(a_place_is_refused_only_while_it_is_taken: database mariadb redis http s3);

/// That the promise above can fail: with the one place taken, the next call is refused.
async fn a_place_is_refused_only_while_it_is_taken<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, ONE_OF_EACH);
    ready(&client).await;
    server.set(Mood::Silent).await;
    let held = Polled { call: client.call(S::Client::REPEATED), left: u32::MAX };
    tokio::pin!(held);
    assert!(futures_util::poll!(&mut held).is_pending());
    let refused = client.call(S::Client::REPEATED).await.unwrap_err();
    assert_eq!(refused.decider(), Some(Decider::Bulkhead), "{refused:?}");
}
