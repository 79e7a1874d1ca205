//! Transfers between accounts, on PostgreSQL and on MariaDB; afterwards the books must agree.

use crate::{
    ROOM, Shift,
    tally::{Claims, Shared, Tally},
};
use mainstay::{Effect, Error, MySqlDatabase, PgDatabase, sqlx};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::sleep};

const ACCOUNTS: i64 = 100;
const WORKERS: u64 = 8;
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Acknowledged,
    NotDone,
    Unknown,
}

/// What the callers were told.
pub(crate) struct Books {
    ends: Mutex<HashMap<i64, End>>,
    next: AtomicI64,
}

impl Books {
    fn new() -> Self {
        Self { ends: Mutex::new(HashMap::with_capacity(ROOM)), next: AtomicI64::new(0) }
    }

    fn note(&self, id: i64, end: &Result<(), Error>) {
        let end = match end {
            Ok(()) => End::Acknowledged,
            Err(error) if error.effect() == Effect::Unknown => End::Unknown,
            Err(_) => End::NotDone,
        };
        self.ends.lock().unwrap().insert(id, end);
    }

    fn compare(&self, name: &str, rows: &[i64], money: i64, claims: &mut Claims) {
        let ends = self.ends.lock().unwrap();
        let mut times: HashMap<i64, u32> = HashMap::new();
        for id in rows {
            *times.entry(*id).or_default() += 1;
        }
        let of = |end| ends.iter().filter(move |(_, is)| **is == end).map(|(id, _)| *id);
        let there = |id: &i64| times.contains_key(id);
        let lost = of(End::Acknowledged).filter(|id| !there(id)).count();
        let ghosts = of(End::NotDone).filter(there).count();
        let twice = times.values().filter(|n| **n > 1).count();
        let (acknowledged, unknown) = (of(End::Acknowledged).count(), of(End::Unknown).count());
        claims.check(
            acknowledged > 0 && lost == 0,
            &format!("{name}: {acknowledged} acknowledged, {lost} of them lost"),
        );
        claims.check(ghosts == 0, &format!("{name}: {ghosts} reported as not done are there"));
        claims.check(twice == 0, &format!("{name}: {twice} are there twice; {unknown} unknown"));
        claims.check(
            money == ACCOUNTS * 1_000,
            &format!("{name}: no money was lost or made ({money})"),
        );
    }
}

macro_rules! ledger {
    ($start:ident, $check:literal, $Client:ty, $row:literal, $take:literal, $give:literal) => {
        pub(crate) async fn $start(
            db: &$Client,
            shift: &Shift,
            workers: &mut JoinSet<()>,
        ) -> (Arc<Books>, Shared) {
            for statement in [
                "create table account (id bigint primary key, amount bigint not null)",
                "create table ledger (n bigint not null)",
            ] {
                sqlx::query(statement).execute(db).await.expect("nothing is broken yet");
            }
            for id in 0..ACCOUNTS {
                let insert =
                    sqlx::AssertSqlSafe(format!("insert into account values ({id}, 1000)"));
                sqlx::query(insert).execute(db).await.expect("nothing is broken yet");
            }
            let (books, tally) = (Arc::new(Books::new()), Shared::new(Tally::default()));
            for worker in 0..WORKERS {
                let (db, shift, books, tally) =
                    (db.clone(), shift.clone(), Arc::clone(&books), Arc::clone(&tally));
                workers.spawn(async move {
                    let mut random = fastrand::Rng::with_seed(worker);
                    while let Some(round) = shift.round().await {
                        let id = books.next.fetch_add(1, Relaxed);
                        let (from, to) = (random.i64(0..ACCOUNTS), random.i64(0..ACCOUNTS));
                        let transfer = db.transaction(async |session| {
                            sqlx::query($row).bind(id).execute(&mut *session).await?;
                            sqlx::query($take).bind(from).execute(&mut *session).await?;
                            sqlx::query($give).bind(to).execute(&mut *session).await?;
                            Ok::<_, Error>(())
                        });
                        let end = tally.count(transfer).await;
                        books.note(id, &end);
                        let read = async {
                            let count = "select count(*) from account";
                            let count = sqlx::query_scalar::<_, i64>(count).fetch_one(&db).await?;
                            assert_eq!(count, ACCOUNTS);
                            Ok(())
                        };
                        let _ = tally.count(read).await;
                        drop(round);
                        sleep(PAUSE).await;
                    }
                });
            }
            (books, tally)
        }

        impl Check<$Client> for Books {
            async fn check(&self, db: &$Client, name: &str, claims: &mut Claims) {
                let rows = sqlx::query_scalar("select n from ledger").fetch_all(db).await;
                let money = "select cast(sum(amount) as $int) from account";
                let money = sqlx::query_scalar(sqlx::AssertSqlSafe(money.replace("$int", $check)));
                let (rows, money) = (rows.expect("all is well"), money.fetch_one(db).await);
                self.compare(name, &rows, money.expect("all is well"), claims);
            }
        }
    };
}

pub(crate) trait Check<Client> {
    async fn check(&self, db: &Client, name: &str, claims: &mut Claims);
}

impl Books {
    pub(crate) async fn check<Client>(&self, db: &Client, name: &str, claims: &mut Claims)
    where
        Self: Check<Client>,
    {
        Check::check(self, db, name, claims).await;
    }
}

ledger!(
    postgres,
    "bigint",
    PgDatabase,
    "insert into ledger values ($1)",
    "update account set amount = amount - 1 where id = $1",
    "update account set amount = amount + 1 where id = $1"
);
ledger!(
    mysql,
    "signed",
    MySqlDatabase,
    "insert into ledger values (?)",
    "update account set amount = amount - 1 where id = ?",
    "update account set amount = amount + 1 where id = ?"
);
