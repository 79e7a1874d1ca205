//! What the settings name, and whether it answers.

use crate::Arguments;
use mainstay::{ConfigError, Error, Health, HealthStatus, Settings};
use serde::Serialize;
use std::{io, time::Duration};
use tokio::time::{Instant, timeout_at};

/// Over every client's own limit, of 2 s at most: this is for one that does not hold.
const LIMIT: Duration = Duration::from_secs(8);

/// One dependency that the settings name.
#[derive(Debug)]
pub(crate) struct Dependency {
    /// `redis`, or `redis:sessions` for the one with that name.
    pub(crate) name: String,
    /// Of the policy's settings: `cache` for Redis.
    pub(crate) kind: &'static str,
    client: &'static str,
    /// Empty for the one without a name.
    #[allow(dead_code)] // Built without any client, there is nobody to ask.
    own: String,
}

/// One dependency that was asked.
#[derive(Debug, Serialize)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) critical: bool,
    #[serde(flatten)]
    pub(crate) health: Health,
}

/// A client's name in settings, its policy's kind, and the keys that make it worth asking.
const CLIENTS: [(&str, &str, &[&str]); 4] = [
    ("database", "database", &["url"]),
    ("redis", "cache", &["url"]),
    ("http", "api", &["base_url"]),
    ("s3", "file", &["endpoint_url", "region", "bucket"]),
];

pub(crate) fn configured(settings: &Settings) -> Vec<Dependency> {
    let mut found: Vec<Dependency> = Vec::new();
    for origin in settings.origins().iter().filter(|origin| origin.source != "default") {
        for (client, kind, keys) in CLIENTS {
            let Some(key) = origin.name.strip_prefix(client).and_then(|key| key.strip_prefix('.'))
            else {
                continue;
            };
            let own = keys.iter().find_map(|suffix| {
                let own = key.strip_suffix(suffix)?;
                if own.is_empty() { Some(own) } else { own.strip_suffix('_') }
            });
            let Some(own) = own else { continue };
            let name = if own.is_empty() { client.to_owned() } else { format!("{client}:{own}") };
            if found.iter().all(|dependency| dependency.name != name) {
                found.push(Dependency { name, kind, client, own: own.to_owned() });
            }
        }
    }
    found
}

/// All at once, within one limit.
///
/// # Errors
/// Every client that cannot be built, by its name.
pub(crate) fn ask(found: Vec<Dependency>, arguments: &Arguments) -> Result<Vec<Seen>, ConfigError> {
    let (seen, problems) = run(ask_each(found, arguments)).map_err(|error| {
        ConfigError::new(vec![format!("this machine does not let a runtime start: {error}")])
    })?;
    if problems.is_empty() { Ok(seen) } else { Err(ConfigError::new(problems)) }
}

/// Runs this to its end, and waits for nothing that it leaves behind: a name is looked up for as long as
/// the resolver takes to give up.
fn run<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let end = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(end)
}

async fn ask_each(found: Vec<Dependency>, arguments: &Arguments) -> (Vec<Seen>, Vec<String>) {
    let deadline = Instant::now() + LIMIT;
    let asked: Vec<_> = found
        .into_iter()
        .map(|dependency| {
            let critical = !arguments.optional.contains(&dependency.name);
            let path = arguments.http_path.clone();
            let name = dependency.name.clone();
            let health = tokio::spawn(async move { dependency.health(&path).await });
            (name, critical, health)
        })
        .collect();
    let (mut seen, mut problems) = (Vec::new(), Vec::new());
    for (name, critical, health) in asked {
        let health = match timeout_at(deadline, health).await {
            Ok(Ok(Ok(health))) => health,
            Ok(Ok(Err(error))) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
            // The panic's own words are on stderr.
            Ok(Err(_)) => down(Duration::ZERO, "the check panicked".to_owned()),
            Err(_) => down(LIMIT, format!("no answer within {LIMIT:?}")),
        };
        seen.push(Seen { name, critical, health });
    }
    (seen, problems)
}

fn down(took: Duration, detail: String) -> Health {
    Health::new(HealthStatus::Unhealthy, took, None, detail)
}

impl Dependency {
    async fn health(&self, http_path: &str) -> Result<Health, Error> {
        #[cfg(not(feature = "http"))]
        let _ = http_path;
        match self.client {
            #[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
            "database" => self.database().await,
            #[cfg(feature = "redis")]
            "redis" => {
                let client = match &*self.own {
                    "" => mainstay::get_redis_client()?,
                    own => mainstay::get_redis_client_named(own)?,
                };
                let health = client.health_check().await;
                // The fallback is for a service at work; here the question is the server.
                let answers = client.state() != mainstay::RedisState::Degraded;
                Ok(if answers { health } else { down(health.latency, health.detail) })
            }
            #[cfg(feature = "http")]
            "http" => {
                let client = match &*self.own {
                    "" => mainstay::get_http_client()?,
                    own => mainstay::get_http_client_named(own)?,
                };
                Ok(client.health_check_at(http_path).await)
            }
            #[cfg(feature = "s3")]
            "s3" => {
                let client = match &*self.own {
                    "" => mainstay::get_s3_client()?,
                    own => mainstay::get_s3_client_named(own)?,
                };
                Ok(client.health_check().await)
            }
            _ => Err(self.not_built()),
        }
    }

    #[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
    async fn database(&self) -> Result<Health, Error> {
        const KNOWN: [&str; 5] = ["postgres", "postgresql", "mysql", "mariadb", "sqlite"];
        let settings = mainstay::settings()?;
        let key = if self.own.is_empty() { "url".to_owned() } else { format!("{}_url", self.own) };
        let url = settings.connection("database", &key).unwrap_or_default();
        let scheme = url.split_once(':').map(|(scheme, _)| scheme).unwrap_or_default();
        match scheme {
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => self.of::<mainstay::sqlx::MySql>().await,
            #[cfg(feature = "sqlite")]
            "sqlite" => self.of::<mainstay::sqlx::Sqlite>().await,
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => self.of::<mainstay::sqlx::Postgres>().await,
            _ if KNOWN.contains(&scheme) => Err(self.not_built()),
            _ => Err(Error::invalid(
                "the URL begins with none of postgres://, mysql:// and sqlite://",
            )),
        }
    }

    #[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
    async fn of<DB: mainstay_database::Backend>(&self) -> Result<Health, Error> {
        let client = match &*self.own {
            "" => mainstay::get_database_client::<DB>()?,
            own => mainstay::get_database_client_named::<DB>(own)?,
        };
        Ok(client.health_check().await)
    }

    fn not_built(&self) -> Error {
        let name = &self.name;
        Error::invalid(format!("this doctor was built without the feature that {name} needs"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    /// As a resolver that does not answer leaves it.
    #[test]
    fn the_end_does_not_wait_for_a_thread_that_hangs() {
        let (release, held) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let lookup = async { drop(tokio::task::spawn_blocking(move || held.recv())) };
            tell.send(run(lookup).is_ok())
        });
        let ended = told.recv_timeout(Duration::from_secs(30));
        drop(release);
        assert_eq!(ended, Ok(true));
    }
}
