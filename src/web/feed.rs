//! What the page shows, once a second and at every change, to everybody who watches.
//!
//! One task works it out for all of them, and only while somebody watches: `/resilience/events` is a
//! stream of server-sent events, each of them the whole picture. It ends when the process drains, so
//! that it does not hold up a graceful shutdown.

use super::{Shared, respond};
use crate::{
    BreakerHealth, BreakerState, CheckReport, Event, HealthStatus, Phase, Subscription,
    get_resilience_health, observe,
};
use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode},
    response::Response,
};
use futures_util::stream;
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

const TICK: Duration = Duration::from_secs(1);
/// Without news for so long, who works them out stands still, in a runtime where nobody waits: the
/// stream ends, and the page, which then asks again, has it done in its own.
const LATE: Duration = Duration::from_secs(5);
/// Changes that come together are told together.
const TOGETHER: Duration = Duration::from_millis(50);
const MOST_TRANSITIONS: usize = 500;
const MOST_NAMES: usize = 2_000;
const MOST_VIEWERS: usize = 64;

type Picture = watch::Receiver<Bytes>;

/// Counted, one for each page that is open.
type Viewer = Arc<()>;

/// Listens from the start, so that the page knows what happened before somebody looked.
pub(super) struct Feed {
    seen: Arc<Seen>,
    picture: Mutex<Option<Picture>>,
    viewers: Viewer,
    _subscription: Subscription,
}

#[derive(Default)]
struct Seen {
    memory: Mutex<Memory>,
    changed: Notify,
}

#[derive(Default)]
struct Memory {
    transitions: VecDeque<Transition>,
    errors: BTreeMap<Arc<str>, LastError>,
}

#[derive(Clone, Serialize)]
struct Transition {
    /// Seconds since 1970, as every time here.
    at: f64,
    dependency: Arc<str>,
    from: BreakerState,
    to: BreakerState,
    /// What opened it, in words.
    cause: Option<String>,
}

/// The last attempt of a dependency that failed and was repeated or given up.
#[derive(Clone, Serialize)]
struct LastError {
    at: f64,
    operation: &'static str,
    /// Whether anything happened: `transient`, `unknown` and so on.
    effect: &'static str,
    /// Who ended the call: `retry`, `timeout` and so on; nothing where a retry followed.
    by: Option<&'static str>,
}

#[derive(Serialize)]
struct Everything<'a> {
    now: f64,
    overall: HealthStatus,
    phase: Phase,
    ready: Option<bool>,
    operators: bool,
    checks: BTreeMap<&'a str, &'a CheckReport>,
    dependencies: Vec<Dependency<'a>>,
    transitions: &'a VecDeque<Transition>,
}

#[derive(Serialize)]
struct Dependency<'a> {
    name: &'a str,
    #[serde(flatten)]
    health: &'a BreakerHealth,
    last_error: Option<&'a LastError>,
    gauges: Vec<(&'static str, u64)>,
}

impl Feed {
    pub(super) fn new() -> Self {
        let seen = Arc::<Seen>::default();
        let listener = Arc::clone(&seen);
        let subscription = observe(move |event: &Event| listener.hear(event));
        Self {
            seen,
            picture: Mutex::default(),
            viewers: Viewer::default(),
            _subscription: subscription,
        }
    }

    /// One is ours.
    fn watching(&self) -> usize {
        Arc::strong_count(&self.viewers) - 1
    }

    fn give_up(&self, late: &Picture) {
        self.picture().take_if(|picture| picture.same_channel(late));
    }

    fn picture(&self) -> MutexGuard<'_, Option<Picture>> {
        self.picture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// The oldest goes where there are too many.
    fn keep(&mut self, dependency: Arc<str>, error: LastError) {
        if self.errors.len() >= MOST_NAMES && !self.errors.contains_key(&dependency) {
            let oldest =
                self.errors.iter().min_by(|(_, one), (_, other)| one.at.total_cmp(&other.at));
            if let Some(oldest) = oldest.map(|(name, _)| Arc::clone(name)) {
                self.errors.remove(&oldest);
            }
        }
        self.errors.insert(dependency, error);
    }
}

