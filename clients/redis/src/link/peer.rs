//! One server: fred's connection to it, and our own word on whether it is up.
//!
//! fred says `Connected` until its first attempt to reconnect has failed, and queues what is sent
//! meanwhile. So a gate stands in front: it closes when fred reports an error, when nothing was
//! answered for [`PATIENCE`] or when the server says that it serves nobody, and opens after a round
//! trip.

mod sending;

use super::{
    CONNECT_PATIENCE, Gate, MARGIN, PATIENCE, closed_by_us,
    driver::{self, Answer},
    words,
};
use crate::{
    classify::{self, RedisFailure},
    command::{Command, IfAway, Raw},
};
use arc_swap::ArcSwapOption;
use fred::{
    clients::Client,
    error::{Error as Driver, ErrorKind},
    interfaces::{ClientLike, EventInterface},
    types::{
        ClientState,
        config::{Config, Server},
    },
};
pub(crate) use sending::Sending;
use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, broadcast, watch},
    task::{AbortHandle, JoinHandle},
};

/// How often a closed gate looks whether the server is back, beside fred's own word.
const TICK: Duration = Duration::from_millis(250);
/// No more than one connection in this time is given up because a server said READONLY.
const READONLY_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone)]
enum State {
    Connecting,
    Up,
    Down(Option<Driver>),
}

/// What every connection of a link is made with.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// The limit of a command that may be answered elsewhere, and of all without a longer one.
    pub(super) usual: Duration,
    /// By then nobody waits for an answer any more.
    pub(super) longest: Duration,
    /// Of the commands that may take so long, as most, by [`IfAway`].
    falling_back: Pace,
    failing: Pace,
}

/// How long one command may take.
#[derive(Clone, Copy)]
struct Pace {
    /// What fred is told; `None`: what it knows by itself.
    told: Option<Duration>,
    /// A server that says nothing for so long is silent.
    patient: bool,
    /// Whose time was up, the attempt's or the caller's, is for the policy to say.
    in_full: bool,
}

impl Limits {
    pub(super) fn new(timeout: Option<Duration>, fallback: bool) -> Self {
        let longest = timeout.unwrap_or(Duration::from_secs(5));
        let usual = within(longest);
        Self::with(if fallback { usual.min(PATIENCE) } else { usual }, longest)
    }

    fn with(usual: Duration, longest: Duration) -> Self {
        let pace = |away| Pace::new(usual, away, Some(longest));
        Self { usual, longest, falling_back: pace(IfAway::FallBack), failing: pace(IfAway::Fail) }
    }

    pub(super) fn with_usual(self, usual: Duration) -> Self {
        Self::with(usual, self.longest)
    }

    #[inline]
    fn pace(&self, away: IfAway, left: Option<Duration>) -> Pace {
        match away {
            _ if left != Some(self.longest) => Pace::new(self.usual, away, left),
            IfAway::FallBack => self.falling_back,
            IfAway::Fail => self.failing,
        }
    }
}

impl Pace {
    #[inline(never)]
    fn new(usual: Duration, away: IfAway, left: Option<Duration>) -> Self {
        let allowed = left.map(within);
        let limit = match away {
            IfAway::FallBack => allowed.map_or(PATIENCE, |allowed| allowed.min(PATIENCE)),
            IfAway::Fail => allowed.unwrap_or(Duration::ZERO),
        };
        let told = (limit != usual).then_some(limit);
        Self { told, patient: limit >= PATIENCE, in_full: Some(limit) == allowed }
    }
}

/// The policy ends an attempt at its timeout and would drop fred's future, which then might be sent
/// later; fred's own timeout, which takes the command back, must come first.
fn within(timeout: Duration) -> Duration {
    // None at all would be no limit.
    timeout.saturating_sub(MARGIN.min(timeout / 5)).max(Duration::from_nanos(1))
}

/// A connection; dropping it ends its tasks.
pub(super) struct Peer {
    core: Arc<Core>,
    watcher: Mutex<Option<AbortHandle>>,
}

