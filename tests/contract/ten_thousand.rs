//! Ten thousand calls of each client while everything fails: each ends by its deadline, together they
//! leave no task, socket or file behind, and no more arrives at the server than is reported.

use crate::{
    deadline::{Overruns, overrun},
    faults::{self, Fault},
    left_behind::{descriptors, until},
    sqlite,
    subject::{Client, Mood, Remote, Subject, Tune, ms, ready, servers},
};
use mainstay::{
    Deadline, Decider, SqliteDatabase, get_resilience_health,
    sqlx::{Connection, raw_sql},
};
use std::time::Duration;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinSet,
    time::sleep,
};

/// Nineteen times: with those that the server answers, ten thousand.
const ROUNDS: usize = 5;
const AT_ONCE: usize = 100;
const DEADLINE: Duration = ms(200);
const POOL: u32 = 8;

/// Only time ends a call, and it begins attempts all the while.
const STUBBORN: Tune =
    |policy| policy.timeout(ms(80)).max_attempts(1_000).deadline(DEADLINE).enable_budget(false);
const PATIENT: Tune = |policy| policy.max_attempts(3).enable_budget(false);

each_alone!(faulted_calls_end_in_time_and_leave_nothing: database mariadb redis http s3);

fn faulted_calls_end_in_time_and_leave_nothing<S: Remote>() {
    runtime().block_on(async {
        let server = S::start().await;
        let mut storm = Storm::<S>::before(&server).await;
        for _ in 0..ROUNDS {
            storm.answered().await;
        }
        for round in 0..ROUNDS {
            // The last rounds are of one kind of request, which the server counts.
            storm.faulted(round, round < ROUNDS / 2).await;
            storm.is_over(round).await;
        }
        storm.judge().await;
    });
}

/// The server and the proxy have a runtime of their own: the tasks here are the client's.
fn runtime() -> Runtime {
    // It is open before anything is counted.
    servers();
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

struct Storm<'s, S: Remote> {
    server: &'s S,
    client: S::Client,
    patient: S::Client,
    draw: fastrand::Rng,
    overruns: Overruns,
    calls: usize,
    failed: usize,
    /// Of calls whose requests are counted: begun here, and asked of the server before them.
    counted: usize,
    asked: u64,
    retries: u64,
    /// What is open, and how many tasks live, when all is calm.
    open: usize,
    tasks: usize,
}

impl<'s, S: Remote> Storm<'s, S> {
    async fn before(server: &'s S) -> Self {
        let (client, patient) = (server.client(POOL, STUBBORN), server.client(POOL, PATIENT));
        for client in [&client, &patient] {
            ready(client).await;
            for door in S::Client::DOORS {
                let _ = client.call(door).await;
            }
            client.health().await;
        }
        // The last door may have cost one of them its connection.
        for client in [&client, &patient] {
            ready(client).await;
        }
        let (open, tasks) = (descriptors().len(), tasks());
        let (overruns, draw) = (Overruns::default(), fastrand::Rng::with_seed(10_000));
        Self {
            server,
            client,
            patient,
            draw,
            overruns,
            calls: 0,
            failed: 0,
            counted: 0,
            asked: 0,
            retries: 0,
            open,
            tasks,
        }
    }

    /// The server says that it cannot now: what arrives there is exactly what is reported.
    async fn answered(&mut self) {
        let (door, name) = (S::Client::REPEATED, self.patient.name().to_owned());
        ready(&self.patient).await;
        self.server.set(Mood::NotNow).await;
        let (asked, retried) = (self.server.asked(door).await, retries(&name));
        let mut calls = JoinSet::new();
        for _ in 0..AT_ONCE {
            calls.spawn(self.patient.call(door));
        }
        let mut attempts = 0;
        for end in calls.join_all().await {
            let error = end.unwrap_err();
            assert_eq!(error.decider(), Some(Decider::Retry), "{name}: {error:?}");
            attempts += u64::from(error.attempts());
        }
        assert_eq!(self.server.asked(door).await - asked, attempts, "{name}: asked, and reported");
        assert_eq!(retries(&name) - retried, attempts - AT_ONCE as u64, "{name}: in health");
        self.server.set(Mood::Well).await;
        self.calls += AT_ONCE;
        self.failed += AT_ONCE;
    }

