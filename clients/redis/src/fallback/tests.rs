use super::*;

fn fallback(server: bool) -> Fallback {
    let config = FallbackConfig::new().max_dirty_entries(50);
    Fallback::new(&config, server)
}

fn put(text: &str) -> Change {
    Change::Put { value: Bytes::copy_from_slice(text.as_bytes()), ttl: None }
}

fn bytes(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

fn ask_read(fallback: &Fallback, slot: &Slot) -> Ticket {
    match fallback.begin_read(slot, Instant::now()) {
        BeginRead::Ask(ticket) => ticket,
        BeginRead::Local(_) => panic!("answered here"),
    }
}

fn ask_write(fallback: &Fallback, slot: &Slot, change: &Change) -> Ticket {
    match fallback.begin_write(slot, change, Instant::now()) {
        BeginWrite::Ask(ticket) => ticket,
        _ => panic!("kept here"),
    }
}

#[test]
fn an_answer_asked_for_before_a_write_is_not_kept() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let early = ask_read(&fallback, &k);
    let write = ask_write(&fallback, &k, &put("new"));
    fallback.landed(&k, &put("new"), write, now);
    assert_eq!(fallback.filled(&k, early, bytes("old"), now, now), Ok(bytes("old")));
    assert_eq!(fallback.read(&k, now), Ok(bytes("new")));
}

#[test]
fn of_two_writes_in_flight_neither_is_kept_unless_it_was_the_last() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let first = ask_write(&fallback, &k, &put("1"));
    let second = ask_write(&fallback, &k, &put("2"));
    fallback.landed(&k, &put("2"), second, now);
    assert_eq!(fallback.read(&k, now), Ok(bytes("2")));
    fallback.landed(&k, &put("1"), first, now);
    assert_eq!(fallback.read(&k, now), Ok(None));
}

#[test]
fn a_write_that_failed_leaves_no_older_value() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let read = ask_read(&fallback, &k);
    fallback.filled(&k, read, bytes("old"), now, now).unwrap();
    ask_write(&fallback, &k, &put("new"));
    assert_eq!(fallback.read(&k, now), Ok(None));
}

#[test]
fn a_write_kept_here_leaves_no_value_read_while_it_was_in_flight() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    ask_write(&fallback, &k, &put("new"));
    let read = ask_read(&fallback, &k);
    fallback.filled(&k, read, bytes("old"), now, now).unwrap();
    fallback.write(&k, &put("new"), now).unwrap();
    fallback.drain(9).acknowledge();
    assert_eq!(fallback.read(&k, now), Ok(None));
}

#[test]
fn a_read_in_flight_gives_the_value_written_here_meanwhile() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let read = ask_read(&fallback, &k);
    assert_eq!(fallback.write(&k, &put("local"), now), Ok(false));
    assert_eq!(fallback.filled(&k, read, bytes("old"), now, now), Ok(bytes("local")));
}

#[test]
fn dirty_keys_are_answered_here_until_acknowledged() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    fallback.write(&k, &put("1"), now).unwrap();
    let is_local = || matches!(fallback.begin_read(&k, now), BeginRead::Local(Ok(Some(_))));
    assert!(is_local());
    let drain = fallback.drain(9);
    assert!(is_local());
    assert!(matches!(fallback.begin_write(&k, &put("2"), now), BeginWrite::Draining));
    drop(drain);
    assert!(is_local(), "not acknowledged");
    assert!(matches!(fallback.begin_write(&k, &put("2"), now), BeginWrite::Local(Ok(true))));
    assert!(!fallback.drain(9).acknowledge());
    assert!(!is_local());
    assert_eq!(fallback.dirty_keys(), 0);
    assert_eq!(fallback.read(&k, now), Ok(None), "nothing older comes back");
}

#[test]
fn a_deleted_key_is_known_to_be_gone() {
    let (fallback, k, now) = (fallback(true), Slot::key("k"), Instant::now());
    let write = ask_write(&fallback, &k, &put("1"));
    fallback.landed(&k, &put("1"), write, now);
    assert_eq!(fallback.write(&k, &Change::Remove, now), Ok(true));
    assert_eq!(fallback.read(&k, now), Ok(None));
    assert_eq!(fallback.write(&k, &Change::Remove, now), Ok(false));
}