struct Core {
    config: Config,
    limits: Limits,
    /// The first, which is most often the only one, so that calls need not ask for another.
    client: Client,
    is_renewed: AtomicBool,
    /// Replaced with its connection: what was queued for the old one still counts in fred, which
    /// sends nothing at once while it believes that more is coming.
    renewed: ArcSwapOption<Client>,
    /// `state` is `Up`: changes with it, and is read by every call.
    up: AtomicBool,
    state: watch::Sender<State>,
    started: Instant,
    /// About how many answers there were: another number after each.
    answered: AtomicU64,
    /// Somebody could not wait long enough to tell a silent server from a slow one.
    doubted: Notify,
    /// `None` once this has ended.
    connection: Mutex<Option<Connection>>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

impl Peer {
    /// Starts to connect. Must be called inside a runtime.
    pub(super) fn start(config: Config, limits: Limits) -> Result<Self, Driver> {
        let (client, connection, events) = connect(config.clone(), limits)?;
        let core = Arc::new(Core {
            config,
            limits,
            client,
            is_renewed: AtomicBool::new(false),
            renewed: ArcSwapOption::empty(),
            up: AtomicBool::new(false),
            state: watch::Sender::new(State::Connecting),
            started: Instant::now(),
            answered: AtomicU64::new(0),
            doubted: Notify::new(),
            connection: Mutex::new(Some(connection)),
        });
        let watcher = tokio::spawn(keep(Arc::clone(&core), events)).abort_handle();
        Ok(Self { core, watcher: Mutex::new(Some(watcher)) })
    }

    /// Ends its tasks, and keeps no handle of them: that would hold what their runtime has open.
    pub(super) fn end(&self) {
        self.end_watcher();
        if let Some(connection) = self.core.connection().take() {
            connection.abort();
        }
    }

    /// Whether it was there still.
    fn end_watcher(&self) -> bool {
        let watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        watcher.inspect(AbortHandle::abort).is_some()
    }

    pub(super) fn gate(&self) -> Gate {
        match &*self.core.state.borrow() {
            State::Connecting => Gate::Connecting,
            State::Up => Gate::Open,
            State::Down(cause) => Gate::Closed(words(cause.clone())),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.core.up.load(Ordering::Acquire)
    }

    /// Why it is down.
    pub(super) fn cause(&self) -> Option<Driver> {
        self.core.cause()
    }

    /// That is why it is down.
    pub(super) fn refuses_credentials(&self) -> bool {
        let state = self.core.state.borrow();
        matches!(&*state, State::Down(Some(cause)) if classify::is_auth(cause))
    }

    /// Says QUIT, and connects no more.
    pub(super) async fn close(&self, within: Duration) {
        // It would take this for an outage and connect again.
        let first = self.end_watcher();
        let tells = match self.core.set(State::Down(Some(closed_by_us()))) {
            State::Up => true,
            // Another close is under way, which this one must not cut short.
            State::Down(_) => !first && self.core.connection().is_some(),
            State::Connecting => false,
        };
        if tells {
            let _ = tokio::time::timeout(within, self.core.client().quit()).await;
        } else {
            // There is nobody to say it to.
            self.end();
        }
    }

    /// Resolves once calls reach the server.
    pub(super) async fn until_up(&self) {
        let mut state = self.core.state.subscribe();
        // The sender lives in `self`.
        let _ = state.wait_for(|state| matches!(state, State::Up)).await;
    }

    /// Resolves once calls do not reach the server.
    pub(super) async fn until_down(&self) {
        let mut state = self.core.state.subscribe();
        let _ = state.wait_for(|state| !matches!(state, State::Up)).await;
    }

    /// Waits for the first connection, for no other.
    pub(super) async fn until_tried(&self, limit: Duration) {
        self.core.until_tried(limit).await;
    }

    /// Waits for the first connection if that is what is going on. Gives the time left.
    pub(super) async fn admit(
        &self,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<Option<Duration>, RedisFailure> {
        if self.is_up() { Ok(timeout) } else { self.core.admit(away, timeout).await }
    }

    /// One command, once. `asking`: a cluster's node is moving the key here.
    ///
    /// With a timeout, whatever is waited for here has a timer that ends the wait before it, so that
    /// the policy need not arm one of its own: fred's runs in the caller's task, not in its own.
    ///
    /// # Cancel safety
    /// A write whose future is dropped may still be sent; a timeout takes it back.
    #[inline]
    pub(super) fn send<'a>(
        &'a self,
        command: &'a Command<'a>,
        asking: bool,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Sending<'a> {
        Sending::new(&self.core, command, asking, away, timeout)
    }
}

impl Core {
    async fn admit(
        &self,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<Option<Duration>, RedisFailure> {
        let began = Instant::now();
        let connecting = matches!(*self.state.borrow(), State::Connecting);
        if connecting {
            let half = timeout.map_or(CONNECT_PATIENCE, |timeout| timeout / 2);
            self.until_tried(half.min(CONNECT_PATIENCE)).await;
        }
        match &*self.state.borrow() {
            State::Up => Ok(timeout.map(|timeout| timeout.saturating_sub(began.elapsed()))),
            State::Connecting if self.started.elapsed() < CONNECT_PATIENCE => {
                Err(RedisFailure::connecting(away))
            }
            State::Connecting => Err(RedisFailure::closed(None, away)),
            State::Down(cause) => Err(RedisFailure::closed(cause.clone(), away)),
        }
    }

    async fn until_tried(&self, limit: Duration) {
        let mut state = self.state.subscribe();
        let tried = state.wait_for(|state| !matches!(state, State::Connecting));
        let _ = tokio::time::timeout(limit, tried).await;
    }

    fn client(&self) -> Client {
        let renewed = self.is_renewed.load(Ordering::Acquire);
        match renewed.then(|| self.renewed.load_full()).flatten() {
            Some(client) => (*client).clone(),
            None => self.client.clone(),
        }
    }

    /// `limit` is fred's own timeout, which takes the command back if it was not sent yet: `None` is
    /// the usual one, zero is none.
    #[inline]
    fn call<'a>(&'a self, command: &'a Command<'a>, limit: Option<Duration>) -> Answer<'a> {
        match limit {
            None if !self.is_renewed.load(Ordering::Acquire) => driver::call(&self.client, command),
            limit => {
                let limit = limit.unwrap_or(self.limits.usual);
                driver::call_within(&self.client(), command, limit)
            }
        }
    }

