//! One connection to the server, and our own word on whether it is up; fred stays in this file.
//!
//! fred says `Connected` until its first attempt to reconnect has failed, and queues what is sent
//! meanwhile. So a gate stands in front: it closes when fred reports an error or when an answer
//! takes longer than [`PATIENCE`], and opens after a round trip.

use crate::{
    classify::RedisFailure,
    command::{Change, Command, IfAway, Raw, Route, Slot},
    fallback::Fallback,
    recovery,
    value::Value,
};
use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error as Driver, ErrorKind},
    interfaces::{ClientLike, ClusterInterface, EventInterface, HashesInterface, KeysInterface},
    socket2::TcpKeepalive,
    types::{
        Builder, ClientState, ClusterHash, CustomCommand, Expiration, Key, Value as Driven,
        config::{
            Config, ConnectionConfig, Options, PerformanceConfig, ReconnectError, ReconnectPolicy,
            Server, TcpConfig, UnresponsiveConfig,
        },
    },
    util::redis_keyslot,
};
use mainstay_policy::Policy;
use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{broadcast, watch},
    task::{AbortHandle, JoinHandle},
};

/// Without an answer for this long the server counts as silent, and calls go to the fallback.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the first calls wait for the first connection.
const CONNECT_PATIENCE: Duration = Duration::from_millis(800);
/// How often a closed gate looks whether the server is back, beside fred's own word.
const TICK: Duration = Duration::from_millis(250);
/// The policy ends an attempt at the same time and would drop fred's future, which then might be
/// sent later; fred's own timeout, which takes the command back, must come first.
const MARGIN: Duration = Duration::from_millis(20);
/// Longer lifetimes would overflow the server's clock.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Where to connect; holds credentials, so it is never printed.
#[derive(Clone)]
pub(crate) struct Target(Config);

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// `None` if the driver cannot read the URL.
pub(crate) fn target(url: &str) -> Option<Target> {
    Config::from_url(url).ok().map(Target)
}

#[derive(Clone)]
enum State {
    Connecting,
    Up,
    Down(Option<Driver>),
}

/// Whether calls reach the server.
#[derive(Clone, Debug)]
pub(crate) enum Gate {
    Connecting,
    Open,
    /// With why, in words.
    Closed(String),
}

/// What the client and the link's own tasks share.
pub(crate) struct Line {
    client: Client,
    state: watch::Sender<State>,
    started: Instant,
    /// Microseconds since `started`.
    last_answer: AtomicU64,
}

/// The connection of one runtime; dropping it ends its tasks.
pub(crate) struct Link {
    line: Arc<Line>,
    tasks: Vec<AbortHandle>,
    connection: Arc<Mutex<JoinHandle<Result<(), Driver>>>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner).abort();
    }
}

impl Link {
    /// Starts to connect. Must be called inside a runtime.
    pub(crate) fn start(
        target: Target,
        policy: &Policy,
        fallback: Option<Arc<Fallback>>,
    ) -> Result<Self, Driver> {
        let client = build(target.0, policy.timeout())?;
        let line = Arc::new(Line {
            client,
            state: watch::Sender::new(State::Connecting),
            started: Instant::now(),
            last_answer: AtomicU64::new(0),
        });
        // Before the first attempt, so that its error is not missed.
        let (errors, reconnects) = (line.client.error_rx(), line.client.reconnect_rx());
        let connection = Arc::new(Mutex::new(line.client.connect()));
        let watcher =
            tokio::spawn(watch(Arc::clone(&line), errors, reconnects, Arc::clone(&connection)));
        let mut tasks = vec![watcher.abort_handle()];
        if let Some(fallback) = fallback {
            let recovery = recovery::run(fallback, policy.clone(), Arc::clone(&line));
            tasks.push(tokio::spawn(recovery).abort_handle());
        }
        Ok(Self { line, tasks, connection })
    }

    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Says QUIT, and connects no more.
    pub(crate) async fn close(&self, within: Duration) {
        // The watcher would take it for an outage and connect again.
        for task in &self.tasks {
            task.abort();
        }
        let closed = Driver::new(ErrorKind::Canceled, "closed by this program");
        self.line.state.send_replace(State::Down(Some(closed)));
        let _ = tokio::time::timeout(within, self.line.client.quit()).await;
    }
}

