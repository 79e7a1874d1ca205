//! Which value came from where, for people who ask why it is so; no secret is shown.

use super::{Overrides, Settings, all_keys, names};
use crate::policy::{Kind, defaults};
use figment::{Source, value::Value};
use serde::Serialize;
use std::{env, time::Duration};

/// One setting: its name, its value and who gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SettingOrigin {
    /// As in a settings file: `database.timeout`.
    pub name: String,
    /// The value. Of a URL: its scheme and its host. Of what is no setting: nothing.
    pub value: String,
    /// The environment variable, the file, or `default`.
    pub source: String,
}

/// What stands in for a URL that Mainstay's own variables do not give.
const STAND_INS: [(&str, &str, &str); 2] =
    [("database", "url", "DATABASE_URL"), ("redis", "url", "REDIS_URL")];

impl Settings {
    /// Every setting that somebody gave and where; then the main ones that nobody gave, with the
    /// defaults that hold in their place.
    #[must_use]
    pub fn origins(&self) -> Vec<SettingOrigin> {
        let mut all: Vec<_> =
            self.given_keys().iter().map(|(table, key)| self.given(table, key)).collect();
        for (table, key, variable) in STAND_INS {
            let value = env::var(variable).ok().filter(|value| !value.is_empty());
            if let Some(value) = value.filter(|_| !self.is_set(table, key)) {
                let (name, value) = (format!("{table}.{key}"), masked_url(&value));
                all.push(SettingOrigin { name, value, source: variable.to_owned() });
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        for kind in Kind::ALL {
            let unset =
                of_kind(kind).into_iter().filter(|(field, _)| !self.is_set(kind.name(), field));
            all.extend(unset.map(|(field, value)| SettingOrigin {
                name: format!("{}.{field}", kind.name()),
                value,
                source: "default".to_owned(),
            }));
        }
        all
    }

    /// Without those that are empty, and so as good as not given.
    fn given_keys(&self) -> Vec<(String, String)> {
        let mut keys = all_keys(&self.connections);
        keys.retain(|(table, key)| key.is_empty() || self.is_set(table, key));
        keys
    }

    fn given(&self, table: &str, key: &str) -> SettingOrigin {
        let name = if key.is_empty() { table.to_owned() } else { format!("{table}.{key}") };
        let value = self.connections.find_value(&name).ok();
        let metadata = value.as_ref().and_then(|value| self.connections.get_metadata(value.tag()));
        let source = match metadata.and_then(|metadata| metadata.source.as_ref()) {
            Some(Source::File(path)) => path.display().to_string(),
            _ => format!("{}{}", self.prefix, name.replacen('.', "_", 1)).to_uppercase(),
        };
        let value = match value {
            // Nothing reads it: who knows what it holds.
            _ if !names::is_known(table, key) => "not a setting, so not shown".to_owned(),
            Some(Value::String(_, text)) if key.ends_with("url") => masked_url(&text),
            Some(Value::String(_, text)) => text.chars().take(60).collect(),
            Some(value) => names::shown(&value),
            None => String::new(),
        };
        SettingOrigin { name, value, source }
    }
}

fn of_kind(kind: Kind) -> Vec<(&'static str, String)> {
    let seconds = |length: Duration| format!("{}", length.as_secs_f64());
    let tuning = defaults(kind);
    let all = vec![
        ("timeout", tuning.timeout.map_or_else(|| "none".to_owned(), seconds)),
        ("max_attempts", tuning.max_attempts.to_string()),
        ("base_delay", seconds(tuning.backoff.base_delay)),
        ("max_delay", seconds(tuning.backoff.max_delay)),
        ("failure_threshold", tuning.breaker.failure_threshold.to_string()),
        ("recovery_timeout", seconds(tuning.breaker.recovery_timeout)),
    ];
    debug_assert!(all.iter().all(|(field, _)| Overrides::FIELDS.contains(field)));
    all
}

/// A URL's scheme and hosts. User, password, path and query may be secrets, and a URL that is not
/// written as it should be may have them anywhere: of such a one nothing is shown.
#[must_use]
pub fn masked_url(url: &str) -> String {
    const HIDDEN: &str = "set, not shown";
    let Some((scheme, rest)) = url.split_once("://") else { return HIDDEN.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((_, hosts)) => ("..@", hosts),
        None => ("", authority),
    };
    let host = |host: &str| {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !host.ends_with(']') => (name, port),
            _ => (host, "0"),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
        !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && name.chars().all(plain)
    };
    let is_plain = scheme.len() <= 20
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !path.contains('@')
        && hosts.split(',').all(host);
    if !is_plain {
        return HIDDEN.to_owned();
    }
    let path = if path.len() > 1 { "/.." } else { "" };
    format!("{scheme}://{user}{hosts}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_url_nothing_is_shown_but_scheme_and_host() {
        for (url, shown) in [
            ("postgres://user:s3cret@db:5432/s3cret?password=s3cret", "postgres://..@db:5432/.."),
            ("postgres://user@one:5432,two:5432/db", "postgres://..@one:5432,two:5432/.."),
            ("redis://[::1]:6379", "redis://[::1]:6379"),
            ("redis://:s3cret@[::1]/1", "redis://..@[::1]/.."),
            ("https://api.example.com/", "https://api.example.com"),
            ("https://api.example.com?key=s3cret", "https://api.example.com/.."),
            ("sqlite:///var/s3cret.db", "sqlite:///.."),
            // A password with a sign that ends a host.
            ("postgres://user:s3cret/x@db/db", "set, not shown"),
            ("postgres://user:1234?s3cret@db/db", "set, not shown"),
            ("postgres://user:s3cret#x@db", "set, not shown"),
            ("postgres://user:s3cret", "set, not shown"),
            ("s3cret", "set, not shown"),
            ("s3cret s3cret://db", "set, not shown"),
            ("", "set, not shown"),
        ] {
            assert_eq!(masked_url(url), shown, "{url}");
            assert!(!masked_url(url).contains("s3cret"));
        }
    }

    #[test]
    #[allow(clippy::result_large_err)] // The type of Jail.
    fn each_setting_says_where_it_came_from() {
        crate::config::tests::jail(|jail| {
            jail.create_file(
                "mainstay.toml",
                "[database]\ntimeout = \"3s\"\nurl = \"postgres://u:s3cret@db/x\"\n\
                 [redis]\npassword = \"s3cret\"\n",
            )?;
            jail.set_env("MAINSTAY_DATABASE_MAX_ATTEMPTS", "7");
            jail.set_env("MAINSTAY_HTTP_BILLING_BASE_URL", "https://me:s3cret@billing");
            jail.set_env("REDIS_URL", "redis://:s3cret@cache:6379");
            let origins = Settings::load("MAINSTAY_").unwrap().origins();
            let of = |name: &str| {
                let found = origins.iter().find(|origin| origin.name == name);
                found.map(|found| (&*found.value, &*found.source)).unwrap()
            };
            let file = of("database.timeout");
            assert!(file.0 == "3s" && file.1.ends_with("mainstay.toml"), "{file:?}");
            assert_eq!(of("database.url").0, "postgres://..@db/..");
            assert_eq!(of("database.max_attempts"), ("7", "MAINSTAY_DATABASE_MAX_ATTEMPTS"));
            assert_eq!(
                of("http.billing_base_url"),
                ("https://..@billing", "MAINSTAY_HTTP_BILLING_BASE_URL")
            );
            assert_eq!(of("redis.url"), ("redis://..@cache:6379", "REDIS_URL"));
            assert_eq!(of("redis.password").0, "not a setting, so not shown");
            assert_eq!(of("database.base_delay"), ("0.5", "default"));
            assert_eq!(of("cache.timeout"), ("5", "default"));
            assert!(!format!("{origins:?}").contains("s3cret"));
            Ok(())
        });
    }
}
