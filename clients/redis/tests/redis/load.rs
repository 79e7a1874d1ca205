//! `get_or_load`: one caller loads for all, early if it must, and old values stand in for a bound.

use crate::ms;
use mainstay_policy::{Deadline, Error};
use mainstay_redis::{Json, RedisClient};
use std::{
    convert::Infallible,
    fmt,
    future::IntoFuture,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    task::JoinHandle,
};

const HOUR: Duration = Duration::from_secs(3600);

type Loaded = Result<String, Error>;

fn local(name: &str) -> RedisClient {
    RedisClient::builder().name(name).without_server().build().unwrap()
}

#[derive(Debug)]
struct SourceDown;

impl fmt::Display for SourceDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("down")
    }
}

impl std::error::Error for SourceDown {}

/// A loader that says when it has begun and ends when it may.
#[derive(Default)]
pub(crate) struct Source {
    calls: AtomicU32,
    pub(crate) begun: Notify,
    pub(crate) may_end: Notify,
}

impl Source {
    pub(crate) async fn load(self: Arc<Self>) -> Result<String, Infallible> {
        let n = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.begun.notify_one();
        self.may_end.notified().await;
        Ok(format!("value {n}"))
    }
}

/// A call that has begun to load.
async fn begins_to_load(cache: &RedisClient, source: &Arc<Source>) -> JoinHandle<Loaded> {
    let (cache, loader) = (cache.clone(), Arc::clone(source));
    let leader =
        tokio::spawn(async move { cache.get_or_load("k", HOUR, move || loader.load()).await });
    source.begun.notified().await;
    leader
}

/// Sends what is lost once more, a second later.
#[cfg(feature = "test-servers")]
fn twice(proxy: &mainstay_test_support::Proxy, name: &str) -> RedisClient {
    RedisClient::builder()
        .name(name)
        .url(format!("redis://{}", proxy.addr()))
        .policy(|p| p.max_attempts(2).base_delay(ms(1000)).jitter(mainstay_policy::Jitter::None))
        .fallback(mainstay_redis::FallbackConfig::off())
        .build()
        .unwrap()
}

/// The loader ends, and what it loaded is lost with its connection.
#[cfg(feature = "test-servers")]
async fn loses_the_set(proxy: &mainstay_test_support::Proxy, source: &Source) {
    use mainstay_test_support::proxy::Direction;
    proxy.set(|faults| faults.hold());
    let sent = proxy.arrived(Direction::Requests);
    source.may_end.notify_one();
    proxy.until("the SET", |proxy| proxy.arrived(Direction::Requests) > sent).await;
    proxy.cut();
    proxy.heal();
}

#[tokio::test]
async fn of_a_hundred_callers_one_loads() {
    let (cache, source) = (local("t-flight"), Arc::<Source>::default());
    let arrived = Arc::new(Semaphore::new(0));
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (cache, source, arrived) =
                (cache.clone(), Arc::clone(&source), Arc::clone(&arrived));
            tokio::spawn(async move {
                arrived.add_permits(1);
                cache.get_or_load("k", HOUR, move || source.load()).await.unwrap()
            })
        })
        .collect();
    source.begun.notified().await;
    arrived.acquire_many(100).await.unwrap().forget();
    source.may_end.notify_one();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), "value 1");
    }
    assert_eq!(source.calls.load(Ordering::SeqCst), 1);
    let again = cache.get_or_load("k", HOUR, || async { Err::<String, _>(SourceDown) });
    assert_eq!(again.await.unwrap(), "value 1", "from the cache");
}

#[tokio::test]
async fn when_the_one_who_loads_is_dropped_another_begins() {
    let (cache, source) = (local("t-dropped-load"), Arc::<Source>::default());
    let call = |source: Arc<Source>| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_or_load("k", HOUR, move || source.load()).await })
    };
    let leader = call(Arc::clone(&source));
    source.begun.notified().await;
    let waiters: Vec<_> = (0..10).map(|_| call(Arc::clone(&source))).collect();
    tokio::task::yield_now().await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    source.begun.notified().await;
    source.may_end.notify_one();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap(), "value 2");
    }
    assert_eq!(source.calls.load(Ordering::SeqCst), 2);
}

