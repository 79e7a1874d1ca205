//! What an operator does to a running process, and what those who watch it see. Each test has the
//! process's settings to itself.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::result_large_err)]

use figment::Jail;
use mainstay_policy::{
    BreakerState, Classify, Decider, Event, HealthStatus, Hedge, Kind, Mode, Operation, Policy,
    Verdict, breaker, get_resilience_health, observe, on_reset, reload, reset_resilience_state,
    set_settings_prefix, settings,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const S: Duration = Duration::from_secs(1);

/// Runs a test in a directory and an environment of its own, with nothing remembered.
fn alone(test: impl FnOnce(&mut Jail) -> figment::error::Result<()>) {
    Jail::expect_with(|jail| {
        reset_resilience_state();
        test(jail)
    });
}

fn fail(policy: &Policy) {
    let end = policy.operation("fails").idempotent(false).call_blocking(|| Err::<(), _>("no"));
    assert!(end.is_err());
}

#[test]
fn a_reload_changes_policies_in_place_and_keeps_what_breakers_and_budgets_know() {
    alone(|jail| {
        jail.create_file("mainstay.toml", "[database]\ntimeout = 7\nfailure_threshold = 2")?;
        let policy = Policy::database("reload");
        let own = Policy::builder(Kind::Database, "reload-own").timeout(3 * S).build().unwrap();
        let copy = policy.clone();
        assert_eq!(policy.timeout(), Some(7 * S));
        fail(&policy);
        fail(&policy);
        assert_eq!(policy.breaker().state(), BreakerState::Open);

        jail.create_file("mainstay.toml", "[database]\ntimeout = 9\nmax_attempts = 1")?;
        reload().unwrap();
        assert_eq!(copy.timeout(), Some(9 * S));
        assert_ne!(policy.breaker().state(), BreakerState::Closed, "its state is kept");
        assert_eq!(own.timeout(), Some(3 * S), "what code has set stays");

        // All or nothing: the second policy would contradict itself.
        jail.create_file("mainstay.toml", "[database]\ntimeout = 1\ndeadline = 2")?;
        let error = reload().unwrap_err().to_string();
        assert!(error.contains("`reload-own`: deadline is shorter than the timeout"), "{error}");
        assert_eq!(policy.timeout(), Some(9 * S));
        jail.create_file("mainstay.toml", "[database]\ntimeout = \"soon\"")?;
        let error = reload().unwrap_err().to_string();
        assert!(error.contains("database.timeout in mainstay.toml is \"soon\""), "{error}");

        jail.create_file("mainstay.toml", "[resilience]\nenabled = false")?;
        reload().unwrap();
        assert_eq!(policy.timeout(), None);
        assert!(policy.call_blocking(|| Ok::<_, &str>(1)).is_ok(), "an open breaker is ignored");
        Ok(())
    });
}

#[test]
fn a_reload_reaches_what_the_breaker_itself_was_told() {
    alone(|jail| {
        let policy = Policy::database("reload-breaker");
        jail.create_file("mainstay.toml", "[database]\nfailure_threshold = 2")?;
        reload().unwrap();
        fail(&policy);
        assert_eq!(policy.breaker().state(), BreakerState::Closed);
        fail(&policy);
        assert_eq!(policy.breaker().state(), BreakerState::Open);
        Ok(())
    });
}

/// Whoever of them is first: in the end each policy is as the file says.
#[test]
fn a_policy_that_is_built_while_settings_are_read_again_has_the_newest() {
    alone(|jail| {
        for round in 0..60 {
            let (before, after) = (S + S * round, 2 * S + S * round);
            let toml = |timeout: Duration| format!("[database]\ntimeout = {}", timeout.as_secs());
            jail.create_file("mainstay.toml", &toml(before))?;
            reload().unwrap();
            jail.create_file("mainstay.toml", &toml(after))?;
            let built = std::thread::scope(|threads| {
                let reloads =
                    [threads.spawn(|| reload().unwrap()), threads.spawn(|| reload().unwrap())];
                let builds =
                    (0..40).map(|n| Policy::database(&format!("race-{n}"))).collect::<Vec<_>>();
                for reload in reloads {
                    reload.join().unwrap();
                }
                builds
            });
            for policy in built {
                assert_eq!(policy.timeout(), Some(after), "{} in round {round}", policy.name());
            }
        }
        Ok(())
    });
}

#[test]
fn everything_can_be_switched_to_observe_by_one_setting() {
    alone(|jail| {
        jail.set_env("MAINSTAY_RESILIENCE_MODE", "observe");
        let policy = Policy::api("observed");
        policy.breaker().isolate();
        assert!(policy.call_blocking(|| Ok::<_, &str>(1)).is_ok());
        let acts = Policy::builder(Kind::Api, "acts").mode(Mode::Enforce).build().unwrap();
        acts.breaker().isolate();
        assert!(acts.call_blocking(|| Ok::<_, &str>(1)).is_err());
        Ok(())
    });
}

#[test]
fn policies_go_on_with_their_defaults_where_settings_cannot_be_read() {
    alone(|jail| {
        jail.set_env("MAINSTAY_API_TIMEOUT", "soon");
        assert!(settings().is_err());
        assert!(Policy::builder(Kind::Api, "bad").build().is_err());
        assert_eq!(Policy::api("bad-too").timeout(), Some(60 * S));
        // What says whether policies act at all can be.
        let (watches, off) = ("[resilience]\nmode = \"observe\"", "[resilience]\nenabled = false");
        for toml in [watches, off, "[ml]\nmode = \"observe\""] {
            jail.create_file("mainstay.toml", toml)?;
            assert_eq!(Policy::ml("bad-switched").timeout(), None, "{toml}");
        }
        // A custom policy's, as all else of it, are those of `[default]`.
        for (toml, acts) in [
            ("[default]\nmode = \"observe\"", false),
            ("[default]\nmode = \"observe\"\n[custom]\nmode = \"enforce\"", true),
            ("[resilience]\nmode = \"observe\"\n[default]\nmode = \"enforce\"", true),
        ] {
            jail.create_file("mainstay.toml", toml)?;
            assert_eq!(Policy::custom("bad-custom").timeout().is_some(), acts, "{toml}");
        }
        jail.create_file("mainstay.toml", "no TOML")?;
        assert_eq!(Policy::ml("bad-file").timeout(), Some(300 * S));
        jail.set_env("MAINSTAY_RESILIENCE_MODE", "observe");
        assert_eq!(Policy::ml("bad-file-switched").timeout(), None);
        Ok(())
    });
}

/// Settings that code makes fit hold for it, and harm nobody else: of them alone a policy cannot be built.
#[test]
fn what_only_a_kinds_default_stands_against_is_a_warning() {
    alone(|jail| {
        jail.create_file(
            "mainstay.toml",
            "[database]\ndeadline = 20\n[api]\ndeadline = 40\n[cache]\nbase_delay = 2\n[ml]\nhedge = 400",
        )?;
        let settings = settings().unwrap();
        let warnings = settings.warnings();
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        let warned =
            warnings.iter().any(|warning| warning.starts_with("[cache] base_delay is over"));
        assert!(warned, "{warnings:?}");
        let fits = Policy::builder(Kind::Database, "fits").timeout(5 * S).build().unwrap();
        assert_eq!(fits.deadline(), Some(20 * S));
        assert_eq!(Policy::file("elsewhere").timeout(), Some(10 * S));
        assert!(Policy::builder(Kind::Database, "does not fit").build().is_err());
        jail.create_file("mainstay.toml", "[database]\ndeadline = 15\n[cache]\nbase_delay = 2")?;
        reload().unwrap();
        assert_eq!(fits.deadline(), Some(15 * S));
        Ok(())
    });
}

/// A contradiction between an attribute and settings: of no use to that one function, and no reason that it
/// acts where nothing is to, or that nothing else can be changed.
#[test]
fn what_cannot_be_built_with_settings_is_switched_off_by_them_all_the_same() {
    alone(|jail| {
        let contradicts = |name: &str| {
            Policy::builder(Kind::Api, name).deadline(50 * S).timeout(40 * S).base_delay(2 * S)
        };
        let toml = |resilience: &str| {
            format!("[api]\nmax_delay = 1\nbase_delay = 0.5\n[resilience]\n{resilience}\n")
        };
        jail.create_file("mainstay.toml", &toml("mode = \"observe\""))?;
        assert!(contradicts("wrong").build().is_err());
        let policy = contradicts("wrong").build_or_defaults();
        let other = Policy::api("right");
        let acts = |policy: &Policy| {
            policy.breaker().isolate();
            let refused = policy.call_blocking(|| Ok::<_, &str>(1)).is_err();
            policy.breaker().reset();
            refused
        };
        assert_eq!((acts(&policy), acts(&other)), (false, false), "it only watches");

        jail.create_file("mainstay.toml", &toml("mode = \"enforce\""))?;
        reload().unwrap();
        assert_eq!((acts(&policy), acts(&other)), (true, true));
        assert_eq!(policy.timeout(), Some(40 * S), "what code says holds");

        jail.create_file("mainstay.toml", &toml("enabled = false"))?;
        reload().unwrap();
        assert_eq!((policy.timeout(), acts(&policy)), (None, false));
        assert_eq!((other.timeout(), other.deadline(), acts(&other)), (None, None, false));
        let limited = other.with_timeout(S);
        assert_eq!((limited.timeout(), limited.deadline()), (None, None));
        let once = other.call_blocking(|| Err::<(), _>("no")).unwrap_err();
        assert_eq!(once.attempts(), 1);
        // Off means off, and not that what is wrong stops the service from starting.
        assert_eq!(contradicts("wrong").build().unwrap().timeout(), None);

        // It follows them again once they fit.
        jail.create_file("mainstay.toml", "[api]\nmax_attempts = 1")?;
        reload().unwrap();
        let tried = AtomicUsize::new(0);
        let end = policy.call_blocking(|| {
            tried.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>("no")
        });
        assert_eq!((end.is_err(), tried.into_inner()), (true, 1));
        Ok(())
    });
}

/// Nor does it what contradicts itself whatever settings say.
#[test]
fn what_contradicts_itself_only_watches_where_all_do() {
    alone(|jail| {
        jail.set_env("MAINSTAY_RESILIENCE_MODE", "observe");
        let policy = Policy::builder(Kind::Api, "itself").max_attempts(0).max_concurrent(0);
        let policy = policy.build_or_defaults();
        policy.breaker().isolate();
        assert!(policy.call_blocking(|| Ok::<_, &str>(1)).is_ok());
        jail.set_env("MAINSTAY_RESILIENCE_MODE", "enforce");
        reload().unwrap();
        assert!(policy.call_blocking(|| Ok::<_, &str>(1)).is_err());
        policy.breaker().reset();
        assert!(policy.call_blocking(|| Ok::<_, &str>(1)).is_ok(), "nothing in flight is too few");
        Ok(())
    });
}

#[test]
fn limits_that_settings_set_can_be_switched_off_by_code_and_by_settings() {
    alone(|jail| {
        jail.set_env("MAINSTAY_API_RATE_LIMIT", "1");
        jail.set_env("MAINSTAY_API_MAX_CONCURRENT", " off ");
        let passes = |policy: Policy| {
            (0..3).filter(|_| policy.call_blocking(|| Ok::<_, &str>(1)).is_ok()).count()
        };
        assert_eq!(passes(Policy::builder(Kind::Api, "limited").build().unwrap()), 1);
        let unlimited = Policy::builder(Kind::Api, "unlimited").without_rate_limit();
        assert_eq!(passes(unlimited.build().unwrap()), 3);
        jail.set_env("MAINSTAY_RESILIENCE_ENABLED", "false");
        reload().unwrap();
        assert_eq!(passes(Policy::api("limited-not-at-all")), 3);
        jail.set_env("MAINSTAY_API_RATE_LIMIT", "0");
        jail.set_env("MAINSTAY_API_HEDGE", "0");
        let text = reload().unwrap_err().to_string();
        for told in [
            "MAINSTAY_API_RATE_LIMIT is 0; allowed: a whole number from 1, or \"off\"",
            "MAINSTAY_API_HEDGE is 0; allowed: p95, a duration over 0 such as \"50ms\", or \"off\"",
        ] {
            assert!(text.contains(told), "{told}: {text}");
        }
        Ok(())
    });
}

/// Both ways, and of a policy that was built while all was off too.
#[test]
fn the_switch_that_turns_all_off_does_so_to_places_and_rates() {
    alone(|jail| {
        let toml = |enabled: bool| format!("[resilience]\nenabled = {enabled}");
        let limited = |name: &str| {
            let rate = Policy::builder(Kind::Api, format!("{name} rate")).rate_limit(1);
            let places = Policy::builder(Kind::Api, format!("{name} places")).max_concurrent(1);
            [rate.build().unwrap(), places.build().unwrap()]
        };
        // Of a call, and of one within it: how many pass.
        let passes = |policies: &[Policy; 2]| {
            policies.each_ref().map(|policy| {
                let call = || policy.call_blocking(|| Ok::<_, &str>(())).is_ok();
                let within = policy.operation("outer").idempotent(false);
                let mut inner = false;
                let outer = within.call_blocking(|| {
                    inner = call();
                    Ok::<_, &str>(())
                });
                usize::from(outer.is_ok()) + usize::from(inner)
            })
        };
        jail.create_file("mainstay.toml", &toml(true))?;
        let built_on = limited("on");
        assert_eq!(passes(&built_on), [1, 1]);
        jail.create_file("mainstay.toml", &toml(false))?;
        reload().unwrap();
        assert_eq!(passes(&built_on), [2, 2]);
        let built_off = limited("off");
        assert_eq!(passes(&built_off), [2, 2]);
        jail.create_file("mainstay.toml", &toml(true))?;
        reload().unwrap();
        assert_eq!(passes(&built_off), [1, 1]);
        assert_eq!(passes(&built_on)[1], 1);
        Ok(())
    });
}

/// It is meant for what is known to be a read: a function of one's own may well be a write.
#[test]
fn settings_send_no_second_copies_of_calls_of_ones_own() {
    const READ: Operation = Operation::read("read");
    #[derive(Debug)]
    enum Never {}
    impl std::fmt::Display for Never {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            match *self {}
        }
    }
    impl std::error::Error for Never {}
    impl Classify for Never {
        fn classify(&self) -> Verdict {
            match *self {}
        }
    }
    alone(|jail| {
        jail.set_env("MAINSTAY_API_HEDGE", "50ms");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().unwrap().block_on(async {
            let sent = AtomicUsize::new(0);
            let slowly = async || {
                sent.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(S).await;
                Ok::<_, Never>(())
            };
            let by_settings = Policy::builder(Kind::Api, "by-settings");
            let by_code = Policy::builder(Kind::Api, "by-code").hedge(Hedge::After(S / 10));
            for (policy, own) in [(by_settings, 1), (by_code, 2)] {
                let policy = policy.build().unwrap();
                policy.call(&slowly).await.unwrap();
                assert_eq!(sent.swap(0, Ordering::SeqCst), own, "{}", policy.name());
                policy.run(&READ, async |_| slowly().await).await.unwrap();
                assert_eq!(sent.swap(0, Ordering::SeqCst), 2, "{}", policy.name());
            }
        });
        Ok(())
    });
}

