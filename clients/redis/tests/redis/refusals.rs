//! Every answer by which a server refuses, as a real one gives it: what it means, and what follows.

use crate::{Warnings, ms, strict, until, until_true};
use mainstay_policy::{BreakerState, Effect, Error, HealthStatus};
use mainstay_redis::{FallbackConfig, RedisClient, RedisFailure, RedisState};
use mainstay_test_support::{Proxy, Redis, RedisCluster};
use std::io::Read;

/// Without a breaker, so that each answer is seen.
fn plain(name: &str, redis: &Redis) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(redis.url())
        .policy(|p| p.timeout(ms(1500)).max_attempts(1).enable_circuit_breaker(false))
        .fallback(FallbackConfig::off())
        .build()
        .unwrap()
}

/// The server's code, in the driver's error that is kept as the source.
pub(crate) fn code(error: &Error) -> String {
    let driver = error.downcast_ref::<fred::error::Error>();
    driver.map_or("", |error| error.details()).split(' ').next().unwrap_or_default().to_owned()
}

const fn next(n: &mut u32) -> u32 {
    *n += 1;
    *n
}

pub(crate) fn ok(redis: &Redis, command: &str) {
    let answer = redis.say(command);
    assert!(answer.starts_with("+OK"), "{command}: {answer}");
}

#[tokio::test]
async fn out_of_memory_refuses_writes_and_answers_reads() {
    let redis = Redis::start();
    let client = plain("t-oom", &redis);
    client.set("k", "1").await.unwrap();
    ok(&redis, "CONFIG SET maxmemory 1");
    let error = client.set("k", "2").await.unwrap_err();
    assert_eq!((code(&error).as_str(), error.effect()), ("OOM", Effect::Transient));
    assert_eq!(client.get::<String>("k").await.unwrap().as_deref(), Some("1"));
    ok(&redis, "CONFIG SET maxmemory 0");
    client.set("k", "2").await.unwrap();
}

#[tokio::test]
async fn a_failed_save_refuses_writes_and_answers_reads() {
    let redis = Redis::start_with(&["--enable-protected-configs", "local"]);
    let client = plain("t-misconf", &redis);
    client.set("k", "1").await.unwrap();
    ok(&redis, "CONFIG SET save \"3600 1000000\"");
    ok(&redis, "CONFIG SET dir /proc");
    assert!(redis.say("BGSAVE").starts_with('+'));
    let failed = async || redis.say("INFO persistence").contains("rdb_last_bgsave_status:err");
    until_true("failed to save", ms(10_000), failed).await;
    let error = client.set("k", "2").await.unwrap_err();
    assert_eq!((code(&error).as_str(), error.effect()), ("MISCONF", Effect::Transient));
    assert_eq!(client.get::<String>("k").await.unwrap().as_deref(), Some("1"));
}

#[tokio::test]
async fn too_few_replicas_refuse_writes() {
    let redis = Redis::start();
    let client = plain("t-noreplicas", &redis);
    ok(&redis, "CONFIG SET min-replicas-to-write 1");
    let error = client.set("k", "2").await.unwrap_err();
    assert_eq!((code(&error).as_str(), error.effect()), ("NOREPLICAS", Effect::Transient));
}

#[tokio::test]
async fn a_replica_without_its_master_serves_nothing() {
    let redis = Redis::start();
    let client = plain("t-masterdown", &redis);
    client.set("k", "1").await.unwrap();
    ok(&redis, "CONFIG SET replica-serve-stale-data no");
    ok(&redis, "REPLICAOF 127.0.0.1 1");
    let error = client.get::<String>("k").await.unwrap_err();
    assert_eq!((code(&error).as_str(), error.effect()), ("MASTERDOWN", Effect::Transient));
}

#[tokio::test]
async fn a_busy_script_closes_the_gate_until_it_is_killed() {
    let redis = Redis::start();
    let client = plain("t-busy", &redis);
    client.set("k", "1").await.unwrap();
    ok(&redis, "CONFIG SET busy-reply-threshold 20");
    let _script = redis.tell("EVAL \"while true do end\" 0");
    let mut seen = None;
    until_true("busy", ms(30_000), async || match client.get::<String>("k").await {
        Err(error) => {
            seen = Some(error);
            true
        }
        Ok(_) => false,
    })
    .await;
    let error = seen.unwrap();
    assert_eq!((code(&error).as_str(), error.effect()), ("BUSY", Effect::Transient));
    // From then on nothing goes out.
    let error = client.get::<String>("k").await.unwrap_err();
    assert_eq!(error.effect(), Effect::NeverSent, "{error:?}");
    ok(&redis, "SCRIPT KILL");
    until_true("free", ms(30_000), async || client.get::<String>("k").await.is_ok()).await;
}

