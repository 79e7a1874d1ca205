//! How a call waits for the recovery, where the server may do it in a moment.

use crate::{
    client::RedisClient,
    fallback::{Batch, Fallback},
};
use bytes::Bytes;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a call waits for the recovery of its key.
const DRAIN_WAIT: Duration = Duration::from_secs(1);

/// How long a call waits for the server to be told of a key, while the server is there.
pub(crate) struct Patience<'a> {
    client: &'a RedisClient,
    fallback: &'a Fallback,
    /// How far the recovery has come, and until when it is waited for.
    since: Option<(watch::Receiver<Batch>, Instant)>,
    pub(crate) waited: bool,
}

impl<'a> Patience<'a> {
    pub(crate) const fn new(client: &'a RedisClient, fallback: &'a Fallback) -> Self {
        Self { client, fallback, since: None, waited: false }
    }

    /// Until it is worth another look at these keys, without any at all there are; `false` once there is
    /// no more to hope for.
    pub(crate) async fn wait(&mut self, keys: &[Bytes]) -> bool {
        let is_hopeless = match keys {
            [] => self.client.is_hopeless(None),
            // Of those that are not dirty nobody has to be told.
            keys => {
                let mut dirty = keys.iter().filter(|key| self.fallback.is_dirty(key));
                dirty.any(|key| self.client.is_hopeless(Some(key)))
            }
        };
        if is_hopeless {
            return false;
        }
        let Some((drains, until)) = &mut self.since else {
            // Only now, as most calls never wait; the look that comes next misses nothing.
            let limit = self.client.policy().time_for_attempt();
            let until = Instant::now() + limit.unwrap_or(DRAIN_WAIT).min(DRAIN_WAIT);
            self.since = Some((self.fallback.drains(), until));
            return true;
        };
        self.waited = true;
        let left = until.saturating_duration_since(Instant::now());
        matches!(tokio::time::timeout(left, drains.changed()).await, Ok(Ok(())))
    }
}