/// Off, nothing is checked; on again, nobody is held back by the one that does not fit.
#[test]
fn what_was_built_while_all_was_off_does_not_keep_it_off() {
    alone(|jail| {
        let toml = |enabled: bool| {
            format!("[api]\nmax_delay = 1\nbase_delay = 0.5\n[resilience]\nenabled = {enabled}\n")
        };
        let builder = |name: &str| Policy::builder(Kind::Api, name).timeout(40 * S);
        jail.create_file("mainstay.toml", &toml(false))?;
        let built = builder("built").base_delay(2 * S).build().unwrap();
        let or_defaults = builder("or-defaults").base_delay(2 * S).build_or_defaults();
        let fits = builder("fits").build().unwrap();
        let all = [&built, &or_defaults, &fits];
        assert_eq!(all.map(Policy::timeout), [None; 3]);

        jail.create_file("mainstay.toml", &toml(true))?;
        reload().unwrap();
        assert_eq!(all.map(Policy::timeout), [Some(40 * S); 3]);

        // What did fit is a reason to refuse settings that it does not fit any more.
        jail.create_file("mainstay.toml", "[api]\ntimeout = 20\ndeadline = 30")?;
        let text = reload().unwrap_err().to_string();
        assert!(text.contains("`fits`") && !text.contains("built"), "{text}");
        Ok(())
    });
}

