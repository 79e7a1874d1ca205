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
    policy::{self, BreakGrowth, Kind, Mode, Policy, PolicyBuilder},
    registry,
};
use figment::{
    Figment, Provider,
    providers::{Env, Format, Serialized, Toml},
    value::{Dict, Value},
};
use std::{
    collections::BTreeMap,
    env, fmt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use value::{Count, Setting, as_text};

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
    max_concurrent: Option<u32>,
    rate_limit: Option<u32>,
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
    /// Which reading gave them.
    reading: u64,
}

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);
/// Of two that go on at once the later one has seen what the other may have missed, whichever ends first.
static READINGS: AtomicU64 = AtomicU64::new(0);

fn begin_reading() -> u64 {
    READINGS.fetch_add(1, Ordering::Relaxed) + 1
}

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
/// When it is none, such as `PYNOMALY` without its `_`, or when the settings have been read already.
pub fn set_settings_prefix(prefix: &str) -> Result<(), ConfigError> {
    let plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    let letter = prefix.starts_with(|first: char| first.is_ascii_uppercase());
    if !letter || !prefix.ends_with('_') || !prefix.bytes().all(plain) {
        return Err(ConfigError::new(vec![format!(
            "the prefix {prefix:?} is none; allowed: capital letters, digits and `_`, a letter first \
             and `_` last, such as PYNOMALY_"
        )]));
    }
    let mut current = current();
    if current.as_ref().is_some_and(|current| current.settings.is_some()) {
        return Err(ConfigError::new(vec![format!(
            "the prefix {prefix} comes too late: settings have been read already; call \
             set_settings_prefix first thing in main"
        )]));
    }
    *current = Some(Current { prefix: prefix.to_owned(), settings: None, reading: 0 });
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
    let (prefix, reading) = (prefix(&current), begin_reading());
    let settings = Arc::new(Settings::load(&prefix)?);
    *current = Some(Current { prefix, settings: Some(Arc::clone(&settings)), reading });
    drop(current);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    Ok(settings)
}

/// Reads the settings again and applies them to the policies that exist, in place: breakers and
/// budgets keep their state, running calls end under the limits they began with. What code has set
/// stays. Connections that are open do not change (the database's new ones have the new limit of a
/// statement), nor bulkheads and rate limits but for being switched off and on with all else.
///
/// # Errors
/// Every bad value, and every policy whose settings now contradict each other; then nothing has
/// changed.
pub fn reload() -> Result<(), ConfigError> {
    let reading = begin_reading();
    let prefix = prefix(&current());
    let settings = Arc::new(Settings::load(&prefix)?);
    registry::check(&settings)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    {
        let mut current = current();
        if current.as_ref().is_none_or(|current| current.reading < reading) {
            *current = Some(Current { prefix, settings: Some(settings), reading });
        }
    }
    // A policy that is being built sees them from here on, or is reached by this.
    follow(None, registry::retune);
    Ok(())
}

/// Applies the settings that hold, unless they are those that were applied, until no others do meanwhile.
pub(crate) fn follow(mut applied: Option<Arc<Settings>>, apply: impl Fn(&Settings)) {
    while let Some(settings) = known()
        && applied.as_ref().is_none_or(|applied| !Arc::ptr_eq(applied, &settings))
    {
        apply(&settings);
        applied = Some(settings);
    }
}

/// The settings, if they have been read.
pub(crate) fn known() -> Option<Arc<Settings>> {
    current().as_ref()?.settings.clone()
}

/// The settings file, and whether its name is set.
fn file(prefix: &str) -> (String, bool) {
    let named = env::var(format!("{prefix}CONFIG")).ok().filter(|path| !path.is_empty());
    let is_named = named.is_some();
    (named.unwrap_or_else(|| "mainstay.toml".to_owned()), is_named)
}

/// Whether policies of this kind are on, and whether they only watch: for those that go on where
/// something else cannot be read.
pub(crate) fn switches(kind: Kind) -> (bool, Option<Mode>) {
    if let Ok(settings) = settings() {
        return (settings.enabled, settings.overrides(kind).mode);
    }
    let prefix = prefix(&current());
    let (path, _) = file(&prefix);
    let figment = Figment::new().merge(Serialized::defaults(environment(&prefix).0));
    let file = Toml::file(&path);
    let figment = if file.data().is_ok() { figment.join(file) } else { figment };
    let mut reader =
        Reader { prefix: &prefix, file: &path, figment: &figment, problems: Vec::new() };
    let enabled = reader.setting("resilience", "enabled").unwrap_or(true);
    let mut mode = reader.setting(kind.name(), "mode");
    if kind == Kind::Custom {
        mode = mode.or_else(|| reader.setting(Kind::Default.name(), "mode"));
    }
    (enabled, mode.or_else(|| reader.setting("resilience", "mode")))
}

