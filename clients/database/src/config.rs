//! The builder, the settings and the singletons.

use crate::{
    backend::{Backend, Tuning},
    client::DatabaseClient,
    pool::Limits,
};
use mainstay_policy::{Error, Kind, PolicyBuilder, settings};
use std::{fmt, marker::PhantomData, time::Duration};

/// Builds a [`DatabaseClient`].
#[must_use]
pub struct DatabaseClientBuilder<DB> {
    name: Option<String>,
    url: Option<String>,
    application_name: Option<String>,
    limits: Limits,
    policy: Option<Box<dyn FnOnce(PolicyBuilder) -> PolicyBuilder + Send>>,
    backend: PhantomData<fn() -> DB>,
}

impl<DB> fmt::Debug for DatabaseClientBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseClientBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<DB: Backend> DatabaseClientBuilder<DB> {
    pub(crate) fn new() -> Self {
        Self {
            name: None,
            url: None,
            application_name: None,
            limits: Limits {
                max_connections: 10,
                connect_timeout: Duration::from_millis(900),
                acquire_timeout: Duration::from_secs(5),
            },
            policy: None,
            backend: PhantomData,
        }
    }

    /// The database, as in `postgres://user:password@host:5432/database`,
    /// `mysql://user:password@host:3306/database` or `sqlite://path/to/file.db?mode=rwc`.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// A name of its own: breaker and budget are then those of `database:{name}`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What PostgreSQL shows as `application_name`.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = Some(name.into());
        self
    }

    /// Connections of one runtime. Default: 10.
    pub const fn max_connections(mut self, connections: u32) -> Self {
        self.limits.max_connections = connections;
        self
    }

    /// How long a server that says nothing is waited for before that is reported. Default: 900 ms.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.limits.connect_timeout = timeout;
        self
    }

    /// How long to wait for a free connection. Default: 5 s, within the attempt timeout.
    pub const fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.limits.acquire_timeout = timeout;
        self
    }

    /// Changes the policy that the settings give, as in `.policy(|p| p.max_attempts(5))`.
    pub fn policy(
        mut self,
        change: impl FnOnce(PolicyBuilder) -> PolicyBuilder + Send + 'static,
    ) -> Self {
        self.policy = Some(Box::new(change));
        self
    }

    /// Checks everything; does no I/O.
    ///
    /// # Errors
    /// A URL, setting or policy that cannot work, and what to write instead; never the URL itself.
    pub fn build(self) -> Result<DatabaseClient<DB>, Error> {
        let example = DB::EXAMPLE;
        let Some(url) = self.url.as_deref() else {
            return Err(Error::invalid(format!(
                "database: no URL; set MAINSTAY_DATABASE_URL or DATABASE_URL, as in {example}"
            )));
        };
        check_scheme::<DB>(url)?;
        if self.limits.max_connections == 0 {
            return Err(Error::invalid("database: max_connections is 0; allowed: from 1"));
        }
        let name = match &self.name {
            Some(name) => format!("database:{name}"),
            None => "database".to_owned(),
        };
        let mut policy = settings()?.policy(Kind::Database, &name);
        if let Some(change) = self.policy {
            policy = change(policy).name(name);
        }
        let policy = policy.build()?;
        let tuning =
            Tuning { application_name: self.application_name, statement_timeout: policy.timeout() };
        // The driver's words may hold the URL.
        let options = DB::options(url, &tuning).map_err(|_| {
            Error::invalid(format!("database: the URL cannot be read; allowed: {example}"))
        })?;
        Ok(DatabaseClient::new(options, tuning, self.limits, policy))
    }
}

/// The URL may hold a password, so nothing but a scheme is ever shown.
fn check_scheme<DB: Backend>(url: &str) -> Result<(), Error> {
    let (this, example) = (DB::LABEL, DB::EXAMPLE);
    let scheme = url.split_once(':').map(|(scheme, _)| scheme).unwrap_or_default();
    if DB::SCHEMES.contains(&scheme) {
        return Ok(());
    }
    let known = ["postgres", "postgresql", "mysql", "mariadb", "sqlite"];
    let shown = if known.contains(&scheme) { format!("`{scheme}`") } else { "unknown".to_owned() };
    Err(Error::invalid(format!(
        "database: the URL's scheme is {shown}, and this client is for {this}: {example}; for \
         another database take PgDatabase, MySqlDatabase or SqliteDatabase"
    )))
}

/// The client of `MAINSTAY_DATABASE_URL`, else `DATABASE_URL`; no I/O.
///
/// `let db: PgDatabase = get_database_client()?;` says which database it is for.
///
/// # Errors
/// When a setting is missing or cannot be used.
pub fn get_database_client<DB: Backend>() -> Result<DatabaseClient<DB>, Error> {
    DB::default_client().get_or_try_init("default", || {
        let url = settings()?.connection("database", "url");
        DatabaseClientBuilder { url, ..DatabaseClientBuilder::new() }.build()
    })
}

/// The client of `MAINSTAY_DATABASE_{NAME}_URL`, with a breaker of its own; no I/O.
///
/// # Errors
/// When that setting is missing or a setting cannot be used.
pub fn get_database_client_named<DB: Backend>(name: &str) -> Result<DatabaseClient<DB>, Error> {
    DB::named_clients().get_or_try_init(name, || {
        let url = settings()?.named_url("database", name)?;
        DatabaseClient::builder().name(name).url(url).build()
    })
}

/// Installs the client that [`get_database_client`] gives.
pub fn set_database_client<DB: Backend>(client: DatabaseClient<DB>) {
    DB::default_client().set("default", client);
}