#[test]
fn a_prefix_is_set_before_anything_is_read_or_not_at_all() {
    alone(|jail| {
        jail.set_env("PYNOMALY_ML_TIMEOUT", "300.5");
        set_settings_prefix("PYNOMALY_").unwrap();
        assert_eq!(Policy::ml("train").timeout(), Some(Duration::from_millis(300_500)));
        let late = set_settings_prefix("OTHER_").unwrap_err().to_string();
        assert!(late.contains("comes too late"), "{late}");
        reset_resilience_state();
        set_settings_prefix("MAINSTAY_").unwrap();
        Ok(())
    });
}

#[test]
fn a_reset_asks_clients_to_forget_too() {
    static FORGOTTEN: AtomicUsize = AtomicUsize::new(0);
    alone(|_| {
        // It may look at what is being reset: nothing is locked.
        on_reset(|| {
            drop((get_resilience_health(), breaker("any"), settings()));
            FORGOTTEN.fetch_add(1, Ordering::SeqCst);
        });
        reset_resilience_state();
        assert_eq!(FORGOTTEN.load(Ordering::SeqCst), 1);
        Ok(())
    });
}

#[test]
fn observers_that_panic_or_call_back_harm_nobody() {
    alone(|_| {
        let policy =
            Policy::builder(Kind::Custom, "observers").failure_threshold(1).build().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, inner) = (Arc::clone(&seen), policy.clone());
        let _panics = observe(|_: &Event| panic!("as planned"));
        let calls_back = observe(move |event: &Event| {
            let Event::Changed { dependency, to, cause, .. } = event else { return };
            if &**dependency != "observers" {
                return;
            }
            let reason = cause.as_ref().map(|cause| cause.reason);
            log.lock().unwrap().push((inner.breaker().state(), *to, reason));
            if *to == BreakerState::Open {
                inner.breaker().reset();
            }
        });
        fail(&policy);
        assert_eq!(policy.breaker().state(), BreakerState::Closed, "the observer has reset it");
        let expected = [
            (BreakerState::Open, BreakerState::Open, Some("failures in a row")),
            (BreakerState::Closed, BreakerState::Closed, None),
        ];
        assert_eq!(*seen.lock().unwrap(), expected);
        drop(calls_back);
        fail(&policy);
        assert_eq!(policy.breaker().state(), BreakerState::Open);
        assert_eq!(seen.lock().unwrap().len(), 2);
        Ok(())
    });
}

