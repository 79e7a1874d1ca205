//! `mainstay doctor`: are the settings right, and does everything that they name answer?
//!
//! ```sh
//! cargo run --features doctor -- doctor
//! ```
//!
//! It reads the settings as a service started here would, says where each value came from with its
//! secrets left out, asks every dependency that they name, and ends with 0 if all answer, 1 if a
//! dependency does not, 2 if the settings or the command line cannot be used: fit for an exec probe
//! or an init container.

#[path = "mainstay/dependencies.rs"]
mod dependencies;

use dependencies::{Dependency, Seen};
use mainstay::{ConfigError, HealthStatus, SettingOrigin, Settings, set_settings_prefix, settings};
use serde::Serialize;
use std::{collections::BTreeSet, env, io::Write, process::ExitCode};

const USAGE: &str =
    "usage: mainstay doctor [--json] [--optional NAME].. [--http-path PATH] [--prefix PREFIX]

  --json             one JSON object in place of the tables
  --optional NAME    this dependency may be down; NAME as in the table, such as redis
  --http-path PATH   ask HTTP servers for this path below their base URL, such as /health
  --prefix PREFIX    of the environment variables, in place of MAINSTAY_

ends with 0: everything answers; 1: a dependency does not; 2: settings or arguments cannot be used";

#[derive(Debug, Default)]
struct Arguments {
    json: bool,
    optional: BTreeSet<String>,
    http_path: String,
    prefix: Option<String>,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    settings: &'a [SettingOrigin],
    warnings: &'a [String],
    dependencies: &'a [Seen],
}

#[derive(Debug, Serialize)]
struct Unusable<'a> {
    ok: bool,
    problems: &'a [String],
}

fn main() -> ExitCode {
    let arguments = match Arguments::read(env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            if env::args().any(|word| word == "--json") {
                say_json(&Unusable { ok: false, problems: &[problem] });
            } else {
                say(&format!("{problem}\n\n{USAGE}"));
            }
            return ExitCode::from(2);
        }
    };
    match examine(&arguments) {
        Ok(code) => code,
        Err(error) => {
            if arguments.json {
                say_json(&Unusable { ok: false, problems: error.problems() });
            } else {
                say(&format!("The settings cannot be used:\n  {}", error.problems().join("\n  ")));
            }
            ExitCode::from(2)
        }
    }
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        match words.next().as_deref() {
            Some("doctor") => {}
            Some(other) => return Err(format!("there is no command `{other}`, only `doctor`")),
            None => return Err("say what to do: `mainstay doctor`".to_owned()),
        }
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value after it"));
            match word.as_str() {
                "--json" => arguments.json = true,
                "--optional" => drop(arguments.optional.insert(value()?)),
                "--http-path" => arguments.http_path = value()?,
                "--prefix" => arguments.prefix = Some(value()?),
                other => return Err(format!("there is no option `{other}`")),
            }
        }
        Ok(arguments)
    }
}

fn examine(arguments: &Arguments) -> Result<ExitCode, ConfigError> {
    if let Some(prefix) = &arguments.prefix {
        set_settings_prefix(prefix)?;
    }
    let settings = settings()?;
    let found = dependencies::configured(&settings);
    let unknown: Vec<_> = arguments
        .optional
        .iter()
        .filter(|name| found.iter().all(|dependency| dependency.name != **name))
        .map(|name| format!("--optional {name}: the settings name no such dependency"))
        .collect();
    if !unknown.is_empty() {
        return Err(ConfigError::new(unknown));
    }
    let shown = worth_showing(&settings, &found);
    let seen = dependencies::ask(found, arguments)?;
    let down = |seen: &Seen| seen.critical && seen.health.status == HealthStatus::Unhealthy;
    let ok = !seen.is_empty() && !seen.iter().any(down);
    if arguments.json {
        let warnings = settings.warnings();
        say_json(&Report { ok, settings: &shown, warnings, dependencies: &seen });
    } else {
        print(&settings, &shown, &seen);
    }
    Ok(match (ok, seen.is_empty()) {
        (true, _) => ExitCode::SUCCESS,
        (false, false) => ExitCode::from(1),
        (false, true) => ExitCode::from(2),
    })
}

/// What was set, and the defaults of the kinds that are in use.
fn worth_showing(settings: &Settings, found: &[Dependency]) -> Vec<SettingOrigin> {
    let in_use = |origin: &SettingOrigin| {
        let kind = origin.name.split('.').next().unwrap_or_default();
        found.iter().any(|dependency| dependency.kind == kind)
    };
    let mut all = settings.origins();
    all.retain(|origin| origin.source != "default" || in_use(origin));
    all
}

fn print(settings: &Settings, shown: &[SettingOrigin], seen: &[Seen]) {
    let rows = shown.iter().map(|it| [it.name.clone(), it.value.clone(), it.source.clone()]);
    say(&table(["SETTING", "VALUE", "FROM"], rows.collect()));
    for warning in settings.warnings() {
        say(&format!("warning: {warning}"));
    }
    say("");
    if seen.is_empty() {
        say(&format!(
            "The settings name no dependency. Set {}, {},\n{} or {} with {}, or write\n\
             them to mainstay.toml.",
            settings.variable("database", "url"),
            settings.variable("redis", "url"),
            settings.variable("http", "base_url"),
            settings.variable("s3", "bucket"),
            settings.variable("s3", "region"),
        ));
        return;
    }
    let rows = seen.iter().map(|it| {
        let optional = if it.critical { "" } else { " (optional)" };
        let took = format!("{:.1} ms", it.health.latency.as_secs_f64() * 1e3);
        let name = format!("{}{optional}", it.name);
        [name, it.health.status.name().to_owned(), took, it.health.detail.clone()]
    });
    say(&table(["DEPENDENCY", "STATUS", "TOOK", "SEEN"], rows.collect()));
}

fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let head = head.map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    [&head].into_iter().chain(&rows).map(line).collect::<Vec<_>>().join("\n")
}

fn say_json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string_pretty(value) {
        say(&text);
    }
}

/// Whoever reads this may have gone, as `head` does; that is no reason to panic.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
