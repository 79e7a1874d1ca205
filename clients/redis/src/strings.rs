//! Whole keys: values, counters and lifetimes.

use crate::{
    answer::Answer,
    boxed::boxed,
    client::RedisClient,
    command::{Change, Command, Raw, Slot},
    config::lifetime,
    query::{Exists, Get, Ttl, TtlOf},
    value::{FromValue, ToValue, Value},
};
use bytes::Bytes;
use mainstay_policy::{Error, Idempotency, Operation};
use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

impl RedisClient {
    /// The value at a key. While degraded, a value that is not in memory is `None` too.
    ///
    /// # Errors
    /// When the value is no `T`, when the key holds a hash, when the server refuses the credentials
    /// or, without a fallback, when it is away.
    pub async fn get<T: FromValue>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>, Error> {
        // Not by way of `get_answer`: its future would stand in this one, and its answer be copied.
        let query = Get(self.slot(key, None)?);
        let found = self.read(&query).await?.value;
        found.map(T::from_value).transpose()
    }

    /// As [`RedisClient::get`], saying who answered.
    ///
    /// # Errors
    /// As [`RedisClient::get`].
    pub async fn get_answer<T: FromValue>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Answer<Option<T>>, Error> {
        let answer = self.read(&Get(self.slot(key, None)?)).await?;
        answer.try_map(|value| value.map(T::from_value).transpose())
    }

    /// Stores a value: `.set("key", "value").ttl(Duration::from_secs(60)).await`.
    ///
    /// # Errors
    /// On `.await`: a key, value or lifetime over its limit; a fallback that is full (when the server's
    /// answer was lost: with [`Error::is_outcome_unknown`]); a rate limit or bulkhead of your policy, or
    /// a deadline that has passed; or, without a fallback, a server that is away.
    ///
    /// # Cancel safety
    /// A write whose future is dropped may have happened or may happen yet: what the connection has
    /// taken is sent all the same. Memory then knows nothing of the key, so that a read of it asks the
    /// server or is a miss. The policy's timeout, unlike one around the call, takes back what was not
    /// sent.
    pub fn set(&self, key: impl AsRef<[u8]>, value: impl ToValue) -> Set {
        Set { what: Setting::new(self, key, value), keep: false }
    }

    /// Stores a value only if the key does not exist; says whether it did:
    /// `.set_if_absent("lock", id).ttl(Duration::from_secs(10)).await?`.
    ///
    /// Never answered by the fallback, in which two processes could both take a lock. Not repeated
    /// when its outcome is unknown: the first may have taken it.
    ///
    /// # Errors
    /// As [`RedisClient::set`], and whenever the server is away.
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub fn set_if_absent(&self, key: impl AsRef<[u8]>, value: impl ToValue) -> SetIf {
        SetIf { what: Setting::new(self, key, value), condition: "NX" }
    }

    /// Stores a value only if the key exists, as [`RedisClient::set_if_absent`].
    ///
    /// # Errors
    /// As [`RedisClient::set_if_absent`].
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub fn set_if_present(&self, key: impl AsRef<[u8]>, value: impl ToValue) -> SetIf {
        SetIf { what: Setting::new(self, key, value), condition: "XX" }
    }

    /// Stores a value without a lifetime and gives the one before. Only by the server, and not
    /// repeated when its outcome is unknown.
    ///
    /// # Errors
    /// As [`RedisClient::get`] and [`RedisClient::set_if_absent`].
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub async fn get_set<T: FromValue>(
        &self,
        key: impl AsRef<[u8]>,
        value: impl ToValue,
    ) -> Result<Option<T>, Error> {
        const GETSET: Operation = Operation::new("getset", Idempotency::Unsafe);
        let (slot, value) = (self.slot(key, None)?, self.limits().value(value.to_value()?)?);
        let command = Raw::keyed("SET", vec![slot.key.clone(), value, word("GET")]);
        self.before(GETSET, slot, command).await
    }