    /// A hundred calls through each fault of the network, in an order that is drawn.
    async fn faulted(&mut self, round: usize, every_door: bool) {
        let (doors, name) = (S::Client::DOORS, self.client.name().to_owned());
        let door = S::Client::REPEATED;
        if !every_door && self.counted == 0 {
            (self.asked, self.retries) = (self.server.asked(door).await, retries(&name));
        }
        let mut order: Vec<&Fault> = faults::ALL.iter().collect();
        self.draw.shuffle(&mut order);
        for fault in order {
            self.well().await;
            fault.start(self.server.proxy());
            let mut calls = JoinSet::new();
            for n in 0..AT_ONCE {
                let door = if every_door { doors[self.draw.usize(..doors.len())] } else { door };
                let call = self.client.call(door);
                let call = Box::pin(Deadline::within(DEADLINE).scope(call));
                calls.spawn(async move {
                    // Not all at once, so that one call's end is not another's wait.
                    sleep(ms(n as u64)).await;
                    (overrun(call, DEADLINE).await, door)
                });
            }
            for (overrun, door) in calls.join_all().await {
                self.failed += usize::from(overrun.failed);
                let what = format!("{name}, round {round}, {}, {door}", fault.name);
                self.overruns.add(overrun, &what);
            }
            Fault::end(self.server.proxy());
            self.calls += AT_ONCE;
            self.counted += if every_door { 0 } else { AT_ONCE };
        }
    }

    /// As `ready`, with what it sends counted.
    async fn well(&mut self) {
        let calls = async {
            let mut calls = 1;
            while self.client.call(S::Client::REPEATED).await.is_err() {
                calls += 1;
                tokio::task::yield_now().await;
            }
            calls
        };
        let calls = tokio::time::timeout(ms(60_000), calls).await.expect("it works again");
        self.counted += if self.counted > 0 { calls } else { 0 };
    }

    /// After each round as much is open, and as many tasks live, as before the first.
    async fn is_over(&mut self, round: usize) {
        for client in [&self.client, &self.patient] {
            ready(client).await;
        }
        let name = self.client.name().to_owned();
        let (open, tasks_before) = (self.open, self.tasks);
        let told = || {
            format!(
                "{name}, round {round}: {open} were open, {tasks_before} tasks; now {}: {:?}",
                tasks(),
                descriptors()
            )
        };
        tokio::task::block_in_place(|| {
            until(|| descriptors().len() <= open && tasks() <= tasks_before, told);
        });
    }

    async fn judge(self) {
        let name = self.client.name();
        assert_eq!(self.calls, 10_000, "{name}");
        assert!(self.failed * 2 > self.calls, "{name}: only {} failed", self.failed);
        let asked = self.server.asked(S::Client::REPEATED).await - self.asked;
        let attempts = self.counted as u64 + retries(name) - self.retries;
        println!("{name}: {} calls, {} failed", self.calls, self.failed);
        println!("{name}: {attempts} attempts reported, {asked} arrived");
        assert!(asked > 0 && asked <= attempts, "{name}: {asked} arrived, {attempts} reported");
        self.overruns.judge(name);
    }
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn retries(name: &str) -> u64 {
    get_resilience_health().circuit_breakers[name].retries
}

/// SQLite has no network; its fault is another process that holds the file.
#[test]
fn calls_of_sqlite_to_a_file_that_is_held_leave_nothing() {
    const NAME: &str = "ten_thousand::calls_of_sqlite_to_a_file_that_is_held_leave_nothing";
    if crate::alone::alone(NAME, &[]).is_some() {
        return;
    }
    runtime().block_on(async {
        let subject = sqlite::Subject::start().await;
        let client = subject.client(POOL, STUBBORN);
        let mut other = subject.other().await;
        let doors = <SqliteDatabase as Client>::DOORS;
        let (mut overruns, mut failed) = (Overruns::default(), 0);
        // With all of its connections open, which a pool may keep.
        let mut all = Vec::new();
        for _ in 0..POOL {
            all.push(client.acquire().await.unwrap());
        }
        let (open, alive) = (descriptors().len(), tasks());
        drop(all);
        for round in 0..10_000 / AT_ONCE {
            raw_sql("begin exclusive").execute(&mut other).await.unwrap();
            let mut calls = JoinSet::new();
            for door in doors.iter().cycle().take(AT_ONCE) {
                let call = Deadline::within(ms(50)).scope(client.call(door));
                let call = Box::pin(call);
                calls.spawn(async move { (overrun(call, ms(50)).await, *door) });
            }
            for (overrun, door) in calls.join_all().await {
                failed += usize::from(overrun.failed);
                overruns.add(overrun, &format!("sqlite, round {round}, {door}"));
            }
            raw_sql("commit").execute(&mut other).await.unwrap();
            ready(&client).await;
            let told = || format!("{open} were open, {alive} tasks; now {:?}", descriptors());
            tokio::task::block_in_place(|| {
                until(|| descriptors().len() <= open && tasks() <= alive, told);
            });
        }
        assert!(failed > 9_000, "{failed}");
        other.close().await.unwrap();
        overruns.judge("sqlite");
    });
}
