//! After an outage: deletes at the server what this client wrote meanwhile, so that no older value
//! can come back; then forgets it here too. The next read is a miss that the caller refills.

use crate::{
    classify::RedisFailure,
    client::Outcome,
    command::{Command, IfAway, RECOVER, Raw},
    fallback::{Drain, Fallback, Task},
    link::Line,
    numbers::Numbers,
};
use futures_util::future::join_all;
use mainstay_policy::{Classify, Policy};
use std::{sync::Arc, time::Duration};

/// After the round trip that opened the gate: bytes of the lost connection may still be unread at
/// the server, and a write among them must not land after its key was deleted.
const SETTLE: Duration = Duration::from_millis(100);
const TIDY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// Sent together.
const BATCH: usize = 64;

/// Runs as long as the link does.
pub(crate) async fn run(fallback: Arc<Fallback>, policy: Policy, line: Arc<Line>) {
    let numbers = Numbers::of(policy.name());
    loop {
        // The cache has no threads: what has expired is freed here while nobody calls.
        while tokio::time::timeout(TIDY, fallback.until_dirty()).await.is_err() {
            fallback.tidy();
        }
        line.until_up().await;
        tokio::time::sleep(SETTLE).await;
        while let Some(wait) = step(&fallback, &policy, &line, &numbers).await {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
                // The connection may be another one by now.
                break;
            }
        }
    }
}

/// One batch; gives how long to wait before the next, if one is needed.
async fn step(
    fallback: &Fallback,
    policy: &Policy,
    line: &Arc<Line>,
    numbers: &Numbers,
) -> Option<Duration> {
    // A master that is still away must not hold up what the others can forget.
    let drain = fallback.drain_where(BATCH, |key| line.reaches(key)).await;
    if drain.tasks.is_empty() {
        return None;
    }
    // One dead master of a cluster must not keep the others' keys here.
    let told = join_all(drain.tasks.iter().map(|task| forget(task, &drain, policy, line))).await;
    let refused = told.iter().find_map(|told| told.as_ref().err()?.last().filter(|f| f.is_final()));
    let code = refused.map(|failure| failure.code().unwrap_or_default());
    if fallback.set_refused(code.clone())
        && let Some(code) = code
    {
        tracing::warn!(
            db.system.name = "redis",
            code,
            "the server refuses to delete what was written offline; allow this user DEL and HDEL"
        );
    }
    let done: Vec<bool> = told.iter().map(Result::is_ok).collect();
    let count = done.iter().filter(|done| **done).count();
    let left = drain.acknowledge(&done);
    numbers.recovered(count);
    numbers.dirty(fallback.dirty_keys());
    tracing::debug!(db.system.name = "redis", count, "keys written offline deleted");
    if !left {
        tracing::info!(db.system.name = "redis", "recovered from the fallback");
        return None;
    }
    // Where some got through, a breaker that lets a share of the calls pass refused the others, and
    // calls wait for these keys.
    Some(if count > 0 { Duration::ZERO } else { PAUSE })
}

/// Has the server forget it.
async fn forget(task: &Task, drain: &Drain<'_>, policy: &Policy, line: &Line) -> Outcome<()> {
    let forget = Raw::forget(&task.key, &task.fields);
    let command = Command::Raw(&forget);
    let own = line.policy(&command, policy);
    let policy = own.as_ref().unwrap_or(policy);
    let command = &command;
    let result = policy.run(&RECOVER, |attempt| async move {
        if !drain.holds() {
            return Err(RedisFailure::connecting(IfAway::FallBack));
        }
        match line.send(command, IfAway::FallBack, attempt.timeout()).await {
            // Too late: another runtime has done it, and what is there now is newer.
            Err(error) if error.is_wrong_type() && !drain.holds() => {
                Err(RedisFailure::connecting(IfAway::FallBack))
            }
            // Not a hash any more: somebody else's value, and the only way to be rid of our fields.
            Err(error) if error.is_wrong_type() => {
                let whole = Raw::forget(&task.key, &[]);
                let whole = Command::Raw(&whole);
                line.send(&whole, IfAway::FallBack, attempt.timeout()).await
            }
            result => result,
        }
    });
    let told = result.await.map(drop);
    told.inspect_err(|error| {
        tracing::debug!(db.system.name = "redis", %error, "recovery put off");
    })
}
