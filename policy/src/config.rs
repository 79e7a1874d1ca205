//! Settings: defaults, then a TOML file, then the environment; code comes last.
//!
//! `MAINSTAY_DATABASE_TIMEOUT=30.0` and, in `mainstay.toml` or the file in `MAINSTAY_CONFIG`,
//! `[database] timeout = "30s"` mean the same. Durations are seconds, or text with `ms` or `s`.

use crate::{
    error::ConfigError,
    policy::{Kind, Policy, PolicyBuilder},
    registry,
};
use figment::{
    Figment,
    providers::{Env, Format, Toml},
    value::{Num, Value},
};
use std::{env, time::Duration};

const PREFIX: &str = "MAINSTAY_";

/// The settings of this process, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    policies: Vec<(Kind, Overrides)>,
    // Holds URLs with credentials, so it is never printed.
    connections: Secret,
}

#[derive(Clone)]
struct Secret(Figment);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

#[derive(Clone, Debug, Default)]
struct Overrides {
    timeout: Option<Duration>,
    deadline: Option<Duration>,
    max_attempts: Option<u32>,
    base_delay: Option<Duration>,
    max_delay: Option<Duration>,
    failure_threshold: Option<u32>,
    recovery_timeout: Option<Duration>,
}

/// Reads the settings.
///
/// # Errors
/// Every bad value at once: its name, what is wrong and what is allowed.
pub fn settings() -> Result<Settings, ConfigError> {
    let file = env::var("MAINSTAY_CONFIG").unwrap_or_else(|_| "mainstay.toml".to_owned());
    let figment = Figment::new().merge(Toml::file(file)).merge(
        // DATABASE_BASE_DELAY is database.base_delay: the first word is the table.
        Env::prefixed(PREFIX)
            .ignore(&["CONFIG"])
            .map(|key| key.as_str().to_lowercase().replacen('_', ".", 1).into()),
    );
    Settings::read(figment)
}

impl Settings {
    fn read(figment: Figment) -> Result<Self, ConfigError> {
        let mut reader = Reader { figment: &figment, problems: Vec::new() };
        let mut policies = Vec::new();
        for kind in Kind::ALL {
            let k = kind.name();
            policies.push((
                kind,
                Overrides {
                    timeout: reader.duration(k, "timeout"),
                    deadline: reader.duration(k, "deadline"),
                    max_attempts: reader.count(k, "max_attempts"),
                    base_delay: reader.duration(k, "base_delay"),
                    max_delay: reader.duration(k, "max_delay"),
                    failure_threshold: reader.count(k, "failure_threshold"),
                    recovery_timeout: reader.duration(k, "recovery_timeout"),
                },
            ));
        }
        let enabled = match reader.value("resilience", "enabled") {
            None => None,
            Some(value) => {
                let on = value.to_bool_lossy();
                if on.is_none() {
                    reader.refuse("resilience", "enabled", "is not true or false");
                }
                on
            }
        };
        if !reader.problems.is_empty() {
            return Err(ConfigError::new(reader.problems));
        }
        if let Some(on) = enabled {
            registry::set_enabled(on);
        }
        Ok(Self { policies, connections: Secret(figment) })
    }

    /// A builder with the defaults of `kind` and these settings applied.
    pub fn policy(&self, kind: Kind, name: &str) -> PolicyBuilder {
        let mut builder = Policy::builder(kind, name);
        let Some((_, o)) = self.policies.iter().find(|(of, _)| *of == kind) else {
            return builder;
        };
        macro_rules! apply {
            ($($field:ident),*) => {
                $(if let Some(value) = o.$field { builder = builder.$field(value); })*
            };
        }
        apply!(
            timeout,
            deadline,
            max_attempts,
            base_delay,
            max_delay,
            failure_threshold,
            recovery_timeout
        );
        builder
    }