fn build(config: Config, timeout: Option<Duration>) -> Result<Client, Driver> {
    // Connect without an error at the first failure; the gate tells the callers.
    let config = Config { fail_fast: false, ..config };
    let timeout = timeout.unwrap_or(Duration::from_secs(5));
    let mut reconnect = ReconnectPolicy::new_exponential(0, 50, 2_000, 2);
    reconnect.set_jitter(50);
    let mut builder = Builder::from_config(config);
    builder.set_policy(reconnect);
    builder.set_performance_config(PerformanceConfig {
        default_command_timeout: timeout,
        max_feed_count: 200,
        broadcast_channel_capacity: 256,
    });
    builder.set_connection_config(ConnectionConfig {
        connection_timeout: PATIENCE,
        internal_command_timeout: PATIENCE,
        // The policy owns the retries: fred's would replay what may have happened.
        max_command_attempts: 1,
        // max_command_buffer_len stays 0: after one Backpressure error fred stops flushing.
        unresponsive: UnresponsiveConfig {
            max_timeout: Some(timeout.saturating_mul(2).max(PATIENCE)),
            interval: (timeout / 2).clamp(Duration::from_millis(100), Duration::from_secs(2)),
        },
        reconnect_on_auth_error: true,
        auto_client_setname: true,
        tcp: TcpConfig {
            nodelay: Some(true),
            keepalive: Some(TcpKeepalive::new().with_time(Duration::from_secs(15))),
            ..TcpConfig::default()
        },
        reconnect_errors: vec![
            ReconnectError::ClusterDown,
            ReconnectError::Loading,
            ReconnectError::ReadOnly,
        ],
        ..ConnectionConfig::default()
    });
    builder.build()
}

impl Line {
    pub(crate) fn gate(&self) -> Gate {
        match &*self.state.borrow() {
            State::Connecting => Gate::Connecting,
            State::Up => Gate::Open,
            State::Down(cause) => Gate::Closed(words(cause.clone())),
        }
    }

    /// Resolves once calls reach the server.
    pub(crate) async fn until_up(&self) {
        let mut state = self.state.subscribe();
        // The sender lives in `self`.
        let _ = state.wait_for(|state| matches!(state, State::Up)).await;
    }

    /// Waits for the first connection, for no other.
    pub(crate) async fn until_tried(&self, limit: Duration) {
        let mut state = self.state.subscribe();
        let tried = state.wait_for(|state| !matches!(state, State::Connecting));
        let _ = tokio::time::timeout(limit, tried).await;
    }