    fn connection(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, new: State) -> State {
        let mut old = State::Connecting;
        self.state.send_modify(|state| {
            self.up.store(matches!(new, State::Up), Ordering::Release);
            old = std::mem::replace(state, new);
        });
        old
    }

    #[inline]
    fn note_answer(&self) {
        // Not one locked instruction: two at once may count as one, which is news still.
        let count = self.answered.load(Ordering::Relaxed).wrapping_add(1);
        self.answered.store(count, Ordering::Relaxed);
    }

    /// Closes the gate if nothing at all was answered since then.
    fn silent_since(&self, answered: u64) {
        if self.answered.load(Ordering::Relaxed) == answered {
            self.down(Driver::new(ErrorKind::Timeout, "silent"));
        }
    }

    /// Has the server asked by somebody who waits longer, if nothing at all was answered since then.
    fn doubt(&self, answered: u64) {
        if self.answered.load(Ordering::Relaxed) == answered {
            self.doubted.notify_one();
        }
    }

    fn down(&self, error: Driver) {
        let words = words(Some(error.clone()));
        if !matches!(self.set(State::Down(Some(error))), State::Down(_)) {
            tracing::warn!(db.system.name = "redis", cause = words, "link down");
        }
    }

    fn cause(&self) -> Option<Driver> {
        match &*self.state.borrow() {
            State::Down(cause) => cause.clone(),
            _ => None,
        }
    }

    /// Gives the connection up, with whoever still waits on it, and makes another. Not fred's own
    /// way: that waits for a connection that takes nothing more.
    fn renew(&self, events: &mut Events) {
        // The settings are those that did before.
        let Ok((client, new, fresh)) = connect(self.config.clone(), self.limits) else { return };
        self.renewed.store(Some(Arc::new(client)));
        self.is_renewed.store(true, Ordering::Release);
        let mut connection = self.connection();
        let old = if connection.is_some() { connection.replace(new) } else { Some(new) };
        drop(connection);
        if let Some(old) = old {
            old.abort();
        }
        *events = fresh;
    }

