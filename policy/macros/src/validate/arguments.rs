//! The values of arguments, and contradictions among them.

use super::Problems;
use crate::{
    Written,
    parse::{Argument, Arguments},
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};
use syn::{Expr, ExprLit, ExprPath, Lit};

/// What an operation talks to, as `mainstay_policy::Kind`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Database,
    Cache,
    Api,
    File,
    Ml,
    Custom,
    Default,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Database, Self::Cache, Self::Api, Self::File, Self::Ml, Self::Custom, Self::Default];

    /// As in settings and in breakers' names.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Cache => "cache",
            Self::Api => "api",
            Self::File => "file",
            Self::Ml => "ml",
            Self::Custom => "custom",
            Self::Default => "default",
        }
    }

    pub(crate) const fn variant(self) -> &'static str {
        match self {
            Self::Database => "Database",
            Self::Cache => "Cache",
            Self::Api => "Api",
            Self::File => "File",
            Self::Ml => "Ml",
            Self::Custom => "Custom",
            Self::Default => "Default",
        }
    }

    /// The engine's defaults that an argument can contradict; a test holds them together.
    const fn defaults(self) -> Defaults {
        // timeout, base delay, max delay: milliseconds.
        let (timeout, base_delay, max_delay) = match self {
            Self::Database => (30_000, 500, 10_000),
            Self::Cache => (5_000, 100, 1_000),
            Self::Api => (60_000, 1_000, 30_000),
            Self::File => (10_000, 200, 5_000),
            Self::Ml => (300_000, 5_000, 30_000),
            Self::Custom | Self::Default => (5_000, 1_000, 30_000),
        };
        Defaults {
            timeout: Duration::from_millis(timeout),
            base_delay: Duration::from_millis(base_delay),
            max_delay: Duration::from_millis(max_delay),
        }
    }
}

struct Defaults {
    timeout: Duration,
    base_delay: Duration,
    max_delay: Duration,
}

#[derive(Clone, Copy)]
pub(crate) enum Jitter {
    Full,
    Equal,
    Decorrelated,
    None,
}

impl Jitter {
    pub(crate) const fn variant(self) -> &'static str {
        match self {
            Self::Full => "Full",
            Self::Equal => "Equal",
            Self::Decorrelated => "Decorrelated",
            Self::None => "None",
        }
    }
}

/// The arguments by their meaning; `None` is what was not given.
pub(crate) struct Settings {
    pub(crate) kind: Kind,
    pub(crate) operation_name: Option<String>,
    pub(crate) dependency: Option<String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) base_delay: Option<Duration>,
    pub(crate) max_delay: Option<Duration>,
    pub(crate) exponential_base: Option<f64>,
    pub(crate) jitter: Option<Jitter>,
    pub(crate) failure_threshold: Option<u32>,
    pub(crate) recovery_timeout: Option<Duration>,
    pub(crate) retry_if: Option<ExprPath>,
    pub(crate) classify: Option<bool>,
    pub(crate) idempotent: Option<bool>,
    pub(crate) enable_timeout: Option<bool>,
    pub(crate) enable_retry: Option<bool>,
    pub(crate) enable_circuit_breaker: Option<bool>,
}

const OPERATION_TYPE: &str = "operation_type";

const NAMES: [&str; 18] = [
    "operation_name",
    "dependency",
    "timeout_seconds",
    "deadline_seconds",
    "max_attempts",
    "base_delay",
    "max_delay",
    "exponential_base",
    "jitter",
    "failure_threshold",
    "recovery_timeout",
    "retry_if",
    "classify",
    "idempotent",
    "enable_timeout",
    "enable_retry",
    "enable_circuit_breaker",
    OPERATION_TYPE,
];

impl Settings {
    pub(super) fn new(written: Written, arguments: Arguments, problems: &mut Problems) -> Self {
        let given = known(written, arguments, problems);
        let mut given = Given { values: &given, problems };
        let settings = Self {
            kind: written.kind.or(given.read(OPERATION_TYPE, kind)).unwrap_or(Kind::Default),
            operation_name: given.read("operation_name", name),
            dependency: given.read("dependency", name),
            timeout: given.read("timeout_seconds", some_seconds),
            deadline: given.read("deadline_seconds", some_seconds),
            max_attempts: given.read("max_attempts", count),
            base_delay: given.read("base_delay", seconds),
            max_delay: given.read("max_delay", seconds),
            exponential_base: given.read("exponential_base", factor),
            jitter: given.read("jitter", jitter),
            failure_threshold: given.read("failure_threshold", count),
            recovery_timeout: given.read("recovery_timeout", some_seconds),
            retry_if: given.read("retry_if", path),
            classify: given.read("classify", flag),
            idempotent: given.read("idempotent", flag),
            enable_timeout: given.read("enable_timeout", flag),
            enable_retry: given.read("enable_retry", flag),
            enable_circuit_breaker: given.read("enable_circuit_breaker", flag),
        };
        settings.contradictions(&mut given);
        settings
    }

