//! The client: cheap to clone; one method per command.

use crate::{
    classify::RedisFailure,
    command::{self, Change, Command, IfAway, Slot},
    config::{FallbackConfig, RedisClientBuilder, Target},
    fallback::{BeginRead, BeginWrite, Fallback, Refusal},
    link::{Gate, Line, Link},
    value::{FromValue, ToValue, Value},
};
use bytes::Bytes;
use mainstay_policy::{BreakerState, CallError, Effect, Error, Operation, PerRuntime, Policy};
use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

struct Inner {
    target: Option<Target>,
    policy: Policy,
    fallback: Option<Arc<Fallback>>,
    links: PerRuntime<Option<Arc<Link>>>,
}

/// A Redis client that answers from memory while the server is away; clones share everything.
#[derive(Clone)]
pub struct RedisClient(Arc<Inner>);

impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisClient").field("policy", &self.0.policy.name()).finish_non_exhaustive()
    }
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisState {
    /// The server.
    Connected,
    /// The fallback: the server is away, refused by the breaker, or not configured.
    Degraded,
    /// The server is back; keys written meanwhile are being deleted there, the rest is its own.
    Recovering,
}

impl RedisClient {
    /// A builder.
    pub fn builder() -> RedisClientBuilder {
        RedisClientBuilder::default()
    }

    pub(crate) fn new(target: Option<Target>, policy: Policy, config: FallbackConfig) -> Self {
        let server = target.is_some();
        let fallback = config.enabled.then(|| Arc::new(Fallback::new(&config, server)));
        Self(Arc::new(Inner { target, policy, fallback, links: PerRuntime::new() }))
    }

    /// The value at a key. While degraded, a value that is not in memory is `None` too.
    ///
    /// # Errors
    /// When the value is no `T`, when the key holds a hash, when the server refuses the credentials
    /// or, without a fallback, when it is away.
    pub async fn get<T: FromValue>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>, Error> {
        let value = self.read(Slot::key(key)).await?;
        value.map(T::from_value).transpose()
    }

    /// Stores a value: `.set("key", "value").ttl(Duration::from_secs(60)).await`.
    pub fn set(&self, key: impl AsRef<[u8]>, value: impl ToValue) -> Set {
        let (client, slot) = (self.clone(), Slot::key(key));
        Set { client, slot, value: value.to_value(), ttl: None }
    }

    /// Deletes a key; says whether there was one. While degraded: whether memory knew it.
    ///
    /// # Errors
    /// When the server refuses, when the fallback is full or, without one, when the server is away.
    pub async fn del(&self, key: impl AsRef<[u8]>) -> Result<bool, Error> {
        self.write(Slot::key(key), Change::Remove).await
    }

    /// Stores one field of a hash.
    ///
    /// # Errors
    /// As [`RedisClient::del`], and when the key holds no hash.
    pub async fn hset(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
        value: impl ToValue,
    ) -> Result<(), Error> {
        let change = Change::Put { value: value.to_value(), ttl: None };
        self.write(Slot::field(key, field), change).await.map(drop)
    }

    /// One field of a hash, as [`RedisClient::get`].
    ///
    /// # Errors
    /// As [`RedisClient::get`].
    pub async fn hget<T: FromValue>(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
    ) -> Result<Option<T>, Error> {
        let value = self.read(Slot::field(key, field)).await?;
        value.map(T::from_value).transpose()
    }

    /// Deletes one field of a hash, as [`RedisClient::del`].
    ///
    /// # Errors
    /// As [`RedisClient::hset`].
    pub async fn hdel(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
    ) -> Result<bool, Error> {
        self.write(Slot::field(key, field), Change::Remove).await
    }

    /// Who answers now, in this runtime.
    #[must_use]
    pub fn state(&self) -> RedisState {
        let open = self.line().is_some_and(|line| matches!(line.gate(), Gate::Open));
        if !open || self.0.policy.breaker().state() == BreakerState::Open {
            RedisState::Degraded
        } else if self.dirty_keys() > 0 {
            RedisState::Recovering
        } else {
            RedisState::Connected
        }
    }