    /// One command, once.
    ///
    /// # Cancel safety
    /// A write whose future is dropped may still be sent; a timeout takes it back.
    pub(crate) async fn send(
        &self,
        command: &Command,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Result<Value, RedisFailure> {
        let began = Instant::now();
        let waiting = matches!(*self.state.borrow(), State::Connecting);
        if waiting {
            let half = timeout.map_or(CONNECT_PATIENCE, |t| t / 2);
            self.until_tried(half.min(CONNECT_PATIENCE)).await;
        }
        match &*self.state.borrow() {
            State::Up => {}
            State::Connecting if self.started.elapsed() < CONNECT_PATIENCE => {
                return Err(RedisFailure::connecting(away));
            }
            State::Connecting => return Err(RedisFailure::closed(None, away)),
            State::Down(cause) => return Err(RedisFailure::closed(cause.clone(), away)),
        }
        let left = timeout.map(|t| {
            let left = t.saturating_sub(began.elapsed());
            left.saturating_sub(MARGIN.min(left / 5))
        });
        let mut call = std::pin::pin!(self.call(command, left));
        let answer = match tokio::time::timeout(PATIENCE, &mut call).await {
            Ok(answer) => answer,
            Err(_) => {
                self.silent_since(began);
                // Left behind, it may still arrive: before the PING that opens the gate and before
                // the recovery, as fred sends in order.
                if away == IfAway::FallBack {
                    return Err(RedisFailure::silent());
                }
                call.await
            }
        };
        let over = timeout.is_some_and(|limit| began.elapsed() + 2 * MARGIN >= limit);
        match answer {
            Ok(reply) => {
                self.answered();
                Ok(reply)
            }
            // fred has taken the command back. Whose time is up, the attempt's or the caller's, the
            // policy knows, and it ends this in a moment.
            Err(error) if over && *error.kind() == ErrorKind::Timeout => {
                std::future::pending().await
            }
            Err(error) => Err(RedisFailure::driver(error)),
        }
    }

    fn answered(&self) {
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last_answer.fetch_max(now, Ordering::Relaxed);
    }

    /// Closes the gate if nothing at all was answered since then.
    fn silent_since(&self, began: Instant) {
        let last = self.started + Duration::from_micros(self.last_answer.load(Ordering::Relaxed));
        if last < began {
            self.down(Driver::new(ErrorKind::Timeout, "silent"));
        }
    }

    fn down(&self, error: Driver) {
        let words = words(Some(error.clone()));
        let was_down = matches!(self.state.send_replace(State::Down(Some(error))), State::Down(_));
        if !was_down {
            tracing::warn!(db.system.name = "redis", cause = words, "link down");
        }
    }

    /// The only place where a command meets fred.
    async fn call(&self, command: &Command, timeout: Option<Duration>) -> Result<Value, Driver> {
        let node = match command {
            Command::Raw(Raw { route: Route::Node(node), .. }) => node.0.clone(),
            _ => None,
        };
        let options = Options { timeout, cluster_node: node, ..Options::default() };
        let client = self.client.with_options(&options);
        let answer: Driven = match command {
            Command::Read(Slot { key, field: None }) => client.get(key.clone()).await?,
            Command::Read(Slot { key, field: Some(field) }) => {
                client.hget(key.clone(), field.clone()).await?
            }
            Command::Write(slot, change) => {
                let key = slot.key.clone();
                match (change, slot.field.clone()) {
                    (Change::Put { value, ttl }, None) => {
                        let expire = ttl.map(|ttl| Expiration::PX(milliseconds(ttl)));
                        client.set(key, value.clone(), expire, None, false).await?
                    }
                    (Change::Put { value, .. }, Some(field)) => {
                        client.hset(key, (field, value.clone())).await?
                    }
                    (Change::Remove, None) => client.del(key).await?,
                    (Change::Remove, Some(field)) => client.hdel(key, field).await?,
                }
            }
            Command::Expire(key, Some(ttl)) => {
                client.pexpire(key.clone(), milliseconds(*ttl), None).await?
            }
            Command::Expire(key, None) => client.persist(key.clone()).await?,
            Command::Add(Slot { key, field: None }, n) => client.incr_by(key.clone(), *n).await?,
            Command::Add(Slot { key, field: Some(field) }, n) => {
                client.hincrby(key.clone(), field.clone(), *n).await?
            }
            Command::Raw(raw) => {
                let hash = match raw.route {
                    Route::Key(n) => ClusterHash::Offset(n),
                    Route::Node(_) | Route::Any => ClusterHash::Random,
                };
                let name = CustomCommand::new(raw.name.as_ref(), hash, false);
                client.custom(name, raw.args.clone()).await?
            }
        };
        Ok(value(answer))
    }

    /// The servers that hold keys, to be asked one by one; a single one needs no name.
    #[allow(dead_code, reason = "for scan, which comes next")]
    pub(crate) fn nodes(&self) -> Vec<Node> {
        match self.client.cached_cluster_state() {
            Some(state) => {
                state.unique_primary_nodes().into_iter().map(|s| Node(Some(s))).collect()
            }
            None => vec![Node(None)],
        }
    }

    /// What commands on several keys can be sent together: the same number is the same place.
    #[allow(dead_code, reason = "for mget, which comes next")]
    pub(crate) fn place(&self, key: &[u8]) -> u16 {
        if self.client.is_clustered() { redis_keyslot(key) } else { 0 }
    }
}

/// Why the gate is closed.
fn words(cause: Option<Driver>) -> String {
    RedisFailure::closed(cause, IfAway::Fail).to_string()
}

/// A server of a cluster, or the only one there is.
#[derive(Clone)]
pub(crate) struct Node(Option<Server>);

fn value(answer: Driven) -> Value {
    match answer {
        Driven::Null => Value::Nil,
        Driven::Integer(n) => Value::Integer(n),
        Driven::Double(n) => Value::Double(n),
        Driven::Boolean(b) => Value::Boolean(b),
        Driven::String(text) => Value::Bytes(text.into_inner()),
        Driven::Bytes(bytes) => Value::Bytes(bytes),
        Driven::Queued => Value::Bytes(Bytes::from_static(b"QUEUED")),
        Driven::Array(items) => Value::Array(items.into_iter().map(value).collect()),
        Driven::Map(pairs) => {
            let pair = |(key, item): (Key, Driven)| {
                (Value::Bytes(Bytes::copy_from_slice(key.as_bytes())), value(item))
            };
            Value::Map(pairs.inner().into_iter().map(pair).collect())
        }
    }
}

fn milliseconds(ttl: Duration) -> i64 {
    // Rounded up: 0 would be refused by the server.
    let ms = ttl.min(MAX_TTL).as_nanos().div_ceil(1_000_000);
    i64::try_from(ms).unwrap_or(i64::MAX)
}

type Errors = broadcast::Receiver<(Driver, Option<Server>)>;
type Reconnects = broadcast::Receiver<Server>;

/// Keeps the gate: closes it on an error, opens it after a round trip.
async fn watch(
    line: Arc<Line>,
    mut errors: Errors,
    mut reconnects: Reconnects,
    connection: Arc<Mutex<JoinHandle<Result<(), Driver>>>>,
) {
    let mut state = line.state.subscribe();
    loop {
        if matches!(*state.borrow_and_update(), State::Up) {
            tokio::select! {
                error = received(errors.recv()) => line.down(error),
                // A silent server closes the gate from `send`.
                _ = state.changed() => {}
            }
            continue;
        }
        let connected = tokio::select! {
            error = received(errors.recv()) => {
                line.down(error);
                false
            }
            _ = reconnects.recv() => true,
            () = tokio::time::sleep(TICK) => false,
        };
        let tried = line.started.elapsed() >= PATIENCE;
        if tried && matches!(*line.state.borrow(), State::Connecting) {
            line.down(Driver::new(ErrorKind::Timeout, "connecting"));
        }
        restart_if_ended(&line, &connection);
        // Otherwise a PING would wait in fred's queue, one more with each tick.
        if connected || line.client.state() == ClientState::Connected {
            // What was said of the connection before.
            while errors.try_recv().is_ok() {}
            if let Ok(Ok(_)) = tokio::time::timeout(
                PATIENCE,
                line.call(&Command::Raw(Raw::ping()), Some(PATIENCE - MARGIN)),
            )
            .await
            {
                line.answered();
                let before = line.state.send_replace(State::Up);
                if matches!(before, State::Down(_)) {
                    tracing::info!(db.system.name = "redis", "link up");
                }
            }
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

/// fred ends its loop on errors that it holds for final, such as a wrong kind of server.
fn restart_if_ended(line: &Line, connection: &Mutex<JoinHandle<Result<(), Driver>>>) {
    let mut connection = connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if connection.is_finished() {
        *connection = line.client.connect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_whole_milliseconds_within_bounds() {
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_secs(3600)), 3_600_000);
        assert_eq!(milliseconds(Duration::MAX), 3_153_600_000_000);
    }
}