    /// Among what is given, and the kind's defaults where the other one is not.
    fn contradictions(&self, given: &mut Given<'_>) {
        let (kind, defaults) = (self.kind.name(), self.kind.defaults());
        if let Some(deadline) = self.deadline.filter(|_| self.enable_timeout != Some(false)) {
            match self.timeout {
                Some(timeout) if deadline < timeout => given.refuse(
                    "deadline_seconds",
                    &format!("is shorter than one attempt's `timeout_seconds`, {timeout:?}"),
                ),
                None if deadline < defaults.timeout => given.refuse(
                    "deadline_seconds",
                    &format!(
                        "is shorter than one attempt, {:?} for kind {kind}; give `timeout_seconds` \
                         too",
                        defaults.timeout
                    ),
                ),
                _ => {}
            }
        }
        match (self.base_delay, self.max_delay) {
            (Some(base), Some(max)) if base > max => {
                given.refuse("base_delay", &format!("is over `max_delay`, {max:?}"));
            }
            (Some(base), None) if base > defaults.max_delay => given.refuse(
                "base_delay",
                &format!(
                    "is over the longest wait, {:?} for kind {kind}; give `max_delay` too",
                    defaults.max_delay
                ),
            ),
            (None, Some(max)) if max < defaults.base_delay => given.refuse(
                "max_delay",
                &format!(
                    "is below the first wait, {:?} for kind {kind}; give `base_delay` too",
                    defaults.base_delay
                ),
            ),
            _ => {}
        }
    }
}

/// The values by name; unknown and second ones are problems.
fn known(
    written: Written,
    arguments: Arguments,
    problems: &mut Problems,
) -> BTreeMap<String, Expr> {
    let allowed = &NAMES[..NAMES.len() - usize::from(written.kind.is_some())];
    let mut values = BTreeMap::new();
    for Argument { name: ident, value } in arguments.0 {
        let name = ident.to_string();
        if !allowed.contains(&name.as_str()) {
            problems.add(&ident, unknown(written, &name, allowed));
            continue;
        }
        match values.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(value);
            }
            Entry::Occupied(_) => problems.add(&ident, format!("`{ident}` is given twice")),
        }
    }
    values
}

fn unknown(written: Written, name: &str, allowed: &[&str]) -> String {
    let attribute = written.name;
    match name {
        OPERATION_TYPE => format!(
            "`#[{attribute}]` is of one kind; `operation_type` is an argument of `#[resilient]`"
        ),
        "retry_exceptions" => {
            "no argument `retry_exceptions`; name a function that looks at the error: \
             `retry_if = is_transient`"
                .to_owned()
        }
        _ => {
            let hint = nearest(name, allowed)
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            let allowed = allowed.join(", ");
            format!("no argument `{name}`{hint}\nallowed: {allowed}")
        }
    }
}

/// The name that was probably meant: one that begins alike, or differs in a third of its letters.
fn nearest<'a>(name: &str, among: &[&'a str]) -> Option<&'a str> {
    let begins = among.iter().find(|known| known.starts_with(name) || name.starts_with(**known));
    let near = among.iter().min_by_key(|known| distance(name, known));
    begins.or(near.filter(|known| distance(name, known) * 3 <= known.len())).copied()
}

/// How many letters to insert, remove or change.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, of_a) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, of_b) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(of_a != of_b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

struct Given<'a> {
    values: &'a BTreeMap<String, Expr>,
    problems: &'a mut Problems,
}

/// A reader says what it takes when it gets something else.
type Read<T> = Result<T, &'static str>;

impl Given<'_> {
    fn read<T>(&mut self, name: &str, read: impl FnOnce(&Expr) -> Read<T>) -> Option<T> {
        let value = self.values.get(name)?;
        match read(bare(value)) {
            Ok(value) => Some(value),
            Err(takes) => {
                self.problems.add(value, format!("`{name}` takes {takes}"));
                None
            }
        }
    }

    fn refuse(&mut self, name: &str, problem: &str) {
        self.problems.add(self.values.get(name), format!("`{name}` {problem}"));
    }
}

/// Without parentheses, and without the invisible ones of `macro_rules`.
fn bare(value: &Expr) -> &Expr {
    match value {
        Expr::Group(group) => bare(&group.expr),
        Expr::Paren(paren) => bare(&paren.expr),
        _ => value,
    }
}

const fn literal(value: &Expr) -> Option<&Lit> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Some(lit),
        _ => None,
    }
}

/// `5ms` is a number with a suffix to the compiler.
fn is_of_numbers(suffix: &str) -> bool {
    matches!(
        suffix,
        "" | "u8"
            | "u16"
            | "u32"
            | "u64"
            | "usize"
            | "i8"
            | "i16"
            | "i32"
            | "i64"
            | "isize"
            | "f32"
            | "f64"
    )
}