#[tokio::test]
async fn a_server_that_loads_its_data_is_waited_for() {
    let redis = Redis::start();
    let client = plain("t-loading", &redis);
    client.set("k", "1").await.unwrap();
    ok(&redis, "DEBUG POPULATE 1000 other 200");
    ok(&redis, "CONFIG SET loading-process-events-interval-bytes 1024");
    ok(&redis, "CONFIG SET key-load-delay 3000");
    let _reload = redis.tell("DEBUG RELOAD");
    let mut seen = None;
    until_true("loading", ms(30_000), async || match client.get::<String>("k").await {
        Err(error) => {
            seen = Some(error);
            true
        }
        Ok(_) => false,
    })
    .await;
    let error = seen.unwrap();
    assert_eq!((code(&error).as_str(), error.effect()), ("LOADING", Effect::Transient));
    assert!(client.health_check().await.detail.contains("LOADING"));
    until_true("loaded", ms(10_000), async || client.get::<String>("k").await.is_ok()).await;
    assert_eq!(client.get::<String>("k").await.unwrap().as_deref(), Some("1"));
}

/// The name or the port leads to the new master, the connection still to the old one.
#[tokio::test]
async fn a_master_that_became_a_replica_is_left_at_its_first_word() {
    let (old, new) = (Redis::start(), Redis::start());
    let proxy = Proxy::in_front_of(old.address());
    let client = RedisClient::builder()
        .name("t-readonly")
        .url(Redis::url_at(proxy.addr()))
        .policy(|p| p.timeout(ms(1500)).max_attempts(1).enable_circuit_breaker(false))
        .fallback(FallbackConfig::off())
        .build()
        .unwrap();
    client.set("k", "1").await.unwrap();
    proxy.point_at(new.address());
    ok(&old, &format!("REPLICAOF 127.0.0.1 {}", new.address().port()));
    let error = client.set("k", "2").await.unwrap_err();
    assert_eq!((code(&error).as_str(), error.effect()), ("READONLY", Effect::Transient));
    let out = until_true("writable", ms(30_000), async || client.set("k", "3").await.is_ok()).await;
    println!("writable again after {out:?}");
    assert_eq!(new.say("GET k"), "$1\r\n3\r\n");
}

