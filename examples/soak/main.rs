//! Does it all hold while everything fails, for as long as you like?
//!
//! Private PostgreSQL, MariaDB, Redis, an S3 store and a small HTTP service, each behind a network that
//! can fail; the service of `examples/service` answers its callers over them, other workers call them
//! through the clients, and a seeded schedule kills, freezes, cuts and slows each of them in turn. At the end everything is well again, and the books are compared: what
//! was acknowledged is there, nothing is there twice, no value read was older than one written, files
//! are the same byte for byte, breakers are closed, and memory, descriptors and tasks did not grow.
//!
//! `tests/soak MINUTES [SEED]`
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![recursion_limit = "256"]

#[path = "../service/app.rs"]
mod app;
mod cache;
mod faults;
mod files;
mod ledger;
mod pages;
mod shop;
mod tally;

use app::App;
use faults::{Dependency, Fate};
use mainstay::{HttpClient, MySqlDatabase, PgDatabase, RedisClient, S3Client};
use mainstay_test_support::{
    Mariadb, Postgres, Proxy, Redis,
    s3::{BUCKET, KEY, Memory, S3, SECRET, Sums},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tally::Tally;
use tokio::{
    runtime::Handle,
    sync::{RwLock, RwLockReadGuard},
    task::JoinSet,
};

/// Counts what is allocated and not given back; the size of the process also has what malloc keeps.
#[global_allocator]
static HEAP: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// No call may take longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(4);

/// The books have room for so many entries from the start, or they would be the memory that grows.
pub(crate) const ROOM: usize = 1 << 20;

/// What all workers know: whether they may go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shift(Arc<(AtomicBool, RwLock<()>)>);

impl Shift {
    /// The right to do one round of work; `None` when it is over.
    pub(crate) async fn round(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let round = self.0.1.read().await;
        (!self.0.0.load(Relaxed)).then_some(round)
    }

    /// Measures while nobody works.
    async fn pause(&self, store: &S3, objects: &Memory) -> Size {
        let _all_rounds_are_over = self.0.1.write().await;
        store.forget();
        Size::now(objects)
    }

    fn end(&self) {
        self.0.0.store(true, Relaxed);
    }
}

/// What may grow with the time and must not.
#[derive(Debug, Clone, Copy)]
struct Size {
    descriptors: usize,
    tasks: usize,
    megabytes: f64,
}

impl Size {
    /// What the store in this process holds is not ours to bound: what a refused delete left there.
    fn now(objects: &Memory) -> Self {
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            tasks: Handle::current().metrics().num_alive_tasks(),
            megabytes: (HEAP.allocated() as f64 - objects.bytes() as f64) / 1e6,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let minutes: f64 = arguments.next().unwrap_or_else(|| "2".to_owned()).parse()?;
    let seed: u64 = arguments.next().unwrap_or_else(|| "1".to_owned()).parse()?;
    println!("{minutes} minutes, seed {seed}");

    let (postgres, mariadb, redis) = (Postgres::start(), Mariadb::start(), Redis::start());
    let (store, objects) = S3::in_memory(Sums::Full).await;
    let service = pages::Service::start().await;
    let front = |address| Arc::new(Proxy::in_front_of(address));
    let to_postgres = front(postgres.address());
    let to_mariadb = front(mariadb.address());
    let to_redis = front(redis.address());
    let to_store = front(store.endpoint().trim_start_matches("http://").parse()?);
    let to_service = front(service.address());

    let pg = PgDatabase::builder().url(Postgres::url_at(to_postgres.addr())).build()?;
    let my =
        MySqlDatabase::builder().name("mariadb").url(Mariadb::url_at(to_mariadb.addr())).build()?;
    let cache = RedisClient::builder().url(Redis::url_at(to_redis.addr())).build()?;
    let s3 = S3Client::builder()
        .endpoint_url(format!("http://{}", to_store.addr()))
        .region("us-east-1")
        .credentials(KEY, SECRET)
        .bucket(BUCKET)
        .build()?;
    let api = HttpClient::builder(&format!("http://{}", to_service.addr())).build()?;

    let shift = Shift::default();
    let mut workers = JoinSet::new();
    let (pg_books, pg_tally) = ledger::postgres(&pg, &shift, &mut workers).await;
    let (my_books, my_tally) = ledger::mysql(&my, &shift, &mut workers).await;
    let cache_tally = cache::work(&cache, &shift, &mut workers);
    let (file_books, file_tally) = files::work(&s3, &objects, &shift, &mut workers)?;
    let (page_books, page_tally) = pages::work(&api, &shift, &mut workers);
    let app = App {
        db: pg.clone(),
        cache: cache.clone(),
        rates: api.clone(),
        store: s3.clone(),
        bucket: BUCKET.to_owned(),
    };
    app.migrate().await?;
    let (shop_books, shop_tally) = shop::work(app, &shift, &mut workers);

    let mut dependencies = [
        Dependency::new("postgres", Fate::server(postgres), to_postgres, false, seed),
        Dependency::new("mariadb", Fate::server(mariadb), to_mariadb, false, seed + 1),
        Dependency::new("redis", Fate::server(redis), to_redis, false, seed + 2),
        Dependency::new("s3", Fate::None, to_store, true, seed + 3),
        Dependency::new("http", Fate::None, to_service, false, seed + 4),
    ];
    let total = Duration::from_secs_f64(minutes * 60.0);
    let all_well = async || {
        loop {
            let well = pg_tally.is_well()
                && my_tally.is_well()
                && cache_tally.is_well()
                && file_tally.is_well()
                && page_tally.is_well()
                && shop_tally.is_well();
            let open = mainstay::get_resilience_health();
            let well = well && open.open_breakers.is_empty() && open.degraded_breakers.is_empty();
            // What was written while Redis was away is on its way there.
            if well && cache.health_check().await.status == mainstay::HealthStatus::Healthy {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // What is allocated once is allocated after a third, with faults and all; and like is compared
    // with like: connections that are open after a recovery, with their buffers.
    let (mut recovered, mut sizes) = (true, Vec::new());
    for lasts in [total / 3, total * 2 / 3] {
        let end = Instant::now() + lasts;
        let schedules = dependencies.iter_mut().map(|dependency| dependency.suffer(end));
        futures_util::future::join_all(schedules).await;
        println!("everything is well again; waiting for the clients to notice");
        let limit = Duration::from_secs(120);
        recovered &= tokio::time::timeout(limit, all_well()).await.is_ok();
        sizes.push(shift.pause(&store, &objects).await);
    }
    let (warm, last) = (sizes[0], sizes[1]);
    let health = [
        ("postgres", pg.health_check().await),
        ("mariadb", my.health_check().await),
        ("redis", cache.health_check().await),
        ("s3", s3.health_check().await),
        ("http", api.health_check_at("/health").await),
    ];
    shift.end();
    while let Some(worker) = workers.join_next().await {
        worker?;
    }

    let mut claims = tally::Claims::default();
    claims.check(
        recovered,
        "two minutes after the last fault all calls succeed and no breaker is open",
    );
    for (name, health) in health {
        let healthy = health.status == mainstay::HealthStatus::Healthy;
        claims.check(healthy, &format!("{name} is healthy: {}", health.detail));
    }
    pg_books.check(&pg, "postgres", &mut claims).await;
    my_books.check(&my, "mariadb", &mut claims).await;
    cache_tally
        .check_reads("redis: no value read was older than the last that was written", &mut claims);
    file_books.check(&s3, &objects, &mut claims).await;
    page_books.check(&service, &mut claims);
    shop_books.check(&pg, &objects, &mut claims).await;
    // A connection that is kept is four: its client's, its server's, and the proxy's two.
    claims.check(
        last.descriptors <= warm.descriptors + 128,
        &format!("descriptors did not grow: {} then, {} now", warm.descriptors, last.descriptors),
    );
    claims.check(
        last.tasks <= warm.tasks + 32,
        &format!("tasks did not grow: {} then, {} now", warm.tasks, last.tasks),
    );
    claims.check(
        last.megabytes <= warm.megabytes + 16.0,
        &format!(
            "memory did not grow: {:.1} MB allocated then, {:.1} MB now",
            warm.megabytes, last.megabytes
        ),
    );

    Tally::print_head();
    let tallies = [&pg_tally, &my_tally, &cache_tally, &file_tally, &page_tally];
    let none = BTreeMap::new();
    let mut rows = vec![("service", &shop_tally, &none)];
    for (dependency, tally) in dependencies.iter().zip(tallies) {
        let (name, faults) = (dependency.name(), dependency.suffered());
        let total: u32 = faults.values().sum();
        claims.check(total > 0, &format!("{name}: it suffered {total} faults"));
        rows.push((name, tally, faults));
    }
    for (name, tally, faults) in rows {
        tally.print(name, faults);
        claims.check(tally.ok() > 0, &format!("{name}: {} calls succeeded", tally.ok()));
        let late = tally.worst_overrun();
        claims.check(
            late < Duration::from_millis(500),
            &format!("{name}: no call ended more than 0.5 s after its deadline"),
        );
    }
    claims.end()
}