/// Forgets what was read. For tests.
pub(crate) fn forget() {
    if let Some(current) = current().as_mut() {
        current.settings = None;
    }
}

impl Settings {
    fn load(prefix: &str) -> Result<Self, ConfigError> {
        let (path, is_named) = file(prefix);
        if is_named && !Path::new(&path).is_file() {
            return Err(ConfigError::new(vec![format!(
                "{prefix}CONFIG names {path}, which is not a file that can be read"
            )]));
        }
        let file = Toml::file(&path);
        if let Err(error) = file.data() {
            // The first line says where; the ones after it quote the file, secrets included.
            let text = error.to_string();
            let place = text.lines().next().unwrap_or_default();
            return Err(ConfigError::new(vec![format!("{path} is not TOML: {place}")]));
        }
        let (tables, bare) = environment(prefix);
        let figment = Figment::new().merge(file).merge(Serialized::defaults(tables));
        let mut settings = Self::read(prefix, &path, figment)?;
        settings.warnings.extend(names::unknown(prefix, &path, &bare, &Figment::new()));
        Ok(settings)
    }

    fn read(prefix: &str, file: &str, figment: Figment) -> Result<Self, ConfigError> {
        let mut reader = Reader { prefix, file, figment: &figment, problems: Vec::new() };
        let keys = all_keys(&figment);
        for (table, key) in keys.iter().filter(|(table, key)| names::is_text(table, key)) {
            reader.text(table, key);
        }
        let policies = Kind::ALL
            .into_iter()
            .map(|kind| (kind, Overrides::read(&mut reader, kind.name())))
            .collect();
        let enabled = reader.setting("resilience", "enabled").unwrap_or(true);
        let mode = reader.setting("resilience", "mode");
        if !reader.problems.is_empty() {
            return Err(ConfigError::new(reader.problems));
        }
        let warnings = names::unknown(prefix, file, &keys, &figment);
        let prefix = prefix.to_owned();
        let mut settings = Self { prefix, policies, enabled, mode, warnings, connections: figment };
        let mut problems = Vec::new();
        for kind in Kind::ALL {
            settings.contradictions(kind, &mut problems);
        }
        if problems.is_empty() { Ok(settings) } else { Err(ConfigError::new(problems)) }
    }

    /// Settings of a kind that contradict each other are a problem. What only its defaults stand
    /// against is a warning: code, which comes last, may set the other side for every policy there is.
    fn contradictions(&mut self, kind: Kind, problems: &mut Vec<String>) {
        if kind == Kind::Custom && self.policies.get(&kind) == Some(&Overrides::default()) {
            return; // All of it is `[default]`, which was told.
        }
        let all = self.overrides(kind);
        let mut pairs = all.clone();
        if all.timeout.is_none() {
            (pairs.deadline, pairs.hedge) = (None, None);
        }
        if all.base_delay.is_none() || all.max_delay.is_none() {
            (pairs.base_delay, pairs.max_delay) = (None, None);
        }
        let told = |set: &Overrides| {
            let found = policy::resolve(kind, kind.name(), set, self.enabled);
            let found = found.err().map(|error| error.problems().to_vec()).unwrap_or_default();
            let own = format!("policy `{}`: ", kind.name());
            let named = move |problem: &String| {
                format!("[{}] {}", kind.name(), problem.strip_prefix(&own).unwrap_or(problem))
            };
            found.iter().map(named).collect::<Vec<_>>()
        };
        let (wrong, mut unfit) = (told(&pairs), told(&all));
        unfit.retain(|problem| !wrong.contains(problem));
        problems.extend(wrong);
        self.warnings.extend(unfit.into_iter().map(|problem| {
            format!(
                "{problem}; one of the two is a default: only policies for which code sets it \
                 otherwise can be built"
            )
        }));
    }

    /// A builder of this kind and name, as [`Policy::builder`]: it applies the settings that hold
    /// when the policy is built.
    pub fn policy(&self, kind: Kind, name: &str) -> PolicyBuilder {
        Policy::builder(kind, name)
    }

