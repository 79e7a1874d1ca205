//! What went wrong with one attempt. The phase decides what may have happened: a connection lost
//! while idle and one lost in mid-statement give the same driver error.

mod words;

pub(crate) use words::words;

use crate::backend::Sealed;
use mainstay_policy::{Classify, Decider, Effect, Outcome, Verdict};
use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};
use words::{io, mistake, tls_words};

/// How far an attempt had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waiting for a connection or making one, and BEGIN: nothing was done.
    Acquire,
    /// A statement that stands for itself.
    Statement,
    /// A statement before COMMIT was sent: nothing will be committed.
    Transaction,
    /// COMMIT.
    Commit,
}

/// What a server's error code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The server takes no more for now; not executed.
    Busy,
    /// It takes no more connections; those that are there go on.
    Full,
    /// A lock was not to be had; not executed.
    Contended,
    /// Serialization failure or deadlock: the transaction may be run again.
    Conflict,
    /// The connection had prepared it before a table was changed; not executed.
    Stale,
    /// The server is going away.
    GoingAway,
    /// Ended by a time limit, rolled back.
    Cancelled,
    /// Disk or memory is full.
    Exhausted,
    /// A replica, or a server set to read only.
    WrongNode,
    /// Credentials.
    Refused,
    /// A database that is not there.
    NoDatabase,
    /// A file that is not there, may not be opened or is no database.
    File,
    /// The transaction had failed before.
    Aborted,
    /// Data are damaged.
    Damaged,
    /// The statement's own fault.
    Permanent,
}

/// Why one attempt failed. [`sqlx::Error`] is its source where the driver said something.
pub struct DatabaseFailure {
    what: What,
    verdict: Verdict,
    /// The server ended it by a time limit.
    cancelled: bool,
    /// Whose limit it was, if one of the policy's ended it.
    whose: Option<Decider>,
}

enum What {
    Driver(sqlx::Error, String),
    Connect(Arc<sqlx::Error>, String),
    Silent(Duration),
    NoneFits,
    Closed,
    ReadOnly(sqlx::Error),
    PoolExhausted { in_use: u32, max: u32, waited: Duration },
    TimedOut(Phase, Duration),
    NoRuntime,
    Unusable,
    Aborted,
    Seen(&'static str),
    Closure(mainstay_policy::Error),
}

impl DatabaseFailure {
    const fn new(what: What, verdict: Verdict) -> Self {
        Self { what, verdict, cancelled: false, whose: None }
    }

    /// The step had no answer in its time.
    pub(crate) const fn is_timed_out(&self) -> bool {
        matches!(self.what, What::TimedOut(..))
    }

    /// As above, or the server said so first, which has the same limit.
    pub(crate) const fn is_out_of_time(&self) -> bool {
        self.is_timed_out() || self.cancelled
    }

    /// It was the policy's limit for the attempt, or the caller's deadline, which says nothing of the
    /// server.
    pub(crate) fn out_of_time(self, whose: Decider) -> Self {
        let verdict = match whose {
            Decider::Deadline => self.verdict.with_outcome(Outcome::Neutral),
            _ => self.verdict,
        };
        Self { verdict, whose: Some(whose), ..self }
    }

    pub(crate) fn driver<DB: Sealed>(error: sqlx::Error, phase: Phase) -> Self {
        let (verdict, words) = read::<DB>(&error, phase);
        let cancelled = class::<DB>(&error) == Some(Class::Cancelled);
        Self { cancelled, ..Self::new(What::Driver(error, words), verdict) }
    }

    /// The shared dial beside the pool found out why no connection comes.
    pub(crate) fn connect<DB: Sealed>(error: Arc<sqlx::Error>) -> Self {
        let (verdict, words) = read::<DB>(&error, Phase::Acquire);
        Self::new(What::Connect(error, words), verdict)
    }

    pub(crate) const fn silent(waited: Duration) -> Self {
        Self::new(What::Silent(waited), Verdict::never_sent())
    }

    /// No host of the URL is of the kind that is asked for: a failover may be under way.
    pub(crate) const fn none_fits() -> Self {
        Self::new(What::NoneFits, Verdict::never_sent())
    }

    pub(crate) const fn closed() -> Self {
        let verdict = Verdict::permanent().with_outcome(Outcome::Neutral);
        Self::new(What::Closed, verdict)
    }

    /// A write where the caller had asked for none.
    pub(crate) const fn read_only(error: sqlx::Error) -> Self {
        Self::new(What::ReadOnly(error), Verdict::permanent())
    }

    pub(crate) const fn pool_exhausted(in_use: u32, max: u32, waited: Duration) -> Self {
        // Our own load, not the server's fault.
        let verdict = Verdict::never_sent().with_outcome(Outcome::Neutral);
        Self::new(What::PoolExhausted { in_use, max, waited }, verdict)
    }

