//! A health check asks the server itself, for a short time, and the breaker learns nothing of it.

use crate::{
    faults::{Fault, HELD, MUTE, REFUSED},
    subject::{Client, Remote, in_time, ms, ready},
};
use mainstay::{BreakerState, HealthStatus, get_resilience_health};
use std::time::Instant;

each!(is_short_and_feeds_nothing: database mariadb redis http s3);

async fn is_short_and_feeds_nothing<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, |policy| policy.timeout(ms(60_000)).failure_threshold(1));
    for fault in [HELD, MUTE, REFUSED] {
        ready(&client).await;
        let told = || {
            let breaker = &get_resilience_health().circuit_breakers[client.name()];
            (breaker.state, breaker.total_calls, breaker.timeouts, breaker.retries_left)
        };
        let before = told();
        assert_eq!(before.0, BreakerState::Closed);
        fault.start(server.proxy());
        for _ in 0..3 {
            let what = format!("{}, {}", client.name(), fault.name);
            let started = Instant::now();
            let health = in_time(&what, client.health()).await;
            let took = started.elapsed();
            assert_eq!(health.status, HealthStatus::Unhealthy, "{what}: {health:?}");
            // It says one second, or two.
            assert!(took < ms(5_000), "{what}: {took:?}");
            assert_eq!(told(), before, "{what}: {health:?}");
        }
        Fault::end(server.proxy());
        let well = async {
            while client.health().await.status != HealthStatus::Healthy {
                tokio::task::yield_now().await;
            }
        };
        in_time("it is well again", well).await;
        assert_eq!(told(), before, "{}: {}, and well again", client.name(), fault.name);
    }
}
