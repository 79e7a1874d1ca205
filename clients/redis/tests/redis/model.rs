//! Random histories of one caller on a real server behind a proxy whose faults come and go, against
//! a model of what the crate's documentation promises. The same for calls that overlap is in
//! `src/fallback/model.rs`, without a server.

use crate::{ms, until};
use mainstay_policy::Error;
use mainstay_redis::{FallbackConfig, RedisClient, RedisState, Source};
use mainstay_test_support::{Proxy, Redis};
use proptest::{collection::vec, prelude::*};
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

#[derive(Clone, Debug)]
enum Step {
    Get(usize),
    Mget,
    Set(usize, Option<u64>),
    SetIfAbsent(usize),
    Del(usize),
    Exists(usize),
    Expire(usize),
    Hget(usize),
    Hset(usize),
    Hdel(usize),
    Hgetall,
    Incr(i64),
    /// Faults.
    Cut,
    LoseReply,
    TakeAway,
    GiveBack,
    /// Waits until the client knows where it stands.
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..3_usize;
    prop_oneof![
        5 => key.clone().prop_map(Step::Get),
        1 => Just(Step::Mget),
        4 => (key.clone(), prop::option::of(60..600_u64)).prop_map(|(k, ttl)| Step::Set(k, ttl)),
        1 => key.clone().prop_map(Step::SetIfAbsent),
        2 => key.clone().prop_map(Step::Del),
        1 => key.clone().prop_map(Step::Exists),
        1 => key.clone().prop_map(Step::Expire),
        3 => key.clone().prop_map(Step::Hget),
        3 => key.clone().prop_map(Step::Hset),
        1 => key.prop_map(Step::Hdel),
        1 => Just(Step::Hgetall),
        2 => (1..5_i64).prop_map(Step::Incr),
        1 => Just(Step::Cut),
        1 => Just(Step::LoseReply),
        1 => Just(Step::TakeAway),
        2 => Just(Step::GiveBack),
        3 => Just(Step::Settle),
    ]
}

#[test]
fn the_client_does_what_is_documented_whatever_the_faults() {
    histories("t-model", FallbackConfig::new(), 24, (50, 20));
}

#[test]
fn so_does_one_whose_memory_takes_no_writes() {
    histories("t-model-reader", FallbackConfig::read_only(), 12, (25, 3));
}