    pub(crate) const fn timed_out(phase: Phase, limit: Duration) -> Self {
        Self::new(What::TimedOut(phase, limit), lost(phase))
    }

    pub(crate) const fn no_runtime() -> Self {
        let verdict = Verdict::permanent().with_outcome(Outcome::Neutral);
        Self::new(What::NoRuntime, verdict)
    }

    pub(crate) const fn unusable() -> Self {
        let verdict = Verdict::transient().with_outcome(Outcome::Neutral);
        Self::new(What::Unusable, verdict)
    }

    pub(crate) const fn aborted() -> Self {
        let verdict = Verdict::permanent().with_outcome(Outcome::Neutral);
        Self::new(What::Aborted, verdict)
    }

    /// Not sent: it would not do what its words say.
    const fn refused(words: &'static str) -> Self {
        Self::new(What::Seen(words), Verdict::permanent().with_outcome(Outcome::Neutral))
    }

    /// A BEGIN for one statement, which is none.
    pub(crate) const fn begins_nothing() -> Self {
        Self::refused(
            "each statement may take another connection, so this would begin nothing; take \
             session() or transaction()",
        )
    }

    /// A COMMIT in text, or what the server commits before.
    pub(crate) const fn ends_transaction() -> Self {
        Self::refused(
            "this would, or may, end the transaction unseen, and what follows would stand for \
             itself; end it with commit() or rollback(), and take acquire() for what commits by \
             itself",
        )
    }

    /// A statement prepared behind a pooler.
    pub(crate) const fn names_nothing() -> Self {
        Self::refused(
            "behind a transaction pooler a prepared statement would stay where another client meets \
             it; leave it to query(), which prepares without a name",
        )
    }

    /// What a session saw go by on its way to the caller.
    pub(crate) const fn seen(words: &'static str, verdict: Verdict) -> Self {
        Self::new(What::Seen(words), verdict)
    }

    /// The closure's own error, after the last attempt.
    pub(crate) const fn closure(error: mainstay_policy::Error, verdict: Verdict) -> Self {
        Self::new(What::Closure(error), verdict)
    }

    /// Of a text that may stop halfway, what the server rolled back may be the rest.
    pub(crate) fn perhaps_halfway(self) -> Self {
        match self.verdict.effect {
            Effect::Transient => {
                let verdict = Verdict::unknown().with_outcome(self.verdict.outcome);
                Self { verdict, ..self }
            }
            _ => self,
        }
    }

    /// Somebody looked: it was not committed.
    pub(crate) fn did_not_happen(self) -> Self {
        Self { verdict: Verdict::transient(), ..self }
    }

    /// The server refused a new connection as it has too many.
    pub(crate) fn is_full<DB: Sealed>(&self) -> bool {
        matches!(&self.what, What::Connect(e, _) if class::<DB>(e) == Some(Class::Full))
    }

    /// All connections of the pool are in use.
    #[must_use]
    pub const fn is_pool_exhausted(&self) -> bool {
        matches!(self.what, What::PoolExhausted { .. })
    }

    /// The server's answer, or the driver's refusal: the driver's own error says it best.
    pub(crate) fn is_answer(&self) -> bool {
        let lost = |e: &sqlx::Error| {
            matches!(
                e,
                sqlx::Error::Io(_)
                    | sqlx::Error::Tls(_)
                    | sqlx::Error::Protocol(_)
                    | sqlx::Error::WorkerCrashed
                    | sqlx::Error::PoolClosed
                    | sqlx::Error::PoolTimedOut
            )
        };
        self.verdict.effect != Effect::Unknown
            && matches!(&self.what, What::Driver(e, _) | What::ReadOnly(e) if !lost(e))
    }

    /// The driver's error, to be handed on as it is.
    pub(crate) fn into_driver(self) -> Result<sqlx::Error, Self> {
        match self.what {
            What::Driver(error, _) | What::ReadOnly(error) => Ok(error),
            what => Err(Self { what, ..self }),
        }
    }
}

impl Classify for DatabaseFailure {
    fn classify(&self) -> Verdict {
        self.verdict
    }

    fn code(&self) -> Option<String> {
        let driver = match &self.what {
            What::Driver(error, _) | What::ReadOnly(error) => error,
            What::Connect(error, _) => error,
            _ => return None,
        };
        driver.as_database_error()?.code().map(Into::into)
    }

