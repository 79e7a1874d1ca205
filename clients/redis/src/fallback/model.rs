//! Random histories of calls that overlap, against a server that applies commands in the order they
//! were sent, loses connections, may have applied what it did not answer, and hears of other clients.
//!
//! The promise: a read never gives a value that another successful write of this client had wholly
//! replaced before the read began, nor one whose lifetime had passed by then.

use super::{drain::Drain, *};
use crate::query::Get;
use proptest::{collection::vec, prelude::*};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

type Place = (usize, bool);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Put,
    /// With a lifetime, for which the server here does not care.
    PutFor(u64),
    Remove,
    /// What only the server can do, such as GETDEL or a script.
    Direct,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The connection is lost; of what was sent this many are applied, and nobody is told.
    Cut(usize),
    Heal,
    /// The recovery deletes a batch.
    Drain,
    /// It hears of that, or never does; of one that takes long after another has begun.
    Drained {
        n: usize,
        lost: bool,
    },
    /// Another client writes.
    Other(Place),
    /// So many seconds go by.
    Pass(u64),
    Begin(Kind, Place),
    /// One of those that have begun reaches the wire.
    Send(usize),
    /// Or does not, and its caller is told so.
    Refuse(usize),
    Serve,
    /// One of those that were answered or lost is told.
    Finish(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let place = (0..1_usize, any::<bool>());
    let kind = prop_oneof![
        4 => Just(Kind::Read),
        3 => Just(Kind::Put),
        1 => (1..20_u64).prop_map(Kind::PutFor),
        1 => Just(Kind::Remove),
        1 => Just(Kind::Direct),
    ];
    prop_oneof![
        1 => (0..5_usize).prop_map(Step::Cut),
        2 => Just(Step::Heal),
        2 => Just(Step::Drain),
        2 => (any::<usize>(), prop::bool::weighted(0.25))
            .prop_map(|(n, lost)| Step::Drained { n, lost }),
        1 => place.clone().prop_map(Step::Other),
        1 => (1..15_u64).prop_map(Step::Pass),
        5 => (kind, place).prop_map(|(kind, place)| Step::Begin(kind, place)),
        6 => any::<usize>().prop_map(Step::Send),
        2 => any::<usize>().prop_map(Step::Refuse),
        7 => Just(Step::Serve),
        6 => any::<usize>().prop_map(Step::Finish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_read_is_older_than_the_last_successful_write(steps in vec(step(), 1..300)) {
        let mut model = Model::default();
        for step in steps {
            model.play(step);
            model.look();
        }
    }
}

struct Call {
    place: Place,
    kind: Kind,
    ticket: Option<Ticket>,
    /// What memory knew when it began.
    before: Option<Before>,
    begin: usize,
    sent: Instant,
    /// The value it writes: its own number.
    value: usize,
    /// The server's answer; `None` if it was lost.
    answer: Option<Option<usize>>,
}

struct Written {
    place: Place,
    begin: usize,
    /// When it was told to have succeeded.
    end: Option<usize>,
    own: bool,
    /// Its value is not to be told from then on.
    over: Option<Instant>,
}

struct Model {
    /// Leaked, so that a batch of its recovery can be kept beside it.
    fallback: &'static Fallback,
    drains: Vec<Drain<'static>>,
    clock: usize,
    now: Instant,
    up: bool,
    server: HashMap<Place, usize>,
    begun: Vec<Call>,
    sent: VecDeque<Call>,
    told: Vec<Call>,
    writes: Vec<Written>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            fallback: Box::leak(Box::new(Fallback::new(&FallbackConfig::new(), true))),
            drains: Vec::new(),
            clock: 0,
            now: Instant::now(),
            up: true,
            server: HashMap::new(),
            begun: Vec::new(),
            sent: VecDeque::new(),
            told: Vec::new(),
            writes: Vec::new(),
        }
    }
}

impl Model {
    /// Texts and fields at keys of their own: types are tested elsewhere.
    fn slot((key, field): Place) -> Slot {
        if field { Slot::field("h", format!("f{key}")) } else { Slot::key(format!("k{key}")) }
    }

    fn change(call: &Call) -> Change {
        let value = call.value.to_string().into();
        match call.kind {
            Kind::Remove => Change::Remove,
            Kind::PutFor(n) => Change::Put { value, ttl: Some(Duration::from_secs(n)) },
            _ => Change::Put { value, ttl: None },
        }
    }

