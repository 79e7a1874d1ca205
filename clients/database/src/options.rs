//! How a transaction is to run, and how a lost COMMIT turned out.

/// What concurrent transactions may see of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what was committed before it.
    ReadCommitted,
    /// All statements see what was committed before the first.
    RepeatableRead,
    /// As if transactions ran one after the other; conflicts are run again by
    /// [`transaction`](crate::DatabaseClient::transaction).
    Serializable,
}

/// How a transaction is to run. By default: the server's isolation level, reading and writing.
///
/// ```
/// use mainstay_database::{Isolation, SessionOptions};
///
/// let report = SessionOptions::new().isolation(Isolation::RepeatableRead).read_only();
/// # let _ = report;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct SessionOptions {
    pub(crate) isolation: Option<Isolation>,
    pub(crate) read_only: bool,
}

impl SessionOptions {
    /// The server's defaults.
    pub const fn new() -> Self {
        Self { isolation: None, read_only: false }
    }

    /// What it may see of others. SQLite is always serializable, whatever is asked for.
    pub const fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// The server refuses writes in it.
    pub const fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}

/// How a COMMIT whose answer was lost turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitOutcome {
    /// The transaction's work is there.
    Committed,
    /// It is not, and never will be.
    RolledBack,
    /// Nobody can tell.
    Unknown,
}
