//! The client: cheap to clone. Three doors lead to the server: a question, a change of one key, and
//! what only the server can do (`direct`); the modules of the commands go through them.

use crate::{
    answer::{Answer, Source},
    classify::{RedisFailure, whole},
    command::{Change, Command, IfAway, Slot},
    config::{FallbackConfig, Limits, RedisClientBuilder, Target},
    ends::{is_kept_here, is_outage, was_never_sent},
    fallback::{BeginRead, BeginWrite, Fallback, Known, OnKeys, Refusal},
    link::{Line, Link},
    numbers::{Numbers, Tier},
    patience::Patience,
    query::Query,
    value::Value,
};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::join_all;
use mainstay_policy::{Attempt, CallError, Effect, Error, Operation, PerRuntime, Policy};
use std::{
    fmt,
    future::Future,
    iter::once,
    ops::Deref,
    slice::from_ref,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::runtime::{Handle, Id};

pub(crate) type Outcome<T> = Result<T, CallError<RedisFailure>>;

pub(crate) struct Inner {
    target: Option<Target>,
    policy: Policy,
    limits: Limits,
    fallback: Option<Arc<Fallback>>,
    links: PerRuntime<Option<Arc<Link>>>,
    /// The line that was used first, to a single server, since most programs have one runtime: calls
    /// need not count themselves among its users.
    first: OnceLock<(Id, Arc<Line>)>,
    /// Of all others the one that was used last: to ask `links` costs ten times as much.
    last: ArcSwapOption<(Id, Weak<Line>)>,
    pub(crate) loads: crate::load::Loads,
    pub(crate) numbers: Numbers,
}

/// A Redis client that answers from memory while the server is away; clones share everything.
#[derive(Clone)]
pub struct RedisClient(pub(crate) Arc<Inner>);

impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisClient").field("policy", &self.0.policy.name()).finish_non_exhaustive()
    }
}

impl RedisClient {
    /// A builder.
    pub fn builder() -> RedisClientBuilder {
        RedisClientBuilder::default()
    }

    pub(crate) fn new(
        target: Option<Target>,
        policy: Policy,
        config: FallbackConfig,
        limits: Limits,
    ) -> Self {
        let server = target.is_some();
        let fallback = config.is_on().then(|| Arc::new(Fallback::new(&config, server)));
        let numbers = Numbers::of(policy.name());
        Self(Arc::new(Inner {
            target,
            policy,
            limits,
            fallback,
            links: PerRuntime::new(),
            first: OnceLock::new(),
            last: ArcSwapOption::empty(),
            loads: crate::load::Loads::default(),
            numbers,
        }))
    }

    /// The policy of this server. Who isolates its breaker isolates a cluster as a whole; each master
    /// has another one beside it, under this name with `@host:port`.
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

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Keys written while the server was away that it has not been told of.
    #[must_use]
    pub fn dirty_keys(&self) -> usize {
        self.0.fallback.as_ref().map_or(0, |fallback| fallback.dirty_keys())
    }

    /// Values that the fallback holds, and about how many bytes they take.
    #[must_use]
    pub fn fallback_size(&self) -> (u64, u64) {
        self.0.fallback.as_ref().map_or((0, 0), |fallback| {
            fallback.tidy();
            fallback.size()
        })
    }

    /// A key or one field of a hash, with this client's prefix, within its limits.
    pub(crate) fn slot(&self, key: impl AsRef<[u8]>, field: Option<&[u8]>) -> Result<Slot, Error> {
        let limits = self.limits();
        let field = field.map(|field| limits.field(field)).transpose()?;
        Ok(Slot { key: limits.key(key.as_ref())?, field })
    }