    fn play(&mut self, step: Step) {
        self.clock += 1;
        match step {
            Step::Cut(applied) => self.cut(applied),
            Step::Heal => self.up = true,
            Step::Drain if self.up && self.drains.len() < 2 => self.drain(),
            Step::Drained { n, lost } if !self.drains.is_empty() => {
                let drain = self.drains.remove(n % self.drains.len());
                if !lost {
                    drain.acknowledge(&[true; 2]);
                }
            }
            Step::Other(place) => {
                let (begin, value) = (self.clock, self.writes.len());
                let end = Some(begin);
                self.writes.push(Written { place, begin, end, own: false, over: None });
                self.server.insert(place, value);
            }
            Step::Pass(n) => self.now += Duration::from_secs(n),
            Step::Begin(kind, place) => self.begin(kind, place),
            Step::Send(n) if !self.begun.is_empty() => {
                let call = self.begun.remove(n % self.begun.len());
                if self.up {
                    self.sent.push_back(call);
                } else {
                    self.told.push(call);
                }
            }
            Step::Serve => self.serve(),
            Step::Finish(n) if !self.told.is_empty() => {
                let call = self.told.remove(n % self.told.len());
                self.finish(call);
            }
            Step::Refuse(n) if !self.begun.is_empty() => {
                let call = self.begun.remove(n % self.begun.len());
                let slot = Self::slot(call.place);
                // What only the server can do has taken nothing.
                if let (Some(ticket), Some(before)) = (call.ticket, call.before) {
                    self.fallback.put_back(std::iter::once((&slot, ticket, before)));
                }
            }
            Step::Drain
            | Step::Drained { .. }
            | Step::Send(_)
            | Step::Refuse(_)
            | Step::Finish(_) => {}
        }
    }

    /// What a read would be told whose answer is lost at this moment.
    fn look(&mut self) {
        self.clock += 1;
        for place in [(0, true), (0, false)] {
            let known = self.fallback.read(&Get(Self::slot(place)), self.now);
            self.check(place, self.clock, Some(self.now), known);
        }
    }

    fn begin(&mut self, kind: Kind, place: Place) {
        let (slot, begin, value) = (Self::slot(place), self.clock, self.writes.len());
        let sent = self.now;
        // A field has no lifetime.
        let kind = if let (Kind::PutFor(_), (_, true)) = (kind, place) { Kind::Put } else { kind };
        if matches!(kind, Kind::Read) {
            match self.fallback.begin_read(&Get(slot), self.now) {
                BeginRead::Local(known) => self.check(place, begin, Some(self.now), known),
                BeginRead::Mixed => {}
                BeginRead::Ask(ticket) => {
                    let ticket = Some(ticket);
                    let (before, answer) = (None, None);
                    self.begun.push(Call {
                        place,
                        kind,
                        ticket,
                        before,
                        begin,
                        sent,
                        value,
                        answer,
                    });
                }
            }
            return;
        }
        self.writes.push(Written { place, begin, end: None, own: true, over: None });
        let (ticket, before, answer) = (None, None, None);
        let mut call = Call { place, kind, ticket, before, begin, sent, value, answer };
        if matches!(kind, Kind::Direct) {
            call.ticket = self.fallback.begin_direct(&[slot.key], OnKeys::MayChange);
            if call.ticket.is_some() {
                self.begun.push(call);
            }
            return;
        }
        match self.fallback.begin_write(&slot, self.now) {
            BeginWrite::Ask(ticket, before) => {
                (call.ticket, call.before) = (Some(ticket), Some(before));
                self.begun.push(call);
            }
            BeginWrite::Local | BeginWrite::Draining => self.keep(&call),
        }
    }

    fn serve(&mut self) {
        let Some(mut call) = self.sent.pop_front() else { return };
        self.apply(&call);
        call.answer = Some(self.server.get(&call.place).copied());
        self.told.push(call);
    }

    fn apply(&mut self, call: &Call) {
        match call.kind {
            Kind::Read => {}
            Kind::Remove => drop(self.server.remove(&call.place)),
            Kind::Put | Kind::PutFor(_) | Kind::Direct => {
                self.server.insert(call.place, call.value);
            }
        }
    }

