//! What was seen on a connection, and what the breaker is told of it.

use crate::{
    backend::Backend,
    classify::{self, Class, DatabaseFailure, Phase},
    pool::{Marks, Pool},
};
use mainstay_policy::{
    Classify, Decider, Effect, Idempotency, Operation, Outcome, Policy, Verdict, Watch,
};
use std::time::Duration;

/// Of a connection that callers hold, to the breaker.
pub(super) const STATEMENT: Operation = Operation::new("statement", Idempotency::Unsafe);
pub(super) const COMMIT: Operation = Operation::new("commit", Idempotency::Unsafe);

/// What a statement's failure means for the rest of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Clean,
    /// A statement failed; the server decides at COMMIT whether it matters.
    Failed,
    /// The transaction is gone, or its connection: nothing more may be sent.
    Over,
}

/// The last error that another run of the transaction may not meet, in words.
pub(crate) type Seen = Option<(&'static str, Verdict)>;

pub(super) struct Record {
    pub(super) phase: Phase,
    /// The server was asked to refuse writes, or chosen for it, so that doing so says nothing about it.
    pub(super) read_only: bool,
    /// The breaker learns from each statement; elsewhere the whole call tells it.
    pub(super) watched: bool,
    pub(super) state: State,
    /// Before anything else is sent, it is asked whether the transaction is still there.
    pub(super) in_doubt: bool,
    pub(super) seen: Seen,
}

impl Record {
    pub(super) const fn new(read_only: bool) -> Self {
        let (phase, state) = (Phase::Statement, State::Clean);
        Self { phase, read_only, watched: false, state, in_doubt: false, seen: None }
    }

    pub(super) fn watch<'p>(&self, policy: &'p Policy, what: Operation) -> Option<Watch<'p>> {
        self.watched.then(|| policy.watch(what))
    }

    /// What was seen before did not matter to the caller.
    pub(super) const fn succeeded(&mut self) {
        self.seen = None;
    }

    /// The connection stays marked: the server may still be at it.
    pub(super) fn late(&mut self, policy: &Policy, limit: Option<Duration>) -> DatabaseFailure {
        self.state = State::Over;
        let limit = limit.unwrap_or_default();
        let failure = DatabaseFailure::timed_out(self.phase, limit);
        let failure = failure.out_of_time(whose(policy, limit));
        self.seen = Some(("a statement took too long", failure.classify()));
        failure
    }

    /// Remembers what an error means for the rest of the transaction.
    pub(super) fn failed<DB: Backend>(
        &mut self,
        error: sqlx::Error,
        marks: &mut Marks,
        pool: &Pool<DB>,
    ) -> DatabaseFailure {
        let class = classify::class::<DB>(&error);
        if self.read_only && class == Some(Class::WrongNode) {
            // As the caller asked.
            marks.unfinished = false;
            (self.state, self.seen) = (State::Failed, None);
            return DatabaseFailure::read_only(error);
        }
        marks.unfinished = !classify::keeps_connection::<DB>(&error);
        // What has answered, or is lost, is not cancelled.
        marks.quiet = marks.unfinished;
        let answer = error.as_database_error().filter(|_| self.phase == Phase::Transaction);
        let over = marks.unfinished || answer.is_some_and(DB::ends_transaction);
        self.state = if over { State::Over } else { State::Failed };
        self.in_doubt = answer.is_some_and(DB::leaves_doubt);
        match class {
            // The server has changed its part: no connection to it is of use.
            Some(Class::WrongNode) => pool.evict(),
            // They have prepared it as well.
            Some(Class::Stale) => pool.evict(),
            // SQLite's worker dies of a row with more columns than it knows, on each of them.
            None if matches!(error, sqlx::Error::WorkerCrashed) => pool.evict(),
            // Those that are idle may be gone as well.
            _ if marks.unfinished => pool.suspect(),
            _ => {}
        }
        let failure = DatabaseFailure::driver::<DB>(error, self.phase);
        let verdict = failure.classify();
        match (class, verdict.effect) {
            // It says that something failed before, not what.
            (Some(Class::Aborted), _) => {}
            (_, Effect::Permanent) => self.seen = None,
            _ => {
                self.seen =
                    Some((class.map_or("the connection was lost", classify::words), verdict))
            }
        }
        failure
    }
}

pub(super) fn told(watch: Option<Watch<'_>>) {
    if let Some(watch) = watch {
        watch.succeeded();
    }
}

/// What a failure means for the breaker.
pub(super) fn tell(watch: Option<Watch<'_>>, failure: &DatabaseFailure) {
    let Some(watch) = watch else { return };
    let verdict = failure.classify();
    if verdict.outcome == Outcome::Neutral && failure.is_timed_out() {
        // The caller gave it up: slow perhaps, and nothing more.
        drop(watch);
    } else {
        watch.failed(verdict, failure.code());
    }
}

/// Whether such a limit is the policy's own, or what was left of the deadline around it.
pub(super) fn whose(policy: &Policy, limit: Duration) -> Decider {
    let own = policy.timeout().is_some_and(|timeout| limit >= timeout);
    if own { Decider::Timeout } else { Decider::Deadline }
}
