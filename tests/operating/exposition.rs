//! `/metrics` is what Prometheus reads, and the dashboard and alerts in `deploy/` ask for what is there.

use crate::ask::{get, health};
use mainstay::{BreakGrowth, HealthStatus, Kind, Policy, Readiness, web::Routes};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

/// One sample: its labels and its value.
type Samples = BTreeMap<String, Vec<(BTreeMap<String, String>, f64)>>;

/// The text format 0.0.4, strictly: every family has its help and type once, before its samples, which
/// are together; no sample is there twice.
fn read(text: &str) -> Samples {
    let (mut families, mut all, mut current) = (BTreeMap::new(), Samples::new(), String::new());
    let mut seen = BTreeSet::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned(), None).is_none(), "{name} twice");
            assert!(!help.is_empty());
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(name == current && ["gauge", "counter"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            families.insert(name.to_owned(), Some(kind.to_owned()));
        } else {
            let (name, labels, value) = sample(line);
            assert_eq!(name, current, "{line}");
            assert!(families[&name].is_some(), "{line}");
            assert!(seen.insert((name.clone(), labels.clone())), "{line} twice");
            all.entry(name).or_default().push((labels, value));
        }
    }
    all
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let name: String =
        line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    let mut rest = &line[name.len()..];
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            let (mut value, mut characters) = (String::new(), after.char_indices());
            let end = loop {
                match characters.next().unwrap() {
                    (_, '\\') => value.push(match characters.next().unwrap().1 {
                        'n' => '\n',
                        plain @ ('\\' | '"') => plain,
                        other => panic!("\\{other} in {line}"),
                    }),
                    (end, '"') => break end,
                    (_, plain) => value.push(plain),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').unwrap();
    }
    let value = rest.strip_prefix(' ').unwrap().parse().unwrap();
    (name, labels, value)
}

fn of(samples: &Samples, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |(have, _): &&(BTreeMap<String, String>, f64)| {
        labels.iter().all(|(label, value)| have.get(*label).is_some_and(|have| have == value))
    };
    samples.get(name)?.iter().find(fits).map(|(_, value)| *value)
}

async fn metrics() -> String {
    let readiness = Readiness::builder()
        .critical("db", (), |()| async { health(HealthStatus::Healthy) })
        .optional("mail", (), |()| async { health(HealthStatus::Unhealthy) })
        .build();
    let routes = Routes::new(readiness.clone()).gauges("api:t-exposed", || vec![("in use", 3)]);
    let router =
        routes.and_metrics(|| "# HELP own A.\n# TYPE own gauge\nown 1\n".to_owned()).router();
    readiness.report().await;
    let answer = get(&router, "/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    answer.body
}

#[tokio::test]
async fn it_counts_what_happened() {
    let policy = Policy::api("t-exposed");
    for _ in 0..3 {
        policy.call(|| async { Ok::<_, io::Error>(()) }).await.unwrap();
    }
    let open = Policy::builder(Kind::Api, "t-exposed-open").failure_threshold(1).max_attempts(1);
    // Its break lasts as long as this does: a minute.
    let open = open.break_growth(BreakGrowth::Fixed).build().unwrap();
    for _ in 0..2 {
        open.call(|| async { Err::<(), _>(io::Error::other("down")) }).await.unwrap_err();
    }
    let odd = "t-\"odd\"\\\nname";
    let _odd = Policy::builder(Kind::Api, odd).build().unwrap();

    let samples = read(&metrics().await);
    let calls = |name, outcome| {
        of(&samples, "mainstay_calls_total", &[("dependency", name), ("outcome", outcome)])
    };
    assert_eq!(calls("api:t-exposed", "success"), Some(3.0));
    assert_eq!(calls("t-exposed-open", "failure"), Some(1.0));
    assert_eq!(calls(odd, "neutral"), Some(0.0));
    let state = |state| {
        let labels = [("dependency", "t-exposed-open"), ("state", state)];
        of(&samples, "mainstay_breaker_state", &labels)
    };
    assert_eq!((state("open"), state("closed")), (Some(1.0), Some(0.0)));
    let refused = of(&samples, "mainstay_refused_calls_total", &[("dependency", "t-exposed-open")]);
    assert_eq!(refused, Some(1.0));
    let half = [("dependency", "api:t-exposed"), ("percentile", "50")];
    assert!(of(&samples, "mainstay_answer_seconds", &half).is_some_and(|seconds| seconds < 1.0));
    assert_eq!(of(&samples, "mainstay_client_figure", &[("figure", "in use")]), Some(3.0));
    assert_eq!(of(&samples, "mainstay_ready", &[]), Some(1.0));
    let mail = [("check", "mail"), ("critical", "false")];
    assert_eq!(of(&samples, "mainstay_check_status", &mail), Some(2.0));
    assert_eq!(of(&samples, "own", &[]), Some(1.0));
}

/// A scrape is enough: what it does not find yet, the next one does.
#[tokio::test]
async fn checks_are_made_where_nobody_probes() {
    let readiness = Readiness::builder()
        .interval(Duration::ZERO)
        .critical("db", (), |()| async { health(HealthStatus::Unhealthy) })
        .build();
    let router = Routes::new(readiness).router();
    let began = Instant::now();
    let ready = async || of(&read(&get(&router, "/metrics").await.body), "mainstay_ready", &[]);
    while ready().await.is_none() {
        assert!(began.elapsed() < Duration::from_secs(20), "no round began");
        tokio::task::yield_now().await;
    }
    assert_eq!(ready().await, Some(0.0));
}

/// What an expression asks for: a metric, and a label with each value that it may have. `$job` and the
/// like are for Grafana to fill in; `job` and `instance` are Prometheus' own.
fn asked(expression: &str) -> Vec<(String, String, Vec<String>)> {
    let mut all = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find("mainstay_") {
        rest = &rest[at..];
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        let Some((inside, after)) = after.strip_prefix('{').and_then(|after| after.split_once('}'))
        else {
            continue;
        };
        rest = after;
        for matcher in inside.split("\",") {
            // Without one it is `!~`.
            let Some((label, value)) = matcher.split_once('=') else { continue };
            let value = value.trim_start_matches('~').trim_matches('"');
            if value.starts_with('$') || label.ends_with('!') {
                continue;
            }
            let values = value.split('|').map(str::to_owned).collect();
            all.push((name.to_owned(), label.to_owned(), values));
        }
    }
    all
}

/// Names of ours in any text.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    text.split(word).filter(|word| word.starts_with("mainstay_")).map(str::to_owned).collect()
}

