//! What is read, and what is said of what cannot be.
#![allow(clippy::result_large_err)] // figment's own.

use super::*;
use proptest::prelude::*;

const S: Duration = Duration::from_secs(1);

/// Files and variables of its own, which the process's own settings are read before.
pub(crate) fn jail(body: impl FnOnce(&mut figment::Jail) -> Result<(), figment::Error>) {
    let _ = crate::settings();
    figment::Jail::expect_with(body);
}

fn read(toml: &str) -> Result<Settings, ConfigError> {
    Settings::read("MAINSTAY_", "mainstay.toml", Figment::new().merge(Toml::string(toml)))
}

fn of(toml: &str, kind: Kind) -> Overrides {
    read(toml).unwrap().overrides(kind)
}

#[test]
fn durations_counts_and_choices_are_read_as_people_write_them() {
    let database = of("[database]\ntimeout = \"250ms\"\nmax_attempts = 7", Kind::Database);
    assert_eq!(database.timeout, Some(Duration::from_millis(250)));
    assert_eq!(database.max_attempts, Some(7));
    assert_eq!(of("[api]\ntimeout = 3", Kind::Api).timeout, Some(3 * S));
    assert_eq!(of("[api]\ntimeout = \"2m\"", Kind::Api).timeout, Some(120 * S));
    assert_eq!(of("[file]\ntimeout = 1.5", Kind::File).timeout, Some(3 * S / 2));
    let api = of(
        "[api]\njitter = \"equal\"\nbreak_growth = \"fixed\"\nhedge = \"p95\"\nfailure_rate = \"off\"\n\
         enable_retry = false\nslow_rate = 0.25",
        Kind::Api,
    );
    assert_eq!(api.jitter, Some(Jitter::Equal));
    assert_eq!(api.break_growth, Some(BreakGrowth::Fixed));
    assert_eq!(api.hedge, Some(Some(Hedge::P95)));
    assert_eq!(api.failure_rate, Some(Rate(None)));
    assert_eq!(api.slow_rate, Some(Rate(Some(0.25))));
    assert_eq!(api.enable_retry, Some(false));
    assert_eq!(of("[api]\njitter = false", Kind::Api).jitter, Some(Jitter::None));
}

#[test]
fn default_fills_default_and_custom_only() {
    let toml = "[default]\ntimeout = 7\nmax_attempts = 2\n[custom]\nmax_attempts = 4";
    assert_eq!(of(toml, Kind::Default).timeout, Some(7 * S));
    assert_eq!(of(toml, Kind::Custom).timeout, Some(7 * S));
    assert_eq!(of(toml, Kind::Custom).max_attempts, Some(4));
    assert_eq!(of(toml, Kind::Api).timeout, None);
    let mode = of("[resilience]\nmode = \"observe\"\n[api]\nmode = \"enforce\"", Kind::Database);
    assert_eq!(mode.mode, Some(Mode::Observe));
}

