//! Settings: defaults, then a TOML file, then the environment; code comes last.
//!
//! `MAINSTAY_DATABASE_TIMEOUT=30.0` and, in `mainstay.toml` or the file in `MAINSTAY_CONFIG`,
//! `[database] timeout = "30s"` mean the same. They are read once; [`reload`] reads them again.

mod names;
mod origin;
mod value;

pub use origin::{SettingOrigin, masked_url};
pub(crate) use value::Rate;

use crate::{
    backoff::Jitter,
    error::ConfigError,
    hedge::Hedge,
    policy::{BreakGrowth, Kind, Mode, Policy, PolicyBuilder},
    registry,
};
use figment::{
    Figment, Provider,
    providers::{Env, Format, Toml},
    value::{Dict, Value},
};
use std::{
    collections::BTreeMap,
    env, fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use value::Setting;

/// One list of fields: what code, file and environment may set for each kind.
macro_rules! overrides {
    ($($field:ident: $type:ty,)*) => {
        /// What was set, as opposed to left at its default.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct Overrides {
            $(pub(crate) $field: Option<$type>,)*
        }

        impl Overrides {
            pub(crate) const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];

            /// What is set here, else what is set below.
            pub(crate) fn over(&self, below: &Self) -> Self {
                Self { $($field: self.$field.clone().or_else(|| below.$field.clone()),)* }
            }

            fn read(reader: &mut Reader<'_>, kind: &str) -> Self {
                Self { $($field: reader.setting(kind, stringify!($field)),)* }
            }
        }
    };
}

overrides! {
    timeout: Duration,
    deadline: Duration,
    max_attempts: u32,
    base_delay: Duration,
    max_delay: Duration,
    exponential_base: f64,
    jitter: Jitter,
    failure_threshold: u32,
    recovery_timeout: Duration,
    enable_timeout: bool,
    enable_retry: bool,
    enable_circuit_breaker: bool,
    enable_budget: bool,
    mode: Mode,
    failure_rate: Rate,
    slow_rate: Rate,
    slow_after: Duration,
    minimum_calls: u32,
    window: Duration,
    break_growth: BreakGrowth,
    probes: u32,
    ramp: bool,
    hedge: Option<Hedge>,
    max_concurrent: u32,
    rate_limit: u32,
    max_wait: Duration,
}

/// The settings of this process, checked.
#[derive(Clone)]
pub struct Settings {
    prefix: String,
    policies: BTreeMap<Kind, Overrides>,
    enabled: bool,
    mode: Option<Mode>,
    warnings: Vec<String>,
    // Holds URLs with credentials, so it is never printed.
    connections: Figment,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("prefix", &self.prefix)
            .field("policies", &self.policies)
            .field("enabled", &self.enabled)
            .field("mode", &self.mode)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

struct Current {
    prefix: String,
    settings: Option<Arc<Settings>>,
}

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

fn current() -> MutexGuard<'static, Option<Current>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn prefix(current: &Option<Current>) -> String {
    current.as_ref().map_or_else(|| "MAINSTAY_".to_owned(), |current| current.prefix.clone())
}

/// Sets what the names of environment variables begin with, in place of `MAINSTAY_`. Call it before
/// the first policy, client or getter.
///
/// # Errors
/// When the settings have been read already.
pub fn set_settings_prefix(prefix: &str) -> Result<(), ConfigError> {
    let mut current = current();
    if current.as_ref().is_some_and(|current| current.settings.is_some()) {
        return Err(ConfigError::new(vec![format!(
            "the prefix {prefix} comes too late: settings have been read already; call \
             set_settings_prefix first thing in main"
        )]));
    }
    *current = Some(Current { prefix: prefix.to_owned(), settings: None });
    Ok(())
}

/// The settings, read on first use and kept.
///
/// # Errors
/// Every bad value at once: its name, what is wrong and what is allowed. Nothing is kept then.
pub fn settings() -> Result<Arc<Settings>, ConfigError> {
    let mut current = current();
    if let Some(settings) = current.as_ref().and_then(|current| current.settings.clone()) {
        return Ok(settings);
    }
    let prefix = prefix(&current);
    let settings = Arc::new(Settings::load(&prefix)?);
    *current = Some(Current { prefix, settings: Some(Arc::clone(&settings)) });
    drop(current);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    Ok(settings)
}