    /// fred ends its loop on errors that it holds for final, such as a wrong kind of server.
    fn has_ended(&self) -> bool {
        self.connection().as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Closes the gate if the server is as silent as somebody takes it to be.
    async fn examine(&self) {
        self.doubted.notified().await;
        let answered = self.answered.load(Ordering::Relaxed);
        match self.ping().await {
            Ok(()) => self.note_answer(),
            Err(error) if *error.kind() == ErrorKind::Timeout => self.silent_since(answered),
            Err(error) => self.down(error),
        }
    }

    /// A round trip; any answer that a working server gives will do.
    async fn ping(&self) -> Result<(), Driver> {
        let ping = Raw::ping();
        let ping = Command::Raw(&ping);
        let call = self.call(&ping, Some(PATIENCE - MARGIN));
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if classify::is_answer(&error) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Driver::new(ErrorKind::Timeout, "silent")),
        }
    }
}

/// What fred says of a connection.
struct Events {
    errors: broadcast::Receiver<(Driver, Option<Server>)>,
    reconnects: broadcast::Receiver<Server>,
}

type Connection = JoinHandle<Result<(), Driver>>;

fn connect(config: Config, limits: Limits) -> Result<(Client, Connection, Events), Driver> {
    let client = driver::build(config, limits.usual)?;
    // Before the first attempt, so that its error is not missed.
    let events = Events { errors: client.error_rx(), reconnects: client.reconnect_rx() };
    let connection = client.connect();
    Ok((client, connection, events))
}

/// Keeps the gate: closes it on an error, opens it after a round trip.
async fn keep(core: Arc<Core>, mut events: Events) {
    let mut state = core.state.subscribe();
    let mut silent: Option<Instant> = None;
    let mut renewed = None;
    loop {
        if matches!(*state.borrow_and_update(), State::Up) {
            silent = None;
            tokio::select! {
                error = received(events.errors.recv()) => core.down(error),
                // From `send`: the server is silent, or serves nobody.
                _ = state.changed() => {}
                () = core.examine() => {}
            }
            continue;
        }
        let is_readonly = core.cause().is_some_and(|cause| classify::is_readonly(&cause));
        if is_readonly && renewed.is_none_or(|at: Instant| at.elapsed() >= READONLY_PAUSE) {
            // Its name or its port may lead to the new master by now.
            core.renew(&mut events);
            renewed = Some(Instant::now());
        }
        let connected = tokio::select! {
            error = received(events.errors.recv()) => {
                core.down(error);
                false
            }
            _ = events.reconnects.recv() => true,
            () = tokio::time::sleep(TICK) => false,
        };
        let tried = core.started.elapsed() >= PATIENCE;
        if tried && matches!(*core.state.borrow(), State::Connecting) {
            core.down(Driver::new(ErrorKind::Timeout, "connecting"));
        }
        if core.has_ended() {
            core.renew(&mut events);
        }
        // Otherwise a PING would wait in fred's queue, one more with each tick.
        if !connected && core.client().state() != ClientState::Connected {
            continue;
        }
        // What was said of the connection before.
        while events.errors.try_recv().is_ok() {}
        match core.ping().await {
            Ok(()) => {
                if matches!(core.set(State::Up), State::Down(_)) {
                    tracing::info!(db.system.name = "redis", "link up");
                }
            }
            Err(error) if *error.kind() == ErrorKind::Timeout => {
                // fred's own watch starts anew with everything that is written, PINGs too, so it
                // would never give up a connection whose other end is gone without a word.
                let since = *silent.get_or_insert_with(Instant::now);
                if since.elapsed() >= core.limits.longest {
                    core.renew(&mut events);
                    silent = None;
                }
            }
            Err(error) => core.down(error),
        }
    }
}

/// Missed events count as a lost connection: a round trip tells.
async fn received(
    next: impl Future<Output = Result<(Driver, Option<Server>), broadcast::error::RecvError>>,
) -> Driver {
    match next.await {
        Ok((error, _)) => error,
        Err(broadcast::error::RecvError::Lagged(_)) => {
            Driver::new(ErrorKind::Canceled, "events missed")
        }
        Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
    }
}
