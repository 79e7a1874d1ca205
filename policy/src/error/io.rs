//! For functions that return [`std::io::Result`]: an attribute, or `?`, needs no other error type.

use super::{CallError, Error};
use std::io;

/// The operation's own error where that decided. What a policy decided keeps the kind of the last error,
/// or is `TimedOut`, or else `Other`, and holds an [`Error`] that says who decided, after how many
/// attempts, and whether it may have happened: `get_ref()` gives it, to be downcast.
impl From<CallError<io::Error>> for io::Error {
    fn from(error: CallError<io::Error>) -> Self {
        let kind = match &error {
            CallError::Backend { .. } => None,
            _ if error.is_timeout() => Some(io::ErrorKind::TimedOut),
            _ => Some(error.last().map_or(io::ErrorKind::Other, io::Error::kind)),
        };
        match (kind, error) {
            (None, CallError::Backend { error, .. }) => error,
            (kind, error) => Self::new(kind.unwrap_or(io::ErrorKind::Other), Error::from(error)),
        }
    }
}

/// What of an I/O error is ours.
pub(crate) fn own(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Decider, Effect, Outcome, classify::verdict_of};
    use std::{error::Error as _, time::Duration};

    fn stopped(by: Decider, last: Option<io::Error>) -> io::Error {
        let (elapsed, effect) = (Duration::from_secs(1), Effect::Unknown);
        let retry_after = None;
        CallError::Stopped { by, attempts: 3, elapsed, effect, retry_after, last }.into()
    }

    #[test]
    fn the_operations_answer_stays_what_it_was_and_what_a_policy_decided_is_told() {
        let error = io::Error::from_raw_os_error(2);
        let (attempts, elapsed, effect) = (1, Duration::ZERO, Effect::Permanent);
        let answered = CallError::Backend { attempts, elapsed, effect, error };
        assert_eq!(io::Error::from(answered).raw_os_error(), Some(2));

        let reset = || Some(io::ErrorKind::ConnectionReset.into());
        let error = stopped(Decider::Retry, reset());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let inner = own(&error).unwrap();
        assert_eq!((inner.decider(), inner.attempts()), (Some(Decider::Retry), 3));
        assert!(inner.downcast_ref::<io::Error>().is_some());
        assert!(error.to_string().contains("look before repeating it"), "{error}");
        assert!(error.source().is_some());
        assert_eq!(stopped(Decider::Timeout, reset()).kind(), io::ErrorKind::TimedOut);
        assert_eq!(stopped(Decider::Deadline, None).kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_policy_around_it_reads_what_the_one_inside_decided() {
        let (by, retry_after, opened_by) = (Decider::Breaker, None, None);
        let refused: io::Error = CallError::Rejected { by, retry_after, opened_by }.into();
        assert_eq!(refused.kind(), io::ErrorKind::Other);
        let verdict = verdict_of(&refused).unwrap();
        assert_eq!((verdict.effect, verdict.outcome), (Effect::NeverSent, Outcome::Neutral));
        let verdict = verdict_of(&stopped(Decider::Retry, None)).unwrap();
        assert_eq!(verdict.effect, Effect::Unknown);
    }
}
