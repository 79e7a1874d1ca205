//! An error says who ended the call, after what, with what effect, and what the driver said.

use crate::{
    faults::{CORRUPT, Fault, MUTE, REFUSED, RESET},
    subject::{Client, Mood, Remote, Tune, Work, ms, ready},
};
use mainstay::{Deadline, Decider, Effect, Error, ErrorKind};
use std::time::{Duration, Instant};

const TWO_ATTEMPTS: Tune = |policy| policy.max_attempts(2).enable_budget(false);
/// Where time is to run out.
const LIMIT: Duration = ms(600);
const IN_A_HURRY: Tune = |policy| TWO_ATTEMPTS(policy).timeout(LIMIT).deadline(ms(5_000));

/// What is to be said of a failed call.
struct Expected<'a> {
    by: &'a [Decider],
    effects: &'a [Effect],
}

const NEVER_SENT: &[Effect] = &[Effect::NeverSent];
const UNKNOWN: &[Effect] = &[Effect::Unknown];
/// The connection may break before the request is written, or after.
const BROKEN: &[Effect] = &[Effect::NeverSent, Effect::Unknown];
const NOT_NOW: &[Effect] = &[Effect::Transient, Effect::Throttled { retry_after: None }];

each!(is_named_under_faults_of_the_network: database mariadb redis http s3);

async fn is_named_under_faults_of_the_network<S: Remote>() {
    let server = S::start().await;
    let (client, hurried) = (server.client(1, TWO_ATTEMPTS), server.client(1, IN_A_HURRY));
    let broken = if S::GREETS { NEVER_SENT } else { BROKEN };
    let mute = if S::GREETS { NEVER_SENT } else { UNKNOWN };
    for (client, fault, by, effects) in [
        (&client, REFUSED, &[Decider::Retry][..], NEVER_SENT),
        (&client, RESET, &[Decider::Retry], broken),
        (&client, CORRUPT, &[Decider::Retry], broken),
        // Time is up, unless a link of the client's own had found out before.
        (&hurried, MUTE, &[Decider::Timeout, Decider::Retry], mute),
    ] {
        ready(client).await;
        fault.start(server.proxy());
        // The first call finds out about connections that were open.
        client.call(S::Client::REPEATED).await.unwrap_err();
        let expected = Expected { by, effects };
        expected.of::<S>(client, fault.name, client.call(S::Client::REPEATED)).await;
        Fault::end(server.proxy());
    }
}

each!(is_named_whatever_the_server_answers: database mariadb redis http s3);

async fn is_named_whatever_the_server_answers<S: Remote>() {
    let server = S::start().await;
    let (client, hurried) = (server.client(1, TWO_ATTEMPTS), server.client(1, IN_A_HURRY));
    tokio::join!(ready(&client), ready(&hurried));
    server.set(Mood::NotNow).await;
    let expected = Expected { by: &[Decider::Retry], effects: NOT_NOW };
    expected.of::<S>(&client, "not now", client.call(S::Client::REPEATED)).await;

    for by in [Decider::Timeout, Decider::Deadline] {
        // With a connection at hand, so that it is sent.
        server.set(Mood::Well).await;
        ready(&hurried).await;
        server.set(Mood::Silent).await;
        let mut call = hurried.call(S::Client::REPEATED);
        if by == Decider::Deadline {
            call = Box::pin(Deadline::within(LIMIT + LIMIT / 2).scope(call));
        }
        Expected { by: &[by], effects: S::UNANSWERED }.of::<S>(&hurried, "no answer", call).await;
    }
}

impl Expected<'_> {
    async fn of<S: Remote>(&self, client: &S::Client, what: &str, call: Work) {
        let started = Instant::now();
        let error = call.await.unwrap_err();
        let took = started.elapsed();
        let what = format!("{}, {what}: {error:?}: {}", client.name(), mainstay::report(&error));
        let by = error.decider().unwrap();
        assert!(self.by.contains(&by) && self.effects.contains(&error.effect()), "{what}");
        // A machine in a hurry of its own may leave no time for the second.
        let attempts = if by == Decider::Deadline { 1..=2 } else { 2..=2 };
        assert!(attempts.contains(&error.attempts()), "{what}");
        assert_eq!(error.kind(), ErrorKind::Stopped, "{what}");
        let timeout = matches!(by, Decider::Timeout | Decider::Deadline);
        assert_eq!(error.is_timeout(), timeout, "{what}");
        assert_eq!(error.is_exhausted(), by == Decider::Retry, "{what}");
        // A client with timers of its own ends an attempt up to 5 ms early.
        let least = if timeout { LIMIT + LIMIT / 2 - ms(10) } else { Duration::ZERO };
        assert!(error.elapsed() <= took && error.elapsed() >= least, "{took:?}, {what}");
        assert!(error.to_string().contains(client.name()), "{what}");
        if by == Decider::Retry {
            assert!(keeps_its_cause::<S::Client>(&error), "{what}");
        }
    }
}

/// By type: the client's own reading of it, and the driver's error below.
fn keeps_its_cause<C: Client>(error: &Error) -> bool {
    let failure = error.downcast_ref::<C::Failure>().is_some();
    failure && (error.downcast_ref::<C::Driver>().is_some() || C::is_answer(error))
}

// To HTTP, a status that will not change is a response like any other.
each!(is_nobody_where_the_answer_is_final: database mariadb redis s3);

async fn is_nobody_where_the_answer_is_final<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, |policy| policy);
    ready(&client).await;
    server.set(Mood::Never).await;
    let before = server.asked(S::Client::REPEATED).await;
    let error = client.call(S::Client::REPEATED).await.unwrap_err();
    let what = format!("{}: {error:?}", client.name());
    assert_eq!((error.kind(), error.decider()), (ErrorKind::Backend, None), "{what}");
    assert_eq!((error.effect(), error.attempts()), (Effect::Permanent, 1), "{what}");
    assert!(error.downcast_ref::<<S::Client as Client>::Driver>().is_some(), "{what}");
    assert_eq!(server.asked(S::Client::REPEATED).await - before, 1, "{what}");
}
