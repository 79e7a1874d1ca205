//! Transfers between accounts while everything fails: afterwards the books must agree.
//!
//! Each transfer writes one numbered row and moves money, in one transaction. It ends as
//! acknowledged, as not done, or as unknown, and nothing in between: what is acknowledged is there,
//! what was not done is not, nothing is there twice, and for each unknown a connection ended between
//! its COMMIT and the answer.

mod doubt;

use super::*;
use mainstay_test_support::{Proxy, proxy::What, servers::Program, servers::Server};
use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
};
use tokio::runtime::Runtime;

const TASKS: u32 = 24;
const ACCOUNTS: i32 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Acknowledged,
    NotDone,
    Unknown,
}

/// What differs between the two: how a value is written into a statement, and the wire.
struct Sql {
    protocol: doubt::Protocol,
    create: &'static str,
    row: &'static str,
    take: &'static str,
    give: &'static str,
}

const POSTGRES_SQL: Sql = Sql {
    protocol: doubt::POSTGRES,
    create: "create table account (id int primary key, amount int not null); \
             create table ledger (n int not null); \
             insert into account select i, 1000 from generate_series(0, 199) i",
    row: "insert into ledger values ($1)",
    take: "update account set amount = amount - 1 where id = $1",
    give: "update account set amount = amount + 1 where id = $1",
};

const MARIADB_SQL: Sql = Sql {
    protocol: doubt::MARIADB,
    create: "create table account (id int primary key, amount int not null) engine=innodb; \
             create table ledger (n int not null) engine=innodb; \
             insert into account select seq, 1000 from seq_0_to_199",
    row: "insert into ledger values (?)",
    take: "update account set amount = amount - 1 where id = ?",
    give: "update account set amount = amount + 1 where id = ?",
};

#[derive(Default)]
struct Books {
    pages: Mutex<Pages>,
    /// A transfer has ended.
    turned: Condvar,
    next: AtomicU32,
    /// Something is broken, or was a moment ago.
    in_fault: AtomicBool,
}

#[derive(Default)]
struct Pages {
    /// How each ended, and whether something was broken meanwhile.
    ends: HashMap<i32, (End, bool)>,
    acknowledged: usize,
}

impl Books {
    fn write(&self, n: i32, end: End, in_fault: bool) {
        let mut pages = self.pages.lock().unwrap();
        pages.acknowledged += usize::from(end == End::Acknowledged);
        pages.ends.insert(n, (end, in_fault));
        self.turned.notify_all();
    }

    fn done(&self) -> usize {
        self.pages.lock().unwrap().ends.len()
    }

    /// Blocks until this holds.
    fn until(&self, holds: impl Fn(&Pages) -> bool) {
        let pages = self.pages.lock().unwrap();
        let limit = Duration::from_secs(120);
        let waited = self.turned.wait_timeout_while(pages, limit, |pages| !holds(pages)).unwrap();
        assert!(!waited.1.timed_out(), "no transfer ends any more");
    }
}

/// Breaks things until the transfers are done, and says how often it broke what.
fn break_things<P: Program>(
    server: &mut Server<P>,
    proxy: &Proxy,
    runtime: &Runtime,
    books: &Books,
    transfers: usize,
    random: &mut fastrand::Rng,
) -> HashMap<&'static str, u32> {
    let mut kinds = HashMap::new();
    // Blocks until so many more transfers have ended, however.
    let pass = |more: usize| {
        let goal = (books.done() + more).min(transfers);
        books.until(|pages| pages.ends.len() >= goal);
    };
    while books.done() + 1_500 < transfers {
        pass(random.usize(600..1_200));
        books.in_fault.store(true, SeqCst);
        let kind = match random.u32(0..6) {
            0 => {
                proxy.cut();
                "cut"
            }
            1 => {
                proxy.refuse();
                proxy.cut();
                pass(20);
                proxy.listen();
                "refused"
            }
            2 => {
                server.kill();
                pass(20);
                server.restart();
                "killed"
            }
            3 => {
                // Everything hangs until the callers' patience is over.
                server.hang();
                pass(TASKS as usize);
                server.resume();
                "hung"
            }
            _ => {
                let lost = proxy.lost();
                proxy.lose_next_reply();
                runtime.block_on(proxy.until("a reply is lost", |proxy| proxy.lost() > lost));
                "reply lost"
            }
        };
        *kinds.entry(kind).or_default() += 1;
        // The fault is over when transfers are acknowledged again.
        let goal = books.pages.lock().unwrap().acknowledged + 50;
        books.until(|pages| pages.acknowledged >= goal || pages.ends.len() >= transfers);
        books.in_fault.store(false, SeqCst);
    }
    kinds
}

async fn transfer<DB: Backend>(db: &DatabaseClient<DB>, sql: &Sql, n: i32) -> Result<(), Error>
where
    for<'q> i32: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
    <DB as sqlx::Database>::Arguments: sqlx::IntoArguments<DB>,
{
    let (from, to) = (n % ACCOUNTS, (n * 7 + 1) % ACCOUNTS);
    db.transaction(async |tx| {
        sqlx::query(sql.row).bind(n).execute(&mut *tx).await?;
        sqlx::query(sql.take).bind(from).execute(&mut *tx).await?;
        sqlx::query(sql.give).bind(to).execute(&mut *tx).await?;
        Ok::<_, Error>(())
    })
    .await
}

