//! Everything that is said, in one place to be searched.

use crate::subject::Client;
use mainstay::{Error, Event, Health, Subscription, get_resilience_health, observe, report};
use std::{
    collections::BTreeSet,
    fmt::{self, Debug, Formatter, Write},
    sync::{Mutex, OnceLock},
};
use tracing::{
    Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::set_global_default,
};

/// What was said, by whom, and what must not be in it.
pub(crate) struct Said {
    secret: &'static str,
    lines: Mutex<Vec<String>>,
    _events: Subscription,
}

impl Debug for Said {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(&*self.lines.lock().unwrap())
            .entries(&*LOGGED.lock().unwrap())
            .finish()
    }
}

/// What all clients of this process logged. The secrets differ, so it does not matter who did.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Said {
    /// From now on.
    pub(crate) fn listen(secret: &'static str) -> Self {
        static LOG: OnceLock<()> = OnceLock::new();
        LOG.get_or_init(|| set_global_default(Log).unwrap());
        let events = observe(|event: &Event| log(format!("event {event:?}")));
        Self { secret, lines: Mutex::default(), _events: events }
    }

    fn say(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }

    pub(crate) fn note(&self, what: &str, value: &impl Debug) {
        self.say(format!("{what} {value:?}"));
        self.say(format!("{what} {value:#?}"));
    }

    pub(crate) fn health(&self, health: &Health) {
        self.note("health", health);
        self.say(serde_json::to_string(health).unwrap());
        let all = get_resilience_health();
        self.note("resilience", &all);
        self.say(serde_json::to_string(&all).unwrap());
    }

    pub(crate) fn end<C: Client>(&self, end: Result<(), Error>) {
        if let Err(error) = end {
            self.error::<C>(&error);
        }
    }

    /// What is ours of an error: itself, and the client's reading of what its driver said.
    pub(crate) fn error<C: Client>(&self, error: &Error) {
        self.say(error.to_string());
        self.say(report(error).to_string());
        self.note("error", error);
        if let Some(failure) = error.downcast_ref::<C::Failure>() {
            self.say(failure.to_string());
            self.note("failure", failure);
        }
    }

    /// A client built from what cannot work, which is said here if not later.
    pub(crate) fn built<C: Debug>(&self, built: Result<C, Error>) {
        self.note("built", &built);
        if let Err(error) = built {
            self.say(format!("{error} {}", report(&error)));
        }
    }

    pub(crate) fn held_no_secret(&self) {
        self.held_none_of(&[self.secret]);
    }

    pub(crate) fn held_none_of(&self, secrets: &[&str]) {
        let (lines, logged) = (self.lines.lock().unwrap().clone(), LOGGED.lock().unwrap().clone());
        for (what, said) in [("mainstay", &logged), ("event", &logged), ("error", &lines)] {
            assert!(said.iter().any(|line| line.starts_with(what)), "no {what} was seen");
        }
        let holds = |line: &&String| secrets.iter().any(|secret| line.contains(secret));
        let leaks: BTreeSet<_> = lines.iter().chain(&logged).filter(holds).collect();
        assert!(leaks.is_empty(), "{} leaks: {leaks:#?}", leaks.len());
    }
}

fn log(line: String) {
    LOGGED.lock().unwrap().push(line);
}

/// Keeps what our own crates log, at every level.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mainstay")
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let mut line = Line::of(span.metadata());
        span.record(&mut line);
        log(line.0);
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        let mut line = Line(String::from("mainstay span"));
        values.record(&mut line);
        log(line.0);
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line::of(event.metadata());
        event.record(&mut line);
        log(line.0);
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Line {
    fn of(metadata: &Metadata<'_>) -> Self {
        Self(format!("{} {} {}", metadata.target(), metadata.level(), metadata.name()))
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}
