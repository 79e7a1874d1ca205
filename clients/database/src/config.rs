//! The builder, the settings and the singletons.

mod connection;
pub(crate) mod url;

pub use connection::TlsMode;

use crate::{
    backend::{Backend, Tuning},
    client::DatabaseClient,
    hosts::Hosts,
    pool::Limits,
};
use connection::Connection;
use mainstay_policy::{Error, Kind, PolicyBuilder, settings};
use std::{fmt, path::PathBuf, time::Duration};

type Change = Box<dyn FnOnce(PolicyBuilder) -> PolicyBuilder + Send>;

/// Builds a [`DatabaseClient`]. What is not said here comes from file and environment: see the
/// setting beside each method, `MAINSTAY_DATABASE_{SETTING}` or `[database] setting`. A client with
/// a name of its own takes `MAINSTAY_DATABASE_{NAME}_{SETTING}` first.
#[must_use]
pub struct DatabaseClientBuilder<DB: Backend> {
    name: Option<String>,
    url: Option<String>,
    adopted: Option<sqlx::Pool<DB>>,
    connection: Connection,
    policy: Option<Change>,
}

impl<DB: Backend> fmt::Debug for DatabaseClientBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseClientBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<DB: Backend> DatabaseClientBuilder<DB> {
    pub(crate) fn new() -> Self {
        let connection = Connection::default();
        Self { name: None, url: None, adopted: None, connection, policy: None }
    }

    /// The database, as in `postgres://user:password@host:5432/database`,
    /// `mysql://user:password@host:3306/database` or `sqlite://path/to/file.db?mode=rwc`.
    ///
    /// Several hosts are tried in turn, as in
    /// `postgres://user@one:5432,two:5432/database?target_session_attrs=read-write`, which with
    /// several hosts is the default; `any`, `read-only`, `primary`, `standby` and `prefer-standby`
    /// are the others. A PostgreSQL server that is asked for one of these and is silent is not waited
    /// for: the next one is asked beside it, and after half a second `prefer-standby` takes any.
    /// MariaDB and MySQL do not say which they are: there any host will do, and one is left when it
    /// fails or is silent for the whole [`connect_timeout`](Self::connect_timeout).
    ///
    /// Default: `MAINSTAY_DATABASE_{NAME}_URL` for a client with a name, else `MAINSTAY_DATABASE_URL`,
    /// else `DATABASE_URL`. That a client with a name has no URL of its own, and takes the one of all, is
    /// a warning.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// A pool that exists, in place of a URL. Its own settings stay; see
    /// [`DatabaseClient::from_pool`].
    pub fn pool(mut self, pool: sqlx::Pool<DB>) -> Self {
        self.adopted = Some(pool);
        self
    }