    /// The connection of the current runtime, started on first use.
    #[inline]
    pub(crate) fn line(&self) -> Option<LineRef<'_>> {
        let runtime = Handle::try_current().ok()?.id();
        // A line dies with its runtime, whose number may then be another's.
        if let Some((of, line)) = self.0.first.get()
            && *of == runtime
            && !line.is_gone()
        {
            return Some(LineRef::First(line));
        }
        self.other_line(runtime)
    }

    #[cold]
    #[inline(never)]
    fn other_line(&self, runtime: Id) -> Option<LineRef<'_>> {
        let inner = &self.0;
        if let Some((of, line)) = inner.last.load().as_deref()
            && *of == runtime
            && let Some(line) = line.upgrade()
            && !line.is_gone()
        {
            return Some(LineRef::Other(line));
        }
        let line = Arc::clone(self.link()?.line());
        if !line.is_one() || inner.first.set((runtime, Arc::clone(&line))).is_err() {
            inner.last.store(Some(Arc::new((runtime, Arc::downgrade(&line)))));
        }
        Some(LineRef::Other(line))
    }

    fn link(&self) -> Option<Arc<Link>> {
        let inner = &self.0;
        let target = inner.target.as_ref()?;
        let link = inner.links.get_or_init(|| {
            let link = Link::start(target.clone(), &inner.policy, inner.fallback.clone());
            link.ok().map(Arc::new)
        });
        link.flatten()
    }

    /// Ends the connection of the current runtime with QUIT, waited for no longer than this. What
    /// comes after, be it the first call, finds the server away: the fallback answers, or without one
    /// it is refused.
    pub async fn close(&self, within: Duration) {
        // Of a client that was not used yet too, so that nobody connects later.
        if let Some(link) = self.link() {
            link.close(within).await;
        }
    }

    #[inline]
    pub(crate) fn reachable_line(&self) -> Result<LineRef<'_>, Error> {
        #[cold]
        fn unreachable() -> Error {
            Error::invalid(match Handle::try_current() {
                Ok(_) => "redis: the driver cannot use this Redis URL",
                Err(_) => "a Redis call needs a tokio runtime around it",
            })
        }
        self.line().ok_or_else(unreachable)
    }

    /// A question: the server's answer, or what memory knows while it is away.
    pub(crate) fn read<'a, Q: Query>(
        &'a self,
        query: &'a Q,
    ) -> impl Future<Output = Result<Answer<Q::Found>, Error>> + Send + 'a {
        self.look(query, None)
    }

    /// The same, also for an operation of several steps, which counts itself once as answered in the
    /// server's place.
    pub(crate) async fn look<Q: Query>(
        &self,
        query: &Q,
        counted: Option<&AtomicBool>,
    ) -> Result<Answer<Q::Found>, Error> {
        let operation = query.operation().timed_by_driver();
        let local = |known| self.told(&operation, known, counted);
        let Some(fallback) = &self.0.fallback else {
            let command = query.command();
            let way = self.way(&command)?;
            let reply = way.ask(self, &operation, &command, IfAway::Fail, None).await;
            let reply = reply.map_err(|error| self.failed(&operation, error))?;
            return Ok(self.answered(query.found(reply)));
        };
        if !self.is_configured() {
            return local(fallback.read(query, Instant::now()));
        }
        let mut patience = Patience::new(self, fallback);
        let (sent, ticket) = loop {
            let now = Instant::now();
            match fallback.begin_read(query, now) {
                BeginRead::Ask(ticket) => break (now, ticket),
                BeginRead::Local(known) => return local(known),
                BeginRead::Mixed if Box::pin(patience.wait(from_ref(query.key()))).await => {}
                BeginRead::Mixed => return local(fallback.read(query, now)),
            }
        };
        let command = query.command();
        let way = self.way(&command)?;
        match way.ask(self, &operation, &command, IfAway::FallBack, None).await {
            Ok(reply) => {
                let found = query.found(reply);
                match fallback.filled(query, ticket, &found, sent) {
                    None => Ok(self.answered(found)),
                    Some(known) => local(known),
                }
            }
            Err(error) if is_outage(&error, &way.line, from_ref(&command)) => {
                match fallback.read(query, Instant::now()) {
                    // Why the server did not answer says more than that memory cannot.
                    Err(Refusal::Unavailable) => Err(self.failed(&operation, error)),
                    known => local(known),
                }
            }
            Err(error) => Err(self.failed(&operation, error)),
        }
    }

    /// A change of one key or field. Gives a counter's new value, else whether there was anything
    /// to change.
    pub(crate) fn write<'a>(
        &'a self,
        slot: &'a Slot,
        change: &'a Change,
    ) -> impl Future<Output = Result<i64, Error>> + Send + 'a {
        // A lifetime leaves the value what it is.
        let newer = !matches!(change, Change::Expire(_));
        self.apply(slot, change, newer.then_some(&slot.key), None)
    }

    /// The same, by a load too, whose value outdates no other, and which counts itself.
    pub(crate) async fn apply(
        &self,
        slot: &Slot,
        change: &Change,
        outdates: Option<&Bytes>,
        counted: Option<&AtomicBool>,
    ) -> Result<i64, Error> {
        let operation = change.operation(slot).timed_by_driver();
        let command = change.command(slot);
        let Some(fallback) = &self.0.fallback else {
            let way = self.way(&command)?;
            let reply = way.ask(self, &operation, &command, IfAway::Fail, outdates).await;
            self.outdate(outdates);
            let reply = reply.map_err(|error| self.failed(&operation, error))?;
            self.wrote();
            return Ok(count(reply));
        };
        let local = || {
            self.outdate(outdates);
            let answer = fallback.write(slot, change, Instant::now());
            let answer = answer.map_err(|refusal| self.refused(&operation, refusal))?;
            self.kept(counted);
            Ok(answer)
        };
        if !self.is_configured() {
            return local();
        }
        let takes = fallback.takes(change);
        let mut patience = Patience::new(self, fallback);
        let (sent, ticket, before) = loop {
            let now = Instant::now();
            match fallback.begin_write(slot, now) {
                BeginWrite::Ask(ticket, before) => break (now, ticket, before),
                BeginWrite::Local if takes => return local(),
                BeginWrite::Draining if takes && patience.waited => return local(),
                _ if Box::pin(patience.wait(from_ref(&slot.key))).await => {}
                _ => return local(),
            }
        };
        let away = if takes { IfAway::FallBack } else { IfAway::Fail };
        let way = match self.way(&command) {
            Ok(way) => way,
            Err(error) => {
                fallback.put_back(once((slot, ticket, before)));
                return Err(error);
            }
        };
        let reply = way.ask(self, &operation, &command, away, outdates).await;
        self.outdate(outdates);
        match reply {
            Ok(reply) => {
                let answer = count(reply);
                match change {
                    Change::Expire(ttl) if answer > 0 => {
                        fallback.landed_life(slot, &before, *ttl, ticket, sent);
                    }
                    _ => fallback.landed(slot, change, ticket, sent),
                }
                self.wrote();
                Ok(answer)
            }
            Err(error) => {
                let kept = if takes && is_kept_here(&error, &way.line, &command) {
                    let before = Some((ticket, &before));
                    Some(fallback.write_after(slot, change, before, Instant::now()))
                } else {
                    None
                };
                // Not where it was kept: that is newer.
                if was_never_sent(&error) {
                    fallback.put_back(once((slot, ticket, before)));
                }
                match kept {
                    Some(Ok(answer)) => {
                        self.kept(counted);
                        Ok(answer)
                    }
                    // That it was not kept here does not mean that it did not happen there.
                    Some(Err(refusal))
                        if refusal != Refusal::Unavailable && !error.is_outcome_unknown() =>
                    {
                        Err(self.refused(&operation, refusal))
                    }
                    _ => Err(self.failed(&operation, error)),
                }
            }
        }
    }

    /// The way of one command.
    #[inline]
    fn way(&self, command: &Command<'_>) -> Result<Way<'_>, Error> {
        let line = self.reachable_line()?;
        let own = line.policy(command, &self.0.policy);
        Ok(Way { line, own })
    }

    /// Several commands as one attempt: they are sent in this order and answered together.
    pub(crate) async fn ask_all(
        &self,
        operation: &Operation,
        keys: &[Bytes],
        effect: OnKeys,
        commands: &[Command<'_>],
        away: IfAway,
    ) -> Result<Outcome<Vec<Result<Value, RedisFailure>>>, Error> {
        let line = &*self.reachable_line()?;
        let outdate = || match effect {
            OnKeys::Reads => {}
            OnKeys::MayChange => keys.iter().for_each(|key| self.outdate(Some(key))),
            OnKeys::MayChangeAll => self.0.loads.outdate_all(),
        };
        let attempt = |attempt: Attempt| async move {
            let timeout = match commands {
                [_] => attempt.timeout(),
                // Each would wait by itself, and which goes on first is anybody's guess.
                _ => line.admit(commands, away, attempt.timeout()).await?,
            };
            outdate();
            whole(join_all(commands.iter().map(|c| line.send(c, away, timeout))).await)
        };
        let own = match commands {
            [command] => line.policy(command, &self.0.policy),
            _ => None,
        };
        let policy = own.as_ref().unwrap_or(&self.0.policy);
        let outcome = policy.run(&operation.timed_by_driver(), attempt).await;
        outdate();
        Ok(outcome)
    }

    /// A newer value is about to be sent or kept here, or has arrived: between these a load may have
    /// begun and read the one before.
    #[inline]
    fn outdate(&self, key: Option<&Bytes>) {
        if let Some(key) = key {
            self.0.loads.outdate(key);
        }
    }

    pub(crate) fn answered<T>(&self, value: T) -> Answer<T> {
        self.0.numbers.read(Tier::Redis);
        Answer { value, source: Source::Redis, age: None }
    }

    /// The server has taken a write.
    pub(crate) fn wrote(&self) {
        self.0.numbers.wrote(Tier::Redis);
    }

    /// Memory has taken one.
    pub(crate) fn kept_here(&self) {
        self.0.numbers.wrote(Tier::Fallback);
        self.0.numbers.dirty(self.dirty_keys());
    }

    fn kept(&self, counted: Option<&AtomicBool>) {
        self.kept_here();
        self.fell_back(counted);
    }

    /// An operation, or the first of its steps, was answered in the server's place; without one there
    /// is nothing to fall back from.
    pub(crate) fn fell_back(&self, counted: Option<&AtomicBool>) {
        let again = counted.is_some_and(|counted| counted.swap(true, Ordering::Relaxed));
        if self.is_configured() && !again {
            self.0.policy.fell_back();
        }
    }

    /// What memory says, marked as such.
    fn told<T: Default>(
        &self,
        operation: &Operation,
        known: Result<Known<T>, Refusal>,
        counted: Option<&AtomicBool>,
    ) -> Result<Answer<T>, Error> {
        self.told_one(operation, known).inspect(|_| self.fell_back(counted))
    }

    /// One of several.
    pub(crate) fn told_one<T: Default>(
        &self,
        operation: &Operation,
        known: Result<Known<T>, Refusal>,
    ) -> Result<Answer<T>, Error> {
        let known = known.map_err(|refusal| self.refused(operation, refusal))?;
        Ok(match known {
            Known::Here { what, at } => {
                self.0.numbers.read(Tier::Fallback);
                Answer { value: what, source: Source::Fallback, age: Some(at.elapsed()) }
            }
            Known::Absent => {
                self.0.numbers.read(Tier::Fallback);
                Answer { value: T::default(), source: Source::Fallback, age: None }
            }
            Known::Unknown => {
                self.0.numbers.read(Tier::Nobody);
                Answer { value: T::default(), source: Source::Nobody, age: None }
            }
        })
    }

    /// Whether the server is the problem, of commands that were sent together.
    pub(crate) fn is_outage(
        &self,
        error: &CallError<RedisFailure>,
        commands: &[Command<'_>],
    ) -> bool {
        self.line().is_some_and(|line| is_outage(error, &line, commands))
    }

    pub(crate) fn fallback(&self) -> Option<&Arc<Fallback>> {
        self.0.fallback.as_ref()
    }

    pub(crate) fn failed(
        &self,
        operation: &Operation,
        mut error: CallError<RedisFailure>,
    ) -> Error {
        self.0.numbers.failed();
        let never_sent = was_never_sent(&error);
        // Its verdict only kept the policy from repeating it.
        if let CallError::Backend { effect, .. } = &mut error
            && never_sent
        {
            *effect = Effect::NeverSent;
        }
        Error::from_call(self.0.policy.name(), operation.name(), error)
    }

    /// The fallback's own refusal, in the form of a call's end.
    pub(crate) fn refused(&self, operation: &Operation, refusal: Refusal) -> Error {
        let error = RedisFailure::refused(refusal);
        let effect = match refusal {
            Refusal::Full | Refusal::TooHeavy | Refusal::Unavailable => Effect::NeverSent,
            Refusal::WrongType | Refusal::NotANumber => Effect::Permanent,
        };
        let (attempts, elapsed) = (0, Duration::ZERO);
        self.failed(operation, CallError::Backend { attempts, elapsed, effect, error })
    }
}

/// The line of a runtime, kept by the client or by who has this.
pub(crate) enum LineRef<'a> {
    First(&'a Line),
    Other(Arc<Line>),
}

impl Deref for LineRef<'_> {
    type Target = Line;

    fn deref(&self) -> &Line {
        match self {
            Self::First(line) => line,
            Self::Other(line) => line,
        }
    }
}

/// How a command gets to its server.
struct Way<'a> {
    line: LineRef<'a>,
    /// Of a node of a cluster, which may be down while the others are not.
    own: Option<Policy>,
}

impl Way<'_> {
    /// One command through the policy. Not an `async fn`, whose future would be one more that the
    /// answer is copied out of.
    #[inline]
    fn ask<'a>(
        &'a self,
        client: &'a RedisClient,
        operation: &'a Operation,
        command: &'a Command<'a>,
        away: IfAway,
        outdates: Option<&'a Bytes>,
    ) -> impl Future<Output = Outcome<Value>> + Send + 'a {
        let policy = self.own.as_ref().unwrap_or(&client.0.policy);
        let attempt = move |attempt: Attempt| {
            client.outdate(outdates);
            self.line.send(command, away, attempt.timeout())
        };
        policy.run(operation, attempt)
    }
}

fn count(reply: Value) -> i64 {
    match reply {
        Value::Integer(n) => n,
        Value::Bytes(ok) => {
            // Here, since what drops any value is more code.
            drop(ok);
            1
        }
        _ => 1,
    }
}
