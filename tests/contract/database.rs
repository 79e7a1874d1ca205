//! `DatabaseClient` with PostgreSQL. The server counts with sequences, which no rollback undoes, and
//! its mood is a table that every statement reads: a code to fail with, or a lock to wait for.

use crate::subject::{Mood, Remote, Tune, Work, in_time, quick};
use futures_util::TryStreamExt;
use mainstay::{
    Error, PgDatabase,
    sqlx::{self, AssertSqlSafe, Connection, Executor, PgConnection, raw_sql},
};
use mainstay_test_support::{Postgres, Proxy};
use std::{
    net::SocketAddr,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::sync::Mutex;

const SCHEMA: &str = "
    create table mood (code text);
    create table done (asked int);
    create sequence selects;
    create sequence inserts;
    create function work(counter text) returns int language plpgsql as $$
    declare refusal text;
    begin
        perform nextval(counter);
        loop
            begin
                select code into refusal from mood;
                exit;
            exception when query_canceled then
                -- A silent server does not keep its own limits either.
            end;
        end loop;
        if refusal is not null then raise exception 'told to' using errcode = refusal; end if;
        return 1;
    end $$";

/// A database of its own on a server that all share.
pub(crate) struct Subject {
    proxy: Proxy,
    database: String,
    /// Goes to the server directly.
    referee: Mutex<PgConnection>,
}

fn url(address: SocketAddr, database: &str) -> String {
    format!("postgres://postgres@{address}/{database}")
}

impl crate::subject::Subject for Subject {
    type Client = PgDatabase;

    async fn start() -> Self {
        static SERVER: OnceLock<Postgres> = OnceLock::new();
        static DATABASES: AtomicU32 = AtomicU32::new(0);
        let address = SERVER.get_or_init(Postgres::start).address();
        let database = format!("contract_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let mut root = PgConnection::connect(&url(address, "postgres")).await.unwrap();
        let create = format!("create database {database}");
        root.execute(raw_sql(AssertSqlSafe(create))).await.unwrap();
        root.close().await.unwrap();
        let mut referee = PgConnection::connect(&url(address, &database)).await.unwrap();
        referee.execute(raw_sql(SCHEMA)).await.unwrap();
        Self { proxy: Proxy::in_front_of(address), database, referee: Mutex::new(referee) }
    }

    fn client(&self, pool: u32, tune: Tune) -> PgDatabase {
        PgDatabase::builder()
            .name(self.database.clone())
            .url(url(self.proxy.addr(), &self.database))
            .max_connections(pool)
            .policy(move |policy| tune(quick(policy)))
            .build()
            .unwrap()
    }
}

/// The doors of a database: one statement of each kind, through everything that takes one.
macro_rules! doors {
    ($Client:ty, $select:literal, $insert:literal) => {
        impl crate::subject::Client for $Client {
            const DOORS: &'static [&'static str] = &[
                "select",
                "read",
                "insert",
                "idempotent",
                "stream",
                "acquire",
                "session",
                "transaction",
            ];
            const REPEATED: &'static str = "select";
            const REPEATED_TOO: &'static [&'static str] = &["idempotent"];
            const ONCE: Option<&'static str> = Some("insert");
            type Failure = mainstay::DatabaseFailure;
            type Driver = sqlx::Error;

            /// Silence while connecting is noticed by the client, not by the driver: MariaDB's first
            /// byte is of a length, and corrupt it is a packet that never ends.
            fn is_answer(error: &mainstay::Error) -> bool {
                let failure = error.downcast_ref::<mainstay::DatabaseFailure>();
                failure.is_some_and(|f| f.to_string().contains("did not answer within"))
            }

            fn policy(&self) -> &mainstay::Policy {
                self.policy()
            }

            fn call(&self, door: &'static str) -> crate::subject::Work {
                let (db, select, insert) =
                    (self.clone(), sqlx::query($select), sqlx::query($insert));
                Box::pin(async move {
                    match door {
                        "select" => {
                            select.fetch_one(&db).await?;
                        }
                        "read" => {
                            sqlx::query("select 1").fetch_one(db.read()).await?;
                        }
                        "insert" => {
                            insert.execute(&db).await?;
                        }
                        "idempotent" => {
                            insert.execute(db.idempotent()).await?;
                        }
                        "stream" => {
                            select.fetch(&db).try_collect::<Vec<_>>().await?;
                        }
                        "acquire" => {
                            let mut connection = db.acquire().await?;
                            select.fetch_one(&mut connection).await?;
                        }
                        "session" => {
                            let mut session = db.session().await?;
                            insert.execute(&mut session).await?;
                            session.commit().await?;
                        }
                        "transaction" => {
                            db.transaction(async |session| {
                                sqlx::query($insert).execute(session).await?;
                                Ok::<_, mainstay::Error>(())
                            })
                            .await?;
                        }
                        other => panic!("{other}?"),
                    }
                    Ok(())
                })
            }

            async fn health(&self) -> mainstay::Health {
                self.health_check().await
            }
        }
    };
}
pub(crate) use doors;

doors!(PgDatabase, "select work('selects')", "insert into done (asked) select work('inserts')");

impl Remote for Subject {
    const GREETS: bool = true;

    fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    async fn set(&self, mood: Mood) {
        let mut referee = self.referee.lock().await;
        // Ends the transaction that held the lock, if there is one.
        referee.execute(raw_sql("commit; delete from mood")).await.unwrap();
        let change = match mood {
            Mood::Well => return,
            Mood::NotNow => "insert into mood values ('40001')",
            Mood::Never => "insert into mood values ('22012')",
            Mood::Silent => "begin; lock table mood in access exclusive mode",
        };
        referee.execute(raw_sql(change)).await.unwrap();
    }

    async fn asked(&self, door: &'static str) -> u64 {
        let ask = match door {
            "select" => "select last_value, is_called from selects",
            _ => "select last_value, is_called from inserts",
        };
        let mut referee = self.referee.lock().await;
        let (last, called) =
            sqlx::query_as::<_, (i64, bool)>(ask).fetch_one(&mut *referee).await.unwrap();
        if called { u64::try_from(last).unwrap() } else { 0 }
    }

    /// Not the proxy's way: the pool pings a connection first, and the ping's reply would be lost.
    async fn lose_reply(&self, call: Work) -> Result<(), Error> {
        self.set(Mood::Silent).await;
        let lose = async {
            while self.waiting().await == 0 {}
            self.proxy.cut();
            self.set(Mood::Well).await;
        };
        in_time("it waits for the lock, and ends", async { tokio::join!(call, lose).0 }).await
    }
}

impl Subject {
    /// Through the proxy, as this user.
    pub(crate) fn url(&self, user: &str) -> String {
        format!("postgres://{user}@{}/{}", self.proxy.addr(), self.database)
    }

    /// At the server.
    pub(crate) async fn run(&self, sql: &'static str) {
        self.referee.lock().await.execute(raw_sql(sql)).await.unwrap();
    }

    /// Statements that have been asked and wait for the lock.
    async fn waiting(&self) -> i64 {
        let waiting =
            "select count(*) from pg_locks where not granted and relation = 'mood'::regclass";
        let mut referee = self.referee.lock().await;
        sqlx::query_scalar(waiting).fetch_one(&mut *referee).await.unwrap()
    }
}