#[tokio::test]
async fn what_a_user_may_not_do_is_answered_and_no_outage() {
    let redis = Redis::start();
    ok(&redis, "ACL SETUSER reader on >secret ~* +get");
    let client = strict("t-noperm", &format!("redis://reader:secret@{}", redis.address()));
    // PING is forbidden too, and the link is up all the same.
    assert_eq!(client.get::<String>("k").await.unwrap(), None);
    for _ in 0..5 {
        let error = client.set("k", "1").await.unwrap_err();
        assert_eq!((code(&error).as_str(), error.effect()), ("NOPERM", Effect::Permanent));
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
    assert_eq!(client.state(), RedisState::Connected);
    let health = client.health_check().await;
    assert_eq!(health.status, HealthStatus::Healthy, "{}", health.detail);
}

#[tokio::test]
async fn an_unknown_command_is_answered_and_no_outage() {
    let redis = Redis::start_with(&["--rename-command", "GET", ""]);
    let client = strict("t-err", &redis.url());
    for _ in 0..5 {
        let error = client.get::<String>("k").await.unwrap_err();
        assert_eq!((code(&error).as_str(), error.effect()), ("ERR", Effect::Permanent));
    }
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test]
async fn a_password_that_is_changed_is_an_error_until_it_is_right_again() {
    let redis = Redis::start();
    ok(&redis, "ACL SETUSER app on >old ~* +@all");
    let cache = RedisClient::builder()
        .name("t-rotated")
        .url(format!("redis://app:old@{}", redis.address()))
        .policy(|p| p.timeout(ms(1500)).recovery_timeout(ms(200)))
        .build()
        .unwrap();
    cache.set("k", "1").await.unwrap();
    ok(&redis, "ACL SETUSER app resetpass >new");
    // Who is connected stays so.
    cache.set("k", "2").await.unwrap();
    assert_eq!(redis.say("CLIENT KILL USER app"), ":1\r\n");
    // Not an outage: memory does not answer for it. But for what was written before the first
    // refusal, each time another key.
    let mut n = 0;
    until_true("refused", ms(30_000), async || {
        match cache.set(format!("k{}", next(&mut n)), "3").await {
            Err(error) => error.downcast_ref::<RedisFailure>().is_some_and(RedisFailure::is_auth),
            Ok(()) => false,
        }
    })
    .await;
    let health = cache.health_check().await;
    assert!(health.detail.contains("credentials"), "{}", health.detail);
    assert!(!health.detail.contains("old"), "{}", health.detail);
    ok(&redis, "ACL SETUSER app resetpass >old");
    until_true("accepted", ms(10_000), async || {
        cache.health_check().await.status == HealthStatus::Healthy
    })
    .await;
    until_true("written", ms(30_000), async || cache.set("k", "4").await.is_ok()).await;
}

#[tokio::test]
async fn that_a_user_may_not_delete_what_was_written_is_said() {
    let warnings = Warnings::default();
    let _heard = tracing::subscriber::set_default(warnings.clone());
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    ok(&redis, "ACL SETUSER app on >secret ~* +@all -del -hdel");
    let cache = RedisClient::builder()
        .name("t-may-not-delete")
        .url(format!("redis://app:secret@{}", proxy.addr()))
        .policy(|p| p.timeout(ms(1500)).recovery_timeout(ms(200)))
        .build()
        .unwrap();
    cache.set("k", "1").await.unwrap();
    proxy.refuse();
    proxy.cut();
    until(&cache, RedisState::Degraded).await;
    cache.set("k", "2").await.unwrap();
    proxy.listen();
    let refused = async || {
        let stats = redis.say("INFO commandstats");
        let del = stats.split("cmdstat_del:").nth(1).and_then(|rest| rest.lines().next());
        let count = del.and_then(|del| del.split("rejected_calls=").nth(1)?.split(',').next());
        count.unwrap_or("0").parse::<u32>().unwrap() >= 3
    };
    until_true("refused", ms(10_000), refused).await;
    let health = cache.health_check().await;
    assert_eq!(health.status, HealthStatus::Degraded);
    assert!(health.detail.contains("(NOPERM); allow this user DEL and HDEL"), "{}", health.detail);
    let said = warnings.of("DEL and HDEL");
    // Twice where a step of the recovery ran out of time between two refusals.
    assert!((1..=2).contains(&said.len()), "{said:?}");
    assert!(said[0].contains("NOPERM"), "{said:?}");
    ok(&redis, "ACL SETUSER app +del +hdel");
    until(&cache, RedisState::Connected).await;
    assert_eq!(cache.health_check().await.status, HealthStatus::Healthy);
}

#[tokio::test]
async fn a_script_the_server_does_not_know_is_answered_and_no_outage() {
    let redis = Redis::start();
    let client = strict("t-noscript", &redis.url());
    for _ in 0..5 {
        let error = client.run("EVALSHA").arg("0".repeat(40)).arg(0).await.unwrap_err();
        assert_eq!((code(&error).as_str(), error.effect()), ("NOSCRIPT", Effect::Permanent));
        assert_eq!(error.attempts(), 1);
    }
    assert_eq!(client.policy().breaker().state(), BreakerState::Closed);
}

#[tokio::test]
async fn a_command_that_the_server_cannot_use_is_told_in_its_words_and_without_arguments() {
    let redis = Redis::start();
    let client = plain("t-misused", &redis);
    let cases = [
        (client.run("NOSUCH").arg("s3cret"), "\"ERR unknown command 'NOSUCH'\"; check"),
        (
            client.run("GET").key("k").arg("s3cret"),
            "\"ERR wrong number of arguments for 'get'\"; compare",
        ),
        (client.run("OBJECT").arg("s3cret").key("k"), "\"ERR unknown subcommand\"; check"),
        (client.run("SET").key("k").arg("v").arg("s3cret"), "\"ERR syntax error\"; compare"),
        (client.run("EVAL").arg("s3cret(").arg(0), "answered with ERR; the rest of its words"),
    ];
    for (run, words) in cases {
        let error = run.await.unwrap_err();
        assert_eq!(error.effect(), Effect::Permanent, "{error:?}");
        let text = error.downcast_ref::<RedisFailure>().unwrap().to_string();
        assert!(text.contains(words), "{text}");
        assert!(!format!("{text} {error:?}").contains("s3cret"), "{text} {error:?}");
    }
}

#[tokio::test]
async fn what_keeps_a_connection_from_being_made_is_told_with_what_to_change() {
    let (redis, cluster) = (Redis::start(), RedisCluster::start(2, false));
    let full = Redis::start_with(&["--maxclients", "1"]);
    let mut held = None;
    until_true("connected", ms(30_000), async || {
        let (mut connection, mut answer) = (full.tell("PING"), [0; 5]);
        let _ = connection.read_exact(&mut answer);
        held = Some(connection);
        &answer == b"+PONG"
    })
    .await;
    for (n, url, words) in [
        (0, format!("{}/99", redis.url()), "the database number in the Redis URL"),
        (1, format!("{}/1", cluster.nodes[0].url()), "without a database number"),
        (2, full.url(), "raise maxclients"),
    ] {
        let client = strict(&format!("t-unusable-{n}"), &url);
        let told = async || {
            let error = client.get::<String>("k").await.unwrap_err();
            let text = mainstay_policy::report(&error).to_string();
            assert!(!text.contains("the rest of its words"), "{text}");
            text.contains(words)
        };
        until_true(words, ms(5000), told).await;
        let health = client.health_check().await;
        assert_eq!(health.status, HealthStatus::Unhealthy);
        assert!(health.detail.contains(words), "{}", health.detail);
    }
}