    /// Deletes a key and gives its value. Only by the server (6.2 or newer), and not repeated when
    /// its outcome is unknown: who takes a one-time token must be the only one.
    ///
    /// # Errors
    /// As [`RedisClient::get`] and [`RedisClient::set_if_absent`].
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`]: a token may be gone that nobody got.
    pub async fn get_del<T: FromValue>(&self, key: impl AsRef<[u8]>) -> Result<Option<T>, Error> {
        const GETDEL: Operation = Operation::new("getdel", Idempotency::Unsafe);
        let slot = self.slot(key, None)?;
        let command = Raw::keyed("GETDEL", vec![slot.key.clone()]);
        self.before(GETDEL, slot, command).await
    }

    async fn before<T: FromValue>(
        &self,
        operation: Operation,
        slot: Slot,
        command: Raw,
    ) -> Result<Option<T>, Error> {
        let command = Command::Raw(&command);
        let reply = self.direct_write(&operation, &slot, command, None).await?;
        reply.into_bytes().map(T::from_value).transpose()
    }

    /// Deletes a key of any type; says whether there was one. While degraded: whether memory knew it.
    ///
    /// # Errors
    /// When the server refuses, when the fallback is full or, without one, when the server is away.
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub async fn del(&self, key: impl AsRef<[u8]>) -> Result<bool, Error> {
        Ok(self.write(&self.slot(key, None)?, &Change::Remove).await? > 0)
    }

    /// Whether there is something at a key, of any type. While degraded: whether memory knows it.
    ///
    /// # Errors
    /// As [`RedisClient::get`].
    pub async fn exists(&self, key: impl AsRef<[u8]>) -> Result<bool, Error> {
        Ok(self.exists_answer(key).await?.value)
    }

    /// As [`RedisClient::exists`], saying who answered.
    ///
    /// # Errors
    /// As [`RedisClient::get`].
    pub async fn exists_answer(&self, key: impl AsRef<[u8]>) -> Result<Answer<bool>, Error> {
        self.read(&Exists::new(self.slot(key, None)?)).await
    }

    /// How long a key still lives. While degraded: of values in memory that this client wrote or asked
    /// this of before, otherwise an error, since the server may hold what memory does not know.
    ///
    /// # Errors
    /// As [`RedisClient::get`].
    pub async fn ttl(&self, key: impl AsRef<[u8]>) -> Result<Ttl, Error> {
        Ok(self.ttl_answer(key).await?.value)
    }

    /// As [`RedisClient::ttl`], saying who answered.
    ///
    /// # Errors
    /// As [`RedisClient::get`].
    pub async fn ttl_answer(&self, key: impl AsRef<[u8]>) -> Result<Answer<Ttl>, Error> {
        self.read(&TtlOf::new(self.slot(key, None)?)).await
    }

    /// Gives a key a lifetime from now, in whole milliseconds, rounded up; says whether there was
    /// such a key. While degraded: of values that memory knows, otherwise an error.
    ///
    /// # Errors
    /// As [`RedisClient::del`]; for a lifetime of 0, which is `del`; or of more than 100 years.
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub async fn expire(&self, key: impl AsRef<[u8]>, ttl: Duration) -> Result<bool, Error> {
        let (slot, ttl) = (self.slot(key, None)?, lifetime(ttl)?);
        Ok(self.write(&slot, &Change::Expire(Some(ttl))).await? > 0)
    }

    /// Takes a key's lifetime away; says whether it had one. While degraded as
    /// [`RedisClient::expire`].
    ///
    /// # Errors
    /// As [`RedisClient::del`].
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub async fn persist(&self, key: impl AsRef<[u8]>) -> Result<bool, Error> {
        Ok(self.write(&self.slot(key, None)?, &Change::Expire(None)).await? > 0)
    }

    /// Adds 1 to the number at a key, which is 0 without one, and gives the sum.
    ///
    /// # Errors
    /// As [`RedisClient::incr_by`].
    pub async fn incr(&self, key: impl AsRef<[u8]>) -> Result<i64, Error> {
        self.incr_by(key, 1).await
    }

    /// Takes 1 from the number at a key and gives the difference.
    ///
    /// # Errors
    /// As [`RedisClient::incr_by`].
    pub async fn decr(&self, key: impl AsRef<[u8]>) -> Result<i64, Error> {
        self.incr_by(key, -1).await
    }

    /// Adds to the number at a key and gives the sum. Sent again only if it certainly did not
    /// happen; while degraded refused, unless the fallback may
    /// [`count_offline`](crate::FallbackConfig::count_offline).
    ///
    /// # Errors
    /// When the value is no whole number or the sum none of 64 bits; when the server is away; with
    /// [`Error::is_outcome_unknown`] when the answer was lost: it may have been added.
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub async fn incr_by(&self, key: impl AsRef<[u8]>, n: i64) -> Result<i64, Error> {
        self.write(&self.slot(key, None)?, &Change::Add(n)).await
    }
}

pub(crate) fn word(word: &'static str) -> Bytes {
    Bytes::from_static(word.as_bytes())
}

/// What both builders of a SET hold; a bad key, value or lifetime is told on `.await`.
struct Setting {
    client: RedisClient,
    checked: Result<(Slot, Bytes), Error>,
    ttl: Option<Duration>,
}

impl Setting {
    #[inline]
    fn new(client: &RedisClient, key: impl AsRef<[u8]>, value: impl ToValue) -> Self {
        let value = value.to_value().and_then(|value| client.limits().value(value));
        let checked = value.and_then(|value| Ok((client.slot(key, None)?, value)));
        Self { client: client.clone(), checked, ttl: None }
    }

    fn args(slot: &Slot, value: Bytes, ttl: Option<Duration>) -> Vec<Bytes> {
        let mut args = vec![slot.key.clone(), value];
        if let Some(ttl) = ttl {
            args.extend([word("PX"), crate::link::milliseconds(ttl).to_string().into()]);
        }
        args
    }
}

/// A SET that has not been sent yet: await it.
#[must_use = "nothing is sent until it is awaited"]
pub struct Set {
    what: Setting,
    keep: bool,
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Set").field("ttl", &self.what.ttl).finish_non_exhaustive()
    }
}

impl Set {
    /// How long the value lives, at most 100 years; whole milliseconds, rounded up. Default: until
    /// deleted.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.what.ttl = Some(ttl);
        self
    }

    /// Leaves the key the lifetime it has. Only by the server: memory may not know it.
    pub fn keep_ttl(mut self) -> Self {
        self.keep = true;
        self
    }
}

impl IntoFuture for Set {
    type Output = Result<(), Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { what, keep } = self;
        if keep {
            return Box::pin(keep_ttl(what));
        }
        let Setting { client, checked, ttl } = what;
        boxed(move || async move {
            match checked {
                Ok((ref slot, value)) => {
                    let change = Change::Put { value, ttl: ttl.map(lifetime).transpose()? };
                    client.write(slot, &change).await.map(drop)
                }
                Err(error) => Err(error),
            }
        })
    }
}

async fn keep_ttl(setting: Setting) -> Result<(), Error> {
    const KEEP: Operation = Operation::new("set", Idempotency::Safe);
    let Setting { client, checked, ttl } = setting;
    let (slot, value) = checked?;
    if ttl.is_some() {
        return Err(Error::invalid("redis: set with both ttl and keep_ttl; use one"));
    }
    let args = vec![slot.key.clone(), value, word("KEEPTTL")];
    let command = Raw::keyed("SET", args);
    client.direct_write(&KEEP, &slot, Command::Raw(&command), None).await.map(drop)
}

/// A conditional SET that has not been sent yet: await it.
#[must_use = "nothing is sent until it is awaited"]
pub struct SetIf {
    what: Setting,
    condition: &'static str,
}

impl fmt::Debug for SetIf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetIf").field("ttl", &self.what.ttl).finish_non_exhaustive()
    }
}

impl SetIf {
    /// As [`Set::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.what.ttl = Some(ttl);
        self
    }
}

impl IntoFuture for SetIf {
    type Output = Result<bool, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        const IF: Operation = Operation::new("set_if", Idempotency::Unsafe);
        Box::pin(async move {
            let Setting { client, checked, ttl } = self.what;
            let ((slot, value), ttl) = (checked?, ttl.map(lifetime).transpose()?);
            let mut args = Setting::args(&slot, value.clone(), ttl);
            args.push(word(self.condition));
            let command = Raw::keyed("SET", args);
            let (command, stores) = (Command::Raw(&command), Change::Put { value, ttl });
            let reply = client.direct_write(&IF, &slot, command, Some(&stores)).await?;
            Ok(reply != Value::Nil)
        })
    }
}