#[test]
fn every_bad_value_is_named_at_once_with_what_is_allowed() {
    let error = read(
        "[database]\ntimeout = \"soon\"\nfailure_rate = 1.5\n[api]\nmax_attempts = 0\njitter = 3\n\
         [resilience]\nenabled = \"maybe\"",
    )
    .unwrap_err();
    assert_eq!(error.problems().len(), 5, "{error}");
    let text = error.to_string();
    for part in [
        "DATABASE_TIMEOUT is \"soon\"; allowed: seconds, such as 1.5",
        "DATABASE_FAILURE_RATE is 1.5; allowed: a share",
        "API_MAX_ATTEMPTS is 0; allowed: a whole number from 1",
        "API_JITTER is 3; allowed: full, equal",
        "RESILIENCE_ENABLED is \"maybe\"; allowed: true or false",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

fn begin_of(error: &ConfigError, begin: &str) -> usize {
    error.problems().iter().filter(|problem| problem.starts_with(begin)).count()
}

#[test]
fn settings_that_contradict_each_other_are_an_error_of_their_kind() {
    let toml = "[api]\nbase_delay = 60\nmax_delay = 50\n[default]\ndeadline = 2\ntimeout = 3\n\
                [ml]\nhedge = 40\ntimeout = 30\n[database]\ndeadline = 20";
    let error = read(toml).unwrap_err();
    let begin = |begin: &str| begin_of(&error, begin);
    assert_eq!(begin("[api] base_delay is over max_delay; "), 1, "{error}");
    assert_eq!(begin("[default] deadline is shorter than the timeout"), 1, "{error}");
    assert_eq!(begin("[ml] hedge comes after the timeout"), 1, "{error}");
    // What only a kind's default stands against is none, and `[custom]` a table that nobody wrote.
    assert_eq!(error.problems().len(), 3, "{error}");
    let error = read("[default]\ntimeout = 3\n[custom]\ndeadline = 2").unwrap_err();
    assert_eq!(begin_of(&error, "[custom] deadline is shorter than the timeout"), 1, "{error}");
    assert_eq!(error.problems().len(), 1, "{error}");
}

#[test]
fn what_a_kinds_default_stands_against_is_a_warning() {
    let toml = "[api]\nbase_delay = 60\n[default]\ndeadline = 2\n[ml]\nhedge = 400\ndeadline = 500\n\
                [cache]\nmax_delay = 0.05\n[file]\ntimeout = 5\nhedge = 4\ndeadline = 6";
    let warnings = read(toml).unwrap().warnings;
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    for begin in [
        "[api] base_delay is over max_delay; ",
        "[default] deadline is shorter than the timeout",
        "[ml] hedge comes after the timeout",
        "[cache] base_delay is over max_delay; ",
    ] {
        assert_eq!(warnings.iter().filter(|w| w.starts_with(begin)).count(), 1, "{warnings:?}");
    }
}

#[test]
fn a_connection_setting_in_a_file_is_text_or_is_refused() {
    jail(|jail| {
        let toml = "[database]\ntls = 1.5\nreporting_url = [\"a\"]\n[redis]\nurl = { host = \"h\" }\n\
                    [s3]\nbucket = 2024.10";
        jail.create_file("mainstay.toml", toml)?;
        let error = Settings::load("MAINSTAY_").unwrap_err();
        assert_eq!(error.problems().len(), 4, "{error}");
        for part in [
            "database.tls in mainstay.toml is 1.5; allowed: text, in quotes",
            "database.reporting_url in mainstay.toml is not a single value; allowed: text",
            "redis.url in mainstay.toml is not a single value; allowed: text",
            "s3.bucket in mainstay.toml is 2024.1; allowed: text",
        ] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        // What is written without quotes is as it is in the environment: for the client to judge.
        jail.create_file("mainstay.toml", "[database]\ntls = true\n[s3]\nbucket = 2024.10")?;
        jail.set_env("MAINSTAY_S3_BUCKET", "2024.10");
        let settings = Settings::load("MAINSTAY_").unwrap();
        assert_eq!(settings.connection("database", "tls").as_deref(), Some("true"));
        assert_eq!(settings.connection("s3", "bucket").as_deref(), Some("2024.10"));
        Ok(())
    });
}

#[test]
fn an_empty_variable_is_one_that_is_not_set() {
    jail(|jail| {
        jail.create_file(
            "mainstay.toml",
            "[database]\ntls = \"verify-full\"\n[api]\ntimeout = 7\n[s3]\nbucket = 5\nregion = \"\"",
        )?;
        for name in ["DATABASE_TLS", "API_TIMEOUT", "S3_BUCKET", "REDIS_URL", "API_MAX_ATTEMPTS"] {
            jail.set_env(format!("MAINSTAY_{name}"), "");
        }
        jail.set_env("DATABASE_URL", "");
        jail.set_env("REDIS_URL", "redis://cache");
        let settings = Settings::load("MAINSTAY_").unwrap();
        assert_eq!(settings.connection("database", "tls").as_deref(), Some("verify-full"));
        assert_eq!(settings.connection("s3", "bucket").as_deref(), Some("5"));
        assert_eq!(settings.connection("redis", "url").as_deref(), Some("redis://cache"));
        assert_eq!(settings.connection("database", "url"), None);
        assert_eq!(settings.overrides(Kind::Api).timeout, Some(7 * S));
        assert!(!settings.is_set("redis", "url") && !settings.is_set("s3", "region"));
        let given: Vec<_> =
            settings.origins().into_iter().filter(|o| o.source != "default").collect();
        let names: Vec<_> = given.iter().map(|origin| &*origin.name).collect();
        assert_eq!(names, ["api.timeout", "database.tls", "redis.url", "s3.bucket"]);
        Ok(())
    });
}

#[test]
fn a_variable_named_like_a_table_takes_nothing_away() {
    jail(|jail| {
        jail.create_file(
            "mainstay.toml",
            "[resilience]\nmode = \"observe\"\n[database]\nurl = \"u\"",
        )?;
        for name in ["RESILIENCE", "DATABASE", "S3_", "DATABASEURL"] {
            jail.set_env(format!("MAINSTAY_{name}"), "on");
        }
        let settings = Settings::load("MAINSTAY_").unwrap();
        assert_eq!(settings.overrides(Kind::Api).mode, Some(Mode::Observe));
        assert_eq!(settings.connection("database", "url").as_deref(), Some("u"));
        let all = settings.warnings().join("\n");
        assert_eq!(settings.warnings().len(), 4, "{all}");
        for part in [
            "MAINSTAY_RESILIENCE is not a setting of Mainstay and does nothing",
            "MAINSTAY_DATABASE is not a setting",
            "MAINSTAY_DATABASEURL is not a setting of Mainstay and does nothing; did you mean \
             MAINSTAY_DATABASE_URL?",
        ] {
            assert!(all.contains(part), "{part}: {all}");
        }
        Ok(())
    });
}

#[test]
fn what_is_counted_may_be_none() {
    let settings = read("[database]\nmin_connections = 0\nmax_connections = -1").unwrap();
    assert_eq!(settings.count("database", "min_connections").unwrap(), Some(0));
    let error = settings.count("database", "max_connections").unwrap_err();
    assert!(error.to_string().contains("is -1; allowed: a whole number"), "{error}");
}

#[test]
fn a_prefix_that_no_variable_can_have_is_refused() {
    for bad in ["PYNOMALY", "pynomaly_", "", "_", "9_", "MY-APP_", "My_"] {
        let error = set_settings_prefix(bad).unwrap_err().to_string();
        assert!(error.contains(&format!("{bad:?}")) && error.contains("PYNOMALY_"), "{error}");
    }
}

#[test]
fn a_name_that_no_getter_looks_for_is_warned_of() {
    let settings = read(
        "[database]\nRead-Replica_url = \"x\"\nReporting_max_connections = 50\n_url = \"x\"\n\
         reporting_timeout = 3\n[s3]\nendpoint = \"e\"\n[http]\nurl = \"u\"",
    )
    .unwrap();
    let all = settings.warnings().join("\n");
    assert_eq!(settings.warnings().len(), 6, "{all}");
    for part in [
        "MAINSTAY_DATABASE_READ-REPLICA_URL is not a setting of Mainstay and does nothing; did you \
         mean MAINSTAY_DATABASE_READ_REPLICA_URL?",
        "did you mean MAINSTAY_S3_ENDPOINT_URL?",
        "did you mean MAINSTAY_HTTP_BASE_URL?",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    let policy = all.lines().find(|line| line.contains("REPORTING_TIMEOUT")).unwrap();
    assert!(policy.ends_with("does nothing"), "no other one is meant: {policy}");
}

#[test]
fn unknown_names_are_warned_of_with_the_nearest_known_one() {
    let settings = read(
        "[http]\ntimeout = 3\nbase_url = \"http://a\"\n[database]\nmax_attemps = 3\n\
         reporting_url = \"x\"\n[databse]\ntimeout = 3\n[s3]\narchive_bucket = \"b\"\n\
         [weather]\nsunny = true",
    )
    .unwrap();
    let all = settings.warnings().join("\n");
    assert_eq!(settings.warnings().len(), 4, "{all}");
    for part in [
        "MAINSTAY_HTTP_TIMEOUT is not a setting of Mainstay and does nothing; did you mean \
         MAINSTAY_API_TIMEOUT?",
        "did you mean MAINSTAY_DATABASE_MAX_ATTEMPTS?",
        "MAINSTAY_DATABSE_TIMEOUT is not a setting of Mainstay and does nothing; did you mean \
         MAINSTAY_DATABASE_TIMEOUT?",
        "MAINSTAY_WEATHER_SUNNY is not a setting of Mainstay and does nothing",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
}

/// The block of environment variables of the system that users come from.
#[test]
fn the_environment_of_the_reference_system_loads_unchanged() {
    let block = "RESILIENCE_ENABLED=true DEFAULT_TIMEOUT=5.0 DEFAULT_MAX_ATTEMPTS=3 \
        DATABASE_TIMEOUT=30.0 DATABASE_MAX_ATTEMPTS=3 DATABASE_BASE_DELAY=0.5 \
        DATABASE_FAILURE_THRESHOLD=3 API_TIMEOUT=60.0 API_MAX_ATTEMPTS=5 API_BASE_DELAY=1.0 \
        API_FAILURE_THRESHOLD=5 CACHE_TIMEOUT=5.0 CACHE_MAX_ATTEMPTS=2 CACHE_BASE_DELAY=0.1 \
        CACHE_FAILURE_THRESHOLD=3 FILE_TIMEOUT=10.0 FILE_MAX_ATTEMPTS=3 FILE_BASE_DELAY=0.2 \
        FILE_FAILURE_THRESHOLD=3 ML_TIMEOUT=300.0 ML_MAX_ATTEMPTS=2 ML_BASE_DELAY=5.0 \
        ML_FAILURE_THRESHOLD=2";
    jail(|jail| {
        for pair in block.split_whitespace() {
            let (name, value) = pair.split_once('=').unwrap();
            jail.set_env(format!("PYNOMALY_{name}"), value);
        }
        let settings = Settings::load("PYNOMALY_").unwrap();
        assert_eq!(settings.warnings(), [] as [&str; 0]);
        assert!(settings.enabled());
        let ml = settings.overrides(Kind::Ml);
        assert_eq!(ml.timeout, Some(300 * S));
        assert_eq!((ml.max_attempts, ml.failure_threshold), (Some(2), Some(2)));
        assert_eq!(settings.overrides(Kind::Cache).base_delay, Some(S / 10));
        assert_eq!(settings.overrides(Kind::Custom).timeout, Some(5 * S));
        Ok(())
    });
}

#[test]
fn files_and_environment_are_named_where_they_are_wrong_and_secrets_are_not_shown() {
    jail(|jail| {
        jail.create_file("mainstay.toml", "[api]\ntimeout = \"soon\"\nmax_attempts = 9")?;
        jail.set_env("MAINSTAY_API_MAX_ATTEMPTS", "none");
        let text = Settings::load("MAINSTAY_").unwrap_err().to_string();
        assert!(text.contains("api.timeout in mainstay.toml is \"soon\""), "{text}");
        assert!(text.contains("MAINSTAY_API_MAX_ATTEMPTS is \"none\""), "{text}");

        jail.set_env("MAINSTAY_API_MAX_ATTEMPTS", "4");
        jail.create_file("mainstay.toml", "[api]\nmax_attempts = 9\n[database]\nurl = \"s3cret\"")?;
        let settings = Settings::load("MAINSTAY_").unwrap();
        assert_eq!(settings.overrides(Kind::Api).max_attempts, Some(4), "the environment wins");
        assert_eq!(settings.connection("database", "url").as_deref(), Some("s3cret"));
        assert!(!format!("{settings:?}").contains("s3cret"));

        jail.create_file("mainstay.toml", "[database]\nurl = \"postgres://u:s3cret@h\" x")?;
        let text = Settings::load("MAINSTAY_").unwrap_err().to_string();
        assert!(text.contains("mainstay.toml is not TOML"), "{text}");
        assert!(text.contains("line 2") && !text.contains("s3cret"), "{text}");

        jail.set_env("MAINSTAY_CONFIG", "elsewhere.toml");
        let text = Settings::load("MAINSTAY_").unwrap_err().to_string();
        assert!(text.contains("MAINSTAY_CONFIG names elsewhere.toml"), "{text}");
        Ok(())
    });
}

#[test]
fn a_connection_setting_that_looks_like_a_number_is_text_all_the_same() {
    jail(|jail| {
        jail.create_file("mainstay.toml", "[s3]\nbucket = 123456789012")?;
        let bucket = || Settings::load("MAINSTAY_").unwrap().connection("s3", "bucket");
        assert_eq!(bucket().as_deref(), Some("123456789012"));
        for text in ["5", "210987654321", "0123", "2024.10", "1e5", "true", "[a]"] {
            jail.set_env("MAINSTAY_S3_BUCKET", text);
            assert_eq!(bucket().as_deref(), Some(text));
        }
        Ok(())
    });
}

/// A value as people and generators write it, right or wrong.
fn written() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>()
            .prop_filter("TOML has no NaN of this form", |n| n.is_finite())
            .prop_map(|n| format!("{n:?}")),
        proptest::sample::select(vec![
            "true",
            "false",
            "inf",
            "-inf",
            "nan",
            "[]",
            "[1, \"a\"]",
            "{ a = 1 }",
            "1979-05-27",
            "\"off\"",
            "\"p95\"",
            "\"full\"",
            "\"observe\"",
            "\"fixed\"",
        ])
        .prop_map(str::to_owned),
        "-?[0-9]{1,25}(\\.[0-9]{1,3})?(ms|s|m|h| s)?".prop_map(|text| format!("{text:?}")),
        "[a-z0-9 .%-]{0,12}".prop_map(|text| format!("{text:?}")),
    ]
}

fn table() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(Kind::ALL.map(Kind::name).to_vec())
}

proptest! {
    #[test]
    fn any_file_is_read_or_its_bad_values_are_named(
        table in table(),
        fields in proptest::collection::btree_map(
            proptest::sample::select(Overrides::FIELDS), written(), 1..6),
    ) {
        let lines: String = fields.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        let toml = format!("[{table}]\n{lines}");
        prop_assume!(Toml::string(&toml).data().is_ok());
        match read(&toml) {
            Ok(settings) => for kind in Kind::ALL {
                let built = policy::resolve(kind, "any", &settings.overrides(kind), true);
                // What a default stands against has been warned of, by the table that says it.
                let told = format!("[{table}] ");
                let warned = settings.warnings.iter().any(|warning| warning.starts_with(&told));
                prop_assert!(built.is_ok() || warned, "{}: {:?}", toml, built.err());
            },
            Err(error) => {
                prop_assert!(!error.problems().is_empty());
                // What contradicts itself is named by its table.
                let bad = |problem: &&String| !problem.starts_with(&format!("[{table}] "));
                for problem in error.problems().iter().filter(bad) {
                    let names = |field: &&str| {
                        let name = format!("MAINSTAY_{table}_{field}").to_uppercase();
                        problem.starts_with(&format!("{name} is ")) && problem.contains("allowed: ")
                    };
                    prop_assert!(fields.keys().any(names), "{}: {}", toml, problem);
                }
            }
        }
    }

    #[test]
    fn any_text_is_settings_or_is_refused_without_its_secret(text in "[\\[\\]a-z=\"'#\n .0-9]{0,60}") {
        jail(|jail| {
            jail.create_file("mainstay.toml", &format!("{text}\n[database]\nurl = \"s3cret\"\n"))?;
            let told = match Settings::load("MAINSTAY_") {
                Ok(settings) => format!("{settings:?}"),
                Err(error) => {
                    assert!(error.to_string().contains("mainstay.toml"), "{error}");
                    format!("{error} {error:?}")
                }
            };
            assert!(!told.contains("s3cret"), "{told}");
            Ok(())
        });
    }

    #[test]
    fn any_environment_is_read_or_its_bad_values_are_named(
        kind in table(),
        field in proptest::sample::select(Overrides::FIELDS),
        value in "[ -~]{0,16}",
        noise in "[A-Z_]{0,12}",
    ) {
        let name = format!("MAINSTAY_{kind}_{field}").to_uppercase();
        jail(|jail| {
            jail.set_env(format!("MAINSTAY_{noise}"), "noise");
            jail.set_env(&name, &value);
            if let Err(error) = Settings::load("MAINSTAY_") {
                let text = error.to_string();
                let contradicts = text.contains(&format!("[{kind}] "));
                let named = text.contains(&name) || contradicts || text.contains("MAINSTAY_CONFIG");
                assert!(named || text.contains(&format!("MAINSTAY_{noise}")), "{name}={value}: {text}");
            }
            Ok(())
        });
    }
}
