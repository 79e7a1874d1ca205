//! A server that asks for less load gets less, from every call of its origin; time is paused, and a
//! double stands in the server's place and counts.

use mainstay_http::{HttpClient, HttpClientBuilder, HttpDouble, Reply};
use mainstay_policy::{BreakerState, Deadline, Decider, Event, Jitter, observe, report};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn builder(double: &HttpDouble, name: &str) -> HttpClientBuilder {
    HttpClient::builder("http://api.example.com")
        .name(name)
        .double(double)
        .policy(|p| p.max_attempts(2).jitter(Jitter::None).failure_threshold(1))
}

/// Answers the first request with this, the rest with 200; and when each came.
fn refuses_one(reply: Reply) -> (HttpDouble, Arc<Mutex<Vec<Duration>>>) {
    let (started, times) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&times);
    let double = HttpDouble::new(move |r| {
        seen.lock().unwrap().push(started.elapsed());
        if r.number == 1 { reply.clone() } else { Reply::status(200) }
    });
    (double, times)
}

fn later(status: u16, seconds: u32) -> Reply {
    Reply::status(status).with_header("retry-after", &seconds.to_string())
}

#[tokio::test(start_paused = true)]
async fn after_one_refusal_no_call_is_sent_before_the_time_the_server_named() {
    for status in [429, 503] {
        let (double, times) = refuses_one(later(status, 7));
        let client = builder(&double, &format!("all wait {status}"));
        let client = client.policy(|p| p.max_attempts(2).jitter(Jitter::None)).build().unwrap();
        // Not repeated, so that only the others are counted.
        client.post("x").deadline(5 * S).await.unwrap_err();
        let wait = client.slowed_for().unwrap();
        assert!(wait >= 7 * S && wait < 7 * S + 50 * MS, "{wait:?}");
        // A client of the same name, built by somebody else, waits too.
        let other = builder(&double, &format!("all wait {status}")).build().unwrap();
        let mut calls = JoinSet::new();
        for n in 0..20 {
            let client = if n % 2 == 0 { client.clone() } else { other.clone() };
            calls.spawn(async move { client.get("x").await.unwrap().status() });
        }
        assert!(calls.join_all().await.iter().all(|status| *status == 200));
        let times = times.lock().unwrap();
        assert_eq!(times.len(), 21, "{status}");
        assert!(times[1] >= 7 * S && times[1] < 8 * S, "{status}: {:?}", times[1]);
        for pair in times[1..].windows(2) {
            assert!(pair[1] - pair[0] >= 9 * MS, "one after another: {pair:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_wait_is_refused_at_once_and_told_when_to_come_again() {
    let (double, _) = refuses_one(later(429, 20));
    let client = builder(&double, "refused").build().unwrap();
    client.post("x").deadline(5 * S).await.unwrap_err();
    let started = Instant::now();
    for end in [
        client.get("x").deadline(5 * S).await,
        Deadline::within(5 * S).scope(async { client.get("x").await }).await,
        client.get("x").deadline(5 * S).stream().await.map(|_| unreachable!()),
    ] {
        let error = end.unwrap_err();
        assert!(error.is_rejected() && error.attempts() == 0, "{error}");
        assert_eq!(error.decider(), Some(Decider::Throttle));
        let wait = error.retry_after().unwrap();
        assert!(wait >= 20 * S && wait < 20 * S + 50 * MS, "{wait:?}");
        let text = report(&error).to_string();
        assert!(text.contains("the server asked for less load; try again in 20.0s"), "{text}");
    }
    assert_eq!((started.elapsed(), double.requests().len()), (Duration::ZERO, 1));
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
    // Another origin is another server, and health is measured whatever was asked for.
    let free = builder(&double, "another").build().unwrap();
    free.get("x").deadline(5 * S).await.unwrap();
    assert!(client.health_check().await.detail.contains("200"));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_come_again_takes_no_turn() {
    for (name, status, method) in [("unsafe", 503, "POST"), ("last attempt", 429, "GET")] {
        // Late enough for all of them to be on their way.
        let double = HttpDouble::new(move |_| later(status, 1).after(5 * MS));
        let client = builder(&double, name)
            .policy(|p| p.max_attempts(1).failure_threshold(1_000).without_failure_rate())
            .build()
            .unwrap();
        let mut calls = JoinSet::new();
        for _ in 0..500 {
            calls.spawn(client.request(method.parse().unwrap(), "x").into_future());
        }
        assert!(calls.join_all().await.iter().all(|end| end.is_err()), "{name}");
        assert_eq!(double.requests().len(), 500, "{name}");
        let wait = client.slowed_for().unwrap();
        assert!(wait <= 1_100 * MS, "{name}: {wait:?}");
    }
}

/// A second later all of them want to come again, of whom only some can in time.
#[tokio::test(start_paused = true)]
async fn who_cannot_wait_for_a_turn_takes_none() {
    let double = HttpDouble::new(move |_| later(429, 1).after(5 * MS));
    let client = builder(&double, "too late")
        .policy(|p| p.max_attempts(2).enable_budget(false).base_delay(MS))
        .build()
        .unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..500 {
        calls.spawn(client.get("x").deadline(1_500 * MS).into_future());
    }
    assert!(calls.join_all().await.iter().all(|end| end.is_err()));
    let (sent, wait) = (double.requests().len(), client.slowed_for().unwrap());
    assert!(sent < 600 && wait <= 1_100 * MS, "{sent} {wait:?}");
}

/// Callers with a limit around the call that the policy does not know of, such as a server's timeout:
/// more of them than one each gap.
#[tokio::test(start_paused = true)]
async fn callers_that_give_up_leave_their_turns_to_others() {
    let (double, times) = refuses_one(later(429, 30));
    let client = builder(&double, "given up").build().unwrap();
    client.post("x").deadline(5 * S).await.unwrap_err();
    let started = Instant::now();
    let mut calls = JoinSet::new();
    while started.elapsed() < 40 * S {
        let client = client.clone();
        calls.spawn(async move { tokio::time::timeout(5 * S, client.get("x")).await.is_ok() });
        tokio::time::sleep(8 * MS).await;
    }
    let answered = calls.join_all().await.into_iter().filter(|answered| *answered).count();
    let sent = times.lock().unwrap().len() - 1;
    assert!(sent > 900 && answered == sent, "{sent} sent in 10 s, {answered} answered");
    client.get("x").deadline(S).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_hour_silences_one_call_for_an_hour_and_the_rest_for_half_a_minute() {
    let double = HttpDouble::new(|_| later(429, 3_600));
    let client = builder(&double, "an hour").build().unwrap();
    let started = Instant::now();
    for n in 1..=4 {
        let error = client.get("x").deadline(100 * S).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(3_600 * S), "the server's own word, not our cap");
        assert_eq!((error.attempts(), double.requests().len()), (1, n));
    }
    let took = started.elapsed();
    assert!(took >= 90 * S && took < 91 * S, "one request each 30 s: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_with_a_quota_is_found_and_kept_busy() {
    // 20 requests in each second, 429 beyond, without a word of when to come again.
    let (started, used) = (Instant::now(), Mutex::new((0, 0)));
    let double = HttpDouble::new(move |_| {
        let (second, mut used) = (started.elapsed().as_secs(), used.lock().unwrap());
        if used.0 != second {
            *used = (second, 0);
        }
        used.1 += 1;
        Reply::status(if used.1 > 20 { 429 } else { 200 }).after(5 * MS)
    });
    let client = builder(&double, "quota")
        .policy(|p| p.max_attempts(5).enable_budget(false).timeout(300 * S).seed(7))
        .build()
        .unwrap();
    let mut calls = JoinSet::new();
    let refused = Arc::new(AtomicUsize::new(0));
    for _ in 0..10 {
        let (client, refused) = (client.clone(), Arc::clone(&refused));
        calls.spawn(async move {
            for _ in 0..60 {
                let end = client.get("x").await;
                refused.fetch_add(usize::from(end.is_err()), SeqCst);
            }
        });
    }
    calls.join_all().await;
    let (sent, took) = (double.requests().len(), started.elapsed().as_secs_f64());
    let wasted = sent - (600 - refused.load(SeqCst));
    println!("{sent} sent in {took:.0} s, {wasted} of them refused");
    assert!(wasted * 3 < sent, "{wasted} of {sent} refused");
    assert!(took < 60.0, "600 requests at 20 a second, in {took} s");
    assert!(refused.load(SeqCst) < 12, "of 600, after five attempts");
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_for_its_turn_too_and_a_dropped_call_keeps_no_turn() {
    // The first call fails, and is to be repeated after 1 s; meanwhile another one is told to wait.
    let refuse = Arc::new(AtomicBool::new(false));
    let throttled = Arc::clone(&refuse);
    let double = HttpDouble::new(move |r| match r.number {
        1 => Reply::refused(),
        2 if throttled.load(SeqCst) => later(429, 10),
        _ => Reply::status(200),
    });
    let client = builder(&double, "retry")
        .policy(|p| p.max_attempts(5).jitter(Jitter::None).failure_threshold(9))
        .build()
        .unwrap();
    let started = Instant::now();
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.get("x").await.unwrap() }
    });
    tokio::task::yield_now().await;
    refuse.store(true, SeqCst);
    client.post("x").deadline(5 * S).await.unwrap_err();
    // Waits, and is given up.
    let call = client.get("y");
    assert!(tokio::time::timeout(2 * S, call).await.is_err());
    first.await.unwrap();
    assert!(started.elapsed() >= 10 * S, "{:?}", started.elapsed());
    assert_eq!(double.requests().len(), 3);
    client.get("x").await.unwrap();
    assert!(started.elapsed() < 13 * S);
}

#[tokio::test(start_paused = true)]
async fn it_can_be_switched_off_and_an_open_breaker_refuses_without_a_wait() {
    for (name, change) in [
        ("off", (|b| b.without_slow_down()) as fn(HttpClientBuilder) -> HttpClientBuilder),
        ("observed", |b| b.policy(|p| p.mode(mainstay_policy::Mode::Observe))),
    ] {
        let (double, _) = refuses_one(later(429, 20));
        let client = change(builder(&double, name)).build().unwrap();
        let started = Instant::now();
        client.post("x").deadline(5 * S).await.unwrap_err();
        client.get("x").deadline(5 * S).await.unwrap();
        assert_eq!((started.elapsed(), client.slowed_for()), (Duration::ZERO, None), "{name}");
    }
    let (double, _) = refuses_one(later(429, 20));
    let client = builder(&double, "open").build().unwrap();
    client.post("x").deadline(5 * S).await.unwrap_err();
    client.policy().breaker().isolate();
    let started = Instant::now();
    assert!(client.get("x").await.unwrap_err().is_circuit_open());
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_held_back_is_no_attempt_and_one_that_cannot_wait_ends_the_call() {
    for (name, deadline, sent) in [("counted", 60 * S, 3), ("cut", 9 * S, 1)] {
        // The first request is lost; before it is repeated another call is told to wait.
        let double = HttpDouble::new(move |r| match (r.number, r.url.as_str()) {
            (1, _) => Reply::refused(),
            (_, "http://api.example.com/other") => later(429, 10),
            _ => Reply::status(500),
        });
        let client = builder(&double, name)
            .policy(|p| p.max_attempts(3).jitter(Jitter::None).failure_threshold(9))
            .build()
            .unwrap();
        let call = client.get("x").deadline(deadline).into_future();
        let other = async {
            tokio::task::yield_now().await;
            client.post("other").deadline(5 * S).await.unwrap_err();
        };
        let (end, ()) = tokio::join!(call, other);
        let error = end.unwrap_err();
        let of_the_call = double.requests().iter().filter(|r| r.url.ends_with("/x")).count();
        assert_eq!((of_the_call, error.attempts() as usize), (sent, sent), "{name}: {error}");
        if name == "cut" {
            assert_eq!(error.decider(), Some(Decider::Deadline), "{error}");
            let wait = error.retry_after().unwrap();
            assert!(wait > 8 * S && wait < 11 * S, "{wait:?}");
            assert!(error.elapsed() < 9 * S, "what does not fit is not slept: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn that_an_origin_is_slowed_down_is_an_event_when_it_begins_and_when_it_ends() {
    let (double, _) = refuses_one(later(429, 7));
    let client = builder(&double, "told").build().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    let _subscription = observe(move |event: &Event| match event {
        Event::SlowedDown { dependency, wait, .. } if **dependency == *"http:told" => {
            log.lock().unwrap().push(Some(*wait));
        }
        Event::AtFullSpeed { dependency, .. } if **dependency == *"http:told" => {
            log.lock().unwrap().push(None);
        }
        _ => {}
    });
    client.post("x").deadline(5 * S).await.unwrap_err();
    assert_eq!(*told.lock().unwrap(), [Some(7 * S)]);
    for _ in 0..50 {
        client.get("x").await.unwrap();
    }
    assert_eq!(*told.lock().unwrap(), [Some(7 * S), None]);
    assert_eq!(client.slowed_for(), None);
}
