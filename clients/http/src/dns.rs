//! Names looked up once in a while.
//!
//! The system's resolver gives no lifetime, so ours is a setting. When a lookup fails, or takes long,
//! what was found before stands in: a resolver's outage must not be ours while the servers still
//! answer. Of each name there is one lookup at a time, however many ask for it: each takes a thread, of
//! which a resolver that hangs would soon have all.

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
/// The same where nothing stands in: a resolver that has lost a packet may answer a retry.
const LONGEST_FIRST: Duration = Duration::from_secs(2);

type Addresses = Arc<[SocketAddr]>;
/// What a lookup ends with, for all who wait for it.
type Found = Result<Addresses, Arc<io::Error>>;
/// A lookup: since when, and what it found at its end; closed without that if it was given up.
type Asked = (Instant, watch::Receiver<Option<Found>>);

#[derive(Debug)]
struct Known {
    at: Instant,
    /// `None` while a name is looked up for the first time.
    addresses: Option<Addresses>,
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
        let known = self.known().get(name).map(|known| (known.at, known.addresses.clone()));
        let stale = match known {
            Some((at, Some(found))) if at.elapsed() < self.keep => return Ok(found),
            Some((_, stale)) => stale,
            None => None,
        };
        let (since, mut end) = self.asked(name, |end| {
            let (this, owned) = (self.clone(), name.to_owned());
            drop(spawn_blocking(move || {
                // The end is dropped with this, also where it never runs.
                end.send_replace(Some(this.keep(lookup(&owned), owned)));
            }));
        });
        // One lookup, however many wait.
        let Some(stale) = stale else {
            return match end.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Ok(found))) => Ok(Arc::clone(found)),
                Ok(Some(Err(error))) => Err(io::Error::new(error.kind(), Arc::clone(error))),
                _ => Err(io::Error::other("the lookup was given up")),
            };
        };
        // Nobody waits once it has taken too long.
        let _ = timeout(self.patience.saturating_sub(since.elapsed()), end.changed()).await;
        let found = self.known().get(name).and_then(|known| known.addresses.clone());
        Ok(found.unwrap_or(stale))
    }

    /// The lookup that is under way, or begins now.
    fn asked(&self, name: &str, ask: impl FnOnce(watch::Sender<Option<Found>>)) -> Asked {
        let mut all = self.known();
        make_room(&mut all, name);
        let begun = Instant::now();
        let known = all.entry(name.to_owned()).or_insert_with(|| Known {
            at: begun,
            addresses: None,
            asked: None,
        });
        let longest = if known.addresses.is_some() { LONGEST } else { LONGEST_FIRST };
        let under_way = known
            .asked
            .take()
            .filter(|(since, end)| since.elapsed() < longest && end.has_changed().is_ok());
        let asked = under_way.unwrap_or_else(|| {
            let (end, found) = watch::channel(None);
            ask(end);
            (begun, found)
        });
        known.asked.insert(asked).clone()
    }

    fn keep(&self, found: io::Result<Vec<SocketAddr>>, name: String) -> Found {
        let addresses = found.map(Addresses::from).map_err(Arc::new);
        let mut known = self.known();
        match &addresses {
            Ok(found) if !found.is_empty() => {
                make_room(&mut known, &name);
                let (at, addresses) = (Instant::now(), Some(Arc::clone(found)));
                known.insert(name, Known { at, addresses, asked: None });
            }
            _ if known.get(&name).is_some_and(|known| known.addresses.is_none()) => {
                known.remove(&name);
            }
            _ => {}
        }
        addresses
    }
}

fn make_room(known: &mut HashMap<String, Known>, name: &str) {
    if known.len() >= MOST && !known.contains_key(name) {
        known.clear();
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
    use crate::{
        HttpClient,
        client::Drivers,
        driver::{Connections, ProxyChoice},
    };
    use std::sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    };

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
        end.changed().await.unwrap();
        assert_eq!(dns.known()["h"].addresses.as_deref(), Some(&*two()));
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
    async fn a_name_that_nobody_knows_yet_is_looked_up_once_for_all_who_wait() {
        let dns = CachedDns::new(NOW);
        let (answer, late) = mpsc::channel();
        let first = dns.addresses("h", move |_| late.recv().unwrap());
        let second = dns.addresses("h", |_| panic!("one is under way"));
        let answered = async { answer.send(Ok(one())).unwrap() };
        let (first, second, ()) = tokio::join!(first, second, answered);
        assert_eq!((&*first.unwrap(), &*second.unwrap()), (&*one(), &*one()));
        // Nor is it longer waited for by one than by the other, or told otherwise.
        let (answer, late) = mpsc::channel();
        let first = dns.addresses("gone", move |_| late.recv().unwrap());
        let second = dns.addresses("gone", |_| panic!("one is under way"));
        let refusal = io::Error::new(io::ErrorKind::NotFound, "no such name");
        let answered = async { answer.send(Err(refusal)).unwrap() };
        let (first, second, ()) = tokio::join!(first, second, answered);
        for end in [first, second] {
            let error = end.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            assert_eq!(error.to_string(), "no such name");
        }
        assert!(!dns.known().contains_key("gone"), "names that do not exist take no room");
        // One that panics leaves nobody waiting, and the next asks anew.
        assert!(dns.addresses("x", |_| panic!("on purpose")).await.is_err());
        assert_eq!(*dns.addresses("x", |_| Ok(two())).await.unwrap(), *two());
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
    async fn a_first_lookup_that_hangs_does_not_hold_up_the_retries() {
        let dns = CachedDns::new(NOW);
        let (answer, late) = mpsc::channel();
        let mut hangs = Box::pin(dns.addresses("h", move |_| late.recv().unwrap()));
        assert!(timeout(Duration::ZERO, &mut hangs).await.is_err());
        let before = Instant::now().checked_sub(LONGEST_FIRST).unwrap();
        dns.known().get_mut("h").unwrap().asked.as_mut().unwrap().0 = before;
        assert_eq!(*dns.addresses("h", |_| Ok(two())).await.unwrap(), *two());
        // So that its thread ends.
        answer.send(Ok(one())).unwrap();
        assert_eq!(*hangs.await.unwrap(), *one());
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
    async fn addresses_are_kept_for_as_long_as_the_builder_is_told() {
        for (keep, lookups) in [(Duration::from_secs(60), 1), (NOW, 3)] {
            let client = HttpClient::builder("http://h").keep_dns(keep).build().unwrap();
            let Drivers::Built(connections, _) = &client.0.drivers else { panic!("not ours") };
            let asked = Arc::new(AtomicUsize::new(0));
            for _ in 0..3 {
                let asked = Arc::clone(&asked);
                let lookup = move |_: &str| {
                    asked.fetch_add(1, SeqCst);
                    Ok(one())
                };
                connections.dns.addresses("h", lookup).await.unwrap();
            }
            assert_eq!(asked.load(SeqCst), lookups, "{keep:?}");
        }
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