#[test]
fn a_breaker_is_found_by_name_and_obeys_the_operator() {
    alone(|_| {
        let policy = Policy::api("operated");
        assert!(breaker("api:nobody").is_none());
        let found = breaker("api:operated").unwrap();
        found.isolate();
        let refused = policy.call_blocking(|| Ok::<_, &str>(1)).unwrap_err();
        assert_eq!(refused.decider(), Some(Decider::Isolation));
        assert!(refused.is_circuit_open() && refused.retry_after().is_none());
        let text = refused.to_string();
        assert!(text.contains("isolated by hand, until reset() or force_closed()"), "{text}");
        let health = get_resilience_health();
        assert_eq!(health.overall_health, HealthStatus::Degraded);
        assert_eq!(health.degraded_breakers, ["api:operated"]);
        found.force_closed();
        for _ in 0..9 {
            fail(&policy);
        }
        assert_eq!(policy.breaker().state(), BreakerState::ForcedClosed);
        found.reset();
        assert!(policy.call_blocking(|| Ok::<_, &str>(1)).is_ok());
        Ok(())
    });
}

#[test]
fn health_tells_near_the_trip_from_open_and_counts_every_call() {
    alone(|_| {
        let policy = Policy::builder(Kind::Custom, "counted").failure_threshold(4).build().unwrap();
        let health = || get_resilience_health();
        policy.call_blocking(|| Ok::<_, &str>(1)).unwrap();
        fail(&policy);
        assert!(!health().degraded_breakers.contains(&"counted".to_owned()));
        fail(&policy);
        assert!(
            health().degraded_breakers.contains(&"counted".to_owned()),
            "half of four in a row"
        );
        fail(&policy);
        fail(&policy);
        assert_eq!(health().overall_health, HealthStatus::Unhealthy);
        assert!(policy.call_blocking(|| Ok::<_, &str>(1)).is_err());
        let json = serde_json::to_value(health()).unwrap();
        let counted = &json["circuit_breakers"]["counted"];
        for (field, value) in [
            ("total_calls", 5),
            ("successful_calls", 1),
            ("failed_calls", 4),
            ("blocked_calls", 1),
            ("retries", 0),
        ] {
            assert_eq!(counted[field], value, "{field}: {counted}");
        }
        assert_eq!(counted["state"], "open");
        assert_eq!(counted["last_failure"]["reason"], "failures in a row");
        assert!(counted["next_attempt_in"].as_f64().unwrap() <= 1.15);
        Ok(())
    });
}

#[test]
fn origins_of_http_are_capped_and_idle_ones_go_first() {
    alone(|_| {
        let used = Policy::builder(Kind::Api, "http:https://used").build().unwrap();
        let open = Policy::builder(Kind::Api, "http:https://open").build().unwrap();
        open.breaker().isolate();
        drop(open);
        let failing = Policy::builder(Kind::Api, "http:https://failing").build().unwrap();
        fail(&failing);
        drop(failing);
        for n in 0..1_100 {
            drop(Policy::builder(Kind::Api, format!("http:https://host-{n}")).build().unwrap());
        }
        let origins = get_resilience_health().circuit_breakers;
        let origins = origins.keys().filter(|name| name.starts_with("http:")).count();
        assert_eq!(origins, 1_024);
        assert!(breaker(used.name()).is_some(), "it is in use");
        assert!(breaker("http:https://open").is_some(), "it is isolated");
        assert!(breaker("http:https://failing").is_some(), "it has a failure to remember");
        assert!(breaker("http:https://host-1099").is_some());
        Ok(())
    });
}
