//! Transfers between accounts while everything fails: afterwards the books must agree.
//!
//! Each transfer writes one numbered row and moves money, in one transaction. It ends as
//! acknowledged, as not done, or as unknown, and nothing in between: what is acknowledged is there,
//! what was not done is not, nothing is there twice, and each unknown has a fault of its own.

use super::*;
use mainstay_test_support::{Proxy, proxy::What, servers::Program, servers::Server};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
};

const TASKS: u32 = 24;
const ACCOUNTS: i32 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Acknowledged,
    NotDone,
    Unknown,
}

/// What differs between the two: how a value is written into a statement.
struct Sql {
    create: &'static str,
    row: &'static str,
    take: &'static str,
    give: &'static str,
}

const POSTGRES_SQL: Sql = Sql {
    create: "create table account (id int primary key, amount int not null); \
             create table ledger (n int not null); \
             insert into account select i, 1000 from generate_series(0, 199) i",
    row: "insert into ledger values ($1)",
    take: "update account set amount = amount - 1 where id = $1",
    give: "update account set amount = amount + 1 where id = $1",
};

const MARIADB_SQL: Sql = Sql {
    create: "create table account (id int primary key, amount int not null) engine=innodb; \
             create table ledger (n int not null) engine=innodb; \
             insert into account select seq, 1000 from seq_0_to_199",
    row: "insert into ledger values (?)",
    take: "update account set amount = amount - 1 where id = ?",
    give: "update account set amount = amount + 1 where id = ?",
};

struct Books {
    ends: Mutex<HashMap<i32, (End, bool)>>,
    next: AtomicU32,
    done: AtomicU32,
    /// Something is broken, or was a moment ago.
    in_fault: AtomicBool,
}

/// Breaks things until the transfers are done; says how many connections it cut off.
fn break_things<P: Program>(
    server: &mut Server<P>,
    proxy: &Proxy,
    books: &Books,
    transfers: u32,
    random: &mut fastrand::Rng,
) -> HashMap<&'static str, u32> {
    let mut kinds = HashMap::new();
    let done = || books.done.load(SeqCst);
    // Blocks until so many more transfers have ended, however.
    let pass = |more: u32| {
        let goal = (done() + more).min(transfers);
        while done() < goal {
            std::thread::sleep(ms(1));
        }
    };
    while done() + 1_500 < transfers {
        pass(random.u32(600..1_200));
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
                let started = Instant::now();
                while started.elapsed() < ms(700) {
                    std::thread::sleep(ms(1));
                }
                server.resume();
                "hung"
            }
            _ => {
                proxy.lose_next_reply();
                let lost = proxy.lost();
                while proxy.lost() == lost {
                    std::thread::sleep(ms(1));
                }
                "reply lost"
            }
        };
        *kinds.entry(kind).or_default() += 1;
        // The fault is over when transfers are acknowledged again.
        let acknowledged = || {
            books.ends.lock().unwrap().values().filter(|(end, _)| *end == End::Acknowledged).count()
        };
        let before = acknowledged();
        while acknowledged() < before + 50 && done() < transfers {
            std::thread::sleep(ms(1));
        }
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
            p.timeout(ms(500)).base_delay(ms(5)).max_delay(ms(50)).recovery_timeout(ms(200))
        })
        .build()
        .unwrap();
    let books = Arc::new(Books {
        ends: Mutex::default(),
        next: AtomicU32::new(0),
        done: AtomicU32::new(0),
        in_fault: AtomicBool::new(false),
    });
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
                    books.ends.lock().unwrap().insert(n, (end, fault));
                    books.done.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let kinds = break_things(&mut server, &proxy, &books, transfers, &mut random);
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
    let ends = books.ends.lock().unwrap();
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
         {calm_ok} of {calm}; {cut} connections ended",
        DB::NAME,
        count(End::NotDone),
        applied.len(),
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
    assert!(unknown <= cut, "unknown without a fault, seed {seed}");
    assert!(calm_ok * 100 >= calm * 95, "seed {seed}");
    runtime.block_on(async {
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
