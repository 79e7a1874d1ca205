//! What a subscriber of `tracing` and a recorder of `metrics` see of calls.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::result_large_err)]

#[cfg(feature = "metrics")]
use mainstay_policy::{BreakGrowth, Classify, Decider, Kind, Policy, Verdict};
use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

/// One line for each span and event: its name and fields, after those of the spans it is in.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    spans: Vec<String>,
    inside: Vec<u64>,
    lines: Vec<String>,
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

fn ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("mainstay")
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        ours(metadata)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields(span.metadata().name().to_owned());
        span.record(&mut fields);
        let mut state = self.0.lock().unwrap();
        let around: String =
            state.inside.iter().map(|id| format!("{} > ", state.spans[*id as usize - 1])).collect();
        state.lines.push(format!("{around}{}", fields.0));
        state.spans.push(span.metadata().name().to_owned());
        Id::from_u64(state.spans.len() as u64)
    }

    fn record(&self, id: &Id, values: &Record<'_>) {
        let mut fields = Fields(String::new());
        values.record(&mut fields);
        let mut state = self.0.lock().unwrap();
        let line = format!("{}:{}", state.spans[id.into_u64() as usize - 1], fields.0);
        state.lines.push(line);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(event.metadata().level().to_string());
        event.record(&mut fields);
        let mut state = self.0.lock().unwrap();
        let around: String =
            state.inside.iter().map(|id| format!("{} > ", state.spans[*id as usize - 1])).collect();
        state.lines.push(format!("{around}{}", fields.0));
    }

    fn enter(&self, span: &Id) {
        self.0.lock().unwrap().inside.push(span.into_u64());
    }

    fn exit(&self, _: &Id) {
        self.0.lock().unwrap().inside.pop();
    }
}

/// `tracing` remembers for each place in the code whether anybody listens, for all threads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

async fn work(policy: &Policy) {
    let mut tries = 0;
    let call = policy.operation("load").call(|| {
        tries += 1;
        let fails = tries < 2;
        async move {
            tokio::task::yield_now().await;
            if fails { Err("not yet") } else { Ok(()) }
        }
    });
    call.await.unwrap();
    for _ in 0..2 {
        policy
            .operation("save")
            .idempotent(false)
            .call(|| async { Err::<(), _>("no") })
            .await
            .unwrap_err();
    }
    policy.operation("save").call(|| async { Ok::<_, &str>(()) }).await.unwrap_err();
}

fn policy(name: &str) -> Policy {
    Policy::builder(Kind::Custom, name)
        .failure_threshold(2)
        .break_growth(BreakGrowth::Fixed)
        .base_delay(std::time::Duration::from_millis(1))
        .build()
        .unwrap()
}

#[tokio::test]
#[allow(clippy::await_holding_lock)] // Of this test's own runtime.
async fn a_call_is_a_span_its_attempts_are_children_and_the_rest_are_events() {
    let _alone = ONE_AT_A_TIME.lock();
    let log = Log::default();
    let guard = tracing::subscriber::set_default(log.clone());
    work(&policy("traced")).await;
    drop(guard);
    let lines = log.0.lock().unwrap().lines.join("\n");
    for part in [
        "call mainstay.policy.name=\"traced\" mainstay.operation=\"load\"",
        "call > attempt mainstay.attempt=1",
        "call > DEBUG message=attempt failed, retrying mainstay.policy.name=\"traced\" operation=\"load\" \
         mainstay.attempt=1",
        "call > attempt mainstay.attempt=2",
        "call > WARN message=circuit breaker opened mainstay.policy.name=\"traced\" \
         mainstay.breaker.from=\"closed\" mainstay.breaker.state=\"open\" cause=save (no answer, \
         failures in a row)",
        "call > DEBUG message=call refused mainstay.policy.name=\"traced\" operation=\"save\" \
         decider=\"breaker\"",
    ] {
        assert!(lines.contains(part), "{part} is not in\n{lines}");
    }
    assert_eq!(lines.matches("call mainstay.policy.name").count(), 4, "{lines}");
    assert_eq!(lines.matches("> attempt").count(), 4, "{lines}");
    // One attempt is repeated, two are not, and the fourth call is refused.
    for (told, times) in [
        ("attempt: otel.status_code=\"ERROR\"", 3),
        ("attempt: error.type=\"_OTHER\"", 3),
        ("call: otel.status_code=\"ERROR\"", 3),
        ("call: error.type=\"no answer\"", 2),
        ("call: error.type=\"breaker\"", 1),
    ] {
        assert_eq!(lines.matches(told).count(), times, "{told} in\n{lines}");
    }
}

