//! Names looked up once in a while.
//!
//! The system's resolver gives no lifetime, so ours is a setting. When a lookup fails, or takes long,
//! what was found before stands in: a resolver's outage must not be ours while the servers still
//! answer.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::spawn_blocking, time::timeout};

/// A client of user-given hosts must not fill the memory.
const MOST: usize = 1_024;

/// How long a lookup is waited for where an older answer can stand in. A resolver that is away is
/// noticed after 10 s or more, which is longer than a connection may take to be made.
const PATIENCE: Duration = Duration::from_millis(500);

/// A lookup of this age is asked again, since it may never end: what was found before must not stand
/// in for ever.
const LONGEST: Duration = Duration::from_secs(30);

type Addresses = Arc<[SocketAddr]>;
/// A lookup: since when, and what is closed at its end.
type Asked = (Instant, watch::Receiver<()>);

#[derive(Debug)]
struct Known {
    at: Instant,
    addresses: Addresses,
    asked: Option<Asked>,
}

/// A resolver that remembers.
#[derive(Clone, Debug)]
pub(crate) struct CachedDns {
    keep: Duration,
    patience: Duration,
    known: Arc<Mutex<HashMap<String, Known>>>,
}

impl CachedDns {
    pub(crate) fn new(keep: Duration) -> Self {
        Self { keep, patience: PATIENCE, known: Arc::default() }
    }

