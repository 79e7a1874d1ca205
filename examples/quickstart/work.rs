//! The work: one order after another, through all four clients. It knows the getters, as any
//! service would, and nothing of retries, breakers and outages.

use mainstay::{
    Error, Health, PgDatabase, Policy, RedisState, SqliteDatabase, get_database_client,
    get_http_client, get_redis_client, get_resilience_health, get_s3_client, sqlx,
};
use std::{
    fmt, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The key in Redis.
pub(crate) const KEY: &str = "mainstay_quickstart:orders";
/// The path below the base URL.
const PATH: &str = "mainstay_quickstart/orders";
/// The object in the bucket.
const OBJECT: &str = "mainstay_quickstart/report.csv";

/// A number, and what was ordered.
type Order = (i64, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dependency {
    Database,
    Redis,
    Http,
    S3,
}

impl Dependency {
    pub(crate) const ALL: [Self; 4] = [Self::Database, Self::Redis, Self::Http, Self::S3];
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Database => "database",
            Self::Redis => "redis",
            Self::Http => "http",
            Self::S3 => "s3",
        })
    }
}

/// What the caller saw of one step of the work.
pub(crate) struct Seen {
    pub(crate) result: Result<String, Error>,
    pub(crate) latency: Duration,
    /// Attempts after the first, of all calls of the step.
    pub(crate) retries: u64,
}

pub(crate) struct Work {
    database: Database,
    bucket: String,
    directory: PathBuf,
    orders: Vec<Order>,
    /// Orders are those of the database, not of the cache.
    fresh: bool,
    rounds: i64,
    posts: usize,
    /// Orders that were last written to the cache.
    cached: usize,
    /// Orders that the database acknowledged.
    pub(crate) written: usize,
    /// Rounds whose orders came from the cache, as the database gave none.
    pub(crate) from_cache: usize,
    /// Reads of the cache that gave an older value than was last written there; must stay 0.
    pub(crate) older_reads: usize,
}

impl Work {
    /// Makes the table, in place of one that an interrupted run left behind.
    pub(crate) async fn begin(
        database: Database,
        bucket: String,
        directory: PathBuf,
    ) -> Result<Self, Error> {
        database.execute("drop table if exists mainstay_quickstart").await?;
        database
            .execute("create table mainstay_quickstart (id bigint primary key, item varchar(20))")
            .await?;
        Ok(Self {
            database,
            bucket,
            directory,
            orders: Vec::new(),
            fresh: false,
            rounds: 0,
            posts: 0,
            cached: 0,
            written: 0,
            from_cache: 0,
            older_reads: 0,
        })
    }

    pub(crate) async fn step(&mut self, of: Dependency) -> Seen {
        let policy = match self.policy(of) {
            Ok(policy) => policy,
            Err(error) => return Seen { result: Err(error), latency: Duration::ZERO, retries: 0 },
        };
        let before = retries(&policy);
        let started = Instant::now();
        let result = match of {
            Dependency::Database => self.order().await,
            Dependency::Redis => self.cache().await,
            Dependency::Http => self.post().await,
            Dependency::S3 => self.report().await,
        };
        let latency = started.elapsed();
        Seen { result, latency, retries: retries(&policy) - before }
    }

    /// The plainest call: an upload would read its file before it asks anybody.
    pub(crate) async fn ask(&mut self, of: Dependency) -> Seen {
        if of != Dependency::S3 {
            return self.step(of).await;
        }
        let started = Instant::now();
        let result = match get_s3_client() {
            Ok(s3) => s3.get(&self.bucket, OBJECT).await,
            Err(error) => Err(error),
        };
        let latency = started.elapsed();
        Seen { result: result.map(|got| count(got.len(), "byte")), latency, retries: 0 }
    }

    /// Writes an order and reads all there are.
    async fn order(&mut self) -> Result<String, Error> {
        const ITEMS: [&str; 4] = ["tea", "bread", "honey", "apples"];
        self.rounds += 1;
        let item = ITEMS[usize::try_from(self.rounds).unwrap_or_default() % ITEMS.len()];
        self.orders.clear();
        self.fresh = false;
        self.database.insert(self.rounds, item).await?;
        self.written += 1;
        self.orders = self.database.orders().await?;
        if self.orders.len() != self.written {
            return Err(Error::invalid(format!(
                "table mainstay_quickstart holds {}, and {} were acknowledged; is another \
                 quickstart at work there?",
                count(self.orders.len(), "order"),
                self.written
            )));
        }
        self.fresh = true;
        Ok(format!("order {} written, {} read", self.rounds, self.orders.len()))
    }