fn keep_books<P, DB>(mut server: Server<P>, transfers: u32, sql: &'static Sql)
where
    P: Program + Send + 'static,
    DB: Backend,
    for<'q> i32: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
    for<'r> i32: sqlx::Decode<'r, DB>,
    for<'r> i64: sqlx::Decode<'r, DB> + sqlx::Type<DB>,
    usize: sqlx::ColumnIndex<DB::Row>,
    <DB as sqlx::Database>::Arguments: sqlx::IntoArguments<DB>,
{
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let proxy = Proxy::in_front_of(server.address());
    let in_doubt = doubt::count(&proxy, &sql.protocol);
    let referee: DatabaseClient<DB> = {
        let _entered = runtime.enter();
        client(&format!("ledger-referee-{}", DB::NAME), server.url())
    };
    runtime.block_on(async { sqlx::raw_sql(sql.create).execute(&referee).await.unwrap() });
    let db: DatabaseClient<DB> = DatabaseClient::builder()
        .name(format!("ledger-{}", DB::NAME))
        .url(Server::<P>::url_at(proxy.addr()))
        .max_connections(TASKS / 2)
        .policy(|p| {
            // Long enough for a machine that is busy with other tests.
            p.timeout(ms(1_500)).base_delay(ms(5)).max_delay(ms(50)).recovery_timeout(ms(200))
        })
        .build()
        .unwrap();
    let books = Arc::<Books>::default();
    let started = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (db, books) = (db.clone(), Arc::clone(&books));
            runtime.spawn(async move {
                loop {
                    let number = books.next.fetch_add(1, SeqCst);
                    if number >= transfers {
                        return;
                    }
                    let n = i32::try_from(number).unwrap();
                    let before = books.in_fault.load(SeqCst);
                    let end = match transfer(&db, sql, n).await {
                        Ok(()) => End::Acknowledged,
                        Err(error) if error.is_outcome_unknown() => End::Unknown,
                        Err(error) => {
                            // As its callers would: not at once again.
                            if let Some(wait) = error.retry_after() {
                                tokio::time::sleep(wait.min(ms(20))).await;
                            }
                            End::NotDone
                        }
                    };
                    let fault = before || books.in_fault.load(SeqCst);
                    books.write(n, end, fault);
                }
            })
        })
        .collect();
    let kinds =
        break_things(&mut server, &proxy, &runtime, &books, transfers as usize, &mut random);
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    let took = started.elapsed();

    let (rows, total): (Vec<i32>, i64) = runtime.block_on(async {
        until("the referee is answered", || async {
            sqlx::raw_sql("select 1").execute(&referee).await.is_ok()
        })
        .await;
        let rows = sqlx::query_scalar("select n from ledger").fetch_all(&referee).await.unwrap();
        let sum = sqlx::query_scalar("select cast(sum(amount) as signed) from account");
        let total = if DB::NAME == "PostgreSQL" {
            sqlx::query_scalar("select sum(amount) from account").fetch_one(&referee).await
        } else {
            sum.fetch_one(&referee).await
        };
        (rows, total.unwrap())
    });
    let mut applied: HashMap<i32, u32> = HashMap::new();
    for n in rows {
        *applied.entry(n).or_default() += 1;
    }
    let ends = &books.pages.lock().unwrap().ends;
    let count = |end: End| ends.values().filter(|(e, _)| *e == end).count();
    let (acknowledged, unknown) = (count(End::Acknowledged), count(End::Unknown));
    let applied_unknown =
        ends.iter().filter(|(n, (e, _))| *e == End::Unknown && applied.contains_key(n)).count();
    let calm = ends.values().filter(|(_, fault)| !fault).count();
    let calm_ok = ends.values().filter(|(e, fault)| *e == End::Acknowledged && !fault).count();
    let cut = proxy.events().iter().filter(|e| e.what == What::Ended).count();
    println!(
        "{}: {transfers} transfers in {took:.1?}, faults {kinds:?}: {acknowledged} acknowledged, \
         {unknown} unknown ({applied_unknown} of them done), {} not done, {} rows; outside of faults \
         {calm_ok} of {calm}; {cut} connections ended, {} of them between COMMIT and its answer",
        DB::NAME,
        count(End::NotDone),
        applied.len(),
        in_doubt.load(SeqCst),
    );
    assert_eq!(total, i64::from(ACCOUNTS) * 1_000, "seed {seed}");
    assert!(applied.values().all(|times| *times == 1), "done twice, seed {seed}");
    for (n, (end, _)) in ends.iter() {
        let there = applied.contains_key(n);
        match end {
            End::Acknowledged => {
                assert!(there, "{n} was acknowledged and is not there, seed {seed}")
            }
            End::NotDone => assert!(!there, "{n} was refused and is there, seed {seed}"),
            End::Unknown => {}
        }
    }
    assert!(calm_ok * 100 >= calm * 95, "seed {seed}");
    runtime.block_on(async {
        // The proxy may hear a moment later of a connection that was given up.
        until("each unknown has a connection that ended then", || async {
            unknown <= in_doubt.load(SeqCst) as usize
        })
        .await;
        until_at_rest(&db).await;
        // The pool is whole again.
        let all = (0..TASKS / 2).map(|_| db.acquire());
        futures_util::future::try_join_all(all).await.unwrap();
    });
}

#[test]
fn postgres_keeps_its_books_while_everything_fails() {
    keep_books::<_, sqlx::Postgres>(Postgres::start(), 20_000, &POSTGRES_SQL);
}

#[test]
fn mariadb_keeps_its_books_while_everything_fails() {
    keep_books::<_, sqlx::MySql>(Mariadb::start(), 20_000, &MARIADB_SQL);
}