/// Reads the settings again and applies them to the policies that exist, in place: breakers and
/// budgets keep their state, running calls end under the limits they began with. What code has set
/// stays. Bulkheads, rate limits and connections do not change.
///
/// # Errors
/// Every bad value, and every policy whose settings now contradict each other; then nothing has
/// changed.
pub fn reload() -> Result<(), ConfigError> {
    let prefix = prefix(&current());
    let settings = Arc::new(Settings::load(&prefix)?);
    registry::retune(&settings)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    *current() = Some(Current { prefix, settings: Some(settings) });
    Ok(())
}

/// Forgets what was read. For tests.
pub(crate) fn forget() {
    if let Some(current) = current().as_mut() {
        current.settings = None;
    }
}

impl Settings {
    fn load(prefix: &str) -> Result<Self, ConfigError> {
        let variable = format!("{prefix}CONFIG");
        let named = env::var(&variable).ok().filter(|path| !path.is_empty());
        let path = named.clone().unwrap_or_else(|| "mainstay.toml".to_owned());
        if named.is_some() && !Path::new(&path).is_file() {
            return Err(ConfigError::new(vec![format!(
                "{variable} names {path}, which is not a file that can be read"
            )]));
        }
        let file = Toml::file(&path);
        if let Err(error) = file.data() {
            // The first line says where; the ones after it quote the file, secrets included.
            let text = error.to_string();
            let place = text.lines().next().unwrap_or_default();
            return Err(ConfigError::new(vec![format!("{path} is not TOML: {place}")]));
        }
        // DATABASE_BASE_DELAY is database.base_delay: the first word is the table.
        let environment = Env::prefixed(prefix)
            .ignore(&["CONFIG"])
            .map(|key| key.as_str().to_lowercase().replacen('_', ".", 1).into());
        Self::read(prefix, &path, Figment::new().merge(file).merge(environment))
    }

    fn read(prefix: &str, file: &str, figment: Figment) -> Result<Self, ConfigError> {
        let mut reader = Reader { prefix, file, figment: &figment, problems: Vec::new() };
        let policies = Kind::ALL
            .into_iter()
            .map(|kind| (kind, Overrides::read(&mut reader, kind.name())))
            .collect();
        let enabled = reader.setting("resilience", "enabled").unwrap_or(true);
        let mode = reader.setting("resilience", "mode");
        if !reader.problems.is_empty() {
            return Err(ConfigError::new(reader.problems));
        }
        let warnings = names::unknown(prefix, file, &all_keys(&figment), &figment);
        let prefix = prefix.to_owned();
        Ok(Self { prefix, policies, enabled, mode, warnings, connections: figment })
    }

    /// A builder with the defaults of `kind` and these settings applied, as [`Policy::builder`].
    pub fn policy(&self, kind: Kind, name: &str) -> PolicyBuilder {
        Policy::builder(kind, name)
    }