    /// Caches the orders; takes them from the cache if the database gave none.
    async fn cache(&mut self) -> Result<String, Error> {
        let cache = get_redis_client()?;
        if self.fresh {
            let text = json(&self.orders)?;
            cache.set(KEY, text).ttl(Duration::from_secs(60)).await?;
            self.cached = self.orders.len();
        }
        let found: Option<String> = cache.get(KEY).await?;
        let by = match cache.state() {
            RedisState::Connected => "by the server",
            _ => "from memory",
        };
        let Some(text) = found else { return Ok("nothing in the cache".to_owned()) };
        let orders: Vec<Order> = serde_json::from_str(&text)
            .map_err(|_| Error::invalid(format!("{KEY} in Redis holds no orders")))?;
        if orders.len() < self.cached {
            self.older_reads += 1;
        }
        if !self.fresh {
            self.from_cache += 1;
        }
        self.orders = orders;
        Ok(format!("{}, answered {by}", count(self.orders.len(), "order")))
    }

    /// Posts the orders; the key says that they may be sent again.
    async fn post(&mut self) -> Result<String, Error> {
        self.posts += 1;
        let key = format!("mainstay_quickstart-{}-{}", std::process::id(), self.posts);
        let api = get_http_client()?;
        let answer = api.post(PATH).json(&self.orders).idempotency_key(&key).await?;
        let orders = count(self.orders.len(), "order");
        Ok(format!("{orders} posted, status {}", answer.status().as_u16()))
    }

    /// The same without a key, so that nobody may send it again.
    pub(crate) async fn post_without_key(&mut self) -> Seen {
        let started = Instant::now();
        let result = match get_http_client() {
            Ok(api) => api.post(PATH).json(&self.orders).await,
            Err(error) => Err(error),
        };
        let latency = started.elapsed();
        Seen { result: result.map(|answer| answer.status().to_string()), latency, retries: 0 }
    }

    /// Uploads the orders as a report, downloads it, and compares the two files.
    async fn report(&mut self) -> Result<String, Error> {
        let line = |(id, item): &Order| format!("{id},{item}\n");
        let report: String = self.orders.iter().map(line).collect();
        let (from, to) = (self.directory.join("report.csv"), self.directory.join("copy.csv"));
        let local = |error| Error::invalid(format!("{}: {error}", self.directory.display()));
        fs::write(&from, &report).map_err(local)?;
        let s3 = get_s3_client()?;
        s3.upload_file(&from, &self.bucket, OBJECT).await?;
        s3.download_file(&self.bucket, OBJECT, &to).await?;
        if fs::read(&to).map_err(local)? != report.as_bytes() {
            return Err(Error::invalid("the report came back with other bytes than it went with"));
        }
        Ok(format!("report, {} bytes, up and down", report.len()))
    }

    /// The local copy of the report, as it is now.
    pub(crate) fn copy(&self) -> Option<Vec<u8>> {
        fs::read(self.directory.join("copy.csv")).ok()
    }

    /// The text of the orders, as it is cached.
    pub(crate) fn text(&self) -> Option<String> {
        json(&self.orders).ok()
    }

    pub(crate) fn policy(&self, of: Dependency) -> Result<Policy, Error> {
        Ok(match of {
            Dependency::Database => return self.database.policy(),
            Dependency::Redis => get_redis_client()?.policy().clone(),
            Dependency::Http => get_http_client()?.policy().clone(),
            Dependency::S3 => get_s3_client()?.policy().clone(),
        })
    }

    pub(crate) async fn health(&self, of: Dependency) -> Result<Health, Error> {
        Ok(match of {
            Dependency::Database => return self.database.health().await,
            Dependency::Redis => get_redis_client()?.health_check().await,
            Dependency::Http => get_http_client()?.health_check().await,
            Dependency::S3 => get_s3_client()?.health_check_at(&self.bucket).await,
        })
    }

