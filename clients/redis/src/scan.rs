//! All keys of a pattern, a page at a time.

use crate::{
    client::RedisClient,
    command::{Command, Raw, Route},
    ends::answered,
    fallback::OnKeys,
    link::Node,
    strings::word,
    value::{FromValue, Value},
};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use mainstay_policy::{Error, Operation};
use std::{borrow::Cow, time::Instant};

const SCAN: Operation = Operation::read("scan");
/// How many keys the server looks at for one answer.
const COUNT: &str = "250";

struct Scan {
    client: RedisClient,
    pattern: Bytes,
    /// Not asked yet; `None` before the first question.
    nodes: Option<Vec<Node>>,
    cursor: Option<(Node, Bytes)>,
    page: std::vec::IntoIter<Bytes>,
}

impl RedisClient {
    /// The keys that match a pattern (`*`, `?`, `[ab]`; `\` makes the next character plain), without
    /// this client's prefix. Only by the server: memory does not hold all there are.
    ///
    /// The stream holds one page of some 250 keys and asks for the next when it is read. As with the
    /// server's own SCAN a key may come twice, and one that is added or deleted meanwhile may or may
    /// not come. It ends after the first error.
    ///
    /// ```no_run
    /// # async fn run(cache: &mainstay_redis::RedisClient) -> Result<(), mainstay_policy::Error> {
    /// use futures_util::TryStreamExt;
    ///
    /// let mut users = cache.scan::<String>("user:*");
    /// while let Some(key) = users.try_next().await? {
    ///     cache.del(&key).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn scan<T: FromValue + Send + 'static>(
        &self,
        pattern: impl AsRef<[u8]>,
    ) -> BoxStream<'static, Result<T, Error>> {
        let scan = Scan {
            pattern: self.limits().pattern(pattern.as_ref()),
            client: self.clone(),
            nodes: None,
            cursor: None,
            page: Vec::new().into_iter(),
        };
        stream::try_unfold(scan, |mut scan| async move {
            let Some(key) = scan.next().await? else { return Ok(None) };
            let key = scan.client.limits().without_prefix(key);
            Ok(Some((T::from_value(key)?, scan)))
        })
        .boxed()
    }
}

impl Scan {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(key) = self.page.next() {
                return Ok(Some(key));
            }
            let (node, cursor) = match self.cursor.take() {
                Some(next) => next,
                None => match self.next_node().await? {
                    Some(node) => (node, word("0")),
                    None => return Ok(None),
                },
            };
            let args =
                vec![cursor, word("MATCH"), self.pattern.clone(), word("COUNT"), word(COUNT)];
            let raw = Raw { name: Cow::Borrowed("SCAN"), args, route: Route::Node(node.clone()) };
            let commands = [Command::Raw(&raw)];
            let began = Instant::now();
            let mut replies = self.client.direct(&SCAN, &[], OnKeys::Reads, &commands).await?;
            let reply = replies.pop().unwrap_or(Ok(Value::Nil));
            let reply =
                reply.map_err(|failure| self.client.failed(&SCAN, answered(failure, began)))?;
            if let Value::Array(parts) = reply
                && let Ok([cursor, Value::Array(keys)]) = <[Value; 2]>::try_from(parts)
            {
                let cursor = cursor.into_bytes().filter(|cursor| cursor != "0");
                self.cursor = cursor.map(|cursor| (node, cursor));
                let keys: Vec<_> = keys.into_iter().filter_map(Value::into_bytes).collect();
                self.page = keys.into_iter();
            }
        }
    }

    async fn next_node(&mut self) -> Result<Option<Node>, Error> {
        if self.nodes.is_none() {
            // A cluster's servers are known once it was reached.
            let ping = Raw::ping();
            let commands = [Command::Raw(&ping)];
            self.client.direct(&SCAN, &[], OnKeys::Reads, &commands).await?;
            self.nodes = Some(self.client.reachable_line()?.nodes());
        }
        Ok(self.nodes.as_mut().and_then(Vec::pop))
    }
}