fn integer(value: &Expr) -> Option<u64> {
    match literal(value)? {
        Lit::Int(int) if is_of_numbers(int.suffix()) => int.base10_parse().ok(),
        _ => None,
    }
}

fn float(value: &Expr) -> Option<f64> {
    match literal(value)? {
        Lit::Float(float) if is_of_numbers(float.suffix()) => float.base10_parse().ok(),
        _ => None,
    }
}

fn duration(value: &Expr) -> Option<Duration> {
    let whole = integer(value).map(Duration::from_secs);
    whole.or_else(|| Duration::try_from_secs_f64(float(value)?).ok())
}

fn seconds(value: &Expr) -> Read<Duration> {
    duration(value).ok_or("seconds from 0, such as `2` or `0.5`")
}

fn some_seconds(value: &Expr) -> Read<Duration> {
    let some = duration(value).filter(|duration| !duration.is_zero());
    some.ok_or("seconds above 0, such as `2` or `0.5`")
}

fn count(value: &Expr) -> Read<u32> {
    let count = integer(value).and_then(|count| u32::try_from(count).ok());
    count.filter(|count| *count > 0).ok_or("a whole number from 1")
}

fn factor(value: &Expr) -> Read<f64> {
    let whole = integer(value).and_then(|whole| u32::try_from(whole).ok()).map(f64::from);
    let factor = whole.or_else(|| float(value));
    factor
        .filter(|factor| *factor >= 1.0 && factor.is_finite())
        .ok_or("a number from 1, such as `1.5`")
}

fn flag(value: &Expr) -> Read<bool> {
    match literal(value) {
        Some(Lit::Bool(flag)) => Ok(flag.value),
        _ => Err("`true` or `false`"),
    }
}

fn text(value: &Expr) -> Option<String> {
    match literal(value)? {
        Lit::Str(text) => Some(text.value()),
        _ => None,
    }
}

fn name(value: &Expr) -> Read<String> {
    text(value).filter(|name| !name.is_empty()).ok_or("a name in quotes")
}

fn kind(value: &Expr) -> Read<Kind> {
    let name = text(value);
    Kind::ALL.into_iter().find(|kind| name.as_deref() == Some(kind.name())).ok_or(
        "\"database\", \"cache\", \"api\", \"file\", \"ml\", \"custom\" or \"default\", in quotes",
    )
}

fn jitter(value: &Expr) -> Read<Jitter> {
    let spread = flag(value).ok();
    match (text(value).as_deref(), spread) {
        (Some("full"), _) | (_, Some(true)) => Ok(Jitter::Full),
        (Some("none"), _) | (_, Some(false)) => Ok(Jitter::None),
        (Some("equal"), _) => Ok(Jitter::Equal),
        (Some("decorrelated"), _) => Ok(Jitter::Decorrelated),
        _ => Err(
            "\"full\", \"equal\", \"decorrelated\" or \"none\", in quotes, or `true` or `false`",
        ),
    }
}

fn path(value: &Expr) -> Read<ExprPath> {
    match value {
        Expr::Path(path) => Ok(path.clone()),
        _ => Err("the path of a `fn(&E) -> bool`, such as `is_transient`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_policy::Policy;

    #[test]
    fn defaults_are_the_engines() {
        let just_below = |limit: Duration| limit - Duration::from_millis(1);
        for kind in Kind::ALL {
            let theirs = [
                mainstay_policy::Kind::Database,
                mainstay_policy::Kind::Cache,
                mainstay_policy::Kind::Api,
                mainstay_policy::Kind::File,
                mainstay_policy::Kind::Ml,
                mainstay_policy::Kind::Custom,
                mainstay_policy::Kind::Default,
            ];
            let theirs = theirs.into_iter().find(|theirs| theirs.name() == kind.name()).unwrap();
            assert_eq!(format!("{theirs:?}"), kind.variant());
            let builder = || Policy::builder(theirs, "defaults");
            let Defaults { timeout, base_delay, max_delay } = kind.defaults();
            assert_eq!(builder().build().unwrap().timeout(), Some(timeout));
            assert!(builder().max_delay(base_delay).build().is_ok());
            assert!(builder().max_delay(just_below(base_delay)).build().is_err());
            assert!(builder().base_delay(max_delay).build().is_ok());
            assert!(builder().base_delay(just_below(max_delay)).build().is_ok());
            assert!(builder().base_delay(max_delay + Duration::from_millis(1)).build().is_err());
        }
    }

    #[test]
    fn finds_the_name_that_was_meant() {
        for (written, meant) in [
            ("timeout", Some("timeout_seconds")),
            ("timeout_second", Some("timeout_seconds")),
            ("max_attempt", Some("max_attempts")),
            ("attempts", Some("max_attempts")),
            ("retry_fi", Some("retry_if")),
            ("colour", None),
        ] {
            assert_eq!(nearest(written, &NAMES), meant, "{written}");
        }
    }
}