/// A load that has begun, a write, a load after it; then the first load ends.
async fn overtaken<T>(
    cache: &RedisClient,
    write: impl Future<Output = Result<T, mainstay_policy::Error>>,
) -> Option<String> {
    let source = Arc::<Source>::default();
    let leader = begins_to_load(cache, &source).await;
    write.await.unwrap();
    let load = || async { Ok::<_, Infallible>("new".to_owned()) };
    let later = tokio::time::timeout(ms(10_000), cache.get_or_load("k", HOUR, load));
    assert_eq!(later.await.expect("it loads itself").unwrap(), "new");
    source.may_end.notify_one();
    assert_eq!(leader.await.unwrap().unwrap(), "value 1");
    let kept = cache.get("k").await.unwrap();
    cache.del("k").await.unwrap();
    kept
}

#[tokio::test]
async fn what_was_loaded_before_a_write_is_not_given_after_it_nor_kept() {
    let cache = local("t-overtaken");
    let new = Some("new".to_owned());
    assert_eq!(overtaken(&cache, cache.del("k")).await, new);
    assert_eq!(overtaken(&cache, cache.set("k", "new").into_future()).await, new);
    assert_eq!(overtaken(&cache, cache.mset([("other", "1"), ("k", "new")])).await, new);
}

#[cfg(feature = "test-servers")]
#[tokio::test]
async fn what_was_loaded_before_any_other_change_is_not_kept_either() {
    let redis = mainstay_test_support::Redis::start();
    let cache = crate::client("t-overtaken-direct", redis.address());
    let new = Some("new".to_owned());
    assert_eq!(overtaken(&cache, cache.del("k")).await, new);
    assert_eq!(overtaken(&cache, cache.get_del::<String>("k")).await, new);
    let run = cache.run("UNLINK").arg("k");
    assert_eq!(overtaken(&cache, run.into_future()).await, new);
    assert_eq!(overtaken(&cache, cache.run("FLUSHDB").into_future()).await, new);
}

/// What was loaded is on its way to a server that says nothing; who deletes it waits for less long.
#[cfg(feature = "test-servers")]
#[tokio::test]
async fn a_write_that_overtakes_the_storing_of_what_was_loaded_stands() {
    use mainstay_test_support::{Proxy, Redis, proxy::Direction};
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let (cache, source) = (crate::client("t-overtaking", proxy.addr()), Arc::<Source>::default());
    let leader = begins_to_load(&cache, &source).await;
    proxy.set(|faults| faults.hold());
    let sent = proxy.arrived(Direction::Requests);
    source.may_end.notify_one();
    proxy.until("the SET", |proxy| proxy.arrived(Direction::Requests) > sent).await;
    Deadline::within(ms(300)).scope(cache.del("k")).await.unwrap();
    assert!(!leader.is_finished(), "it stores still");
    assert_eq!(leader.await.unwrap().unwrap(), "value 1");
    assert_eq!(cache.get::<String>("k").await.unwrap(), None);
}

/// What was loaded is on its way; a newer value is sent behind it.
#[cfg(feature = "test-servers")]
#[tokio::test]
async fn a_newer_value_stays_where_what_was_loaded_had_just_been_sent() {
    use mainstay_test_support::{Proxy, Redis, proxy::Direction};
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let (cache, source) = (crate::client("t-newer", proxy.addr()), Arc::<Source>::default());
    let leader = begins_to_load(&cache, &source).await;
    proxy.set(|faults| faults.hold());
    let arrives = async |what: &str| {
        let sent = proxy.arrived(Direction::Requests);
        proxy.until(what, |proxy| proxy.arrived(Direction::Requests) > sent).await;
    };
    source.may_end.notify_one();
    arrives("the SET of what was loaded").await;
    let write = tokio::spawn(cache.set("k", "new").into_future());
    arrives("the other SET").await;
    proxy.heal();
    write.await.unwrap().unwrap();
    assert_eq!(leader.await.unwrap().unwrap(), "value 1");
    assert_eq!(redis.say("GET k"), "$3\r\nnew\r\n");
}