#[cfg(feature = "chaos")]
#[tokio::test]
#[allow(clippy::await_holding_lock)] // Of this test's own runtime.
async fn what_was_struck_on_purpose_is_no_timeout_in_its_span() {
    let _alone = ONE_AT_A_TIME.lock();
    let log = Log::default();
    let guard = tracing::subscriber::set_default(log.clone());
    let policy = Policy::builder(Kind::Custom, "traced-struck").max_attempts(1).build().unwrap();
    let storm = mainstay_policy::Chaos::seeded(1).refuse(1.0).strike("traced-struck");
    policy.call(|| async { Ok::<_, &str>(()) }).await.unwrap_err();
    drop((guard, storm));
    let lines = log.0.lock().unwrap().lines.join("\n");
    assert_eq!(lines.matches("attempt: error.type=\"_OTHER\"").count(), 1, "{lines}");
    assert_eq!(lines.matches("error.type=\"timeout\"").count(), 0, "{lines}");
}

/// Of calls that block, too.
#[tokio::test(start_paused = true)]
#[allow(clippy::await_holding_lock)] // Of this test's own runtime.
async fn what_ran_out_of_time_says_so_in_its_span() {
    let _alone = ONE_AT_A_TIME.lock();
    let log = Log::default();
    let guard = tracing::subscriber::set_default(log.clone());
    let policy = Policy::builder(Kind::Custom, "traced-timeout").max_attempts(1).build().unwrap();
    policy.call(std::future::pending::<Result<(), &str>>).await.unwrap_err();
    policy.call_blocking(|| Err::<(), _>("no")).unwrap_err();
    drop(guard);
    let lines = log.0.lock().unwrap().lines.join("\n");
    for told in [
        "attempt: error.type=\"timeout\"",
        "attempt: error.type=\"_OTHER\"",
        "call: error.type=\"timeout\"",
    ] {
        assert_eq!(lines.matches(told).count(), 1, "{told} in\n{lines}");
    }
    assert_eq!(lines.matches("call: otel.status_code=\"ERROR\"").count(), 2, "{lines}");
}

/// It may write to another database than was meant.
#[test]
fn a_named_client_that_takes_the_url_of_all_is_warned_of() {
    let _alone = ONE_AT_A_TIME.lock();
    figment::Jail::expect_with(|jail| {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.clone());
        let url = |name: Option<&str>| {
            mainstay_policy::reset_resilience_state();
            let settings = mainstay_policy::settings().unwrap();
            log.0.lock().unwrap().lines.clear(); // Of breakers that were reset.
            let url = settings.url("database", name);
            let said = std::mem::take(&mut log.0.lock().unwrap().lines).join("\n");
            assert!(!said.contains("s3cret"), "{said}");
            (url, said)
        };
        let not_set = "MAINSTAY_DATABASE_OLD_ARCHIVE_URL is not set: this client takes ";
        assert_eq!(url(Some("old-archive")), (None, String::new()));
        jail.set_env("DATABASE_URL", "postgres://user:s3cret@usual");
        assert_eq!(url(None).1, "");
        let (found, said) = url(Some("old-archive"));
        assert_eq!(found.as_deref(), Some("postgres://user:s3cret@usual"));
        assert!(said.contains(&format!("{not_set}DATABASE_URL, ")), "{said}");
        assert!(said.contains("mainstay.policy.name=\"database:old-archive\""), "{said}");
        jail.create_file("mainstay.toml", "[database]\nurl = \"postgres://user:s3cret@file\"")?;
        let (_, said) = url(Some("old-archive"));
        assert!(said.contains(&format!("{not_set}database.url in the settings file, ")), "{said}");
        jail.set_env("MAINSTAY_DATABASE_URL", "postgres://user:s3cret@ours");
        let (_, said) = url(Some("old-archive"));
        assert!(said.contains(&format!("{not_set}MAINSTAY_DATABASE_URL, ")), "{said}");
        jail.set_env("MAINSTAY_DATABASE_OLD_ARCHIVE_URL", "postgres://user:s3cret@own");
        let own = Some("postgres://user:s3cret@own".to_owned());
        assert_eq!(url(Some("old-archive")), (own, String::new()));
        Ok(())
    });
    mainstay_policy::reset_resilience_state();
}

