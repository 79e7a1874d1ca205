//! Names of settings: which there are, and which was meant.

use super::{Overrides, Settings};
use crate::policy::Kind;
use figment::{Figment, Source, value::Value};

/// The clients' own settings, and the kind whose policy each uses.
const CLIENTS: [(&str, &str, &[&str]); 4] = [
    (
        "database",
        "database",
        &[
            "url",
            "application_name",
            "max_connections",
            "min_connections",
            "connect_timeout",
            "acquire_timeout",
            "ping_after",
            "idle_timeout",
            "max_lifetime",
            "statement_cache",
            "tls",
            "tls_ca",
            "pooler",
        ],
    ),
    ("redis", "cache", &["url"]),
    ("http", "api", &["base_url"]),
    ("s3", "file", &["endpoint_url", "region", "bucket"]),
];

/// Those of them that are text.
const TEXTS: [&str; 9] = [
    "url",
    "base_url",
    "endpoint_url",
    "region",
    "bucket",
    "application_name",
    "tls",
    "tls_ca",
    "pooler",
];

/// A warning for each name that nothing reads.
pub(super) fn unknown(
    prefix: &str,
    file: &str,
    keys: &[(String, String)],
    figment: &Figment,
) -> Vec<String> {
    let unknown = keys.iter().filter(|(table, key)| !is_known(table, key));
    unknown
        .map(|(table, key)| {
            let path = if key.is_empty() { table.clone() } else { format!("{table}.{key}") };
            let value = figment.find_value(&path).ok();
            let in_file = value.is_some_and(|value| is_from_file(figment, &value));
            let name = |table: &str, key: &str| match (in_file, key) {
                (true, "") => table.to_owned(),
                (true, key) => format!("{table}.{key}"),
                (false, "") => format!("{prefix}{table}").to_uppercase(),
                (false, key) => format!("{prefix}{table}_{key}").to_uppercase(),
            };
            let place = if in_file { format!(" in {file}") } else { String::new() };
            let meant = nearest(table, key)
                .map(|(table, key)| format!("; did you mean {}?", name(&table, &key)));
            format!(
                "{}{place} is not a setting of Mainstay and does nothing{}",
                name(table, key),
                meant.unwrap_or_default()
            )
        })
        .collect()
}

pub(super) fn is_known(table: &str, key: &str) -> bool {
    let policy = Kind::ALL.iter().any(|kind| kind.name() == table);
    if policy && Overrides::FIELDS.contains(&key) {
        return true;
    }
    if table == "resilience" {
        return matches!(key, "enabled" | "mode");
    }
    client_key(table, key).is_some()
}

pub(super) fn is_text(table: &str, key: &str) -> bool {
    client_key(table, key).is_some_and(|own| TEXTS.contains(&own))
}

/// The client's setting that this is: `reporting_url` is the `url` of the one named `reporting`.
fn client_key(table: &str, key: &str) -> Option<&'static str> {
    let (_, _, keys) = CLIENTS.iter().find(|(client, ..)| *client == table)?;
    keys.iter().copied().find(|own| {
        let name = key.strip_suffix(own).and_then(|name| name.strip_suffix('_'));
        key == *own
            || name.is_some_and(|name| !name.is_empty() && key == Settings::own_key(name, own))
    })
}

fn nearest(table: &str, key: &str) -> Option<(String, String)> {
    // The client's name where its policy's kind was meant.
    let kind = CLIENTS.iter().find(|(client, ..)| *client == table).map(|(_, kind, _)| *kind);
    if let Some(kind) = kind.filter(|_| Overrides::FIELDS.contains(&key)) {
        return Some((kind.to_owned(), key.to_owned()));
    }
    // A client's name is written as the getter looks for it.
    let plain = key.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "_");
    if plain != key && is_known(table, &plain) {
        return Some((table.to_owned(), plain));
    }
    // `endpoint` and `url`, where it is `endpoint_url` and `base_url`.
    let client = CLIENTS.iter().find(|(client, ..)| *client == table);
    let url = client.and_then(|(_, _, keys)| {
        keys.iter().find(|own| own.ends_with("_url") && own.split('_').any(|word| word == key))
    });
    if let Some(url) = url {
        return Some((table.to_owned(), (*url).to_owned()));
    }
    let policies = Kind::ALL
        .iter()
        .flat_map(|kind| Overrides::FIELDS.iter().map(move |field| (kind.name(), *field)));
    let clients =
        CLIENTS.iter().flat_map(|(client, _, keys)| keys.iter().map(move |key| (*client, *key)));
    let others = [("resilience", "enabled"), ("resilience", "mode")];
    let name = |table: &str, key: &str| {
        if key.is_empty() { table.to_owned() } else { format!("{table}_{key}") }
    };
    let written = name(table, key);
    // A name of one's own before a setting is no slip of the pen.
    let most = (if key.is_empty() { table.len() } else { key.len() } / 3).max(1);
    policies
        .chain(clients)
        .chain(others)
        .map(|(table, key)| (distance(&written, &name(table, key)), table, key))
        .min()
        .filter(|(distance, ..)| *distance <= most)
        .map(|(_, table, key)| (table.to_owned(), key.to_owned()))
}

/// Levenshtein's: letters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let changed = diagonal + usize::from(from != *to);
            diagonal = *cell;
            left = changed.min(left + 1).min(*cell + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

pub(super) fn is_from_file(figment: &Figment, value: &Value) -> bool {
    let source = figment.get_metadata(value.tag()).and_then(|metadata| metadata.source.as_ref());
    matches!(source, Some(Source::File(_)))
}

/// A bad value, short and in quotes. None that comes here is a secret: policies' fields, clients' own
/// that are a choice or a number, and of a URL only what is no text.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        Value::Bool(_, on) => on.to_string(),
        Value::Num(_, number) => number
            .to_f64()
            .map(|n| n.to_string())
            .or_else(|| number.to_i128().map(|n| n.to_string()))
            .or_else(|| number.to_u128().map(|n| n.to_string()))
            .unwrap_or_else(|| "a number that cannot be used".to_owned()),
        _ => "not a single value".to_owned(),
    }
}