#[test]
fn types_are_kept_apart_as_redis_does() {
    for server in [true, false] {
        let (fallback, k, f, now) =
            (fallback(server), Slot::key("k"), Slot::field("k", "f"), Instant::now());
        fallback.write(&k, &put("1"), now).unwrap();
        assert_eq!(fallback.write(&f, &put("2"), now), Err(Refusal::WrongType));
        assert_eq!(fallback.read(&f, now), Err(Refusal::WrongType));
        assert_eq!(fallback.write(&k, &Change::Remove, now), Ok(true));
        fallback.write(&f, &put("2"), now).unwrap();
        assert_eq!(fallback.read(&f, now), Ok(bytes("2")));
        assert_eq!(fallback.read(&k, now), Err(Refusal::WrongType));
        fallback.write(&k, &put("3"), now).unwrap();
        assert_eq!(fallback.read(&k, now), Ok(bytes("3")));
    }
}

#[test]
fn without_a_server_nothing_gets_dirty_or_full() {
    let (fallback, now) = (fallback(false), Instant::now());
    for n in 0..1000 {
        fallback.write(&Slot::key(format!("k{n}")), &put("v"), now).unwrap();
    }
    assert_eq!(fallback.dirty_keys(), 0);
    let tomorrow = now + Duration::from_secs(86_400);
    assert_eq!(fallback.read(&Slot::key("k999"), tomorrow), Ok(bytes("v")));
}

/// A server that applies commands in the order they were sent, loses connections, and may have
/// applied what it did not answer; calls overlap in every order. A read must never give a value
/// that another successful write had wholly replaced before the read began.
#[test]
fn no_read_is_older_than_the_last_successful_write() {
    for seed in 0..300 {
        Model::new(seed).run(400);
    }
}

struct Model {
    fallback: Fallback,
    seed: u64,
    clock: u64,
    up: bool,
    server: std::collections::HashMap<(usize, bool), u64>,
    calls: Vec<Call>,
    /// Begin and successful end of each write, by value; with its slot.
    writes: Vec<Written>,
}

#[derive(Clone, Copy)]
struct Written {
    slot: (usize, bool),
    begin: u64,
    end: Option<u64>,
}

struct Call {
    slot: (usize, bool),
    ticket: Ticket,
    begin: u64,
    /// The write's value; `None` for a read.
    writes: Option<(u64, bool)>,
    progress: Progress,
}

enum Progress {
    Sent,
    Answered(Option<u64>),
    Lost,
}