    fn decider(&self) -> Option<Decider> {
        self.whose
    }
}

impl fmt::Debug for DatabaseFailure {
    /// Our own words: the driver's hold values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseFailure")
            .field("message", &format_args!("{self}"))
            .field("verdict", &self.verdict)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for DatabaseFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Driver(_, words) | What::Connect(_, words) => f.write_str(words),
            What::Silent(waited) => write!(
                f,
                "the server did not answer within {waited:.1?}; check host and port, or raise \
                 connect_timeout"
            ),
            What::NoneFits => f.write_str(
                "no host of the URL is of the kind that target_session_attrs asks for; a failover \
                 may be under way",
            ),
            What::Closed => f.write_str("the client is closed; build a new one"),
            What::ReadOnly(_) => f.write_str(
                "a write where only reads were asked for; take the client itself, a session that \
                 is not read-only, or a URL whose target_session_attrs is another",
            ),
            What::PoolExhausted { in_use, max, waited } => write!(
                f,
                "no free connection within {waited:.1?}: {in_use} of {max} are in use; hold them \
                 for less time or raise max_connections"
            ),
            What::TimedOut(Phase::Acquire, limit) => {
                write!(f, "no connection within {limit:.1?}")
            }
            What::TimedOut(_, limit) => write!(f, "no answer within {limit:.1?}"),
            What::NoRuntime => f.write_str("no tokio runtime here; call it from async code"),
            What::Unusable => f.write_str(
                "this session's connection was lost or left in the middle of a statement; take a \
                 new session",
            ),
            What::Aborted => f.write_str(
                "nothing was committed, as a statement before had failed; hand its error on",
            ),
            What::Seen(words) => f.write_str(words),
            What::Closure(error) => write!(f, "{error}"),
        }
    }
}

impl StdError for DatabaseFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.what {
            What::Driver(error, _) | What::ReadOnly(error) => Some(error),
            What::Connect(error, _) => Some(&**error),
            What::Closure(error) => Some(error),
            _ => None,
        }
    }
}

/// Whether the connection is in order after this error: the server answered and went on.
pub(crate) fn keeps_connection<DB: Sealed>(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(e) if DB::ends_connection(e.as_ref()) => false,
        sqlx::Error::Database(e) => !matches!(
            DB::class(e.as_ref()),
            Class::GoingAway
                | Class::Stale
                | Class::WrongNode
                | Class::Refused
                | Class::NoDatabase
                | Class::File
                | Class::Damaged
        ),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed
        | sqlx::Error::PoolClosed
        | sqlx::Error::PoolTimedOut => false,
        _ => true,
    }
}

/// The class of a server's answer.
pub(crate) fn class<DB: Sealed>(error: &sqlx::Error) -> Option<Class> {
    match error {
        sqlx::Error::Database(e) => Some(DB::class(e.as_ref())),
        _ => None,
    }
}

/// The connection, or the answer, is gone.
const fn lost(phase: Phase) -> Verdict {
    match phase {
        Phase::Acquire => Verdict::never_sent(),
        Phase::Transaction => Verdict::transient(),
        Phase::Statement | Phase::Commit => Verdict::unknown(),
    }
}

pub(crate) const fn verdict(class: Class, phase: Phase) -> Verdict {
    match class {
        Class::Busy | Class::Full | Class::Exhausted | Class::WrongNode | Class::Cancelled => {
            Verdict::transient()
        }
        Class::Contended | Class::Conflict | Class::Stale => {
            Verdict::transient().with_outcome(Outcome::Neutral)
        }
        Class::GoingAway => lost(phase),
        Class::Refused | Class::NoDatabase | Class::File | Class::Damaged => {
            Verdict::permanent().with_outcome(Outcome::Failure)
        }
        Class::Aborted => Verdict::permanent().with_outcome(Outcome::Neutral),
        Class::Permanent => Verdict::permanent(),
    }
}