    /// Names under the prefix that nothing reads, each with the nearest one that is; and settings that
    /// a kind's defaults contradict, of which alone no policy can be built.
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
        let variable = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
        let text = self.find(kind, key).and_then(|value| match value {
            Value::String(_, text) => Some(text),
            // Text that looks like something else, such as 0123 or 2024.10: as it was written.
            value => variable(&self.variable(kind, key)).or_else(|| as_text(&value)),
        });
        text.or_else(|| match (kind, key) {
            ("database", "url") => variable("DATABASE_URL"),
            ("redis", "url") => variable("REDIS_URL"),
            _ => None,
        })
    }

    /// The URL of a client that code gives none: of its name (`MAINSTAY_DATABASE_{NAME}_URL`), else of
    /// its kind. A warning says if a client with a name has none of its own.
    #[must_use]
    pub fn url(&self, kind: &str, name: Option<&str>) -> Option<String> {
        let Some(name) = name else { return self.connection(kind, "url") };
        let own = Self::own_key(name, "url");
        self.connection(kind, &own).or_else(|| {
            let url = self.connection(kind, "url")?;
            let used = match self.find(kind, "url") {
                None => format!("{kind}_URL").to_uppercase(),
                Some(value) if names::is_from_file(&self.connections, &value) => {
                    format!("{kind}.url in the settings file")
                }
                Some(_) => self.variable(kind, "url"),
            };
            tracing::warn!(
                mainstay.policy.name = format!("{kind}:{name}"),
                "{} is not set: this client takes {used}, as one without a name does; set it, or give \
                 the builder url(..)",
                self.variable(kind, &own)
            );
            Some(url)
        })
    }

    /// What is set; the empty text is as good as nothing.
    fn find(&self, client: &str, key: &str) -> Option<Value> {
        let value = self.connections.find_value(&format!("{client}.{key}")).ok();
        value.filter(|value| value.as_str() != Some(""))
    }

    /// Whether a client's own setting, such as `("database", "max_connections")`, is given.
    #[must_use]
    pub fn is_set(&self, client: &str, key: &str) -> bool {
        self.find(client, key).is_some()
    }

    /// A client's own setting that counts something; `None` where it is not given.
    ///
    /// # Errors
    /// When it is no count: its name, its value and what is allowed.
    pub fn count(&self, client: &str, key: &str) -> Result<Option<u32>, ConfigError> {
        self.own::<Count>(client, key).map(|count| count.map(|Count(count)| count))
    }

    /// A client's own setting that is a length of time; `None` where it is not given.
    ///
    /// # Errors
    /// When it is none: its name, its value and what is allowed.
    pub fn duration(&self, client: &str, key: &str) -> Result<Option<Duration>, ConfigError> {
        self.own(client, key)
    }

    fn own<T: Setting>(&self, client: &str, key: &str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.find(client, key) else { return Ok(None) };
        let problem = || ConfigError::new(vec![self.problem(client, key, T::ALLOWED)]);
        T::read(&value).map(Some).ok_or_else(problem)
    }

    /// Says of a client's own setting, which is no secret, what it is and what is allowed.
    #[must_use]
    pub fn problem(&self, client: &str, key: &str, allowed: &str) -> String {
        let value = self.find(client, key);
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

/// What the environment gives by table: `DATABASE_BASE_DELAY` is `base_delay` of `database`, since the
/// first word is the table; and the names that are a table's only. A variable that is empty is not set.
fn environment(prefix: &str) -> (BTreeMap<String, Dict>, Vec<(String, String)>) {
    let (mut tables, mut bare) = (BTreeMap::<_, Dict>::new(), Vec::new());
    for (name, text) in Env::prefixed(prefix).ignore(&["CONFIG"]).iter() {
        match name.as_str().split_once('_') {
            _ if text.is_empty() => {}
            Some((table, key)) if !key.is_empty() => {
                let Ok(value) = text.parse::<Value>();
                tables.entry(table.to_owned()).or_default().insert(key.to_owned(), value);
            }
            _ => bare.push((name.as_str().to_owned(), String::new())),
        }
    }
    (tables, bare)
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
            self.refuse(kind, field, &value, T::ALLOWED);
        }
        read
    }

    /// Of what a client takes as text, a file may hold other things; a variable is text.
    fn text(&mut self, client: &str, key: &str) {
        let value = self.figment.find_value(&format!("{client}.{key}")).ok();
        if let Some(value) = value.filter(|value| names::is_from_file(self.figment, value))
            && as_text(&value).is_none()
        {
            self.refuse(client, key, &value, "text, in quotes");
        }
    }

    fn refuse(&mut self, table: &str, key: &str, value: &Value, allowed: &str) {
        let name = if names::is_from_file(self.figment, value) {
            format!("{table}.{key} in {}", self.file)
        } else {
            format!("{}{table}_{key}", self.prefix).to_uppercase()
        };
        let shown = names::shown(value);
        self.problems.push(format!("{name} is {shown}; allowed: {allowed}"));
    }
}

#[cfg(test)]
mod tests;