/// A label's value in an expression is one that a service with a pool has.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn the_dashboard_and_the_alerts_ask_for_what_is_there() {
    let policy = Policy::api("t-asked-for");
    policy.call(|| async { Ok::<_, io::Error>(()) }).await.unwrap();
    let db = mainstay::SqliteDatabase::builder().name("t-asked-for").url("sqlite::memory:");
    let db = db.build().unwrap();
    assert_eq!(db.health_check().await.status, HealthStatus::Healthy);
    let readiness =
        Readiness::builder().critical("db", (), |()| async { health(HealthStatus::Healthy) });
    let readiness = readiness.build();
    readiness.report().await;
    let router = Routes::new(readiness).pool(&db).router();
    let there = read(&get(&router, "/metrics").await.body);

    let dashboard: Value =
        serde_json::from_str(include_str!("../../deploy/grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut expressions: Vec<_> =
        targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    for expression in &expressions {
        assert!(!names(expression).is_empty(), "{expression}");
    }
    expressions.push(include_str!("../../deploy/prometheus-rules.yaml").to_owned());
    let names: BTreeSet<_> = expressions.iter().flat_map(|text| names(text)).collect();
    assert!(names.len() > 5, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !there.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");

    let labels: Vec<_> = expressions.iter().flat_map(|text| asked(text)).collect();
    let of_pool =
        ("mainstay_client_figure".to_owned(), "figure".to_owned(), vec!["waiting".to_owned()]);
    assert!(labels.contains(&of_pool) && labels.len() > 10, "{labels:?}");
    for (name, label, values) in labels {
        for value in values {
            let found = of(&there, &name, &[(&label, &value)]);
            assert!(found.is_some(), "no {name} has {label}=\"{value}\"");
        }
    }
}

/// Of replicas in different states the row shows the one that somebody has to look at.
#[test]
fn the_dashboard_shows_a_breaker_as_closed_only_where_all_are() {
    let dashboard = include_str!("../../deploy/grafana-dashboard.json");
    let timeline = dashboard.lines().find(|line| line.contains("ramping") && line.contains("expr"));
    let states: Vec<_> = asked(&timeline.unwrap().replace("\\\"", "\""))
        .into_iter()
        .filter(|(_, label, _)| label == "state")
        .flat_map(|(_, _, values)| values)
        .collect();
    assert_eq!(states.len(), 6, "{states:?}");
    assert_eq!(states.last().map(String::as_str), Some("closed"), "{states:?}");
}

/// A recorder's text follows ours, and Prometheus writes its dots as `_`.
#[tokio::test]
async fn what_the_metrics_facade_hears_has_other_names() {
    let ours = read(&metrics().await);
    let sources = [
        include_str!("../../policy/src/telemetry/numbers.rs"),
        include_str!("../../clients/database/src/pool/numbers.rs"),
        include_str!("../../clients/redis/src/numbers.rs"),
        include_str!("../../clients/s3/src/numbers.rs"),
    ];
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.');
    let names: BTreeSet<_> = sources
        .iter()
        .flat_map(|source| source.split(word))
        .filter(|word| word.starts_with("mainstay."))
        .map(|name| name.replace('.', "_"))
        .collect();
    assert!(names.len() > 15, "{names:?}");
    let twice: Vec<_> = names.iter().filter(|name| ours.contains_key(*name)).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// Prometheus' own tool has the last word on the text and on the rules.
#[cfg(feature = "test-servers")]
#[tokio::test]
async fn promtool_finds_nothing_wrong() {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };
    let promtool = |arguments: &[&str], input: &str| {
        let mut command = Command::new("promtool");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.expect("needs promtool (apt-get install prometheus)");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let policy = Policy::api("t-promtool");
    policy.call(|| async { Ok::<_, io::Error>(()) }).await.unwrap();
    let metrics = metrics().await;
    assert_eq!(promtool(&["check", "metrics"], &metrics), (true, String::new()));
    let twice = format!("{metrics}{metrics}");
    assert!(!promtool(&["check", "metrics"], &twice).0, "it can fail");
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
    for (what, file) in [("check", "prometheus-rules.yaml"), ("test", "prometheus-rules.test.yaml")]
    {
        let (fine, said) = promtool(&[what, "rules", &format!("{deploy}/{file}")], "");
        assert!(fine, "{said}");
    }
}