/// What was loaded is lost with its connection; before it is sent again there is a newer value.
#[cfg(feature = "test-servers")]
#[tokio::test]
async fn what_was_loaded_is_not_sent_again_after_a_write() {
    use mainstay_test_support::{Proxy, Redis};
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let cache = twice(&proxy, "t-not-again");
    let source = Arc::<Source>::default();
    let leader = begins_to_load(&cache, &source).await;
    loses_the_set(&proxy, &source).await;
    crate::until(&cache, mainstay_redis::RedisState::Degraded).await;
    crate::until(&cache, mainstay_redis::RedisState::Connected).await;
    cache.set("k", "new").await.unwrap();
    assert!(!leader.is_finished(), "it waits to send it again");
    assert_eq!(leader.await.unwrap().unwrap(), "value 1");
    assert_eq!(redis.say("GET k"), "$3\r\nnew\r\n");
}

/// An observer may do anything, also write while what was loaded is on its way.
#[cfg(feature = "test-servers")]
#[tokio::test]
async fn an_observer_may_write_what_is_being_loaded() {
    use futures_util::FutureExt;
    use mainstay_policy::{Event, observe};
    use mainstay_test_support::{Proxy, Redis};
    let redis = Redis::start();
    let proxy = Proxy::in_front_of(redis.address());
    let cache = twice(&proxy, "t-observed");
    let source = Arc::<Source>::default();
    let leader = begins_to_load(&cache, &source).await;
    let (writer, wrote) = (cache.clone(), Arc::<AtomicU32>::default());
    let writes = Arc::clone(&wrote);
    let _subscription = observe(move |event: &Event| {
        if matches!(event, Event::Retrying { dependency, .. } if &**dependency == "redis:t-observed")
            && writes.fetch_add(1, Ordering::SeqCst) == 0
        {
            let _ = writer.set("k", "new").into_future().now_or_never();
        }
    });
    loses_the_set(&proxy, &source).await;
    assert_eq!(leader.await.unwrap().unwrap(), "value 1");
    assert_eq!(wrote.load(Ordering::SeqCst), 1);
    let value = redis.say("GET k");
    assert!(!value.contains("value 1"), "it is not sent again: {value}");
}

#[cfg(feature = "test-servers")]
#[tokio::test]
async fn a_lifetime_is_no_newer_value() {
    let redis = mainstay_test_support::Redis::start();
    let cache = crate::client("t-lifetime", redis.address());
    let source = Arc::<Source>::default();
    let leader = begins_to_load(&cache, &source).await;
    cache.expire("k", HOUR).await.unwrap();
    cache.persist("k").await.unwrap();
    source.may_end.notify_one();
    assert_eq!(leader.await.unwrap().unwrap(), "value 1");
    assert_eq!(cache.get::<String>("k").await.unwrap().as_deref(), Some("value 1"));
}

#[tokio::test]
async fn a_failure_is_shared_and_keeps_its_type() {
    let cache = local("t-load-fails");
    let (tell, hear) = oneshot::channel::<()>();
    let calls = Arc::new(AtomicU32::new(0));
    let leader = {
        let (cache, calls) = (cache.clone(), Arc::clone(&calls));
        tokio::spawn(async move {
            let load = move || async move {
                calls.fetch_add(1, Ordering::SeqCst);
                let _ = hear.await;
                Err::<String, _>(SourceDown)
            };
            cache.get_or_load("k", HOUR, load).await
        })
    };
    while calls.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let waiter = {
        let cache = cache.clone();
        tokio::spawn(async move {
            let never = || async { panic!("the other one loads") };
            cache.get_or_load::<String, SourceDown, _, _>("k", HOUR, never).await
        })
    };
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    // A deadline around one who waits holds, whatever the one who loads does.
    let hurried = Deadline::within(ms(30)).scope(async {
        cache.get_or_load("k", HOUR, || async { Err::<String, _>(SourceDown) }).await
    });
    let late = hurried.await.unwrap_err();
    assert!(late.is_timeout(), "{late:?}");
    tell.send(()).unwrap();
    for caller in [leader, waiter] {
        let error = caller.await.unwrap().unwrap_err();
        assert!(error.downcast_ref::<SourceDown>().is_some(), "{error:?}");
    }
    let ok = cache.get_or_load("k", HOUR, || async { Ok::<_, SourceDown>("1".to_owned()) });
    assert_eq!(ok.await.unwrap(), "1", "a failure is not remembered");
}

