//! Attempts that were answered, with an answer that is worth another attempt.

use super::*;
use crate::Outcome;

/// Not yet, says a dependency that is well.
const NOT_YET: Verdict = Verdict::transient().with_outcome(Outcome::Success);

fn patient(name: &str) -> PolicyBuilder {
    let policy = database(name).base_delay(10 * S).max_delay(10 * S).timeout(10 * S);
    policy.deadline(60 * S).jitter(Jitter::None).enable_budget(false)
}

fn not_yet() -> impl Future<Output = Result<(), Fault>> {
    std::future::ready(Err(Fault(NOT_YET)))
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_between_attempts_says_nothing_of_the_dependency() {
    let policy = patient("t-answered-left").window(60 * S).build().unwrap();
    for _ in 0..20 {
        let call = policy.operation("poll").by_classify().call(not_yet);
        assert!(tokio::time::timeout(S, call).await.is_err());
    }
    assert_eq!(policy.breaker().state(), BreakerState::Closed);
    assert_eq!(policy.breaker().counts(clock::now()).cut, 0);
}

/// Nor is the process's age, or a wait of ours, how long an answer took.
#[tokio::test(start_paused = true)]
async fn an_answer_takes_no_longer_because_of_what_came_after_it() {
    let longest = |policy: &Policy| policy.breaker().meter().quantile(1.0).unwrap();
    let answered = async |policy: &Policy, then: Verdict| {
        let calls = AtomicU32::new(0);
        let attempt = || {
            let first = calls.fetch_add(1, SeqCst) == 0;
            std::future::ready(Err::<(), _>(Fault(if first { NOT_YET } else { then })))
        };
        policy.operation("poll").by_classify().call(attempt).await.unwrap_err()
    };
    tokio::time::advance(9 * S).await;
    let policy = patient("t-answered-then").base_delay(Duration::ZERO).slow_after(3_600 * S);
    let policy = policy.build().unwrap();
    // So many that more are counted in passing.
    for _ in 0..100 {
        policy.run(&READ, async |_| Ok::<_, Fault>(())).await.unwrap();
    }
    for then in [Verdict::throttled(None), NOT_YET, Verdict::permanent()] {
        answered(&policy, then).await;
        assert!(longest(&policy) < S, "{then:?}: {:?}", longest(&policy));
    }
    assert_eq!(policy.breaker().meter().answers(), 103);

    // Refused after the wait.
    let policy = patient("t-answered-refused").build().unwrap();
    let isolate = async {
        tokio::time::sleep(S).await;
        policy.breaker().isolate();
    };
    let (error, ()) = tokio::join!(answered(&policy, NOT_YET), isolate);
    assert_eq!((error.decider(), error.attempts()), (Some(Decider::Isolation), 1));
    assert!(longest(&policy) < S, "{:?}", longest(&policy));
}
