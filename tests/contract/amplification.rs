//! In a total outage hardly more is sent than is asked for, breaker or not, and whatever policies
//! stand around a client's call.

use crate::{
    faults::{Fault, REFUSED, RESET},
    subject::{Client, Remote, Tune, ms, ready},
};
use mainstay::{
    CallError, Decider, Error, Kind, Policy, ResilientContext, get_resilience_health, resilient,
};

/// Calls of each kind.
const CALLS: u32 = 100;
const OUTAGE: Tune = |policy| policy.max_attempts(3).enable_circuit_breaker(false);
const WITHOUT_BUDGET: Tune = |policy| OUTAGE(policy).enable_budget(false);

/// What stands around a client's call.
#[derive(Clone, Copy, Debug)]
enum Around {
    Nothing,
    Policy,
    Attribute,
    Context,
    AllThree,
}

const EVERY: [Around; 5] =
    [Around::Nothing, Around::Policy, Around::Attribute, Around::Context, Around::AllThree];

/// Policies that would repeat four times.
struct Outer {
    policy: Policy,
    context: ResilientContext,
}

impl Outer {
    fn of(name: &str) -> Self {
        let policy = Policy::builder(Kind::Custom, format!("around {name}"));
        let policy = policy.max_attempts(4).base_delay(ms(0)).enable_circuit_breaker(false);
        let context = ResilientContext::custom(&format!("context of {name}")).max_attempts(4);
        let context = context.policy(|p| p.base_delay(ms(0)).enable_circuit_breaker(false));
        Self { policy: policy.build().unwrap(), context: context.build().unwrap() }
    }

    async fn call<C: Client>(&self, client: &C, around: Around) -> Result<(), Error> {
        let bare = || client.call(C::REPEATED);
        match around {
            Around::Nothing => bare().await,
            Around::Policy => Ok(self.policy.call(bare).await?),
            Around::Attribute => Ok(by_attribute(client.clone()).await?),
            Around::Context => Ok(self.context.call(bare).await?),
            Around::AllThree => {
                let by_attribute = || by_attribute(client.clone());
                let in_context = || async { self.context.call(by_attribute).await };
                Ok(self.policy.call(in_context).await?)
            }
        }
    }
}

#[resilient(max_attempts = 4, base_delay = 0, enable_circuit_breaker = false)]
async fn by_attribute<C: Client>(client: C) -> Result<(), CallError<Error>> {
    client.call(C::REPEATED).await
}

each!(is_at_most_a_fifth_once_the_budget_is_spent: database mariadb redis http s3);

async fn is_at_most_a_fifth_once_the_budget_is_spent<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, OUTAGE);
    let (name, outer) = (client.name(), Outer::of(client.name()));
    for fault in [RESET, REFUSED] {
        ready(&client).await;
        fault.start(server.proxy());
        // Not three times four times four times four.
        outer.call(&client, Around::AllThree).await.unwrap_err();
        let wire = wire(&server, &client);
        outer.call(&client, Around::AllThree).await.unwrap_err();
        let (connections, retries) = since(&server, &client, wire);
        assert!(connections <= 3 && retries <= 2, "{name}: {connections}, {retries}");
        spend(&client).await;
        for around in EVERY {
            let wire = self::wire(&server, &client);
            for _ in 0..CALLS {
                outer.call(&client, around).await.unwrap_err();
            }
            let (connections, retries) = since(&server, &client, wire);
            let attempts = u64::from(CALLS) + retries;
            let what = format!("{name}, {}, {around:?}", fault.name);
            println!("{what}: {attempts} attempts, {connections} connections for {CALLS} calls");
            let most = u64::from(CALLS) * 12 / 10;
            assert!(attempts <= most, "{what}: {attempts} attempts");
            assert!(connections <= most, "{what}: {connections} connections");
        }
        Fault::end(server.proxy());
    }
}

/// Until the budget is what ends a call.
async fn spend<C: Client>(client: &C) {
    for _ in 0..100 {
        let error = client.call(C::REPEATED).await.unwrap_err();
        if error.decider() == Some(Decider::Budget) {
            return;
        }
    }
    panic!("{}: its budget is never spent", client.name());
}

/// Connections that the proxy has seen, and retries that health tells of.
fn wire<S: Remote>(server: &S, client: &S::Client) -> (u64, u64) {
    let retries = get_resilience_health().circuit_breakers[client.name()].retries;
    (server.proxy().accepted() as u64, retries)
}

fn since<S: Remote>(server: &S, client: &S::Client, before: (u64, u64)) -> (u64, u64) {
    let now = wire(server, client);
    (now.0 - before.0, now.1 - before.1)
}

// Redis has one connection, and while it is down what is asked of it is not sent.
each!(without_a_budget_it_is_as_many_as_the_attempts: database mariadb http s3);

/// That the proxy sees what it is to see.
async fn without_a_budget_it_is_as_many_as_the_attempts<S: Remote>() {
    let server = S::start().await;
    let client = server.client(1, WITHOUT_BUDGET);
    let outer = Outer::of(client.name());
    ready(&client).await;
    RESET.start(server.proxy());
    // Finds out about the connection that was open.
    client.call(S::Client::REPEATED).await.unwrap_err();
    for around in EVERY {
        let (before, mut attempts) = (server.proxy().accepted(), 0);
        for _ in 0..10 {
            let error = client.call(S::Client::REPEATED).await.unwrap_err();
            attempts += error.attempts() as usize;
        }
        let bare = server.proxy().accepted() - before;
        assert_eq!((bare, attempts), (30, 30), "{}", client.name());
        let before = server.proxy().accepted();
        for _ in 0..10 {
            outer.call(&client, around).await.unwrap_err();
        }
        let nested = server.proxy().accepted() - before;
        assert_eq!(nested, 30, "{}, {around:?}", client.name());
    }
}