    /// Removes what this work left on a server that stays, and says so.
    pub(crate) async fn clean_up(&self, of: Dependency) -> Result<String, Error> {
        Ok(match of {
            Dependency::Database => {
                self.database.execute("drop table if exists mainstay_quickstart").await?;
                "table mainstay_quickstart is removed".to_owned()
            }
            Dependency::Redis => {
                get_redis_client()?.del(KEY).await?;
                format!("key {KEY} is removed")
            }
            Dependency::Http if self.posts == 0 => "nothing was posted".to_owned(),
            Dependency::Http => {
                let answer = get_http_client()?.delete(PATH).await?;
                format!("DELETE {PATH} was answered with status {}", answer.status().as_u16())
            }
            Dependency::S3 => {
                get_s3_client()?.delete(&self.bucket, OBJECT).await?;
                format!("object {OBJECT} is removed from bucket {}", self.bucket)
            }
        })
    }
}

pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn json(orders: &[Order]) -> Result<String, Error> {
    serde_json::to_string(orders).map_err(|_| Error::invalid("orders cannot be written as JSON"))
}

/// Attempts after the first, of all calls so far.
pub(crate) fn retries(policy: &Policy) -> u64 {
    let health = get_resilience_health();
    health.circuit_breakers.get(policy.name()).map_or(0, |breaker| breaker.retries)
}

/// Which database it is; a service knows its own and has one of these lines.
#[derive(Clone, Copy)]
pub(crate) enum Database {
    Sqlite,
    Postgres,
    #[cfg(feature = "mysql")]
    MySql,
}

impl Database {
    async fn execute(self, sql: &'static str) -> Result<u64, Error> {
        Ok(match self {
            Self::Sqlite => sqlx::query(sql).execute(&sqlite()?).await?.rows_affected(),
            Self::Postgres => sqlx::query(sql).execute(&postgres()?).await?.rows_affected(),
            #[cfg(feature = "mysql")]
            Self::MySql => sqlx::query(sql).execute(&mysql()?).await?.rows_affected(),
        })
    }

    async fn insert(self, id: i64, item: &'static str) -> Result<u64, Error> {
        const MARKS: &str = "insert into mainstay_quickstart values (?, ?)";
        const NUMBERS: &str = "insert into mainstay_quickstart values ($1, $2)";
        Ok(match self {
            Self::Sqlite => {
                let insert = sqlx::query(MARKS).bind(id).bind(item);
                insert.execute(&sqlite()?).await?.rows_affected()
            }
            Self::Postgres => {
                let insert = sqlx::query(NUMBERS).bind(id).bind(item);
                insert.execute(&postgres()?).await?.rows_affected()
            }
            #[cfg(feature = "mysql")]
            Self::MySql => {
                let insert = sqlx::query(MARKS).bind(id).bind(item);
                insert.execute(&mysql()?).await?.rows_affected()
            }
        })
    }

    async fn orders(self) -> Result<Vec<Order>, Error> {
        const ALL: &str = "select id, item from mainstay_quickstart order by id";
        Ok(match self {
            Self::Sqlite => sqlx::query_as(ALL).fetch_all(&sqlite()?).await?,
            Self::Postgres => sqlx::query_as(ALL).fetch_all(&postgres()?).await?,
            #[cfg(feature = "mysql")]
            Self::MySql => sqlx::query_as(ALL).fetch_all(&mysql()?).await?,
        })
    }

    fn policy(self) -> Result<Policy, Error> {
        Ok(match self {
            Self::Sqlite => sqlite()?.policy().clone(),
            Self::Postgres => postgres()?.policy().clone(),
            #[cfg(feature = "mysql")]
            Self::MySql => mysql()?.policy().clone(),
        })
    }

    pub(crate) async fn health(self) -> Result<Health, Error> {
        Ok(match self {
            Self::Sqlite => sqlite()?.health_check().await,
            Self::Postgres => postgres()?.health_check().await,
            #[cfg(feature = "mysql")]
            Self::MySql => mysql()?.health_check().await,
        })
    }
}

fn sqlite() -> Result<SqliteDatabase, Error> {
    get_database_client()
}

fn postgres() -> Result<PgDatabase, Error> {
    get_database_client()
}

#[cfg(feature = "mysql")]
fn mysql() -> Result<mainstay::MySqlDatabase, Error> {
    get_database_client()
}
