//! How many connections ended between a COMMIT and its answer, told from the bytes that pass.
//!
//! Only then may a caller say that nobody knows. A COMMIT that is on its way to the proxy cannot be
//! seen, so it counts from the answer of the statement before it.

use mainstay_test_support::{Proxy, proxy::Passing};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

/// Statements of a transaction, without BEGIN and COMMIT.
const STATEMENTS: u32 = 3;

/// Where the two databases differ on the wire. Nothing slices their messages here: one request is
/// one piece, and so is the answer of COMMIT.
pub(super) struct Protocol {
    /// The message that runs this text.
    message: fn(&str) -> Vec<u8>,
    /// It ends a transaction: done, or not done.
    is_answer: fn(&[u8]) -> bool,
}

pub(super) const POSTGRES: Protocol = Protocol {
    message: |text| [b"Q\0\0\0", &[text.len() as u8 + 5][..], text.as_bytes(), b"\0"].concat(),
    // Ready for the next one, outside of any transaction.
    is_answer: |bytes| bytes.ends_with(b"Z\0\0\0\x05I"),
};

pub(super) const MARIADB: Protocol = Protocol {
    message: |text| [&[text.len() as u8 + 1][..], b"\0\0\0\x03", text.as_bytes()].concat(),
    // The first packet of an answer, and what it says is OK.
    is_answer: |bytes| bytes.get(3..5) == Some(b"\x01\0"),
};

/// Counts from here on.
pub(super) fn count(proxy: &Proxy, protocol: &Protocol) -> Arc<AtomicU32> {
    let [begin, commit, rollback] = ["BEGIN", "COMMIT", "ROLLBACK"].map(protocol.message);
    let is_answer = protocol.is_answer;
    let (connections, in_doubt) = (Mutex::new(HashMap::new()), Arc::<AtomicU32>::default());
    let counter = Arc::clone(&in_doubt);
    proxy.observe(move |number, passing| {
        let mut connections = connections.lock().unwrap();
        let state = connections.entry(number).or_insert(State::Outside);
        *state = match (passing, *state) {
            (Passing::Request(bytes), _) if bytes.ends_with(&begin) => State::Inside(0),
            (Passing::Request(bytes), _) if bytes.ends_with(&commit) => State::Committing,
            (Passing::Request(bytes), _) if bytes.ends_with(&rollback) => State::Outside,
            // It was one more statement, as when one has to be prepared first.
            (Passing::Request(_), State::Committing) => State::Inside(STATEMENTS),
            (Passing::Request(_), State::Inside(n)) => State::Inside(n + 1),
            (Passing::Request(_), _) => State::Outside,
            (Passing::Reply(_), State::Inside(STATEMENTS..)) => State::Committing,
            (Passing::Reply(bytes), State::Committing) if is_answer(bytes) => State::Answered,
            (Passing::Left, State::Committing | State::Answered)
            | (Passing::Ended, State::Committing) => {
                counter.fetch_add(1, SeqCst);
                State::Outside
            }
            (_, same) => same,
        };
    });
    in_doubt
}

/// Of one connection.
#[derive(Clone, Copy)]
enum State {
    Outside,
    /// So many statements have come since BEGIN.
    Inside(u32),
    /// COMMIT has come, or may be on its way.
    Committing,
    /// Given to the client, which may not have looked.
    Answered,
}