    /// The policy of this server.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    pub(crate) fn is_configured(&self) -> bool {
        self.0.target.is_some()
    }

    pub(crate) fn has_fallback(&self) -> bool {
        self.0.fallback.is_some()
    }

    pub(crate) fn dirty_keys(&self) -> usize {
        self.0.fallback.as_ref().map_or(0, |fallback| fallback.dirty_keys())
    }

    /// The connection of the current runtime, started on first use.
    pub(crate) fn line(&self) -> Option<Arc<Line>> {
        let inner = &self.0;
        let target = inner.target.as_ref()?;
        let link = inner.links.get_or_init(|| {
            let link = Link::start(target.clone(), &inner.policy, inner.fallback.clone());
            link.ok().map(Arc::new)
        });
        link.flatten().map(|link| Arc::clone(link.line()))
    }

    /// Ends the connection of the current runtime with QUIT, waited for no longer than this. What
    /// comes after finds the server away: the fallback answers, or without one it is refused.
    pub async fn close(&self, within: Duration) {
        if let Some(link) = self.0.links.get().flatten() {
            link.close(within).await;
        }
    }

    fn reachable_line(&self) -> Result<Arc<Line>, Error> {
        tokio::runtime::Handle::try_current()
            .map_err(|_| Error::invalid("a Redis call needs a tokio runtime around it"))?;
        self.line().ok_or_else(|| Error::invalid("redis: the driver cannot use this Redis URL"))
    }

    async fn read(&self, slot: Slot) -> Result<Option<Bytes>, Error> {
        let operation = command::read(&slot);
        let local = |answer: Result<Option<Bytes>, Refusal>| {
            answer.map_err(|refusal| self.refused(&operation, refusal))
        };
        let Some(fallback) = &self.0.fallback else {
            let reply = self.ask(&operation, Command::Read(slot)).await?;
            return reply.map(Value::into_bytes).map_err(|error| self.failed(&operation, error));
        };
        if !self.is_configured() {
            return local(fallback.read(&slot, Instant::now()));
        }
        let sent = Instant::now();
        let ticket = match fallback.begin_read(&slot, sent) {
            BeginRead::Local(answer) => return local(answer),
            BeginRead::Ask(ticket) => ticket,
        };
        match self.ask(&operation, Command::Read(slot.clone())).await? {
            Ok(reply) => {
                local(fallback.filled(&slot, ticket, reply.into_bytes(), sent, Instant::now()))
            }
            Err(error) if is_outage(&error) => local(fallback.read(&slot, Instant::now())),
            Err(error) => Err(self.failed(&operation, error)),
        }
    }

    async fn write(&self, slot: Slot, change: Change) -> Result<bool, Error> {
        let operation = command::write(&slot, &change);
        let local = |answer: Result<bool, Refusal>| {
            answer.map_err(|refusal| self.refused(&operation, refusal))
        };
        let Some(fallback) = &self.0.fallback else {
            let reply = self.ask(&operation, Command::Write(slot, change)).await?;
            return reply
                .map(|reply| reply.is_positive())
                .map_err(|error| self.failed(&operation, error));
        };
        if !self.is_configured() {
            return local(fallback.write(&slot, &change, Instant::now()));
        }
        let mut waited = false;
        let (sent, ticket) = loop {
            let now = Instant::now();
            match fallback.begin_write(&slot, &change, now) {
                BeginWrite::Ask(ticket) => break (now, ticket),
                BeginWrite::Local(answer) => return local(answer),
                BeginWrite::Draining if waited => {
                    return local(fallback.write(&slot, &change, now));
                }
                BeginWrite::Draining => {
                    fallback.until_drained(self.0.policy.time_for_attempt()).await;
                    waited = true;
                }
            }
        };
        let command = Command::Write(slot.clone(), change.clone());
        match self.ask(&operation, command).await? {
            Ok(reply) => {
                fallback.landed(&slot, &change, ticket, sent);
                Ok(reply.is_positive())
            }
            // Also when nobody knows whether it happened: the key is dirty then, and deleted at
            // the server before it is read there again.
            Err(error) if is_outage(&error) => {
                local(fallback.write(&slot, &change, Instant::now()))
            }
            Err(error) => Err(self.failed(&operation, error)),
        }
    }

    /// One command through the policy.
    async fn ask(
        &self,
        operation: &Operation,
        command: Command,
    ) -> Result<Result<Value, CallError<RedisFailure>>, Error> {
        let line = self.reachable_line()?;
        // Of a node of a cluster, which may be down while the others are not.
        let own = line.policy(&command);
        let policy = own.as_ref().unwrap_or(&self.0.policy);
        let command = Arc::new(command);
        let away = if self.has_fallback() { IfAway::FallBack } else { IfAway::Fail };
        let result = policy
            .run(operation, |attempt| {
                let (line, command) = (Arc::clone(&line), Arc::clone(&command));
                async move { line.send(&command, away, attempt.timeout()).await }
            })
            .await;
        Ok(result)
    }

    fn failed(&self, operation: &Operation, error: CallError<RedisFailure>) -> Error {
        Error::from_call(self.0.policy.name(), operation.name(), error)
    }

    /// The fallback's own refusal, in the form of a call's end.
    fn refused(&self, operation: &Operation, refusal: Refusal) -> Error {
        let error = RedisFailure::from(refusal);
        let effect = match refusal {
            Refusal::Full => Effect::NeverSent,
            Refusal::WrongType => Effect::Permanent,
        };
        let (attempts, elapsed) = (0, Duration::ZERO);
        self.failed(operation, CallError::Backend { attempts, elapsed, effect, error })
    }
}

/// Whether the server is the problem, so that the fallback answers.
fn is_outage(error: &CallError<RedisFailure>) -> bool {
    match (error.last(), error.decider()) {
        (Some(failure), _) => failure.is_outage(),
        (None, decider) => decider.is_some(),
    }
}

/// A SET that has not been sent yet: await it.
#[must_use = "nothing is sent until it is awaited"]
pub struct Set {
    client: RedisClient,
    slot: Slot,
    value: Bytes,
    ttl: Option<Duration>,
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Set").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

impl Set {
    /// How long the value lives; whole milliseconds, rounded up. Default: until deleted.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }
}

impl IntoFuture for Set {
    type Output = Result<(), Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { client, slot, value, ttl } = self;
        Box::pin(async move {
            if ttl.is_some_and(|ttl| ttl.is_zero()) {
                return Err(Error::invalid("redis: set with a ttl of 0; use del to remove a key"));
            }
            client.write(slot, Change::Put { value, ttl }).await.map(drop)
        })
    }
}
