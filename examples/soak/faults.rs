//! What happens to a dependency, by a seeded schedule.

use mainstay_test_support::{
    Proxy,
    proxy::{Accept, End, Faults},
    servers::{Program, Server},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// A server's own fate.
pub(crate) trait Mortal: Send {
    fn kill(&mut self);
    fn restart(&mut self);
    fn hang(&mut self);
    fn resume(&mut self);
}

impl<P: Program + Send> Mortal for Server<P> {
    fn kill(&mut self) {
        Server::kill(self);
    }
    fn restart(&mut self) {
        Server::restart(self);
    }
    fn hang(&mut self) {
        Server::hang(self);
    }
    fn resume(&mut self) {
        Server::resume(self);
    }
}

pub(crate) enum Fate {
    Server(Arc<Mutex<dyn Mortal>>),
    /// It lives in this process: only its network fails.
    None,
}

impl Fate {
    pub(crate) fn server(server: impl Mortal + 'static) -> Self {
        Self::Server(Arc::new(Mutex::new(server)))
    }
}

/// A server and the network before it.
pub(crate) struct Dependency {
    name: &'static str,
    fate: Fate,
    proxy: Arc<Proxy>,
    /// Its protocol has checksums, so that bytes may change on their way.
    checked: bool,
    random: fastrand::Rng,
    /// How many of each fault there were.
    suffered: BTreeMap<&'static str, u32>,
}

type Network = (&'static str, fn(&mut Faults));

/// Each lasts for a while.
const NETWORK: [Network; 7] = [
    ("held", Faults::hold),
    ("mute", |faults| faults.accept = Accept::Silent),
    ("late", |faults| faults.replies.latency = Duration::from_millis(400)),
    ("dripping", |faults| {
        faults.replies.rate = Some(2_000);
        faults.replies.slice = Some(100);
    }),
    ("reset in reply", |faults| faults.replies.after = Some((1_500, End::Reset))),
    ("closed in request", |faults| faults.requests.after = Some((3_000, End::Close))),
    ("corrupt", |faults| faults.replies.flip = Some(700)),
];

impl Dependency {
    pub(crate) fn new(
        name: &'static str,
        fate: Fate,
        proxy: Arc<Proxy>,
        checked: bool,
        seed: u64,
    ) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { name, fate, proxy, checked, random, suffered: BTreeMap::new() }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn suffered(&self) -> &BTreeMap<&'static str, u32> {
        &self.suffered
    }

    /// Fault after fault until then.
    pub(crate) async fn suffer(&mut self, end: Instant) {
        loop {
            sleep(Duration::from_millis(self.random.u64(1_500..6_000))).await;
            if Instant::now() >= end {
                return;
            }
            let lasts = Duration::from_millis(self.random.u64(200..4_000));
            let name = match (self.random.u8(0..6), &self.fate) {
                (0, Fate::Server(server)) => {
                    self.on(server, |server| server.kill()).await;
                    sleep(lasts).await;
                    self.on(server, |server| server.restart()).await;
                    "killed"
                }
                (1, Fate::Server(server)) => {
                    self.on(server, |server| server.hang()).await;
                    sleep(lasts).await;
                    self.on(server, |server| server.resume()).await;
                    "frozen"
                }
                (2, _) => {
                    self.proxy.refuse();
                    self.proxy.cut();
                    sleep(lasts).await;
                    self.proxy.listen();
                    "refused"
                }
                (3, _) => {
                    self.proxy.lose_next_reply();
                    "reply lost"
                }
                _ => {
                    let kinds = if self.checked { NETWORK.len() } else { NETWORK.len() - 1 };
                    let (name, change) = NETWORK[self.random.usize(0..kinds)];
                    self.proxy.set(change);
                    sleep(lasts).await;
                    self.proxy.heal();
                    self.proxy.cut();
                    name
                }
            };
            *self.suffered.entry(name).or_default() += 1;
        }
    }

    async fn on(&self, server: &Arc<Mutex<dyn Mortal>>, act: fn(&mut dyn Mortal)) {
        let server = Arc::clone(server);
        let act = move || act(&mut *server.lock().unwrap());
        tokio::task::spawn_blocking(act).await.expect("the server does as it is told");
    }
}