    /// The same, for connections that may take so long to be made: a lookup that hangs leaves half of
    /// it.
    pub(crate) fn within(&self, connect_timeout: Duration) -> Self {
        Self { patience: PATIENCE.min(connect_timeout / 2), ..self.clone() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `lookup` may block. Who waits for it may go: what it finds is kept all the same.
    async fn addresses(
        &self,
        name: &str,
        lookup: impl FnOnce(&str) -> io::Result<Vec<SocketAddr>> + Send + 'static,
    ) -> io::Result<Addresses> {
        let known = self.known().get(name).map(|known| (known.at, Arc::clone(&known.addresses)));
        let (this, owned) = (self.clone(), name.to_owned());
        let ask = |done: Option<watch::Sender<()>>| {
            spawn_blocking(move || {
                // Dropped when what was found is kept; also where this never runs.
                let _done = done;
                this.keep(lookup(&owned), owned)
            })
        };
        let Some((at, stale)) = known else {
            return ask(None).await.unwrap_or_else(|lost| Err(io::Error::other(lost)));
        };
        if at.elapsed() < self.keep {
            return Ok(stale);
        }
        let asked = self.asked(name, |done| drop(ask(Some(done))));
        if let Some((since, mut end)) = asked {
            // One lookup, however many wait; nobody does once it has taken too long.
            let _ = timeout(self.patience.saturating_sub(since.elapsed()), end.changed()).await;
        }
        Ok(self.known().get(name).map_or(stale, |known| Arc::clone(&known.addresses)))
    }

    /// The lookup that is under way, or begins now.
    fn asked(&self, name: &str, ask: impl FnOnce(watch::Sender<()>)) -> Option<Asked> {
        let mut known = self.known();
        let known = known.get_mut(name)?;
        let under_way = known
            .asked
            .take()
            .filter(|(since, end)| since.elapsed() < LONGEST && end.has_changed().is_ok());
        known.asked = under_way.or_else(|| {
            let (done, end) = watch::channel(());
            ask(done);
            Some((Instant::now(), end))
        });
        known.asked.clone()
    }

    fn keep(&self, found: io::Result<Vec<SocketAddr>>, name: String) -> io::Result<Addresses> {
        let addresses: Addresses = found?.into();
        if !addresses.is_empty() {
            let mut known = self.known();
            if known.len() >= MOST && !known.contains_key(&name) {
                known.clear();
            }
            let (at, addresses) = (Instant::now(), Arc::clone(&addresses));
            known.insert(name, Known { at, addresses, asked: None });
        }
        Ok(addresses)
    }
}

impl Resolve for CachedDns {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            // Port 0: the connector puts in the URL's.
            let lookup = |name: &str| Ok((name, 0).to_socket_addrs()?.collect());
            let addresses = this.addresses(name.as_str(), lookup).await?;
            let addresses: Vec<_> = addresses.to_vec();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Connections, ProxyChoice};
    use std::sync::mpsc;

    const NOW: Duration = Duration::ZERO;

    fn one() -> Vec<SocketAddr> {
        vec!["127.0.0.1:0".parse().unwrap()]
    }

    fn two() -> Vec<SocketAddr> {
        vec!["127.0.0.2:0".parse().unwrap()]
    }

    #[tokio::test]
    async fn what_was_found_is_kept_and_stands_in_when_a_lookup_fails() {
        let gone = |_: &str| Err(io::Error::other("resolver down"));
        let kept = CachedDns::new(Duration::from_secs(60));
        assert!(kept.addresses("h", gone).await.is_err());
        assert_eq!(*kept.addresses("h", |_| Ok(one())).await.unwrap(), *one());
        assert_eq!(*kept.addresses("h", |_| Ok(two())).await.unwrap(), *one());
        let never = CachedDns::new(NOW);
        assert_eq!(*never.addresses("h", |_| Ok(one())).await.unwrap(), *one());
        assert_eq!(*never.addresses("h", |_| Ok(two())).await.unwrap(), *two());
        assert_eq!(*never.addresses("h", gone).await.unwrap(), *two());
        assert_eq!(*never.addresses("h", |_| Ok(vec![])).await.unwrap(), *two());
        assert!(never.addresses("other", gone).await.is_err());
    }

    #[tokio::test]
    async fn what_was_found_stands_in_while_a_lookup_hangs_and_its_late_answer_is_kept() {
        let dns = CachedDns::new(NOW);
        dns.addresses("h", |_| Ok(one())).await.unwrap();
        let (answer, late) = mpsc::channel();
        let hanging = dns.addresses("h", move |_| Ok(late.recv().unwrap()));
        assert_eq!(*hanging.await.unwrap(), *one());
        // Nobody asks beside it, nor waits again.
        let unasked = |_: &str| -> io::Result<Vec<SocketAddr>> { panic!("one is under way") };
        let at_once = timeout(PATIENCE / 2, dns.addresses("h", unasked)).await;
        assert_eq!(*at_once.unwrap().unwrap(), *one());
        let (_, mut end) = dns.known()["h"].asked.clone().unwrap();
        answer.send(two()).unwrap();
        end.changed().await.unwrap_err();
        assert_eq!(*dns.known()["h"].addresses, *two());
        // The next one is asked again.
        assert_eq!(*dns.addresses("h", |_| Ok(one())).await.unwrap(), *one());
    }

    #[tokio::test]
    async fn a_lookup_that_hangs_leaves_time_to_connect() {
        let dns = CachedDns::new(NOW);
        dns.addresses("h", |_| Ok(one())).await.unwrap();
        let (answer, late) = mpsc::channel();
        let connect_timeout = PATIENCE / 5;
        let within = dns.within(connect_timeout);
        let hanging = within.addresses("h", move |_| Ok(late.recv().unwrap()));
        assert_eq!(*timeout(connect_timeout, hanging).await.unwrap().unwrap(), *one());
        answer.send(two()).unwrap();
        assert_eq!(dns.within(Duration::MAX).patience, PATIENCE);
    }

    #[tokio::test]
    async fn who_asks_at_the_same_time_shares_one_lookup() {
        let dns = CachedDns::new(NOW);
        dns.addresses("h", |_| Ok(one())).await.unwrap();
        let (answer, late) = mpsc::channel();
        let first = dns.addresses("h", move |_| Ok(late.recv().unwrap()));
        let second = dns.addresses("h", |_| panic!("one is under way"));
        let answered = async { answer.send(two()).unwrap() };
        let (first, second, ()) = tokio::join!(first, second, answered);
        assert_eq!((&*first.unwrap(), &*second.unwrap()), (&*two(), &*two()));
    }

    #[tokio::test]
    async fn a_lookup_that_never_ends_is_given_up() {
        let dns = CachedDns::new(NOW);
        dns.addresses("h", |_| Ok(one())).await.unwrap();
        let (answer, never) = mpsc::channel();
        dns.addresses("h", move |_| Ok(never.recv().unwrap())).await.unwrap();
        let long_ago = Instant::now().checked_sub(LONGEST).unwrap();
        dns.known().get_mut("h").unwrap().asked.as_mut().unwrap().0 = long_ago;
        assert_eq!(*dns.addresses("h", |_| Ok(two())).await.unwrap(), *two());
        // So that its thread ends.
        answer.send(one()).unwrap();
    }

    #[tokio::test]
    async fn a_driver_asks_here() {
        let connections = Connections { proxy: ProxyChoice::None, ..Connections::default() };
        let client = connections.client(None).unwrap();
        // Whatever comes of it.
        let _ = client.get("http://localhost:1/").send().await;
        assert!(connections.dns.known().contains_key("localhost"));
    }

    #[tokio::test]
    async fn a_name_that_is_known_pushes_no_other_out() {
        let dns = CachedDns::new(NOW);
        for n in 0..MOST {
            dns.addresses(&n.to_string(), |_| Ok(one())).await.unwrap();
        }
        dns.addresses("7", |_| Ok(two())).await.unwrap();
        assert_eq!(dns.known().len(), MOST);
        dns.addresses("new", |_| Ok(two())).await.unwrap();
        assert_eq!(dns.known().len(), 1);
    }
}
