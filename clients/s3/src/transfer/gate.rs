//! How many parts may be on their way at once: fewer when the store asks for less load.
//!
//! Additive increase, multiplicative decrease, as TCP avoids congestion (RFC 5681, section 3.1; Chiu and Jain,
//! "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer Networks",
//! 1989): a store that throttles halves the limit, once for all parts that were sent under the old one; each
//! part that arrives adds one part in `limit`, which is one more after a round of them.

use crate::S3Failure;
use mainstay_policy::Deadline;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Mutex as Queue, Notify};

/// Parts of all transfers of one client.
const MOST: f64 = 16.0;

#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Whose turn it is to wait for a place: first come, first served.
    turn: Queue<()>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    limit: f64,
    busy: usize,
    /// How often the limit was halved.
    round: u64,
}

/// One part's place; free again when dropped.
pub(crate) struct Place<'a>(&'a Gate);

impl Default for Gate {
    fn default() -> Self {
        let state = State { limit: MOST, busy: 0, round: 0 };
        Self { state: Mutex::new(state), turn: Queue::default(), freed: Notify::new() }
    }
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place, in the order of asking. `None` when the deadline around it has passed: the call
    /// itself then says so.
    pub(crate) async fn enter(&self) -> Option<Place<'_>> {
        match Deadline::current() {
            Some(deadline) => tokio::time::timeout(deadline.left(), self.wait()).await.ok(),
            None => Some(self.wait().await),
        }
    }

    async fn wait(&self) -> Place<'_> {
        let _turn = self.turn.lock().await;
        loop {
            // What is freed after the look is kept.
            if self.take() {
                return Place(self);
            }
            self.freed.notified().await;
        }
    }

    fn take(&self) -> bool {
        let mut state = self.state();
        let free = (state.busy as f64) < state.limit.floor();
        state.busy += usize::from(free);
        free
    }

    /// For [`Gate::answered`]: an attempt that begins now.
    pub(crate) fn round(&self) -> u64 {
        self.state().round
    }

    /// What came of an attempt that began in this round.
    pub(crate) fn answered<T>(&self, round: u64, answer: &Result<T, S3Failure>) {
        let mut state = self.state();
        match answer {
            Ok(_) => state.limit = (state.limit + 1.0 / state.limit).min(MOST),
            Err(failure) if failure.is_throttled() && round == state.round => {
                state.limit = (state.limit / 2.0).max(1.0);
                state.round += 1;
            }
            Err(_) => {}
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.busy -= 1;
        drop(state);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{pin::pin, time::Duration};
    use tokio::time::timeout;

    fn throttled() -> Result<(), S3Failure> {
        Err(S3Failure::throttled())
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_and_asks_again_comes_after_those_who_wait() {
        let gate = Gate::default();
        let mut places = Vec::new();
        for _ in 0..MOST as usize {
            places.push(gate.enter().await);
        }
        let mut first = pin!(gate.enter());
        assert!(timeout(Duration::from_secs(1), &mut first).await.is_err());
        places.pop();
        let mut again = pin!(gate.enter());
        assert!(timeout(Duration::from_secs(1), &mut again).await.is_err());
        places.push(first.await);
        places.pop();
        assert!(again.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_halves_once_a_round_and_success_adds_one_a_round() {
        let gate = Gate::default();
        let round = gate.round();
        for _ in 0..10 {
            gate.answered(round, &throttled());
        }
        assert_eq!(gate.state().limit, 8.0, "ten parts of one round are one piece of news");
        gate.answered(gate.round(), &throttled());
        assert_eq!(gate.state().limit, 4.0);
        for _ in 0..4 {
            gate.answered(gate.round(), &Ok(()));
        }
        assert!((4.9..=5.0).contains(&gate.state().limit), "{}", gate.state().limit);
        for _ in 0..1_000 {
            gate.answered(gate.round(), &Ok(()));
        }
        assert_eq!(gate.state().limit, MOST);
        for _ in 0..100 {
            gate.answered(gate.round(), &throttled());
        }
        assert_eq!(gate.state().limit, 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_let_in_than_the_limit_and_a_drop_frees_a_place() {
        let gate = Gate::default();
        let mut places = Vec::new();
        for _ in 0..16 {
            places.push(gate.enter().await);
        }
        let mut next = pin!(gate.enter());
        assert!(timeout(Duration::from_secs(1), &mut next).await.is_err());
        gate.answered(gate.round(), &throttled());
        places.truncate(8);
        assert!(timeout(Duration::from_secs(1), &mut next).await.is_err(), "eight is the limit");
        places.truncate(7);
        assert!(next.await.is_some());
        let ended = Deadline::within(Duration::from_secs(1)).scope(async {
            places.push(gate.enter().await);
            gate.enter().await.is_none()
        });
        assert!(ended.await);
    }
}