    /// Names under the prefix that nothing reads, each with the nearest one that is.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(crate) fn overrides(&self, kind: Kind) -> Overrides {
        let of = |kind| self.policies.get(&kind).cloned().unwrap_or_default();
        let own = match kind {
            Kind::Custom => of(Kind::Custom).over(&of(Kind::Default)),
            kind => of(kind),
        };
        own.over(&Overrides { mode: self.mode, ..Overrides::default() })
    }

    pub(crate) const fn enabled(&self) -> bool {
        self.enabled
    }

    /// A connection setting such as `("database", "url")`, from file or environment.
    ///
    /// The usual `DATABASE_URL` and `REDIS_URL` stand in for the first two kinds' `url`.
    #[must_use]
    pub fn connection(&self, kind: &str, key: &str) -> Option<String> {
        let value = self.connections.find_value(&format!("{kind}.{key}")).ok();
        let text = value.and_then(|value| match value {
            Value::String(_, text) => Some(text),
            // Text that looks like something else, such as 0123 or 2024.10: as it was written.
            value => env::var(self.variable(kind, key))
                .ok()
                .or_else(|| value.to_i128().map(|number| number.to_string())),
        });
        text.or_else(|| match (kind, key) {
            ("database", "url") => env::var("DATABASE_URL").ok(),
            ("redis", "url") => env::var("REDIS_URL").ok(),
            _ => None,
        })
        .filter(|text| !text.is_empty())
    }

    /// Whether a client's own setting, such as `("database", "max_connections")`, is given.
    #[must_use]
    pub fn is_set(&self, client: &str, key: &str) -> bool {
        self.connections.find_value(&format!("{client}.{key}")).is_ok()
    }

    /// A client's own setting that counts something; `None` where it is not given.
    ///
    /// # Errors
    /// When it is no count: its name, its value and what is allowed.
    pub fn count(&self, client: &str, key: &str) -> Result<Option<u32>, ConfigError> {
        self.own(client, key)
    }

    /// A client's own setting that is a length of time; `None` where it is not given.
    ///
    /// # Errors
    /// When it is none: its name, its value and what is allowed.
    pub fn duration(&self, client: &str, key: &str) -> Result<Option<Duration>, ConfigError> {
        self.own(client, key)
    }

    fn own<T: Setting>(&self, client: &str, key: &str) -> Result<Option<T>, ConfigError> {
        let Ok(value) = self.connections.find_value(&format!("{client}.{key}")) else {
            return Ok(None);
        };
        let problem = || ConfigError::new(vec![self.problem(client, key, T::ALLOWED)]);
        T::read(&value).map(Some).ok_or_else(problem)
    }

    /// Says of a client's own setting, which is no secret, what it is and what is allowed.
    #[must_use]
    pub fn problem(&self, client: &str, key: &str, allowed: &str) -> String {
        let value = self.connections.find_value(&format!("{client}.{key}")).ok();
        let in_file = value.as_ref().is_some_and(|v| names::is_from_file(&self.connections, v));
        let name = if in_file {
            format!("{client}.{key} in the settings file")
        } else {
            self.variable(client, key)
        };
        let shown = value.map_or_else(|| "not set".to_owned(), |value| names::shown(&value));
        format!("{name} is {shown}; allowed: {allowed}")
    }

    /// The key of a named client's own setting: `url` of `Read-Replica` is `read_replica_url`, since
    /// the name of an environment variable holds letters, digits and `_` only.
    #[must_use]
    pub fn own_key(name: &str, key: &str) -> String {
        let name = name.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "_");
        format!("{name}_{key}")
    }

    /// The environment variable of a setting, to be named in errors.
    #[must_use]
    pub fn variable(&self, client: &str, key: &str) -> String {
        format!("{}{client}_{key}", self.prefix).to_uppercase()
    }

    /// The URL of a named client, from `MAINSTAY_{KIND}_{NAME}_URL`; `key` is `url`, or as that kind
    /// calls it.
    ///
    /// # Errors
    /// When it is not set.
    pub fn named_url(&self, kind: &str, name: &str, key: &str) -> Result<String, ConfigError> {
        let key = Self::own_key(name, key);
        self.connection(kind, &key).ok_or_else(|| {
            let variable = self.variable(kind, &key);
            ConfigError::new(vec![format!(
                "{variable} is not set; set it, or build the client with its builder()"
            )])
        })
    }
}

/// Every `table.key` that file or environment gives.
fn all_keys(figment: &Figment) -> Vec<(String, String)> {
    let tables: Dict = figment.extract().unwrap_or_default();
    let mut keys = Vec::new();
    for (table, value) in tables {
        match value.into_dict() {
            Some(dict) => keys.extend(dict.into_keys().map(|key| (table.clone(), key))),
            None => keys.push((table, String::new())),
        }
    }
    keys
}

struct Reader<'a> {
    prefix: &'a str,
    file: &'a str,
    figment: &'a Figment,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn setting<T: Setting>(&mut self, kind: &str, field: &str) -> Option<T> {
        let value = self.figment.find_value(&format!("{kind}.{field}")).ok()?;
        let read = T::read(&value);
        if read.is_none() {
            let from_file = names::is_from_file(self.figment, &value);
            let name = if from_file {
                format!("{kind}.{field} in {}", self.file)
            } else {
                format!("{}{kind}_{field}", self.prefix).to_uppercase()
            };
            let shown = names::shown(&value);
            self.problems.push(format!("{name} is {shown}; allowed: {}", T::ALLOWED));
        }
        read
    }
}

#[cfg(test)]
mod tests;
