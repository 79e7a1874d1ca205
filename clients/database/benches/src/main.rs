//! CPU and time of a point SELECT by key: sqlx's pool as it comes (a ping at every acquire), the same
//! without that ping, and `DatabaseClient`, all with eight connections.
//!
//! The cases take turns in short rounds of random order; printed is the median of the rounds' ratios
//! to sqlx without its ping. "sqlx again" is the noise. CPU is that of this process: of PostgreSQL's
//! server nothing, of SQLite all.
//!
//! With one task on an idle machine a core sleeps whenever a statement is under way, and waking it is
//! part of the time. sqlx's ping at every release keeps both sides awake meanwhile, which is no merit
//! of its own: so one task is measured a second time with every core kept awake by work of the lowest
//! priority, as on a machine that has other things to do.
//!
//! ```sh
//! cargo run --release --manifest-path clients/database/benches/Cargo.toml [rounds]
//! ```

use mainstay_database::{DatabaseClient, PgDatabase, SqliteDatabase};
use mainstay_test_support::Postgres;
use rustix::time::{ClockId, clock_gettime};
use sqlx::{PgPool, SqlitePool, postgres::PgPoolOptions, sqlite::SqlitePoolOptions};
use std::{
    hint::black_box,
    process::{Child, Command},
    thread::available_parallelism,
    time::{Duration, Instant},
};
use tokio::runtime::{Builder, Runtime};

const CONNECTIONS: u32 = 8;
const ROWS: i64 = 1_000;

#[derive(Clone)]
enum Peer {
    Pg(PgPool),
    PgClient(PgDatabase),
    Lite(SqlitePool),
    LiteClient(SqliteDatabase),
}

impl Peer {
    async fn select(&self, key: i64) -> i64 {
        const PG: &str = "select n from t where id = $1";
        const LITE: &str = "select n from t where id = ?";
        let row = match self {
            Self::Pg(pool) => sqlx::query_scalar(PG).bind(key).fetch_one(pool).await,
            Self::PgClient(db) => sqlx::query_scalar(PG).bind(key).fetch_one(db).await,
            Self::Lite(pool) => sqlx::query_scalar(LITE).bind(key).fetch_one(pool).await,
            Self::LiteClient(db) => sqlx::query_scalar(LITE).bind(key).fetch_one(db).await,
        };
        row.expect("a row")
    }
}