    /// A connection setting such as `("database", "url")`, from file or environment.
    ///
    /// The usual `DATABASE_URL` and `REDIS_URL` stand in for the first two kinds' `url`.
    #[must_use]
    pub fn connection(&self, kind: &str, key: &str) -> Option<String> {
        let value = self.connections.0.find_value(&format!("{kind}.{key}")).ok();
        let text = value.and_then(|value| match value {
            Value::String(_, text) => Some(text),
            Value::Num(_, number) => whole(number).map(|n| n.to_string()),
            _ => None,
        });
        text.or_else(|| match (kind, key) {
            ("database", "url") => env::var("DATABASE_URL").ok(),
            ("redis", "url") => env::var("REDIS_URL").ok(),
            _ => None,
        })
        .filter(|text| !text.is_empty())
    }
}

impl Settings {
    /// The URL of a named client, from `MAINSTAY_{KIND}_{NAME}_URL`.
    ///
    /// # Errors
    /// When it is not set.
    pub fn named_url(&self, kind: &str, name: &str) -> Result<String, ConfigError> {
        self.connection(kind, &format!("{}_url", name.to_lowercase())).ok_or_else(|| {
            let variable = format!("{PREFIX}{kind}_{name}_URL").to_uppercase();
            ConfigError::new(vec![format!(
                "{variable} is not set; set it, or build the client with its builder()"
            )])
        })
    }
}

struct Reader<'a> {
    figment: &'a Figment,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn value(&self, kind: &str, field: &str) -> Option<Value> {
        self.figment.find_value(&format!("{kind}.{field}")).ok()
    }

    fn refuse(&mut self, kind: &str, field: &str, why: &str) {
        let name = format!("{PREFIX}{kind}_{field}").to_uppercase();
        self.problems.push(format!("{name} (in a file: {kind}.{field}) {why}"));
    }

    fn duration(&mut self, kind: &str, field: &str) -> Option<Duration> {
        let value = self.value(kind, field)?;
        let parsed = match &value {
            Value::Num(_, number) => number.to_f64().or_else(|| whole(*number).map(f64::from)),
            Value::String(_, text) => seconds(text),
            _ => None,
        };
        let duration = parsed.and_then(|s| Duration::try_from_secs_f64(s).ok());
        if duration.is_none() {
            self.refuse(kind, field, "is not a duration; allowed: seconds as 1.5, or \"250ms\"");
        }
        duration
    }

    fn count(&mut self, kind: &str, field: &str) -> Option<u32> {
        let value = self.value(kind, field)?;
        let count = match &value {
            Value::Num(_, number) => whole(*number),
            _ => None,
        };
        let count = count.filter(|n| *n > 0);
        if count.is_none() {
            self.refuse(kind, field, "is not a count; allowed: whole numbers from 1");
        }
        count
    }
}

/// Files give signed numbers, the environment unsigned ones.
fn whole(number: Num) -> Option<u32> {
    let unsigned = number.to_u128().and_then(|n| u32::try_from(n).ok());
    unsigned.or_else(|| number.to_i128().and_then(|n| u32::try_from(n).ok()))
}

fn seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let (number, scale) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(ms), _) => (ms, 0.001),
        (None, Some(s)) => (s, 1.0),
        (None, None) => (text, 1.0),
    };
    number.trim().parse::<f64>().ok().map(|n| n * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> Result<Settings, ConfigError> {
        Settings::read(Figment::new().merge(Toml::string(toml)))
    }

    #[test]
    fn durations_and_counts_reach_the_builder() {
        let settings = read("[database]\ntimeout = \"250ms\"\nmax_attempts = 7").unwrap();
        let policy = settings.policy(Kind::Database, "t-settings").build().unwrap();
        assert_eq!(policy.timeout(), Some(Duration::from_millis(250)));
        let settings = read("[database]\ntimeout = 3\n[file]\ntimeout = 1.5").unwrap();
        let timeout = |kind| settings.policy(kind, "t-settings").build().unwrap().timeout();
        assert_eq!(timeout(Kind::Database), Some(Duration::from_secs(3)));
        assert_eq!(timeout(Kind::File), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn every_bad_value_is_named_at_once() {
        let error = read("[database]\ntimeout = \"soon\"\n[api]\nmax_attempts = 0").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("MAINSTAY_DATABASE_TIMEOUT"), "{text}");
        assert!(text.contains("MAINSTAY_API_MAX_ATTEMPTS"), "{text}");
    }
}