impl Seen {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, event: &Event) {
        match event {
            Event::Changed { dependency, from, to, cause, .. } => {
                let cause = cause.as_ref().map(ToString::to_string);
                let dependency = Arc::clone(dependency);
                let transition = Transition { at: now(), dependency, from: *from, to: *to, cause };
                let mut memory = self.memory();
                if memory.transitions.len() == MOST_TRANSITIONS {
                    memory.transitions.pop_front();
                }
                memory.transitions.push_back(transition);
                drop(memory);
                self.changed.notify_one();
            }
            Event::Retrying { dependency, operation, effect, .. } => {
                self.failed(dependency, operation, effect.name(), None);
            }
            Event::Stopped { dependency, operation, by, effect, .. } => {
                self.failed(dependency, operation, effect.name(), Some(by.name()));
            }
            _ => {}
        }
    }

    fn failed(
        &self,
        dependency: &Arc<str>,
        operation: &'static str,
        effect: &'static str,
        by: Option<&'static str>,
    ) {
        let error = LastError { at: now(), operation, effect, by };
        self.memory().keep(Arc::clone(dependency), error);
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

pub(super) async fn events(State(shared): State<Arc<Shared>>) -> Response {
    if shared.readiness.phase() == Phase::Draining {
        return respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "this process is ending");
    }
    let Some((viewer, picture)) = watch_it(&shared) else {
        return respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "too many pages are open");
    };
    let first = Some(picture.borrow().clone()).filter(|bytes| !bytes.is_empty());
    let pictures = stream::unfold((viewer, picture, first), move |(viewer, mut picture, first)| {
        let shared = Arc::clone(&shared);
        async move {
            let bytes = match first {
                Some(bytes) => bytes,
                None => match timeout(LATE, picture.changed()).await {
                    Ok(changed) => {
                        changed.ok()?;
                        picture.borrow_and_update().clone()
                    }
                    Err(_) => {
                        shared.feed.give_up(&picture);
                        return None;
                    }
                },
            };
            Some((Ok::<_, Infallible>(bytes), (viewer, picture, None)))
        }
    });
    let mut response = respond(StatusCode::OK, "text/event-stream", Body::from_stream(pictures));
    // Otherwise nginx keeps it back until it has enough.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response.headers_mut().extend([unbuffered]);
    response
}

/// Joins those who watch, or is the first.
fn watch_it(shared: &Arc<Shared>) -> Option<(Viewer, Picture)> {
    let mut picture = shared.feed.picture();
    if shared.feed.watching() >= MOST_VIEWERS {
        return None;
    }
    let viewer = Arc::clone(&shared.feed.viewers);
    // Closed: nobody watched for a while, or the runtime of those who did has ended.
    if let Some(picture) = picture.as_ref().filter(|picture| picture.has_changed().is_ok()) {
        return Some((viewer, picture.clone()));
    }
    let (tell, new) = watch::channel(Bytes::new());
    *picture = Some(new.clone());
    drop(picture);
    tokio::spawn(tell_all(Arc::clone(shared), tell));
    Some((viewer, new))
}

async fn tell_all(shared: Arc<Shared>, tell: watch::Sender<Bytes>) {
    while shared.readiness.phase() != Phase::Draining {
        {
            let mut picture = shared.feed.picture();
            let own = |picture: &mut Picture| picture.same_channel(&tell.subscribe());
            if !picture.as_mut().is_some_and(own) {
                return;
            }
            if shared.feed.watching() == 0 {
                *picture = None;
                return;
            }
        }
        // In the background: a dependency that hangs must not stop the page.
        let readiness = shared.readiness.clone();
        tokio::spawn(async move { readiness.report().await });
        if let Ok(json) = shared.picture() {
            tell.send_replace(Bytes::from(format!("data: {json}\n\n")));
        }
        if timeout(TICK, shared.feed.seen.changed.notified()).await.is_ok() {
            sleep(TOGETHER).await;
        }
    }
}

impl Shared {
    fn picture(&self) -> serde_json::Result<String> {
        let health = get_resilience_health();
        let report = self.readiness.last();
        let mut gauges: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (name, read) in &self.gauges {
            gauges.entry(name).or_default().extend(read());
        }
        let memory = self.feed.seen.memory();
        let dependency = |(name, health)| Dependency {
            name,
            health,
            last_error: memory.errors.get(name),
            gauges: gauges.remove(name).unwrap_or_default(),
        };
        let each = health.circuit_breakers.iter().map(|(name, health)| (&**name, health));
        let dependencies = each.map(dependency).collect();
        let checks = report.iter().flat_map(|report| &report.checks);
        serde_json::to_string(&Everything {
            now: now(),
            overall: health.overall_health,
            phase: self.readiness.phase(),
            ready: report.as_ref().map(|report| report.ready),
            operators: self.operators.is_some(),
            checks: checks.map(|(name, check)| (&**name, check)).collect(),
            dependencies,
            transitions: &memory.transitions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_names_the_one_that_failed_longest_ago_is_forgotten() {
        let mut memory = Memory::default();
        let name = |n: usize| Arc::<str>::from(n.to_string());
        let mut fail = |n: usize, at: f64| {
            let error = LastError { at, operation: "get", effect: "transient", by: None };
            memory.keep(name(n), error);
        };
        (0..MOST_NAMES).for_each(|n| fail(n, n as f64));
        fail(0, 1e9);
        fail(MOST_NAMES, 1e9);
        assert_eq!(memory.errors.len(), MOST_NAMES);
        for (n, kept) in [(0, true), (1, false), (2, true), (MOST_NAMES, true)] {
            assert_eq!(memory.errors.contains_key(&name(n)), kept, "{n}");
        }
    }
}
