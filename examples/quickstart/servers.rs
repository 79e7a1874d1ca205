//! What stands behind the getters: servers of our own, which are broken later, or the user's, which
//! are not.

mod http;
mod redis;
mod sqlite;

pub(crate) use http::{Fault, Http};
pub(crate) use redis::Redis;
pub(crate) use sqlite::Sqlite;

use crate::{
    timeline::AnyError,
    work::{Database, Dependency},
};
use mainstay::{
    Error, Health, HealthStatus, HttpClient, PolicyBuilder, RedisClient, RedisState, S3Client,
    Settings, SqliteDatabase, get_http_client, get_redis_client, get_s3_client,
    set_database_client, set_http_client, set_redis_client, set_s3_client, settings,
};
use mainstay_test_support::{
    S3,
    s3::{BUCKET, KEY, SECRET},
};
use std::{env, path::Path, time::Duration};
use tempfile::TempDir;

/// Short enough to watch; the README has the defaults.
fn quick(policy: PolicyBuilder) -> PolicyBuilder {
    policy
        .timeout(Duration::from_secs(1))
        .deadline(Duration::from_secs(3))
        .max_attempts(3)
        .base_delay(Duration::from_millis(20))
        .max_delay(Duration::from_millis(60))
        .failure_threshold(3)
        .recovery_timeout(Duration::from_millis(500))
}

/// `None` stands for a server of the user's.
pub(crate) struct Servers {
    pub(crate) sqlite: Option<Sqlite>,
    pub(crate) redis: Option<Redis>,
    pub(crate) http: Option<Http>,
    pub(crate) s3: Option<S3>,
    pub(crate) database: Database,
    pub(crate) bucket: String,
    directory: TempDir,
}

impl Servers {
    /// Starts what no setting names, and installs clients for it; asks the others how they are.
    pub(crate) async fn start() -> Result<Self, AnyError> {
        let settings = settings()?;
        let directory = tempfile::Builder::new().prefix("mainstay_quickstart-").tempdir()?;
        let (database, sqlite) = match named(&settings, "database", "url", "DATABASE_URL") {
            Some(url) => (theirs_sql(&url).await?, None),
            None => (Database::Sqlite, Some(own_sqlite(directory.path()).await?)),
        };
        let redis = match named(&settings, "redis", "url", "REDIS_URL") {
            Some(_) => {
                theirs_redis().await?;
                None
            }
            None => Some(own_redis()?),
        };
        let http = match settings.connection("http", "base_url") {
            Some(base) => {
                theirs_http(&base).await?;
                None
            }
            None => Some(own_http()?),
        };
        let (bucket, s3) = match theirs_s3(&settings).await? {
            Some(bucket) => (bucket, None),
            None => (BUCKET.to_owned(), Some(own_s3().await?)),
        };
        if http.is_some() || s3.is_some() {
            no_proxy()?;
        }
        Ok(Self { sqlite, redis, http, s3, database, bucket, directory })
    }

    /// Where the report and its copy are written.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn is_ours(&self, of: Dependency) -> bool {
        match of {
            Dependency::Database => self.sqlite.is_some(),
            Dependency::Redis => self.redis.is_some(),
            Dependency::Http => self.http.is_some(),
            Dependency::S3 => self.s3.is_some(),
        }
    }

    pub(crate) fn about(&self, of: Dependency) -> &'static str {
        if !self.is_ours(of) {
            return "your own server; it is used with the delays of your settings, and not broken";
        }
        match of {
            Dependency::Database => "an SQLite file, made for this run",
            Dependency::Redis => "a small Redis server in this process",
            Dependency::Http => "a small HTTP server in this process",
            Dependency::S3 => "an S3 server in this process",
        }
    }

    /// Commands about keys that our Redis has seen.
    pub(crate) fn redis_commands(&self) -> Vec<String> {
        self.redis.as_ref().map(Redis::commands).unwrap_or_default()
    }

    /// What our Redis holds, past the client.
    pub(crate) fn redis_value(&self, key: &str) -> Option<String> {
        self.redis.as_ref()?.value(key)
    }

    /// What will happen to the next requests to our API.
    pub(crate) fn fail(&self, fault: Fault) {
        if let Some(http) = &self.http {
            http.fail(fault);
        }
    }

    /// Different things that our API was sent.
    pub(crate) fn stored(&self) -> usize {
        self.http.as_ref().map_or(0, Http::stored)
    }

    /// What the server itself counted; `None` for a server of the user's, and for a broken file.
    pub(crate) async fn counted(&mut self, of: Dependency) -> Option<usize> {
        match of {
            Dependency::Database => self.sqlite.as_mut()?.rows().await,
            Dependency::Redis => self.redis.as_ref().map(|redis| redis.commands().len()),
            Dependency::Http => self.http.as_ref().map(Http::requests),
            Dependency::S3 => self.s3.as_ref().map(|s3| s3.seen(|_| true)),
        }
    }
}

async fn own_sqlite(directory: &Path) -> Result<Sqlite, AnyError> {
    let sqlite = Sqlite::create(directory).await?;
    set_database_client(SqliteDatabase::builder().url(sqlite.url()).policy(quick).build()?);
    Ok(sqlite)
}

fn own_redis() -> Result<Redis, Error> {
    let redis = Redis::start();
    set_redis_client(RedisClient::builder().url(redis.url()).policy(quick).build()?);
    Ok(redis)
}