const KEYS: usize = 3;

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            fallback: fallback(true),
            seed: seed * 2 + 1,
            clock: 0,
            up: true,
            server: Default::default(),
            calls: Vec::new(),
            writes: Vec::new(),
        }
    }

    fn dice(&mut self, n: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99_991);
        (self.seed >> 33) % n
    }

    fn slot((key, field): (usize, bool)) -> Slot {
        // Fields and texts at keys of their own: types are tested elsewhere.
        if field {
            Slot::field(format!("h{}", key / 2), format!("f{key}"))
        } else {
            Slot::key(format!("k{key}"))
        }
    }

    fn change(value: u64, remove: bool) -> Change {
        if remove { Change::Remove } else { put(&value.to_string()) }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.clock += 1;
            match self.dice(20) {
                0 => self.cut(),
                1 => self.up = true,
                2..=4 if self.up => self.recover(),
                5..=9 => self.begin_read(),
                10..=13 => self.begin_write(),
                14..=16 => self.serve(),
                _ => self.finish(),
            }
        }
    }

    fn serve(&mut self) {
        if let Some(n) = self.calls.iter().position(|c| matches!(c.progress, Progress::Sent)) {
            self.apply(n);
        }
    }

    fn apply(&mut self, n: usize) {
        let call = &mut self.calls[n];
        match call.writes {
            Some((_, true)) => drop(self.server.remove(&call.slot)),
            Some((value, false)) => drop(self.server.insert(call.slot, value)),
            None => {}
        }
        call.progress = Progress::Answered(self.server.get(&call.slot).copied());
    }

    /// What was sent may have been applied, in order, up to some command; nobody is told.
    fn cut(&mut self) {
        self.up = false;
        for n in 0..self.calls.len() {
            if matches!(self.calls[n].progress, Progress::Sent) {
                if self.dice(2) == 0 {
                    self.apply(n);
                }
                self.calls[n].progress = Progress::Lost;
            }
        }
    }

    fn recover(&mut self) {
        // Behind what was sent before.
        while self.calls.iter().any(|c| matches!(c.progress, Progress::Sent)) {
            self.serve();
        }
        let lost = self.dice(4) == 0;
        let drain = self.fallback.drain(2);
        for task in &drain.tasks {
            self.server.retain(|slot, _| {
                let slot = Self::slot(*slot);
                slot.key != task.key
                    || !(task.fields.is_empty() || task.fields.contains(&slot.field.unwrap()))
            });
        }
        if !lost {
            drain.acknowledge();
        }
    }

    fn pick(&mut self) -> (usize, bool) {
        let key = usize::try_from(self.dice(KEYS as u64)).unwrap();
        (key, self.dice(2) == 0)
    }

    fn begin_read(&mut self) {
        let slot = self.pick();
        let begin = self.clock;
        match self.fallback.begin_read(&Self::slot(slot), Instant::now()) {
            BeginRead::Local(answer) => self.check(slot, begin, answer.unwrap()),
            BeginRead::Ask(ticket) => self.send(slot, ticket, begin, None),
        }
    }

    fn begin_write(&mut self) {
        let slot = self.pick();
        let (value, remove, begin) = (self.writes.len() as u64, self.dice(4) == 0, self.clock);
        self.writes.push(Written { slot, begin, end: None });
        let change = Self::change(value, remove);
        match self.fallback.begin_write(&Self::slot(slot), &change, Instant::now()) {
            BeginWrite::Local(result) => self.wrote(value, result.is_ok()),
            BeginWrite::Draining => unreachable!("recover() is one step"),
            BeginWrite::Ask(ticket) => self.send(slot, ticket, begin, Some((value, remove))),
        }
    }

    fn send(
        &mut self,
        slot: (usize, bool),
        ticket: Ticket,
        begin: u64,
        writes: Option<(u64, bool)>,
    ) {
        let progress = if self.up { Progress::Sent } else { Progress::Lost };
        self.calls.push(Call { slot, ticket, begin, writes, progress });
    }

    fn wrote(&mut self, value: u64, ok: bool) {
        if ok {
            self.writes[usize::try_from(value).unwrap()].end = Some(self.clock);
        }
    }

    fn finish(&mut self) {
        let done = |c: &Call| !matches!(c.progress, Progress::Sent);
        let ready: Vec<_> = (0..self.calls.len()).filter(|n| done(&self.calls[*n])).collect();
        if ready.is_empty() {
            return;
        }
        let pick = usize::try_from(self.dice(ready.len() as u64)).unwrap();
        let call = self.calls.remove(ready[pick]);
        let (slot, now) = (Self::slot(call.slot), Instant::now());
        match (call.writes, call.progress) {
            (None, Progress::Answered(answer)) => {
                let answer = answer.and_then(|v| bytes(&v.to_string()));
                let told = self.fallback.filled(&slot, call.ticket, answer, now, now).unwrap();
                self.check(call.slot, call.begin, told);
            }
            (None, _) => {
                let told = self.fallback.read(&slot, now).unwrap();
                self.check(call.slot, call.begin, told);
            }
            (Some((value, remove)), Progress::Answered(_)) => {
                self.fallback.landed(&slot, &Self::change(value, remove), call.ticket, now);
                self.wrote(value, true);
            }
            (Some((value, remove)), _) => {
                let result = self.fallback.write(&slot, &Self::change(value, remove), now);
                self.wrote(value, result.is_ok());
            }
        }
    }

    fn check(&self, slot: (usize, bool), begin: u64, told: Option<Bytes>) {
        let Some(told) = told else { return };
        let value: usize = std::str::from_utf8(&told).unwrap().parse().unwrap();
        let Some(end) = self.writes[value].end else { return };
        let newer = self
            .writes
            .iter()
            .position(|w| w.slot == slot && w.begin > end && w.end.is_some_and(|end| end < begin));
        assert!(newer.is_none(), "{slot:?}: read {value} at {begin}, after {newer:?}");
    }
}