#[tokio::test]
async fn an_old_value_stands_in_for_its_bound_and_no_longer() {
    let cache = local("t-load-stale");
    let fails = || async { Err::<String, _>(SourceDown) };
    let (ttl, stale) = (ms(20), ms(2_000));
    let before = std::time::Instant::now();
    let first = cache.get_or_load("k", ttl, || async { Ok::<_, SourceDown>("1".to_owned()) });
    first.stale_if_error(stale).await.unwrap();
    let began = std::time::Instant::now();
    let mut stood_in = 0;
    let error = loop {
        match cache.get_or_load("k", ttl, fails).stale_if_error(stale).await {
            Ok(value) => {
                assert_eq!(value, "1");
                stood_in += u32::from(began.elapsed() > ttl);
            }
            Err(error) => break error,
        }
        assert!(began.elapsed() < ms(30_000));
        tokio::task::yield_now().await;
    };
    assert!(stood_in > 0, "it stood in");
    assert!(before.elapsed() >= ttl + stale, "{:?}", before.elapsed());
    assert!(error.downcast_ref::<SourceDown>().is_some());
}

/// The lifetimes are a server's here, which says what is left of them.
#[cfg(feature = "test-servers")]
#[tokio::test]
async fn an_old_value_of_the_server_stands_in_for_its_bound_and_no_longer() {
    let redis = mainstay_test_support::Redis::start();
    let cache = crate::client("t-stale-server", redis.address());
    let load = async |loaded: Result<&str, SourceDown>| {
        let loaded = loaded.map(str::to_owned);
        cache.get_or_load("k", HOUR, || async { loaded }).stale_if_error(HOUR).await
    };
    assert_eq!(load(Ok("1")).await.unwrap(), "1");
    assert_eq!(load(Ok("2")).await.unwrap(), "1", "it has not ended");
    let left = redis.say("PTTL k");
    let left: u128 = left.trim_start_matches(':').trim_end().parse().unwrap();
    assert!(left > HOUR.as_millis() && left <= 2 * HOUR.as_millis(), "{left}");
    // It ended a minute ago.
    assert_eq!(redis.say(&format!("EXPIRE k {}", HOUR.as_secs() - 60)), ":1\r\n");
    assert_eq!(load(Err(SourceDown)).await.unwrap(), "1", "it stands in");
    assert_eq!(load(Ok("2")).await.unwrap(), "2", "and is replaced");
    assert_eq!(redis.say("DEL k"), ":1\r\n");
    let error = load(Err(SourceDown)).await.unwrap_err();
    assert!(error.downcast_ref::<SourceDown>().is_some(), "{error:?}");
}

/// So near its end that it is loaded early, and the loader fails.
#[cfg(feature = "test-servers")]
#[tokio::test]
async fn a_value_that_is_still_alive_stands_in_for_a_load_that_came_early() {
    let redis = mainstay_test_support::Redis::start();
    let cache = crate::client("t-early-fails", redis.address());
    let slow = || async {
        // Known to take this long from then on: a value with less to live is due most often.
        tokio::time::sleep(ms(300)).await;
        Ok::<_, SourceDown>("1".to_owned())
    };
    assert_eq!(cache.get_or_load("k", HOUR, slow).await.unwrap(), "1");
    for n in 0.. {
        assert!(n < 1000, "no load came early");
        assert_eq!(redis.say("SET k 1 PX 150"), "+OK\r\n");
        let asks = Arc::<AtomicU32>::default();
        let counts = Arc::clone(&asks);
        let fails = move || async move {
            counts.fetch_add(1, Ordering::SeqCst);
            Err::<String, _>(SourceDown)
        };
        match cache.get_or_load("k", HOUR, fails).await {
            Ok(value) => {
                assert_eq!(value, "1");
                if asks.load(Ordering::SeqCst) > 0 {
                    break;
                }
            }
            // A slow machine: it was gone.
            Err(error) => assert!(error.downcast_ref::<SourceDown>().is_some(), "{error:?}"),
        }
    }
}