fn own_http() -> Result<Http, Error> {
    let http = Http::start();
    set_http_client(HttpClient::builder(&http.url()).policy(quick).build()?);
    Ok(http)
}

async fn own_s3() -> Result<S3, Error> {
    let s3 = S3::start().await;
    let client = S3Client::builder().endpoint_url(s3.endpoint()).credentials(KEY, SECRET);
    set_s3_client(client.bucket(BUCKET).policy(quick).build()?);
    Ok(s3)
}

/// A setting of Mainstay's own. The usual variable that may stand in for it was set for another
/// program's sake, whose database is not for us to write to.
fn named(settings: &Settings, kind: &str, key: &str, stand_in: &str) -> Option<String> {
    let own = env::var_os(format!("MAINSTAY_{kind}_{key}").to_uppercase()).is_some();
    settings.connection(kind, key).filter(|value| own || env::var(stand_in).as_ref() != Ok(value))
}

async fn theirs_sql(url: &str) -> Result<Database, AnyError> {
    // The URL may hold a password, so it is not shown.
    let database = match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("sqlite") => Database::Sqlite,
        Some("postgres" | "postgresql") => Database::Postgres,
        #[cfg(feature = "mysql")]
        Some("mysql" | "mariadb") => Database::MySql,
        #[cfg(not(feature = "mysql"))]
        Some("mysql" | "mariadb") => {
            return Err(
                "MAINSTAY_DATABASE_URL is for MariaDB or MySQL, whose driver is not built \
                        in by default.\nRun: cargo run --example quickstart --features mysql"
                    .into(),
            );
        }
        _ => {
            return Err("MAINSTAY_DATABASE_URL begins with none of postgres://, mysql:// and \
                        sqlite://.\nWrite it as postgres://user:password@host:5432/database, or \
                        unset it to run with a database of quickstart's own."
                .into());
        }
    };
    let health =
        database.health().await.map_err(|error| unusable("MAINSTAY_DATABASE_URL", &error))?;
    healthy("MAINSTAY_DATABASE_URL", &health)?;
    Ok(database)
}

async fn theirs_redis() -> Result<(), AnyError> {
    let redis = get_redis_client().map_err(|error| unusable("MAINSTAY_REDIS_URL", &error))?;
    let health = redis.health_check().await;
    match redis.state() {
        RedisState::Connected => Ok(()),
        _ => Err(unusable("MAINSTAY_REDIS_URL", &health.detail)),
    }
}

/// Any answer will do: what is at the base of somebody's API, nobody knows.
async fn theirs_http(base: &str) -> Result<(), AnyError> {
    let api = get_http_client().map_err(|error| unusable("MAINSTAY_HTTP_BASE_URL", &error))?;
    let health = api.health_check().await;
    let answered = api.reqwest()?.get(base).timeout(Duration::from_secs(3)).send().await.is_ok();
    if answered { Ok(()) } else { Err(unusable("MAINSTAY_HTTP_BASE_URL", &health.detail)) }
}

/// The bucket, if settings name a store.
async fn theirs_s3(settings: &Settings) -> Result<Option<String>, AnyError> {
    let set = |key| settings.connection("s3", key);
    let bucket = set("bucket");
    if bucket.is_none() && set("endpoint_url").is_none() && set("region").is_none() {
        return Ok(None);
    }
    let Some(bucket) = bucket else {
        return Err(
            "MAINSTAY_S3_BUCKET is not set beside the other MAINSTAY_S3_ settings.\nSet it to \
                    the bucket in which quickstart may write mainstay_quickstart/report.csv."
                .into(),
        );
    };
    let s3 = get_s3_client().map_err(|error| unusable("MAINSTAY_S3_ENDPOINT_URL", &error))?;
    let setting = match set("endpoint_url") {
        Some(_) => "MAINSTAY_S3_ENDPOINT_URL with MAINSTAY_S3_BUCKET",
        None => "MAINSTAY_S3_BUCKET",
    };
    healthy(setting, &s3.health_check().await)?;
    Ok(Some(bucket))
}

fn healthy(setting: &str, health: &Health) -> Result<(), AnyError> {
    match health.status {
        HealthStatus::Unhealthy => Err(unusable(setting, &health.detail)),
        _ => Ok(()),
    }
}

fn unusable(setting: &str, why: &dyn std::fmt::Display) -> AnyError {
    format!(
        "{setting} (or its line in a settings file) names what cannot be used: {why}.\nMend it and \
         run this again, or unset it to run with a server of quickstart's own."
    )
    .into()
}

/// Both drivers would ask the proxy for servers on this machine.
fn no_proxy() -> Result<(), AnyError> {
    let set = |name: &&str| env::var(name).is_ok_and(|value| !value.is_empty());
    let proxies = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    let Some(name) = proxies.iter().find(|name| set(name)) else { return Ok(()) };
    let except = env::var("NO_PROXY").or_else(|_| env::var("no_proxy")).unwrap_or_default();
    if except.split(',').any(|host| matches!(host.trim(), "*" | "127.0.0.1" | "127.0.0.0/8")) {
        return Ok(());
    }
    Err(format!(
        "{name} is set, and NO_PROXY does not name 127.0.0.1, so calls to servers on this machine \
         would go to the proxy.\nRun: NO_PROXY=127.0.0.1 cargo run --example quickstart"
    )
    .into())
}