    /// A name of its own: breaker and budget are then those of `database:{name}`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// What PostgreSQL shows as `application_name`. Setting: `application_name`.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.connection.application_name = Some(name.into());
        self
    }

    /// Most connections of one runtime. Default: 10. Setting: `max_connections`.
    pub const fn max_connections(mut self, connections: u32) -> Self {
        self.connection.max_connections = Some(connections);
        self
    }

    /// Connections of one runtime that are kept open. Default: 0. Setting: `min_connections`.
    pub const fn min_connections(mut self, connections: u32) -> Self {
        self.connection.min_connections = Some(connections);
        self
    }

    /// How long a server that says nothing is waited for before that is reported; for each host of
    /// the URL. Default: 900 ms. Setting: `connect_timeout`.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connection.connect_timeout = Some(timeout);
        self
    }

    /// How long to wait for a free connection. Default: 5 s, within the attempt timeout. Setting:
    /// `acquire_timeout`.
    pub const fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.connection.acquire_timeout = Some(timeout);
        self
    }

    /// A connection idle for longer must answer a ping before it is used; before what must not be
    /// sent twice, one idle for 20 ms. Default: 1 s. Setting: `ping_after`.
    pub const fn ping_after(mut self, idle: Duration) -> Self {
        self.connection.ping_after = Some(idle);
        self
    }

    /// A connection idle for longer is closed. Default: 10 min. Setting: `idle_timeout`.
    pub const fn idle_timeout(mut self, idle: Duration) -> Self {
        self.connection.idle_timeout = Some(idle);
        self
    }

    /// A connection older than this is closed; up to a fifth earlier, so that not all go at once.
    /// Default: 30 min. Setting: `max_lifetime`.
    pub const fn max_lifetime(mut self, age: Duration) -> Self {
        self.connection.max_lifetime = Some(age);
        self
    }

    /// Prepared statements kept on each connection. Default: 100. Setting: `statement_cache`.
    pub const fn statement_cache(mut self, statements: u32) -> Self {
        self.connection.statement_cache = Some(statements);
        self
    }

    /// How far the server is trusted. Default: as the URL says, else encrypted if the server can.
    /// Setting: `tls` (`disable`, `prefer`, `require`, `verify-ca`, `verify-full`). Not for SQLite.
    pub const fn tls(mut self, mode: TlsMode) -> Self {
        self.connection.tls = Some(mode);
        self
    }

    /// A file with the certificates that are trusted, in PEM. Setting: `tls_ca`. Not for SQLite.
    pub fn tls_ca(mut self, path: impl Into<PathBuf>) -> Self {
        self.connection.tls_ca = Some(path.into());
        self
    }

    /// A pooler such as PgBouncer stands before the server and gives each transaction another
    /// connection of the server's. Setting: `pooler` (`transaction`, `none`).
    ///
    /// Statements then have no name on the server, and each is a transaction of its own, as what
    /// prepares it and what runs it would otherwise meet two connections. Not so
    /// [`raw_sql`](sqlx::raw_sql), which is prepared by nobody: take it for what cannot run in a
    /// transaction, such as `vacuum` and `create index concurrently`.
    /// [`prepare`](sqlx::Executor::prepare) is refused. What is given up ends when the pooler says so.
    pub const fn transaction_pooler(mut self) -> Self {
        self.connection.pooler = Some(true);
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
        let settings = settings()?;
        let connection = self.connection.over(&settings, self.name.as_deref())?;
        let limits = connection.limits()?;
        let name = match &self.name {
            Some(name) => format!("database:{name}"),
            None => "database".to_owned(),
        };
        let mut policy = settings.policy(Kind::Database, &name);
        if let Some(change) = self.policy {
            policy = change(policy).name(name);
        }
        let policy = policy.build()?;
        let tuning = connection.tuning(policy.clone());
        if let Some(pool) = self.adopted {
            let options = (*pool.connect_options()).clone();
            let max_connections = pool.options().get_max_connections();
            let limits = Limits { max_connections, min_connections: 0, ..limits };
            let hosts = Hosts::of(
                options,
                Tuning { pooler: tuning.pooler, ..Tuning::default() },
                limits.connect_timeout,
            );
            return Ok(DatabaseClient::new(hosts, limits, policy, Some(pool)));
        }
        let url = self.url.or_else(|| settings.url("database", self.name.as_deref()));
        let Some(url) = url.as_deref() else {
            let (variable, example) = (settings.variable("database", "url"), DB::EXAMPLE);
            return Err(Error::invalid(format!(
                "database: no URL; set {variable} or DATABASE_URL, or give the builder url(..), as \
                 in {example}"
            )));
        };
        url::check_scheme::<DB>(url)?;
        let hosts = Hosts::read(url, tuning, limits.connect_timeout)?;
        Ok(DatabaseClient::new(hosts, limits, policy, None))
    }
}

/// The client of `MAINSTAY_DATABASE_URL`, else `DATABASE_URL`; no I/O.
///
/// `let db: PgDatabase = get_database_client()?;` says which database it is for.
///
/// # Errors
/// When a setting is missing or cannot be used.
pub fn get_database_client<DB: Backend>() -> Result<DatabaseClient<DB>, Error> {
    DB::default_client().get_or_try_init("default", || DatabaseClientBuilder::new().build())
}

/// The client of `MAINSTAY_DATABASE_{NAME}_URL`, with a breaker of its own; no I/O.
///
/// # Errors
/// When that setting is missing or a setting cannot be used.
pub fn get_database_client_named<DB: Backend>(name: &str) -> Result<DatabaseClient<DB>, Error> {
    DB::named_clients().get_or_try_init(name, || {
        let url = settings()?.named_url("database", name, "url")?;
        DatabaseClient::builder().name(name).url(url).build()
    })
}

/// Installs the client that [`get_database_client`] gives.
pub fn set_database_client<DB: Backend>(client: DatabaseClient<DB>) {
    DB::default_client().set("default", client);
}

/// Installs the client that [`get_database_client_named`] gives for this name.
pub fn set_database_client_named<DB: Backend>(name: &str, client: DatabaseClient<DB>) {
    DB::named_clients().set(name, client);
}

/// The clients that the getters have given so far, for a shutdown to
/// [`close`](DatabaseClient::close).
#[must_use]
pub fn all_database_clients<DB: Backend>() -> Vec<DatabaseClient<DB>> {
    [DB::default_client().all(), DB::named_clients().all()].concat()
}