#[cfg(feature = "test-servers")]
#[tokio::test]
async fn refused_credentials_fail_nobody_who_can_load() {
    let redis = mainstay_test_support::Redis::start_with(&["--requirepass", "right"]);
    let cache = crate::client("t-load-auth", redis.address());
    let error = cache.get::<String>("k").await.unwrap_err();
    assert!(error.downcast_ref::<mainstay_redis::RedisFailure>().unwrap().is_auth(), "{error:?}");
    // Also when the breaker is open by then.
    for key in ["1", "2", "3", "4", "5"] {
        let load = move || async move { Ok::<_, Infallible>(key.to_owned()) };
        assert_eq!(cache.get_or_load(key, HOUR, load).await.unwrap(), key);
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_loaded_again_and_mistakes_are_said() {
    let cache = local("t-load-mistakes");
    cache.set("k", "no json").await.unwrap();
    let load = || async { Ok::<_, SourceDown>(Json(vec![1, 2])) };
    assert_eq!(cache.get_or_load("k", HOUR, load).await.unwrap().0, [1, 2]);
    assert_eq!(cache.get::<String>("k").await.unwrap().as_deref(), Some("[1,2]"));
    cache.hset("h", "f", "1").await.unwrap();
    let load = || async { Ok::<_, io::Error>("1".to_owned()) };
    let hash = cache.get_or_load("h", HOUR, load).await.unwrap_err();
    assert!(hash.downcast_ref::<mainstay_redis::RedisFailure>().unwrap().is_wrong_type());
    let zero = cache.get_or_load("k2", Duration::ZERO, load).await.unwrap_err();
    assert!(zero.to_string().contains("lifetime (ttl) of 0"), "{zero}");
    // Without cache and fallback the loader still answers.
    let nowhere = mainstay_test_support::Port::reserve();
    let strict = RedisClient::builder()
        .name("t-load-strict")
        .url(format!("redis://{}", nowhere.address()))
        .policy(|p| p.timeout(ms(200)).max_attempts(1))
        .fallback(mainstay_redis::FallbackConfig::off())
        .build()
        .unwrap();
    assert_eq!(strict.get_or_load("k", HOUR, load).await.unwrap(), "1");
}

/// Near its end a value is loaded again by one, while the others get what is there.
#[cfg(feature = "test-servers")]
#[tokio::test]
async fn a_value_is_loaded_again_before_it_is_gone() {
    let redis = mainstay_test_support::Redis::start();
    let cache = crate::client("t-early", redis.address());
    let source = Arc::<Source>::default();
    let call = || {
        let (cache, source) = (cache.clone(), Arc::clone(&source));
        tokio::spawn(async move { cache.get_or_load("k", HOUR, move || source.load()).await })
    };
    let first = call();
    source.begun.notified().await;
    // Loading is known to take this long, so that a value with less to live is due at once.
    tokio::time::sleep(ms(60)).await;
    source.may_end.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), "value 1");
    let mut early = None;
    for n in 0.. {
        assert!(n < 1000, "nobody loaded early");
        // 150 ms before the end the chance is exp(-150/60), 8 %.
        assert_eq!(redis.say("SET k value PX 150"), "+OK\r\n");
        let mut caller = call();
        tokio::select! {
            () = source.begun.notified() => {
                if redis.say("EXISTS k") == ":1\r\n" {
                    early = Some(caller);
                    break;
                }
                // A slow machine: it was gone.
                source.may_end.notify_one();
                caller.await.unwrap().unwrap();
            }
            value = &mut caller => {
                let value = value.unwrap().unwrap();
                assert!(value.starts_with("value"), "{value}");
            }
        }
    }
    assert_eq!(redis.say("SET k present PX 60000"), "+OK\r\n");
    assert_eq!(call().await.unwrap().unwrap(), "present", "while the other one loads");
    source.may_end.notify_one();
    let early = early.unwrap().await.unwrap().unwrap();
    assert!(early.starts_with("value"), "{early}");
    assert_eq!(cache.get::<String>("k").await.unwrap(), Some(early));
}
