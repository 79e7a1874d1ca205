//! Names looked up once in a while.
//!
//! The system's resolver gives no lifetime, so ours is a setting. When a lookup fails, what was
//! found before stands in: a resolver's outage must not be ours while the servers still answer.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A client of user-given hosts must not fill the memory.
const MOST: usize = 1_024;

type Found = HashMap<String, (Instant, Arc<[SocketAddr]>)>;

/// A resolver that remembers.
#[derive(Clone, Debug)]
pub(crate) struct CachedDns {
    keep: Duration,
    found: Arc<Mutex<Found>>,
}

impl CachedDns {
    pub(crate) fn new(keep: Duration) -> Self {
        Self { keep, found: Arc::default() }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn addresses(
        self,
        name: &str,
        lookup: impl Future<Output = std::io::Result<Vec<SocketAddr>>>,
    ) -> std::io::Result<Arc<[SocketAddr]>> {
        let before = self.found().get(name).cloned();
        if let Some((at, addresses)) = &before
            && at.elapsed() < self.keep
        {
            return Ok(Arc::clone(addresses));
        }
        match (lookup.await, before) {
            (Ok(found), before) if found.is_empty() => match before {
                Some((_, stale)) => Ok(stale),
                None => Ok(found.into()),
            },
            (Ok(found), _) => {
                let found: Arc<[SocketAddr]> = found.into();
                let mut all = self.found();
                if all.len() >= MOST {
                    all.clear();
                }
                all.insert(name.to_owned(), (Instant::now(), Arc::clone(&found)));
                Ok(found)
            }
            (Err(_), Some((_, stale))) => Ok(stale),
            (Err(error), None) => Err(error),
        }
    }
}

impl Resolve for CachedDns {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            // Port 0: the connector puts in the URL's.
            let lookup = async {
                Ok(tokio::net::lookup_host((name.as_str(), 0)).await?.collect::<Vec<_>>())
            };
            let addresses = this.addresses(name.as_str(), lookup).await?;
            let addresses: Vec<_> = addresses.to_vec();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::ready, io};

    #[tokio::test]
    async fn what_was_found_is_kept_and_stands_in_when_a_lookup_fails() {
        let one: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let two: SocketAddr = "127.0.0.2:0".parse().unwrap();
        let gone = || ready(Err(io::Error::other("resolver down")));
        let kept = CachedDns::new(Duration::from_secs(60));
        assert!(kept.clone().addresses("h", gone()).await.is_err());
        assert_eq!(*kept.clone().addresses("h", ready(Ok(vec![one]))).await.unwrap(), [one]);
        assert_eq!(*kept.clone().addresses("h", ready(Ok(vec![two]))).await.unwrap(), [one]);
        let never = CachedDns::new(Duration::ZERO);
        assert_eq!(*never.clone().addresses("h", ready(Ok(vec![one]))).await.unwrap(), [one]);
        assert_eq!(*never.clone().addresses("h", ready(Ok(vec![two]))).await.unwrap(), [two]);
        assert_eq!(*never.clone().addresses("h", gone()).await.unwrap(), [two]);
        assert!(never.addresses("other", gone()).await.is_err());
    }
}
