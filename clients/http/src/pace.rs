//! Sending less to a server that asks for it.
//!
//! A 429, or a 503 with Retry-After, holds for everybody: until the time that the server named, at
//! most 30 s, nothing is sent to its origin, and then one request after another with a gap between
//! them, 10 ms at first. Further refusals double the gap every 100 ms, to at most 1 s; each success takes a
//! sixteenth off, and a gap below 1 ms is none. A request whose turn would come after its deadline is
//! refused at once, and the error says when to come again.
//!
//! That it begins is an event and a warning, that it ends another; a reset forgets it.
//!
//! 30 s, so that no single answer silences a client for long: a server that named an hour gets one
//! request each 30 s, and the call that was told so is not repeated before the hour is over.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

const LONGEST_STOP: Duration = Duration::from_secs(30);
const FIRST_GAP: Duration = Duration::from_millis(10);
const WIDEST_GAP: Duration = Duration::from_secs(1);
/// Between two that double the gap: quotas are often for a second, and those that meet the rest of it
/// say the same thing.
const DOUBLES: Duration = Duration::from_millis(100);
const NO_GAP: Duration = Duration::from_millis(1);

/// Clients of one dependency share its pace, as they share its breaker. Looked at when one is built.
static PACES: Mutex<Option<HashMap<String, Weak<Pace>>>> = Mutex::new(None);

/// How fast requests may be sent to one dependency.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// 0 while requests are just sent: all that they look at then. Else it changes with each refusal
    /// that slows down further.
    word: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    refusals: u32,
    /// Nothing is sent before.
    stop: Option<Instant>,
    /// The gap has been widened.
    widened: Option<Instant>,
    /// The next turn that is free.
    next: Option<Instant>,
    gap: Duration,
}

/// What a request saw when it was sent: a refusal of what was sent before the last one is no news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen(u32);

impl Pace {
    /// The pace of the dependency of this name.
    pub(crate) fn of(name: &str) -> Arc<Self> {
        static FORGETS: Once = Once::new();
        FORGETS.call_once(|| mainstay_policy::on_reset(forget));
        let mut paces = PACES.lock().unwrap_or_else(PoisonError::into_inner);
        let paces = paces.get_or_insert_default();
        if let Some(pace) = paces.get(name).and_then(Weak::upgrade) {
            return pace;
        }
        paces.retain(|_, pace| pace.strong_count() > 0);
        let pace = Arc::<Self>::default();
        paces.insert(name.to_owned(), Arc::downgrade(&pace));
        pace
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn seen(&self) -> Seen {
        Seen(self.word.load(Relaxed))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.word.load(Relaxed) != 0
    }

    /// How long the next request would wait; `None` if requests are just sent.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.is_on().then(|| {
            let now = Instant::now();
            self.state().turn(now).saturating_duration_since(now)
        })
    }

    /// Waits for a turn, within `limit`.
    ///
    /// # Errors
    /// The wait that would be too long.
    ///
    /// # Cancel safety
    /// The turn stays empty.
    pub(crate) async fn turn(&self, limit: Option<Duration>) -> Result<(), Duration> {
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let turn = self.take_turn(end)?;
            if turn > Instant::now() {
                sleep_until(turn).await;
            }
            if self.holds(turn) {
                return Ok(());
            }
        }
    }

    /// Whether a turn that was taken is still good: the server has not asked for a longer stop since.
    pub(crate) fn holds(&self, turn: Instant) -> bool {
        self.state().stop.is_none_or(|stop| stop <= turn)
    }

    /// The turn that is now the caller's.
    ///
    /// # Errors
    /// The wait, if it would end after `end`; no turn is taken.
    pub(crate) fn take_turn(&self, end: Option<Instant>) -> Result<Instant, Duration> {
        let now = Instant::now();
        let mut state = self.state();
        let turn = state.turn(now);
        if end.is_some_and(|end| turn >= end) {
            return Err(turn.saturating_duration_since(now));
        }
        state.next = Some(turn + state.gap);
        Ok(turn)
    }

    /// The server refused a request for its load. When this is the first, how long nothing is sent.
    pub(crate) fn refused(&self, seen: Seen, retry_after: Option<Duration>) -> Option<Duration> {
        let now = Instant::now();
        let mut state = self.state();
        let begins = !self.is_on();
        let stop = now + retry_after.unwrap_or_default().min(LONGEST_STOP);
        state.stop = state.stop.max(Some(stop));
        let again = state.widened.is_none_or(|widened| widened + DOUBLES <= now);
        if seen == self.seen() && (again || !self.is_on()) {
            state.widened = Some(now);
            state.refusals = state.refusals.wrapping_add(1).max(1);
            let wider = if self.is_on() { state.gap * 2 } else { FIRST_GAP };
            state.gap = wider.clamp(FIRST_GAP, WIDEST_GAP);
            state.next = state.next.max(Some(stop.max(now + state.gap)));
            self.word.store(state.refusals, Relaxed);
        }
        (begins && self.is_on()).then(|| stop.saturating_duration_since(now))
    }

    /// The server answered a request; true when requests are just sent from now on.
    pub(crate) fn answered(&self, seen: Seen) -> bool {
        // Sent at a pace, and after the last refusal.
        seen.0 != 0 && seen == self.seen() && self.ease()
    }

    #[cold]
    fn ease(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        state.gap = state.gap * 15 / 16;
        let ends = self.is_on() && state.gap < NO_GAP && state.stop.is_none_or(|stop| stop <= now);
        if ends {
            (state.stop, state.next) = (None, None);
            self.word.store(0, Relaxed);
        }
        ends
    }

    /// What is under way or waits goes on as it was.
    fn clear(&self) {
        let mut state = self.state();
        // Not the count of refusals: what was sent before this is told from what comes after.
        *state = State { refusals: state.refusals, ..State::default() };
        self.word.store(0, Relaxed);
    }
}

