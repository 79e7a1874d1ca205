//! The same promises for callers that are not async: `.wait()` in the place of `.await`.

use crate::{
    alone::alone,
    database,
    subject::{Client, Mood, Remote, Subject, ms, ready},
};
use mainstay::{
    BreakGrowth, BreakerState, Deadline, Decider, ErrorKind,
    blocking::Wait,
    sqlx::{query, query_scalar},
};
use std::{thread, time::Instant};
use tokio::{sync::oneshot, task::spawn_blocking};

const DEADLINE: std::time::Duration = ms(300);

/// Runs it on a thread that knows no runtime.
async fn on_a_plain_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = oneshot::channel();
    thread::spawn(move || drop(tell.send(work())));
    told.await.expect("the thread panicked")
}

each!(works_on_every_kind_of_thread: database redis http s3);

async fn works_on_every_kind_of_thread<S: Remote>() {
    let server = S::start().await;
    let client = server.client(2, |policy| policy);
    let every_door = {
        let client = client.clone();
        move || {
            ready(&client).wait();
            for door in S::Client::DOORS {
                client.call(door).wait().unwrap_or_else(|error| panic!("{door}: {error:?}"));
            }
        }
    };
    on_a_plain_thread(every_door.clone()).await;
    spawn_blocking(every_door.clone()).await.unwrap();
    // A thread of a runtime, and inside of a task: blocked, but neither stuck nor a panic.
    every_door();
    // Async callers of the same client have connections of their own.
    ready(&client).await;
    on_a_plain_thread(every_door).await;
}

each!(ends_by_its_deadline: database redis http s3);

async fn ends_by_its_deadline<S: Remote>() {
    let server = S::start().await;
    let client = server.client(2, |policy| policy.timeout(ms(60_000)));
    on_a_plain_thread({
        let client = client.clone();
        move || ready(&client).wait()
    })
    .await;
    server.set(Mood::Silent).await;
    let (decider, took) = on_a_plain_thread(move || {
        let started = Instant::now();
        let call = || client.call(S::Client::REPEATED).wait();
        let error = Deadline::within(DEADLINE).scope_blocking(call).unwrap_err();
        (error.decider(), started.elapsed())
    })
    .await;
    assert_eq!(decider, Some(Decider::Deadline));
    assert!(took >= DEADLINE && took < 10 * DEADLINE, "{took:?}");
}

each!(an_open_breaker_refuses: database redis http s3);

async fn an_open_breaker_refuses<S: Remote>() {
    let server = S::start().await;
    let client = server.client(2, |policy| {
        let policy = policy.timeout(ms(150)).max_attempts(1).failure_threshold(1);
        policy.break_growth(BreakGrowth::Fixed)
    });
    on_a_plain_thread({
        let client = client.clone();
        move || ready(&client).wait()
    })
    .await;
    server.set(Mood::Silent).await;
    let accepted = server.proxy().accepted();
    let (first, second) = on_a_plain_thread({
        let client = client.clone();
        move || {
            let call = || client.call(S::Client::REPEATED).wait().unwrap_err();
            (call(), call())
        }
    })
    .await;
    assert!(first.is_timeout(), "{first:?}");
    assert_eq!(client.policy().breaker().state(), BreakerState::Open);
    assert_eq!((second.kind(), second.attempts()), (ErrorKind::Rejected, 0), "{second:?}");
    assert!(server.proxy().accepted() <= accepted + 1, "the refused call went to the network");
}

/// On a thread without a runtime there is nobody who would end its transaction later.
#[tokio::test]
async fn a_dropped_session_gives_back_its_place() {
    let server = database::Subject::start().await;
    let db = server.client(1, |policy| policy);
    on_a_plain_thread(move || {
        for _ in 0..3 {
            let mut session = db.session().wait().unwrap();
            query("insert into done values (1)").execute(&mut session).wait().unwrap();
            drop(session);
            let mut session = db.session().wait().unwrap();
            query("insert into done values (2)").execute(&mut session).wait().unwrap();
            session.commit().wait().unwrap();
        }
        let kept: Vec<i32> = query_scalar("select asked from done").fetch_all(&db).wait().unwrap();
        assert_eq!(kept, [2, 2, 2]);
    })
    .await;
}

/// It is said on a worker, once, and not where blocking is right.
#[test]
fn a_blocked_worker_is_a_warning() {
    const NAME: &str = "blocking::a_blocked_worker_is_a_warning";
    let Some(told) = alone(NAME, &[]) else { return block_workers() };
    let warnings: Vec<_> = told.lines().filter(|line| line.contains("keeps it from")).collect();
    assert_eq!(warnings.len(), 1, "{told}");
    let (before, _) = told.split_once(warnings[0]).unwrap();
    assert!(before.contains("now on a worker"), "{told}");
}

fn block_workers() {
    struct Print;
    impl tracing::Subscriber for Print {
        fn enabled(&self, of: &tracing::Metadata<'_>) -> bool {
            *of.level() == tracing::Level::WARN
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            println!("{event:?}");
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
    tracing::subscriber::set_global_default(Print).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    assert_eq!(async { 1 }.wait(), 1);
    runtime.block_on(async {
        assert_eq!(spawn_blocking(|| async { 2 }.wait()).await.unwrap(), 2);
        println!("now on a worker");
        for _ in 0..3 {
            assert_eq!(tokio::spawn(async { async { 3 }.wait() }).await.unwrap(), 3);
        }
        assert_eq!(async { 4 }.wait(), 4);
    });
}