    fn cut(&mut self, applied: usize) {
        self.up = false;
        self.drains.clear();
        for (n, call) in std::mem::take(&mut self.sent).into_iter().enumerate() {
            if n < applied {
                self.apply(&call);
            }
            self.told.push(call);
        }
    }

    fn drain(&mut self) {
        // Behind what was sent before.
        while !self.sent.is_empty() {
            self.serve();
        }
        let drain = self.fallback.drain(2);
        for task in &drain.tasks {
            self.server.retain(|place, _| {
                let slot = Self::slot(*place);
                let field_goes = slot.field.is_some_and(|field| task.fields.contains(&field));
                slot.key != task.key || !(task.fields.is_empty() || field_goes)
            });
        }
        self.drains.push(drain);
    }

    fn keep(&mut self, call: &Call) {
        let kept = self.fallback.write(&Self::slot(call.place), &Self::change(call), self.now);
        if kept.is_ok() {
            self.succeeded(call, self.now);
        }
    }

    /// A write whose lifetime is counted from then.
    fn succeeded(&mut self, call: &Call, from: Instant) {
        let written = &mut self.writes[call.value];
        written.end = Some(self.clock);
        if let Kind::PutFor(n) = call.kind {
            written.over = Some(from + Duration::from_secs(n));
        }
    }

    fn finish(&mut self, call: Call) {
        let (slot, now) = (Self::slot(call.place), self.now);
        match (call.kind, call.answer) {
            (Kind::Read, Some(answer)) => {
                if let Some(value) = answer {
                    // Seen at the server, it may be told for `max_stale` more.
                    self.writes[value].over = None;
                }
                let answer = answer.map(|value| Bytes::from(value.to_string()));
                let ticket = call.ticket.unwrap();
                let better = self.fallback.filled(&Get(slot), ticket, &answer, call.sent);
                let told = Ok(Known::Here { what: answer, at: now });
                // In there it is the real time.
                self.check(call.place, call.begin, None, better.unwrap_or(told));
            }
            (Kind::Read, None) => {
                let known = self.fallback.read(&Get(slot), now);
                self.check(call.place, call.begin, Some(now), known);
            }
            (Kind::Direct, answer) => {
                let known = answer.is_some() && slot.field.is_none();
                if let Some(ticket) = call.ticket.filter(|_| known) {
                    self.fallback.landed(&slot, &Self::change(&call), ticket, call.sent);
                } else {
                    self.fallback.end_direct(&[slot.key], OnKeys::MayChange);
                }
                if answer.is_some() {
                    self.writes[call.value].end = Some(self.clock);
                }
            }
            (_, Some(_)) => {
                let (change, ticket) = (Self::change(&call), call.ticket.unwrap());
                self.fallback.landed(&slot, &change, ticket, call.sent);
                self.succeeded(&call, call.sent);
            }
            (_, None) => self.keep(&call),
        }
    }

    fn check(
        &self,
        place: Place,
        begin: usize,
        now: Option<Instant>,
        told: Result<Known<Option<Bytes>>, Refusal>,
    ) {
        let Known::Here { what: Some(told), .. } = told.unwrap() else { return };
        let value: usize = std::str::from_utf8(&told).unwrap().parse().unwrap();
        let Some(end) = self.writes[value].end else { return };
        let is_over = self.writes[value].over.zip(now).is_some_and(|(over, now)| over <= now);
        assert!(!is_over, "{place:?}: read {value} at {begin}, whose lifetime had passed");
        let newer = self.writes.iter().position(|w| {
            w.own && w.place == place && w.begin > end && w.end.is_some_and(|end| end < begin)
        });
        assert!(newer.is_none(), "{place:?}: read {value} at {begin}, after {newer:?}");
    }
}

/// The model can see what it is there to see.
#[test]
fn the_history_that_once_broke_the_promise_is_among_those_played() {
    use {
        Kind::{Put, Read},
        Step::{Begin, Finish, Send, Serve},
    };
    let k = (0, false);
    let mut model = Model::default();
    for step in [
        Begin(Put, k),
        Send(0),
        Serve,
        Finish(0),
        Begin(Put, k),
        Begin(Read, k),
        Send(1),
        Send(0),
        Serve,
        Serve,
        Finish(1),
        Finish(0),
    ] {
        model.play(step);
        model.look();
    }
}