/// Of a client that keeps the attempt's limit itself.
#[cfg(feature = "metrics")]
#[derive(Debug)]
struct KeptByTheClient;

#[cfg(feature = "metrics")]
impl Classify for KeptByTheClient {
    fn classify(&self) -> Verdict {
        Verdict::transient()
    }

    fn decider(&self) -> Option<Decider> {
        Some(Decider::Timeout)
    }
}

#[cfg(feature = "metrics")]
#[test]
fn durations_decisions_and_states_are_recorded() {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    let _alone = ONE_AT_A_TIME.lock();
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let before = Policy::builder(Kind::Custom, "measured-before").enable_circuit_breaker(false);
    let before = before.build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        mainstay_policy::describe_metrics();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            // The first one asks for the recorder's handles.
            for _ in 0..5 {
                before.call(|| async { Ok::<_, &str>(()) }).await.unwrap();
                tokio::time::advance(std::time::Duration::from_secs(1)).await;
            }
            let policy = policy("measured");
            work(&policy).await;
            policy.breaker().isolate();
            let late = Policy::builder(Kind::Custom, "measured-late").max_attempts(1);
            let late = late.timeout(std::time::Duration::from_secs(1)).build().unwrap();
            late.call(std::future::pending::<Result<(), &str>>).await.unwrap_err();
            let kept = late.operation("kept").by_classify();
            kept.call(|| async { Err::<(), _>(KeptByTheClient) }).await.unwrap_err();
            let one =
                Policy::builder(Kind::Custom, "measured-places").max_concurrent(3).build().unwrap();
            one.call(|| async { Ok::<_, &str>(()) }).await.unwrap();
            let quick = Policy::builder(Kind::Custom, "measured-quick").build().unwrap();
            for _ in 0..1_000 {
                quick.call(|| async { Ok::<_, &str>(()) }).await.unwrap();
            }
        });
    });
    let mut seen: Vec<String> = Vec::new();
    for (key, unit, _, value) in snapshotter.snapshot().into_vec() {
        let (_, key) = key.into_parts();
        let labels: Vec<&str> = key.labels().skip(1).map(metrics::Label::value).collect();
        let value = match value {
            DebugValue::Counter(n) => n.to_string(),
            DebugValue::Gauge(n) => n.to_string(),
            DebugValue::Histogram(all) => {
                assert!(all.iter().all(|seconds| (0.0..5.0).contains(&seconds.into_inner())));
                assert_eq!(unit, Some(metrics::Unit::Seconds));
                format!("{} times", all.len())
            }
        };
        seen.push(format!("{} {} {value}", key.name(), labels.join(" ")));
    }
    for part in [
        "mainstay.call.duration success 1 times",
        "mainstay.call.duration success 4 times",
        "mainstay.call.duration failure 2 times",
        "mainstay.attempt.duration success 1 times",
        "mainstay.attempt.duration failure 3 times",
        "mainstay.attempt.duration timeout 2 times",
        "mainstay.policy.decisions retry retry 1",
        "mainstay.policy.decisions reject breaker 1",
        "mainstay.breaker.phase  4",
        "mainstay.bulkhead.permit.usage  0",
        "mainstay.bulkhead.permit.limit  3",
    ] {
        assert!(seen.iter().any(|line| line == part), "{part} is not in\n{}", seen.join("\n"));
    }
    // Those since the last one that was timed are still to be told.
    for metric in ["call", "attempt"] {
        let told = seen.iter().filter_map(|line| {
            let told = line.strip_prefix(&format!("mainstay.{metric}.duration success "))?;
            told.strip_suffix(" times")?.parse::<u32>().ok()
        });
        let most = told.max();
        assert!(most.is_some_and(|told| (993..=1_000).contains(&told)), "{most:?}");
    }
}

/// It may, when it is asked for handles, ask in its turn.
#[cfg(feature = "metrics")]
#[test]
fn a_recorder_that_looks_at_breakers_stops_nobody() {
    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};

    struct Looks;
    fn look() {
        assert!(mainstay_policy::breaker("nobody's").is_none());
    }
    impl metrics::Recorder for Looks {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            look();
            Counter::noop()
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            look();
            Gauge::noop()
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            look();
            Histogram::noop()
        }
    }
    let (built, waits) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        metrics::with_local_recorder(&Looks, || built.send(policy("measured-by-one-who-looks")))
    });
    assert!(waits.recv_timeout(std::time::Duration::from_secs(20)).is_ok(), "it waits for itself");
}