/// Of every dependency.
fn forget() {
    let paces = PACES.lock().unwrap_or_else(PoisonError::into_inner);
    paces.iter().flat_map(HashMap::values).filter_map(Weak::upgrade).for_each(|pace| pace.clear());
}

impl State {
    fn turn(&self, now: Instant) -> Instant {
        self.next.max(self.stop).map_or(now, |turn| turn.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_stops_then_goes_slowly_and_eases() {
        let pace = Pace::default();
        assert_eq!(pace.wait(), None);
        pace.refused(pace.seen(), Some(7 * S));
        assert_eq!(pace.wait(), Some(7 * S));
        let started = Instant::now();
        for n in 0..3 {
            let seen = pace.seen();
            assert_eq!(pace.turn(None).await, Ok(()));
            assert_eq!(started.elapsed(), 7 * S + n * 10 * MS);
            assert_eq!(seen, pace.seen());
        }
        let seen = pace.seen();
        let mut answers = 0;
        while pace.is_on() {
            pace.answered(seen);
            answers += 1;
        }
        assert_eq!(answers, 36, "a sixteenth each, from 10 ms to 1 ms");
        assert_eq!(pace.wait(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_of_what_was_sent_at_once_count_once_and_later_ones_double_the_gap() {
        let pace = Pace::default();
        let seen = pace.seen();
        for _ in 0..64 {
            pace.refused(seen, None);
        }
        assert_eq!(pace.state().gap, FIRST_GAP);
        pace.refused(pace.seen(), None);
        assert_eq!(pace.state().gap, FIRST_GAP, "too soon after the last one");
        for gap in [20, 40, 80, 160, 320, 640, 1_000, 1_000] {
            tokio::time::advance(DOUBLES).await;
            pace.refused(pace.seen(), None);
            assert_eq!(pace.state().gap, gap * MS);
        }
        // An answer to what was sent before the refusal says nothing of now.
        pace.answered(seen);
        assert_eq!(pace.state().gap, S);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_after_the_end_is_not_taken_and_an_hour_is_half_a_minute() {
        let pace = Pace::default();
        pace.refused(pace.seen(), Some(3_600 * S));
        assert_eq!(pace.turn(Some(5 * S)).await, Err(30 * S));
        assert_eq!(pace.wait(), Some(30 * S), "nobody has taken it");
        // Another refusal after 20 s: those who wait go on waiting.
        let started = Instant::now();
        let refusal = async {
            tokio::time::sleep(20 * S).await;
            pace.refused(pace.seen(), Some(25 * S));
        };
        assert_eq!(tokio::join!(pace.turn(Some(60 * S)), refusal), (Ok(()), ()));
        assert_eq!(started.elapsed(), 45 * S);
        let far = Pace::default();
        far.refused(far.seen(), Some(Duration::MAX));
        assert_eq!(far.turn(Some(Duration::MAX)).await, Ok(()));
    }

    #[test]
    fn that_it_begins_and_ends_is_told_once() {
        let pace = Pace::default();
        let before = pace.seen();
        assert!(pace.refused(before, None).is_some());
        assert!(pace.refused(before, None).is_none());
        let seen = pace.seen();
        assert!(!pace.answered(before));
        let told = (0..100).filter(|_| pace.answered(seen)).count();
        assert_eq!(told, 1);
        assert!(!pace.is_on());
    }

    #[test]
    fn a_reset_forgets_it() {
        let _alone = crate::RESETS.lock();
        let pace = Pace::of("http:reset");
        pace.refused(pace.seen(), Some(S));
        mainstay_policy::reset_resilience_state();
        assert_eq!(pace.wait(), None);
        // What was sent before is no news after it.
        pace.refused(pace.seen(), Some(S));
        assert!(pace.wait().is_some());
    }

    #[test]
    fn clients_of_one_name_share_it() {
        let one = Pace::of("http:pace");
        assert!(Arc::ptr_eq(&one, &Pace::of("http:pace")));
        assert!(!Arc::ptr_eq(&one, &Pace::of("http:other")));
    }
}
