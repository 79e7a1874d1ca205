//! Sending less to a server that asks for it.
//!
//! A 429, or a 503 with Retry-After, holds for everybody: until the time that the server named, at
//! most 30 s, nothing is sent to its origin, and then one request after another with a gap between
//! them, 10 ms at first. Further refusals double the gap every 100 ms, to at most 1 s; each success takes a
//! sixteenth off, and a gap below 1 ms is none. A request whose turn would come after its deadline is
//! refused at once, and the error says when to come again.
//!
//! A turn belongs to whoever waits for it: when he gives up it is free again, and the next to come takes it.
//!
//! That it begins is an event and a warning, that it ends another; a reset forgets it.
//!
//! 30 s, so that no single answer silences a client for long: a server that named an hour gets one
//! request each 30 s, and the call that was told so is not repeated before the hour is over.

use std::{
    collections::{BTreeSet, HashMap},
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
/// Turns that were given back; of more, those that are to come last are lost.
const MOST_FREE: usize = 4_096;

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
    /// The first turn that nobody has taken yet.
    next: Option<Instant>,
    /// Before it, those that were taken and given back.
    free: BTreeSet<Instant>,
    gap: Duration,
}

/// What a request saw when it was sent: a refusal of what was sent before the last one is no news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen(u32);

/// A turn that was taken. One that has not come when it is dropped is free again.
#[derive(Debug)]
pub(crate) struct Turn {
    pace: Arc<Pace>,
    at: Instant,
}

impl Turn {
    pub(crate) const fn at(&self) -> Instant {
        self.at
    }

    /// Whether it is still good: the server has not asked for a longer stop since.
    pub(crate) fn holds(&self) -> bool {
        self.pace.state().stop.is_none_or(|stop| stop <= self.at)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.at > Instant::now() {
            self.pace.state().give_back(self.at);
        }
    }
}

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
            self.state().first(now).saturating_duration_since(now)
        })
    }

    /// Waits for a turn, within `limit`.
    ///
    /// # Errors
    /// The wait that would be too long.
    ///
    /// # Cancel safety
    /// The turn is free again.
    pub(crate) async fn turn(self: &Arc<Self>, limit: Option<Duration>) -> Result<(), Duration> {
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let turn = self.take_turn(end)?;
            if turn.at() > Instant::now() {
                sleep_until(turn.at()).await;
            }
            if turn.holds() {
                return Ok(());
            }
        }
    }

    /// The turn that is now the caller's.
    ///
    /// # Errors
    /// The wait, if it would end after `end`; no turn is taken.
    pub(crate) fn take_turn(self: &Arc<Self>, end: Option<Instant>) -> Result<Turn, Duration> {
        let now = Instant::now();
        let mut state = self.state();
        let at = state.first(now);
        if end.is_some_and(|end| at >= end) {
            return Err(at.saturating_duration_since(now));
        }
        state.take(at);
        Ok(Turn { pace: Arc::clone(self), at })
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
            state.free.clear();
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
    /// The first turn that may be taken: what has passed by then, or lies in a stop, is none.
    fn first(&self, now: Instant) -> Instant {
        let from = self.stop.map_or(now, |stop| stop.max(now));
        let free = self.free.range(from..).next().copied();
        free.unwrap_or_else(|| self.next.map_or(from, |next| next.max(from)))
    }

    fn take(&mut self, at: Instant) {
        let after = at + self.gap;
        // Also those that would come too soon after it, now that the gap may be wider.
        while self.free.first().is_some_and(|free| *free < after) {
            self.free.pop_first();
        }
        self.next = self.next.max(Some(after));
    }

    fn give_back(&mut self, at: Instant) {
        // Else nobody is held back any more, or again in another order.
        if self.next.is_some_and(|next| at < next) {
            self.free.insert(at);
            if self.free.len() > MOST_FREE {
                self.free.pop_last();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        collections::VecDeque,
        task::{Context, Waker},
    };

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_stops_then_goes_slowly_and_eases() {
        let pace = Arc::<Pace>::default();
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
        let pace = Arc::<Pace>::default();
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
        let pace = Arc::<Pace>::default();
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
        let far = Arc::<Pace>::default();
        far.refused(far.seen(), Some(Duration::MAX));
        assert_eq!(far.turn(Some(Duration::MAX)).await, Ok(()));
    }

    /// Callers behind a limit of their own, such as a server's timeout, of which the policy knows nothing.
    #[tokio::test(start_paused = true)]
    async fn turns_of_those_who_give_up_are_free_again() {
        let pace = Arc::<Pace>::default();
        pace.refused(pace.seen(), Some(30 * S));
        let (started, mut waiting) = (Instant::now(), VecDeque::new());
        while started.elapsed() < 30 * S {
            let mut turn = Box::pin(pace.turn(Some(120 * S)));
            let mut nobody = Context::from_waker(Waker::noop());
            assert!(turn.as_mut().poll(&mut nobody).is_pending());
            waiting.push_back((Instant::now(), turn));
            waiting.pop_front_if(|(since, _)| since.elapsed() >= 5 * S);
            tokio::time::advance(5 * MS).await;
        }
        // As many as there are, and not as many as there ever were.
        assert!(pace.wait().unwrap() <= 10 * S + 10 * MS, "{:?}", pace.wait());
        waiting.clear();
        assert_eq!(pace.turn(Some(5 * S)).await, Ok(()));
        assert_eq!(started.elapsed(), 30 * S + FIRST_GAP);
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_turns_that_were_given_back_the_first_is_taken_that_keeps_the_gap() {
        let pace = Arc::<Pace>::default();
        pace.refused(pace.seen(), Some(S));
        let mut turns: Vec<_> = (0..10).map(|_| pace.take_turn(None).unwrap()).collect();
        let first = turns[0].at();
        let place = |turn: &Turn| (turn.at() - first).as_millis();
        for n in [8, 7, 6, 3, 2] {
            turns.remove(n);
        }
        assert_eq!(pace.wait(), Some(S + 20 * MS));
        // The gap is 20 ms from now on: 30 would come too soon after 20, as 70 after 60.
        tokio::time::advance(DOUBLES).await;
        pace.refused(pace.seen(), None);
        let taken: Vec<_> = (0..4).map(|_| pace.take_turn(None).unwrap()).collect();
        assert_eq!(taken.iter().map(place).collect::<Vec<_>>(), [20, 60, 80, 100]);
        // A stop takes all of them, and its end leaves none behind.
        drop((taken, turns));
        pace.refused(pace.seen(), Some(5 * S));
        assert_eq!(pace.wait(), Some(5 * S));
        pace.turn(None).await.unwrap();
        let last = pace.take_turn(None).unwrap();
        pace.clear();
        drop(last);
        assert!(pace.state().free.is_empty());
    }

    #[test]
    fn that_it_begins_and_ends_is_told_once() {
        let pace = Arc::<Pace>::default();
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
