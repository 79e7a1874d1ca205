//! Work that the breaker learns from and does not gate: what goes on inside a call that it let in,
//! such as the statements of a transaction, which are of no use to anybody without the rest.

use crate::{
    breaker::{Ended, Permit},
    classify::{Operation, Outcome, Verdict},
    clock,
    policy::Policy,
    retry::cause,
};

/// One piece of such work, from [`Policy::watch`]. Dropped, it was given up by its caller: a slow call
/// if it was slow by then, else nothing.
#[derive(Debug)]
#[must_use = "dropped, it was given up by its caller"]
pub struct Watch<'p> {
    permit: Permit<'p>,
    operation: Operation,
}

impl Policy {
    /// Begins a piece of work that is made once, whatever the breaker says, and counts as an
    /// operation of one attempt while the breaker is closed.
    #[inline]
    pub fn watch(&self, operation: Operation) -> Watch<'_> {
        let policy = &*self.0;
        let mut permit = policy.breaker.unasked();
        // In a break, a probe decides; in a ramp, the calls that it lets in do.
        if !policy.limits().guarded() || !permit.if_closed() {
            permit.unguarded();
        }
        permit.begin_attempt(clock::now());
        Watch { permit, operation }
    }
}

impl Watch<'_> {
    /// It was answered.
    #[inline]
    pub fn succeeded(mut self) {
        self.permit.succeed(clock::now(), |trip| {
            cause(&self.operation, trip, Verdict::transient().effect, None)
        });
    }

    /// It failed; `code` is the backend's own.
    pub fn failed(self, verdict: Verdict, code: Option<String>) {
        let Self { mut permit, operation } = self;
        let now = clock::now();
        let cause = |trip| cause(&operation, trip, verdict.effect, code.clone());
        match verdict.outcome {
            Outcome::Failure => {
                permit.mark_failure();
                permit.end_attempt(Ended::Failed, now, &cause);
            }
            Outcome::Neutral => permit.end_attempt(Ended::Neutral, now, &cause),
            Outcome::Success => {}
        }
        permit.finish(verdict.outcome, now, &cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BreakerState, Idempotency, Kind, get_resilience_health};
    use std::time::Duration;

    const STATEMENT: Operation = Operation::new("statement", Idempotency::Unsafe);

    fn policy(name: &str, threshold: u32) -> Policy {
        let builder = Policy::builder(Kind::Database, name).failure_threshold(threshold);
        builder.timeout(Duration::from_secs(1)).build().unwrap()
    }

    #[test]
    fn it_opens_the_breaker_and_is_not_refused_by_it() {
        let policy = policy("watch-opens", 2);
        policy.watch(STATEMENT).failed(Verdict::unknown(), None);
        policy.watch(STATEMENT).succeeded();
        policy.watch(STATEMENT).failed(Verdict::unknown(), None);
        policy.watch(STATEMENT).failed(Verdict::permanent(), None);
        policy.watch(STATEMENT).failed(Verdict::unknown(), None);
        assert_eq!(policy.breaker().state(), BreakerState::Closed, "answers came between");
        policy.watch(STATEMENT).failed(Verdict::unknown(), Some("57P01".into()));
        assert_eq!(policy.breaker().state(), BreakerState::Open);
        // What comes now says nothing: a probe decides.
        policy.watch(STATEMENT).succeeded();
        policy.watch(STATEMENT).failed(Verdict::unknown(), None);
        assert_eq!(policy.breaker().state(), BreakerState::Open);
        let health = get_resilience_health();
        let health = &health.circuit_breakers["watch-opens"];
        assert_eq!((health.blocked_calls, health.total_calls), (0, 8));
        let cause = health.last_failure.as_ref().unwrap();
        assert_eq!((cause.operation, cause.code.as_deref()), ("statement", Some("57P01")));
    }

    /// Many that hang until their callers give up, none of which is counted in a row.
    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_after_it_was_slow_feeds_the_window_of_slow_calls() {
        let policy = policy("watch-slow", 1);
        for wait in [0, 900] {
            let watches: Vec<_> = (0..20).map(|_| policy.watch(STATEMENT)).collect();
            tokio::time::sleep(Duration::from_millis(wait)).await;
            assert_eq!(policy.breaker().state(), BreakerState::Closed, "after {wait} ms");
            drop(watches);
        }
        assert_eq!(policy.breaker().state(), BreakerState::Open);
    }
}
