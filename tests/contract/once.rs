//! What may have happened is sent again only if that does no harm.

use crate::subject::{Client, Remote, ms, ready};
use mainstay::{Decider, Effect, ErrorKind, Event, PolicyBuilder, observe};
use std::sync::{Arc, Mutex};

/// Enough for a link that has to come back first.
fn patient(policy: PolicyBuilder) -> PolicyBuilder {
    policy.max_attempts(30).base_delay(ms(40)).max_delay(ms(100)).enable_budget(false)
}

// S3 has no door for it: see its `ONCE`.
each!(a_write_whose_reply_is_lost_is_unknown_and_not_repeated: database mariadb redis http);

async fn a_write_whose_reply_is_lost_is_unknown_and_not_repeated<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, patient);
    let once = S::Client::ONCE.unwrap();
    ready(&client).await;
    let error = server.lose_reply(client.call(once)).await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{}: {error:?}", client.name());
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Backend, Effect::Unknown));
    assert_eq!((error.decider(), error.attempts()), (None, 1), "{}: {error:?}", client.name());
    assert!(error.to_string().contains("it may have happened"), "{error}");
    ready(&client).await;
    assert_eq!(server.asked(once).await, 1, "{}: it was sent twice", client.name());
}

each!(what_may_be_done_twice_is_repeated_and_succeeds: database mariadb redis http s3);

async fn what_may_be_done_twice_is_repeated_and_succeeds<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, patient);
    let (effects, name) = (Arc::new(Mutex::new(Vec::new())), client.name().to_owned());
    let seen = Arc::clone(&effects);
    let _subscription = observe(move |event: &Event| match event {
        Event::Retrying { dependency, effect, .. } if **dependency == *name => {
            seen.lock().unwrap().push(*effect);
        }
        _ => {}
    });
    for door in [&S::Client::REPEATED].into_iter().chain(S::Client::REPEATED_TOO) {
        ready(&client).await;
        effects.lock().unwrap().clear();
        let before = server.asked(door).await;
        server.lose_reply(client.call(door)).await.unwrap();
        let effects = effects.lock().unwrap().clone();
        let what = format!("{} {door}: {effects:?}", client.name());
        assert_eq!(effects.first(), Some(&Effect::Unknown), "{what}");
        // The others, if any, found the link still down.
        assert!(effects[1..].iter().all(|effect| *effect == Effect::NeverSent), "{what}");
        assert_eq!(server.asked(door).await - before, 2, "{what}");
    }
}

each!(what_was_never_sent_is_repeated_whatever_it_is: database mariadb redis http);

async fn what_was_never_sent_is_repeated_whatever_it_is<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, |policy| policy.max_attempts(3));
    let once = S::Client::ONCE.unwrap();
    server.proxy().refuse();
    let error = client.call(once).await.unwrap_err();
    assert_eq!((error.decider(), error.attempts()), (Some(Decider::Retry), 3), "{error:?}");
    assert!(!error.is_outcome_unknown(), "{}: {error:?}", client.name());
    server.proxy().listen();
    ready(&client).await;
    client.call(once).await.unwrap();
    assert_eq!(server.asked(once).await, 1, "{}", client.name());
}