/// Of one round: the call in the middle, all calls, CPU; each for one call, in microseconds.
struct Round {
    p50: f64,
    wall: f64,
    cpu: f64,
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn round(runtime: &Runtime, peer: &Peer, calls: usize, tasks: usize) -> Round {
    let (began, started) = (cpu(), Instant::now());
    let each = calls / tasks;
    let mut took = runtime.block_on(async {
        let tasks: Vec<_> = (0..tasks)
            .map(|task| {
                let peer = peer.clone();
                tokio::spawn(async move {
                    let mut took = Vec::with_capacity(each);
                    for call in 0..each {
                        let key = ((task * 31 + call * 17) as i64) % ROWS;
                        let started = Instant::now();
                        black_box(peer.select(key).await);
                        took.push(started.elapsed());
                    }
                    took
                })
            })
            .collect();
        let mut all = Vec::with_capacity(calls);
        for task in tasks {
            all.extend(task.await.expect("no panic"));
        }
        all
    });
    let (wall, cpu) = (started.elapsed(), cpu() - began);
    took.sort_unstable();
    let n = took.len() as f64;
    Round { p50: micros(took[took.len() / 2]), wall: micros(wall) / n, cpu: micros(cpu) / n }
}

/// A loop on every core that anything else interrupts. Ends with us.
struct Awake(Vec<Child>);

impl Awake {
    fn keep() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        let spin = || {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--", "chrt", "--idle", "0"]);
            command.args(["sh", "-c", "while :; do :; done"]);
            command.spawn().expect("setpriv and chrt of util-linux")
        };
        Self((0..cores).map(|_| spin()).collect())
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(runtime: &Runtime, title: &str, cases: &[(&str, Peer)], rounds: usize, tasks: usize) {
    let calls = if tasks == 1 { 1_000 } else { 6_400 };
    let mut seen: Vec<Vec<Round>> = cases.iter().map(|_| Vec::new()).collect();
    for (_, peer) in cases {
        round(runtime, peer, calls, tasks);
    }
    for _ in 0..rounds {
        let mut order: Vec<usize> = (0..cases.len()).collect();
        fastrand::shuffle(&mut order);
        for case in order {
            seen[case].push(round(runtime, &cases[case].1, calls, tasks));
        }
    }
    println!("{title}, {tasks} task{}", if tasks == 1 { "" } else { "s" });
    println!(
        "  {:<22} {:>9} {:>9} {:>9}   ratio: p50, wall, CPU",
        "", "p50 us", "wall us", "CPU us"
    );
    for (case, (name, _)) in cases.iter().enumerate() {
        let ratio = |of: fn(&Round) -> f64| {
            median(seen[case].iter().zip(&seen[0]).map(|(a, b)| of(a) / of(b)).collect())
        };
        let value = |of: fn(&Round) -> f64| median(seen[case].iter().map(of).collect());
        println!(
            "  {name:<22} {:>9.1} {:>9.1} {:>9.1}   {:.3} {:.3} {:.3}",
            value(|r| r.p50),
            value(|r| r.wall),
            value(|r| r.cpu),
            ratio(|r| r.p50),
            ratio(|r| r.wall),
            ratio(|r| r.cpu)
        );
    }
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(15);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("one");
    let server = Postgres::start();
    let dir = tempfile::tempdir().expect("a directory");
    let file = format!("sqlite://{}?mode=rwc", dir.path().join("a.db").display());
    let (pg, lite) = runtime.block_on(async {
        let pool = |ping| {
            let options = PgPoolOptions::new().max_connections(CONNECTIONS);
            options.test_before_acquire(ping).connect_lazy(&server.url()).expect("a URL")
        };
        let plain = pool(false);
        let fill = "create table t (id bigint primary key, n bigint not null); \
                    insert into t select i, i from generate_series(0, 999) i";
        sqlx::raw_sql(fill).execute(&plain).await.expect("a table");
        let client = DatabaseClient::builder().url(server.url()).max_connections(CONNECTIONS);
        let pg = [
            ("sqlx, no ping", Peer::Pg(plain.clone())),
            ("sqlx again", Peer::Pg(plain)),
            ("sqlx as it comes", Peer::Pg(pool(true))),
            ("DatabaseClient", Peer::PgClient(client.build().expect("a client"))),
        ];
        let pool = |ping| {
            let options = SqlitePoolOptions::new().max_connections(CONNECTIONS);
            options.test_before_acquire(ping).connect_lazy(&file).expect("a URL")
        };
        let plain = pool(false);
        let fill = "pragma journal_mode = wal; \
                    create table t (id integer primary key, n integer not null); \
                    insert into t with recursive i(n) as (select 0 union all select n + 1 from i \
                    where n < 999) select n, n from i";
        sqlx::raw_sql(fill).execute(&plain).await.expect("a table");
        let client = DatabaseClient::builder().name("lite").url(&file).max_connections(CONNECTIONS);
        let lite = [
            ("sqlx, no ping", Peer::Lite(plain.clone())),
            ("sqlx again", Peer::Lite(plain)),
            ("sqlx as it comes", Peer::Lite(pool(true))),
            ("DatabaseClient", Peer::LiteClient(client.build().expect("a client"))),
        ];
        (pg, lite)
    });
    for tasks in [1, 64] {
        compare(&runtime, "PostgreSQL", &pg, rounds, tasks);
        compare(&runtime, "SQLite", &lite, rounds, tasks);
    }
    let _awake = Awake::keep();
    compare(&runtime, "cores kept awake: PostgreSQL", &pg, rounds, 1);
    compare(&runtime, "cores kept awake: SQLite", &lite, rounds, 1);
}
