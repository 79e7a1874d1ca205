//! A listener in front of a server, and every fault of the network between the two.
//!
//! It knows no protocol, so it breaks all of them alike. It runs on a runtime of its own: a test may
//! block, have several runtimes or none, and the proxy goes on.
//!
//! ```
//! # let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
//! use mainstay_test_support::Proxy;
//!
//! let proxy = Proxy::in_front_of(server);
//! proxy.set(|faults| faults.replies.hold = true); // requests arrive, answers do not
//! proxy.heal();                                   // now they do
//! proxy.lose_next_reply();                        // done there, unknown here
//! ```

mod connection;
mod faults;
#[cfg(test)]
mod tests;

pub use faults::{Accept, Direction, End, Faults, Flow};

use crate::Port;
use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread().worker_threads(1).thread_name("proxy").enable_all().build().unwrap()
});

/// Something that happened to a connection.
#[derive(Debug, Clone)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// To which connection, from 1 in the order they were accepted.
    pub connection: u64,
    /// What.
    pub what: What,
}

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It was accepted, whatever came of it.
    Accepted,
    /// A reply was taken away; the connection is reset.
    ReplyLost,
    /// It is closed on both sides.
    Ended,
}

/// What passes on a connection, for a test that knows the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passing<'b> {
    /// Came from the client.
    Request(&'b [u8]),
    /// Was given to the client.
    Reply(&'b [u8]),
    /// The client will send no more; it may not have read what it was given.
    Left,
    /// It is closed on both sides.
    Ended,
}

type Observe = dyn Fn(u64, Passing<'_>) + Send + Sync;

/// Of the test's own.
struct Observer(Box<Observe>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

/// One listener in front of one server. Its connections are reset when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    shared: Arc<Shared>,
    accepting: Mutex<Option<Accepting>>,
}

/// What the connections share with the proxy.
#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    faults: watch::Sender<Faults>,
    cut: watch::Sender<()>,
    lose_next_reply: AtomicBool,
    arrived: [AtomicU64; 2],
    forwarded: [AtomicU64; 2],
    events: Mutex<Vec<Event>>,
    changed: watch::Sender<()>,
    observer: OnceLock<Observer>,
}

#[derive(Debug)]
struct Accepting {
    task: JoinHandle<()>,
    closed: mpsc::Receiver<()>,
}

/// Tells, when it goes, that it is gone: fields go in this order.
struct Listening {
    listener: TcpListener,
    _closed: mpsc::Sender<()>,
}

impl Proxy {
    /// Listens on a port of its own, and forwards to this address.
    #[must_use]
    pub fn in_front_of(upstream: SocketAddr) -> Self {
        let shared = Shared {
            upstream: Mutex::new(upstream),
            faults: watch::Sender::default(),
            cut: watch::Sender::default(),
            lose_next_reply: AtomicBool::default(),
            arrived: Default::default(),
            forwarded: Default::default(),
            events: Mutex::default(),
            changed: watch::Sender::default(),
            observer: OnceLock::new(),
        };
        let proxy =
            Self { port: Port::reserve(), shared: Arc::new(shared), accepting: Mutex::default() };
        proxy.listen();
        proxy
    }

    /// Where clients connect.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.port.address()
    }

    /// The port where clients connect, on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    /// Changes what goes wrong, at once and for open connections too.
    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.faults.send_modify(change);
    }

    /// Nothing goes wrong any more; what was held is delivered. A connection that was accepted in
    /// silence stays so, and a proxy that refuses goes on refusing.
    pub fn heal(&self) {
        self.shared.lose_next_reply.store(false, SeqCst);
        self.set(|faults| *faults = Faults::default());
    }

    /// Forwards the next request, whichever connection it comes on, and resets that connection when
    /// its answer begins. Once; [`What::ReplyLost`] says when.
    pub fn lose_next_reply(&self) {
        self.shared.lose_next_reply.store(true, SeqCst);
    }

    /// Resets every open connection.
    pub fn cut(&self) {
        self.shared.cut.send_replace(());
    }

    /// Refuses new connections from here on. Open ones go on, and nobody else gets the port.
    pub fn refuse(&self) {
        if let Some(accepting) = self.accepting.lock().unwrap().take() {
            accepting.task.abort();
            // Says nothing; it ends when the listener is gone.
            let _ = accepting.closed.recv();
        }
    }

    /// Accepts again.
    pub fn listen(&self) {
        let mut accepting = self.accepting.lock().unwrap();
        if accepting.is_some() {
            return;
        }
        let _entered = RUNTIME.enter();
        let (closing, closed) = mpsc::channel();
        let listening = Listening { listener: self.port.listen(), _closed: closing };
        let task = RUNTIME.spawn(accept(listening, Arc::clone(&self.shared)));
        *accepting = Some(Accepting { task, closed });
    }

    /// Has this told of everything that passes from here on, in order for each connection (by its
    /// number). Once: a second observer is not told.
    pub fn observe(&self, observer: impl Fn(u64, Passing<'_>) + Send + Sync + 'static) {
        let _ = self.shared.observer.set(Observer(Box::new(observer)));
    }

    /// Where new connections go from here on, as after a failover behind one address.
    pub fn point_at(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock().unwrap() = upstream;
    }

    /// How many connections there were.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.shared.count(What::Accepted)
    }

    /// How many connections are open.
    #[must_use]
    pub fn live(&self) -> usize {
        let events = self.shared.events.lock().unwrap();
        let count = |what| events.iter().filter(|event| event.what == what).count();
        count(What::Accepted) - count(What::Ended)
    }

    /// How many bytes went through, over all connections. Counted once they are passed on, so that
    /// whoever read them may ask before they are.
    #[must_use]
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.forwarded[direction as usize].load(SeqCst)
    }

    /// How many bytes came here to go that way, held or lost ones too.
    #[must_use]
    pub fn arrived(&self, direction: Direction) -> u64 {
        self.shared.arrived[direction as usize].load(SeqCst)
    }

    /// How many replies [`lose_next_reply`](Self::lose_next_reply) has lost.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.shared.count(What::ReplyLost)
    }

    /// Everything that happened, in order: gaps of a backoff, reconnects, silence.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.shared.events.lock().unwrap().clone()
    }

    /// Waits until this holds, looked at after every event and every piece that moved. Thirty seconds
    /// without it are a panic that lists the events.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let waiting = async {
            while !holds(self) {
                changed.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        assert!(waited.is_ok(), "the proxy still waits until {what}: {:#?}", self.events());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse();
        self.cut();
    }
}

impl Shared {
    fn record(&self, connection: u64, what: What) {
        self.events.lock().unwrap().push(Event { at: Instant::now(), connection, what });
        self.changed.send_replace(());
    }

    fn tell(&self, connection: u64, passing: Passing<'_>) {
        if let Some(Observer(observe)) = self.observer.get() {
            observe(connection, passing);
        }
    }

    fn count(&self, what: What) -> usize {
        self.events.lock().unwrap().iter().filter(|event| event.what == what).count()
    }
}

async fn accept(listening: Listening, shared: Arc<Shared>) {
    loop {
        let (client, _) = listening.listener.accept().await.unwrap();
        // Before anyone can know of it: a cut from then on is not missed, and a change comes too late.
        let cut = shared.cut.subscribe();
        let accept = shared.faults.borrow().accept;
        let number = shared.count(What::Accepted) as u64 + 1;
        shared.record(number, What::Accepted);
        tokio::spawn(connection::serve(Arc::clone(&shared), number, client, accept, cut));
    }
}
