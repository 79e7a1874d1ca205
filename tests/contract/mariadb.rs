//! `DatabaseClient` with MariaDB. As with PostgreSQL the server counts with sequences, and its mood is a
//! row that every statement reads: a code to fail with, or a lock to wait for.

use crate::{
    database::doors,
    subject::{Mood, Remote, Tune, Work, in_time, quick},
};
use futures_util::TryStreamExt;
use mainstay::{
    Effect, Error, MySqlDatabase,
    sqlx::{self, AssertSqlSafe, Connection, Executor, MySqlConnection, raw_sql},
};
use mainstay_test_support::{Mariadb, Proxy};
use std::{
    net::SocketAddr,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::sync::Mutex;

const SCHEMA: &str = "
    create table mood (code char(5)) engine=innodb;
    insert into mood values (null);
    create table done (asked int) engine=innodb;
    create sequence selects nocache;
    create sequence inserts nocache;
    set session transaction isolation level read committed";

const WORK: &str = "
    create function work(counter varchar(8)) returns int
    begin
        declare refusal char(5);
        declare number bigint;
        if counter = 'selects' then
            select nextval(selects) into number;
        else
            select nextval(inserts) into number;
        end if;
        select code into refusal from mood lock in share mode;
        if refusal = '40001' then
            signal sqlstate '40001' set mysql_errno = 1213, message_text = 'told to';
        elseif refusal = '22012' then
            signal sqlstate '22012' set mysql_errno = 1365, message_text = 'told to';
        end if;
        return 1;
    end";

/// A database of its own on a server that all share.
pub(crate) struct Subject {
    proxy: Proxy,
    database: String,
    /// Goes to the server directly.
    referee: Mutex<MySqlConnection>,
}

fn url(address: SocketAddr, database: &str) -> String {
    format!("mysql://root@{address}/{database}?ssl-mode=disabled")
}

impl crate::subject::Subject for Subject {
    type Client = MySqlDatabase;

    async fn start() -> Self {
        static SERVER: OnceLock<Mariadb> = OnceLock::new();
        static DATABASES: AtomicU32 = AtomicU32::new(0);
        let address = SERVER.get_or_init(Mariadb::start).address();
        let database = format!("contract_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let mut root = MySqlConnection::connect(&url(address, "mysql")).await.unwrap();
        let create = format!("create database {database}");
        root.execute(raw_sql(AssertSqlSafe(create))).await.unwrap();
        root.close().await.unwrap();
        let mut referee = MySqlConnection::connect(&url(address, &database)).await.unwrap();
        referee.execute(raw_sql(SCHEMA)).await.unwrap();
        referee.execute(raw_sql(WORK)).await.unwrap();
        Self { proxy: Proxy::in_front_of(address), database, referee: Mutex::new(referee) }
    }

    fn client(&self, pool: u32, tune: Tune) -> MySqlDatabase {
        MySqlDatabase::builder()
            .name(format!("maria-{}", self.database))
            .url(url(self.proxy.addr(), &self.database))
            .max_connections(pool)
            .policy(move |policy| tune(quick(policy)))
            .build()
            .unwrap()
    }
}

doors!(MySqlDatabase, "select work('selects')", "insert into done (asked) select work('inserts')");

impl Remote for Subject {
    const GREETS: bool = true;
    /// It keeps the limit of a statement itself, and may say so first.
    const UNANSWERED: &'static [Effect] = &[Effect::Unknown, Effect::Transient];

    fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    async fn set(&self, mood: Mood) {
        let mut referee = self.referee.lock().await;
        // Ends the transaction that held the lock, if there is one.
        referee.execute(raw_sql("rollback; update mood set code = null")).await.unwrap();
        let change = match mood {
            Mood::Well => return,
            Mood::NotNow => "update mood set code = '40001'",
            Mood::Never => "update mood set code = '22012'",
            Mood::Silent => "begin; select code from mood for update",
        };
        referee.execute(raw_sql(change)).await.unwrap();
    }

    async fn asked(&self, door: &'static str) -> u64 {
        let (selects, inserts) = self.counted().await;
        if door == "select" { selects } else { inserts }
    }

    /// Not the proxy's way: the pool pings a connection first, and the ping's reply would be lost.
    async fn lose_reply(&self, call: Work) -> Result<(), Error> {
        self.set(Mood::Silent).await;
        let before = self.counted().await;
        let lose = async {
            while self.counted().await == before {}
            self.proxy.cut();
            self.set(Mood::Well).await;
        };
        in_time("it waits for the lock, and ends", async { tokio::join!(call, lose).0 }).await
    }
}

impl Subject {
    /// How often each kind of statement was begun.
    async fn counted(&self) -> (u64, u64) {
        let ask = "select selects.next_not_cached_value - 1, inserts.next_not_cached_value - 1 \
                   from selects, inserts";
        let mut referee = self.referee.lock().await;
        let (selects, inserts) =
            sqlx::query_as::<_, (i64, i64)>(ask).fetch_one(&mut *referee).await.unwrap();
        (u64::try_from(selects).unwrap(), u64::try_from(inserts).unwrap())
    }
}