/// With more answers of the server and of memory than these.
fn histories(name: &str, fallback: FallbackConfig, cases: u32, more_than: (u32, u32)) {
    let takes = fallback == FallbackConfig::new();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let cache = RedisClient::builder()
        .name(name)
        .url(Redis::url_at(proxy.addr()))
        .policy(|p| p.timeout(ms(1500)).base_delay(ms(10)).recovery_timeout(ms(200)))
        .fallback(fallback)
        .build()
        .unwrap();
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 60,
        ..ProptestConfig::default()
    };
    let (mut case, mut told) = (0, HashMap::new());
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let told_cell = std::cell::RefCell::new(&mut told);
    let case_cell = std::cell::RefCell::new(&mut case);
    runner
        .run(&vec(step(), 20..70), |steps| {
            **case_cell.borrow_mut() += 1;
            let case = **case_cell.borrow();
            let mut world = World::new(&redis, &proxy, &cache, takes, case);
            runtime.block_on(async {
                world.settle().await;
                for step in &steps {
                    world.play(step).await;
                }
                world.give_back();
                world.settle().await;
                world.end().await;
            });
            for (source, n) in world.told {
                *told_cell.borrow_mut().entry(source).or_insert(0) += n;
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    println!("{case} histories, reads by source: {told:?}");
    let told = |source| told.get(source).copied().unwrap_or(0);
    assert!(told("Redis") > more_than.0 && told("Fallback") > more_than.1, "both tiers were asked");
}

/// What may be at a key or field.
#[derive(Clone, Debug)]
struct Slot {
    /// The last successful write, and what unknown ones since may have made of it.
    possible: HashSet<Option<String>>,
    /// Written or overwritten while the server was not certainly there: it may be gone.
    lossy: bool,
}

impl Slot {
    fn new() -> Self {
        Self { possible: HashSet::from([None]), lossy: false }
    }

    fn write(&mut self, value: Option<String>, sure: bool) {
        self.possible = HashSet::from([value]);
        self.lossy = !sure;
    }
}

struct World<'a> {
    redis: &'a Redis,
    proxy: &'a Proxy,
    cache: &'a RedisClient,
    /// Memory takes writes while the server is away.
    takes: bool,
    case: u32,
    away: bool,
    /// No fault since the client was connected with nothing left to tell the server.
    calm: bool,
    /// The client knows that the server is away.
    dark: bool,
    next: u64,
    slots: HashMap<String, Slot>,
    counter: (i64, i64),
    told: HashMap<&'static str, u32>,
}

impl<'a> World<'a> {
    fn new(
        redis: &'a Redis,
        proxy: &'a Proxy,
        cache: &'a RedisClient,
        takes: bool,
        case: u32,
    ) -> Self {
        let slots = (0..3).flat_map(|n| [format!("t{n}"), format!("h{n}")]);
        Self {
            redis,
            proxy,
            cache,
            takes,
            case,
            away: false,
            calm: false,
            dark: false,
            next: 0,
            slots: slots.map(|name| (name, Slot::new())).collect(),
            counter: (0, 0),
            told: HashMap::new(),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.case)
    }

    fn slot(&mut self, name: &str) -> &mut Slot {
        self.slots.get_mut(name).unwrap()
    }

    fn value(&mut self) -> String {
        self.next += 1;
        format!("v{}", self.next)
    }

    fn disturbed(&mut self) {
        (self.calm, self.dark) = (false, false);
    }

    fn give_back(&mut self) {
        self.proxy.heal();
        self.proxy.listen();
        if std::mem::take(&mut self.away) {
            self.disturbed();
        }
    }

    async fn settle(&mut self) {
        let state = if self.away { RedisState::Degraded } else { RedisState::Connected };
        let began = Instant::now();
        loop {
            until(self.cache, state).await;
            // A lost reply that nobody has lost yet would come later.
            if self.away || self.cache.run("PING").await.is_ok() {
                break;
            }
            assert!(began.elapsed() < ms(20_000));
        }
        if !self.away {
            until(self.cache, RedisState::Connected).await;
        }
        (self.calm, self.dark) = (!self.away, self.away);
    }

    /// Checks what a read told.
    fn told(&mut self, name: &str, value: Option<String>, source: Source) {
        let (calm, dark) = (self.calm, self.dark);
        let slot = self.slot(name);
        match &value {
            Some(_) => assert!(slot.possible.contains(&value), "{name}: {value:?} of {slot:?}"),
            None => {
                let may = slot.lossy || slot.possible.contains(&None) || source == Source::Nobody;
                assert!(may, "{name}: a miss of {slot:?} from {source:?}");
            }
        }
        if calm {
            assert_eq!(source, Source::Redis, "{name}");
            (slot.possible, slot.lossy) = (HashSet::from([value]), false);
        } else if dark {
            assert_ne!(source, Source::Redis, "{name}");
        }
        let source = match source {
            Source::Redis => "Redis",
            Source::Fallback => "Fallback",
            _ => "Nobody",
        };
        *self.told.entry(source).or_default() += 1;
    }

    fn refused(&self, error: &Error) {
        assert!(!self.calm, "refused although nothing was wrong: {error:?}");
    }

    /// A write has ended.
    fn wrote<T>(&mut self, name: &str, value: Option<String>, end: Result<T, Error>) {
        let sure = self.calm || !self.takes;
        match end {
            Ok(_) => {
                assert!(self.takes || !self.dark, "{name}: taken by memory");
                self.slot(name).write(value, sure);
            }
            Err(error) => {
                assert!(!self.takes, "{name}: {error:?}");
                self.refused(&error);
                if error.is_outcome_unknown() {
                    self.slot(name).possible.insert(value);
                }
            }
        }
    }

    async fn play(&mut self, step: &Step) {
        let (cache, sure) = (self.cache, self.calm);
        match step {
            Step::Cut => {
                self.proxy.cut();
                self.disturbed();
            }
            Step::LoseReply => {
                self.proxy.lose_next_reply();
                self.disturbed();
            }
            Step::TakeAway => {
                self.proxy.refuse();
                self.proxy.cut();
                self.away = true;
                self.disturbed();
            }
            Step::GiveBack => self.give_back(),
            Step::Settle => self.settle().await,
            Step::Get(n) => {
                let name = format!("t{n}");
                let answer = cache.get_answer(self.key(&name)).await.unwrap();
                self.told(&name, answer.value, answer.source);
            }
            Step::Mget => {
                let keys: Vec<_> = (0..3).map(|n| self.key(&format!("t{n}"))).collect();
                let values = cache.mget::<String>(keys).await.unwrap();
                for (n, value) in values.into_iter().enumerate() {
                    let slot = self.slot(&format!("t{n}"));
                    // Without its source a miss says nothing.
                    assert!(
                        value.is_none() || slot.possible.contains(&value),
                        "{value:?} of {slot:?}"
                    );
                    assert!(!sure || slot.lossy || slot.possible.contains(&value), "{slot:?}");
                }
            }
            Step::Set(n, ttl) => {
                let (name, value) = (format!("t{n}"), self.value());
                let mut set = cache.set(self.key(&name), value.clone());
                if let Some(ttl) = ttl {
                    set = set.ttl(Duration::from_secs(*ttl));
                }
                let end = set.await;
                self.wrote(&name, Some(value), end);
            }
            Step::SetIfAbsent(n) => {
                let (name, value) = (format!("t{n}"), self.value());
                let set = cache.set_if_absent(self.key(&name), value.clone()).await;
                let (calm, dark) = (self.calm, self.dark);
                let slot = self.slot(&name);
                match set {
                    Ok(true) => {
                        assert!(!dark, "a lock from memory");
                        assert!(slot.lossy || slot.possible.contains(&None), "{slot:?}");
                        slot.write(Some(value), calm);
                    }
                    Ok(false) => {
                        assert!(!dark, "a lock from memory");
                        slot.possible.remove(&None);
                        assert!(!slot.possible.is_empty(), "nothing was there");
                    }
                    Err(error) if error.is_outcome_unknown() => {
                        assert!(!calm && !dark, "{error:?}");
                        slot.possible.insert(Some(value));
                    }
                    Err(error) => self.refused(&error),
                }
            }
            Step::Del(n) => {
                let name = format!("t{n}");
                let end = cache.del(self.key(&name)).await;
                self.wrote(&name, None, end);
            }
            Step::Exists(n) => {
                let name = format!("t{n}");
                let there = cache.exists(self.key(&name)).await.unwrap();
                let slot = self.slot(&name);
                assert!(!there || slot.possible.iter().any(Option::is_some), "{slot:?}");
                assert!(there || !sure || slot.lossy || slot.possible.contains(&None), "{slot:?}");
            }
            Step::Expire(n) => {
                let name = format!("t{n}");
                match cache.expire(self.key(&name), Duration::from_secs(500)).await {
                    // It may be kept here, and then be deleted there.
                    Ok(_) => self.slot(&name).lossy |= !sure && self.takes,
                    Err(error) => self.refused(&error),
                }
            }
            Step::Hget(n) => {
                let name = format!("h{n}");
                let answer = cache.hget_answer(self.key("h"), &name).await.unwrap();
                self.told(&name, answer.value, answer.source);
            }
            Step::Hset(n) => {
                let (name, value) = (format!("h{n}"), self.value());
                let end = cache.hset(self.key("h"), &name, value.clone()).await;
                self.wrote(&name, Some(value), end);
            }
            Step::Hdel(n) => {
                let name = format!("h{n}");
                let end = cache.hdel(self.key("h"), &name).await;
                self.wrote(&name, None, end);
            }
            Step::Hgetall => match cache.hgetall_answer::<String>(self.key("h")).await {
                Ok(all) => {
                    for n in 0..3 {
                        let name = format!("h{n}");
                        self.told(&name, all.value.get(&name).cloned(), all.source);
                    }
                }
                Err(error) => self.refused(&error),
            },
            Step::Incr(n) => match cache.incr_by(self.key("n"), *n).await {
                Ok(sum) => {
                    assert!(!self.dark, "counted in memory");
                    let (least, most) = (self.counter.0 + n, self.counter.1 + n);
                    assert!((least..=most).contains(&sum), "{sum} of {least} to {most}");
                    self.counter = (sum, sum);
                }
                Err(error) if error.is_outcome_unknown() => self.counter.1 += n,
                Err(error) => self.refused(&error),
            },
        }
    }

    /// All is well again: both tiers agree with the model, and the server with the client.
    async fn end(&mut self) {
        for n in 0..3 {
            self.play(&Step::Get(n)).await;
            self.play(&Step::Hget(n)).await;
        }
        self.play(&Step::Incr(1)).await;
        assert_eq!(self.cache.dirty_keys(), 0);
        for n in 0..3 {
            let name = format!("t{n}");
            let held = self.redis.say(&format!("GET {}", self.key(&name)));
            let held = held.lines().nth(1).map(str::to_owned);
            assert!(self.slot(&name).possible.contains(&held), "{name}: {held:?}");
        }
    }
}
