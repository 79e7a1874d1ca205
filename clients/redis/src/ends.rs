//! How a call ended, and what follows for the fallback.

use crate::{classify::RedisFailure, command::Command, link::Line};
use mainstay_policy::{CallError, Decider, Effect};
use std::{slice::from_ref, time::Instant};

/// The end of a call that the server refused.
pub(crate) fn answered(error: RedisFailure, began: Instant) -> CallError<RedisFailure> {
    let elapsed = began.elapsed();
    CallError::Backend { attempts: 1, elapsed, effect: Effect::Permanent, error }
}

/// Whether a write that ended so is kept here. Also when nobody knows whether it happened: the key is
/// dirty then, and deleted at the server before it is read there again. Only a counter cannot be taken
/// back like that.
pub(crate) fn is_kept_here(
    error: &CallError<RedisFailure>,
    line: &Line,
    command: &Command<'_>,
) -> bool {
    is_outage(error, line, from_ref(command))
        && !is_own_limit(error)
        && !(matches!(command, Command::Add(..)) && error.is_outcome_unknown())
}

/// Refused by a limit of the caller's own policy, or since its time was up before anything was sent: the
/// server is well, and what is kept here would be deleted there.
pub(crate) fn is_own_limit(error: &CallError<RedisFailure>) -> bool {
    error.is_rejected()
        && matches!(
            error.decider(),
            Some(Decider::RateLimit | Decider::Bulkhead | Decider::Deadline)
        )
}

/// Nothing of it can have reached the server.
pub(crate) fn was_never_sent(error: &CallError<RedisFailure>) -> bool {
    match error {
        // In an attempt before this one, or of several commands one before this one, it may have been.
        CallError::Backend { attempts: 1, effect, error, .. }
            if *effect != Effect::Unknown && error.was_not_sent() =>
        {
            true
        }
        error => error.effect() == Effect::NeverSent,
    }
}

/// Whether the server is the problem, so that the fallback answers. An open breaker does not say why it
/// is open: refused credentials are no outage then either.
pub(crate) fn is_outage(
    error: &CallError<RedisFailure>,
    line: &Line,
    commands: &[Command<'_>],
) -> bool {
    match (error.last(), error.decider()) {
        (Some(failure), _) => failure.is_outage(),
        (None, Some(Decider::Breaker)) => {
            !commands.iter().any(|command| line.refuses_credentials(command))
        }
        (None, decider) => decider.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::IfAway;
    use fred::error::{Error as Driver, ErrorKind};
    use std::time::Duration;

    #[test]
    fn what_found_the_link_down_at_its_first_attempt_was_never_sent() {
        let auth = || Driver::new(ErrorKind::Auth, "WRONGPASS invalid");
        let shut_out = || RedisFailure::closed(Some(auth()), IfAway::FallBack);
        for (attempts, effect, error, never_sent) in [
            (1, Effect::Permanent, shut_out(), true),
            (1, Effect::Permanent, RedisFailure::closed(None, IfAway::FallBack), true),
            (1, Effect::NeverSent, RedisFailure::closed(None, IfAway::Fail), true),
            // Of several commands others may have been sent, and so may an attempt before.
            (1, Effect::Unknown, shut_out(), false),
            (2, Effect::Permanent, shut_out(), false),
            // An answer.
            (1, Effect::Unknown, RedisFailure::driver(auth()), false),
        ] {
            let text = format!("{attempts} {effect:?} {error:?}");
            let error = CallError::Backend { attempts, elapsed: Duration::ZERO, effect, error };
            assert_eq!(was_never_sent(&error), never_sent, "{text}");
        }
    }
}
