//! As many attempts are reported as the server was sent: no driver repeats behind our back.

use crate::subject::{Client, Mood, Remote, ms, ready};
use mainstay::{Decider, get_resilience_health};

each!(the_server_counts_what_the_error_says: database mariadb redis http s3);

async fn the_server_counts_what_the_error_says<S: Remote>() {
    let server = S::start().await;
    let patient = server.client(1, |policy| policy.max_attempts(3));
    let brief = server.client(1, |p| p.max_attempts(3).timeout(ms(500)).deadline(ms(5_000)));
    let (name, door) = (patient.name(), S::Client::REPEATED);
    for (client, mood, decider) in
        [(&patient, Mood::NotNow, Decider::Retry), (&brief, Mood::Silent, Decider::Timeout)]
    {
        ready(client).await;
        let before = server.asked(door).await;
        let retries = get_resilience_health().circuit_breakers[name].retries;
        server.set(mood).await;
        let error = client.call(door).await.unwrap_err();
        assert_eq!(error.decider(), Some(decider), "{name} {mood:?}: {error:?}");
        assert_eq!(error.attempts(), 3, "{name} {mood:?}");
        let asked = server.asked(door).await - before;
        // What has to connect first may run out of its time before it asks.
        let least = if mood == Mood::Silent { 1 } else { 3 };
        assert!((least..=3).contains(&asked), "{name} {mood:?}: asked {asked} times");
        let told = get_resilience_health().circuit_breakers[name].retries;
        assert_eq!(told - retries, 2, "{name} {mood:?}");
        server.set(Mood::Well).await;
    }
}