fn read<DB: Sealed>(error: &sqlx::Error, phase: Phase) -> (Verdict, String) {
    use sqlx::Error as E;
    use std::io::ErrorKind as K;
    let neutral = Verdict::permanent().with_outcome(Outcome::Neutral);
    let failure = Verdict::permanent().with_outcome(Outcome::Failure);
    let (verdict, words) = match error {
        E::Database(e) => {
            let class = DB::class(e.as_ref());
            let code = e.code().unwrap_or_default();
            let mut words = format!("{} answered {code}: {}", DB::LABEL, words(class));
            // The message about a database or a file names that; the one about a role, the user.
            if matches!(class, Class::NoDatabase | Class::File) && phase == Phase::Acquire {
                words = format!("{words} ({})", e.message());
            }
            return (self::verdict(class, phase), words);
        }
        E::Io(e) => {
            if let Some(tls) = mainstay_policy::Error::find_in::<rustls::Error>(e) {
                let (is_certificate, words) = tls_words(tls);
                // Another attempt meets the same certificate.
                let verdict = if is_certificate { failure } else { lost(phase) };
                return (verdict, words.to_owned());
            }
            let words = if phase == Phase::Acquire {
                let check = match e.kind() {
                    K::NotFound | K::PermissionDenied | K::IsADirectory => {
                        "check the file of tls_ca, or the socket's path"
                    }
                    _ => "check host, port and that it is up",
                };
                format!("cannot connect ({}); {check}", io(e))
            } else {
                format!("the connection was lost ({})", io(e))
            };
            return (lost(phase), words);
        }
        // The driver's own refusal; what goes wrong in the handshake is an `Io`.
        E::Tls(_) => (
            failure,
            "no TLS with this server: it offers none, or the file of tls_ca holds no certificate; \
             check both, or set tls to disable",
        ),
        E::Protocol(said) => match mistake(said) {
            // The driver refused, or the server had done nothing yet.
            Some(words) => (neutral, words),
            None if phase == Phase::Acquire => (
                lost(phase),
                "the server's answer makes no sense; check that host and port are this database's",
            ),
            None => (lost(phase), "the server's answer makes no sense; the connection is cut"),
        },
        E::WorkerCrashed => (lost(phase), "the database's worker thread is gone"),
        E::BeginFailed => (lost(phase), "BEGIN did not begin a transaction"),
        E::PoolTimedOut => (Verdict::never_sent(), "no connection in time"),
        E::PoolClosed => (neutral, "the client is closed; build a new one"),
        E::RowNotFound => (Verdict::permanent(), "no row"),
        E::Configuration(_) => (neutral, "the connection's settings cannot be used"),
        E::Encode(_) => (neutral, "a bound value cannot be encoded"),
        E::ColumnNotFound(_)
        | E::ColumnIndexOutOfBounds { .. }
        | E::ColumnDecode { .. }
        | E::Decode(_)
        | E::TypeNotFound { .. } => {
            (Verdict::permanent(), "the row does not fit the type it is read into")
        }
        _ => (neutral, "the driver refused"),
    };
    (verdict, words.to_owned())
}

#[cfg(test)]
#[cfg(feature = "postgres")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sqlx::{Postgres, error::ErrorKind};
    use std::borrow::Cow;

    /// A server's answer with a code of its choice, and a value in its message.
    #[derive(Debug)]
    struct Answer(String);

    impl fmt::Display for Answer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Key (email)=(s3cret) already exists")
        }
    }

    impl StdError for Answer {}

    impl sqlx::error::DatabaseError for Answer {
        fn message(&self) -> &str {
            "Key (email)=(s3cret) already exists"
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            Some(Cow::Borrowed(&self.0))
        }
        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    const PHASES: [Phase; 4] =
        [Phase::Acquire, Phase::Statement, Phase::Transaction, Phase::Commit];

    proptest! {
        #[test]
        fn of_any_sqlstate_nothing_is_unknown_before_it_could_have_happened(
            code in prop_oneof!["[0-9A-Z]{5}", "(08|25|40|53|55|57|58|XX)[0-9A-Z]{3}", ".{0,8}"],
        ) {
            for phase in PHASES {
                let error = sqlx::Error::Database(Box::new(Answer(code.clone())));
                let class = class::<Postgres>(&error).unwrap();
                let failure = DatabaseFailure::driver::<Postgres>(error, phase);
                let verdict = failure.classify();
                // The server answered: only one that is going away leaves it open.
                let open = verdict.effect == Effect::Unknown;
                let may_be = matches!(phase, Phase::Statement | Phase::Commit);
                prop_assert!(!open || may_be && class == Class::GoingAway, "{:?} {:?}", phase, class);
                if class == Class::Permanent {
                    prop_assert_eq!(verdict, Verdict::permanent(), "it answered, and is well");
                }
                let told = format!("{failure} {failure:?}");
                prop_assert_eq!(failure.code(), Some(code.clone()));
                let names_it = matches!(class, Class::NoDatabase | Class::File);
                prop_assert!(!told.contains("s3cret") || names_it, "{}", told);
            }
        }

        #[test]
        fn of_any_broken_connection_the_phase_says_what_may_have_happened(number in 0_i32..140) {
            for (phase, effect) in PHASES.into_iter().zip([
                Effect::NeverSent, Effect::Unknown, Effect::Transient, Effect::Unknown,
            ]) {
                let error = sqlx::Error::Io(std::io::Error::from_raw_os_error(number));
                let failure = DatabaseFailure::driver::<Postgres>(error, phase);
                prop_assert_eq!(failure.classify().effect, effect);
                prop_assert_eq!(failure.classify().outcome, Outcome::Failure);
            }
        }
    }
}
