//! Any other command, and several in one round trip.

use crate::{
    classify::RedisFailure,
    client::RedisClient,
    command::{Command, Raw, Route},
    ends::answered,
    fallback::OnKeys,
    value::{ToValue, Value},
};
use bytes::Bytes;
use mainstay_policy::{Error, Idempotency, Operation};
use std::{
    borrow::Cow,
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    time::Instant,
};

/// What it is safe to know of commands; others count as changing something each time.
const READS: &[&str] = &[
    "BITCOUNT",
    "BITPOS",
    "DBSIZE",
    "DUMP",
    "ECHO",
    "EVALSHA_RO",
    "EVAL_RO",
    "EXISTS",
    "EXPIRETIME",
    "FCALL_RO",
    "GEODIST",
    "GEOHASH",
    "GEOPOS",
    "GEOSEARCH",
    "GET",
    "GETBIT",
    "GETRANGE",
    "HEXISTS",
    "HGET",
    "HGETALL",
    "HKEYS",
    "HLEN",
    "HMGET",
    "HRANDFIELD",
    "HSCAN",
    "HSTRLEN",
    "HVALS",
    "INFO",
    "KEYS",
    "LCS",
    "LINDEX",
    "LLEN",
    "LPOS",
    "LRANGE",
    "MGET",
    "OBJECT",
    "PEXPIRETIME",
    "PFCOUNT",
    "PING",
    "PTTL",
    "RANDOMKEY",
    "ROLE",
    "SCAN",
    "SCARD",
    "SDIFF",
    "SINTER",
    "SINTERCARD",
    "SISMEMBER",
    "SMEMBERS",
    "SMISMEMBER",
    "SORT_RO",
    "SRANDMEMBER",
    "SSCAN",
    "STRLEN",
    "SUNION",
    "TIME",
    "TTL",
    "TYPE",
    "XINFO",
    "XLEN",
    "XPENDING",
    "XRANGE",
    "XREAD",
    "XREVRANGE",
    "ZCARD",
    "ZCOUNT",
    "ZDIFF",
    "ZINTER",
    "ZINTERCARD",
    "ZLEXCOUNT",
    "ZMSCORE",
    "ZRANDMEMBER",
    "ZRANGE",
    "ZRANGEBYLEX",
    "ZRANGEBYSCORE",
    "ZRANK",
    "ZREVRANGE",
    "ZREVRANGEBYLEX",
    "ZREVRANGEBYSCORE",
    "ZREVRANK",
    "ZSCAN",
    "ZSCORE",
    "ZUNION",
];
/// They leave the same state when they arrive twice, unless one of `ONCE` is among the arguments.
const SAME: &[&str] = &[
    "DEL",
    "EXPIRE",
    "EXPIREAT",
    "FLUSHALL",
    "FLUSHDB",
    "GEOADD",
    "HDEL",
    "HMSET",
    "HSET",
    "LSET",
    "MSET",
    "PERSIST",
    "PEXPIRE",
    "PEXPIREAT",
    "PFADD",
    "PFMERGE",
    "PSETEX",
    "SADD",
    "SET",
    "SETBIT",
    "SETEX",
    "SETRANGE",
    "SINTERSTORE",
    "SREM",
    "SUNIONSTORE",
    "TOUCH",
    "UNLINK",
    "XACK",
    "XDEL",
    "XTRIM",
    "ZADD",
    "ZREM",
    "ZREMRANGEBYLEX",
    "ZREMRANGEBYSCORE",
];
const ONCE: &[&str] = &["NX", "XX", "GT", "LT", "GET", "INCR", "IFEQ", "IFNE", "IFDEQ", "IFDNE"];
/// They too, unless the key that they write is among those that they read.
const SAME_ELSEWHERE: &[&str] =
    &["SDIFFSTORE", "ZDIFFSTORE", "ZINTERSTORE", "ZRANGESTORE", "ZUNIONSTORE"];
/// They block the connection that all callers share, or change what it is.
const NOT_HERE: &[&str] = &[
    "AUTH",
    "BLMOVE",
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "CLIENT",
    "DISCARD",
    "EXEC",
    "HELLO",
    "MONITOR",
    "MULTI",
    "PSUBSCRIBE",
    "PSYNC",
    "PUNSUBSCRIBE",
    "QUIT",
    "READONLY",
    "READWRITE",
    "RESET",
    "SELECT",
    "SSUBSCRIBE",
    "SUBSCRIBE",
    "SUNSUBSCRIBE",
    "SYNC",
    "UNSUBSCRIBE",
    "UNWATCH",
    "WAIT",
    "WAITAOF",
    "WATCH",
    "ASKING",
];
/// They change keys that they do not name.
const ALL_KEYS: &[&str] = &["FLUSHALL", "FLUSHDB", "SWAPDB", "DEBUG"];
/// They may, where they name none; how many they name is their second argument.
const SCRIPTS: &[&str] = &["EVAL", "EVALSHA", "FCALL"];
/// Of these keys each master of a cluster has its own.
const EVERYWHERE: &[&str] = &["FLUSHALL", "FLUSHDB"];

impl RedisClient {
    /// Any command: `client.run("LPUSH").key("list").arg("value").await?`. Say with `.key` what is a
    /// key: it gets this client's prefix and finds the node of a cluster.
    ///
    /// It goes through the policy and to the server only; while that is away it is an error. What
    /// may be repeated is known for Redis's own commands, and with
    /// [`idempotent`](Run::idempotent) for yours. In a cluster FLUSHALL and FLUSHDB go to every master,
    /// other commands without a key to any.
    ///
    /// The fallback forgets what it may change: of all keys for FLUSHALL, FLUSHDB, SWAPDB, DEBUG and for
    /// scripts and functions that name no key, else of the keys among its arguments, and of no others.
    /// So name all keys that a script changes, as Redis wants it too; one that only reads is better sent
    /// as EVAL_RO, EVALSHA_RO or FCALL_RO.
    ///
    /// # Errors
    /// On `.await`: what the server refuses, what the policy decides, and commands that would block
    /// or change the connection that all callers share, such as BLPOP, MULTI and SUBSCRIBE.
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    ///
    /// ```no_run
    /// # async fn run(cache: &mainstay_redis::RedisClient) -> Result<(), mainstay_policy::Error> {
    /// let length = cache.run("LPUSH").key("list").arg("value").await?;
    /// assert_eq!(length.as_integer(), Some(1));
    /// # Ok(()) }
    /// ```
    pub fn run(&self, command: impl Into<String>) -> Run {
        let mut name = command.into();
        name.make_ascii_uppercase();
        let one_word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
        let problem = (!one_word).then(|| {
            Error::invalid(
                "redis: a command is one word without spaces; its other words are arguments, as in \
                 run(\"CONFIG\").arg(\"GET\")",
            )
        });
        Run { client: self.clone(), name, args: Vec::new(), keys: Vec::new(), safe: None, problem }
    }

    /// Sends commands in this order in one round trip; gives one result for each, as one may be
    /// refused where others are not. Not a transaction: others' commands may come between.
    ///
    /// The policy counts them as one operation, which is repeated only if every one of them may be.
    ///
    /// # Errors
    /// When they were not all answered; with [`Error::is_outcome_unknown`] if some may have happened.
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    ///
    /// ```no_run
    /// # async fn run(cache: &mainstay_redis::RedisClient) -> Result<(), mainstay_policy::Error> {
    /// let results = cache
    ///     .pipeline([cache.run("INCR").key("visits"), cache.run("GET").key("motd")])
    ///     .await?;
    /// assert_eq!(results.len(), 2);
    /// # Ok(()) }
    /// ```
    pub async fn pipeline(
        &self,
        commands: impl IntoIterator<Item = Run>,
    ) -> Result<Vec<Result<Value, Error>>, Error> {
        let commands: Vec<Run> = commands.into_iter().collect();
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let operation = operation("pipeline", &commands);
        let began = Instant::now();
        let replies = self.send(&operation, commands).await?;
        let told = |failure| self.failed(&operation, answered(failure, began));
        Ok(replies.into_iter().map(|reply| reply.map_err(told)).collect())
    }

    async fn send(
        &self,
        operation: &Operation,
        commands: Vec<Run>,
    ) -> Result<Vec<Result<Value, RedisFailure>>, Error> {
        let (mut keys, mut raws) = (Vec::new(), Vec::new());
        let mut effect = OnKeys::Reads;
        for run in commands {
            if run.reads() {
                keys.extend(run.keys.iter().map(|n| run.args[*n].clone()));
            } else {
                effect = effect.max(match run.changes_any() {
                    true => OnKeys::MayChangeAll,
                    false => OnKeys::MayChange,
                });
                // Any argument may be a key that was not said to be one.
                keys.extend(run.args.iter().cloned());
            }
            raws.push(run.raw()?);
        }
        let commands: Vec<_> = raws.iter().map(Command::Raw).collect();
        self.direct(operation, &keys, effect, &commands).await
    }
}

/// A command that has not been sent yet: await it.
#[must_use = "nothing is sent until it is awaited"]
pub struct Run {
    client: RedisClient,
    name: String,
    args: Vec<Bytes>,
    /// Which of `args` are keys.
    keys: Vec<usize>,
    safe: Option<bool>,
    problem: Option<Error>,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run").field("name", &self.name).field("args", &self.args.len()).finish()
    }
}

impl Run {
    /// The next argument, which is a key.
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        match self.client.limits().key(key.as_ref()) {
            Ok(key) => {
                self.keys.push(self.args.len());
                self.args.push(key);
            }
            Err(problem) => self.problem = self.problem.or(Some(problem)),
        }
        self
    }

    /// The next argument.
    pub fn arg(mut self, value: impl ToValue) -> Self {
        match value.to_value().and_then(|value| self.client.limits().value(value)) {
            Ok(value) => self.args.push(value),
            Err(problem) => self.problem = self.problem.or(Some(problem)),
        }
        self
    }

    /// Sending it twice does no harm. Default: as is known of Redis's own commands; of scripts and
    /// unknown ones that it does.
    pub const fn idempotent(mut self) -> Self {
        self.safe = Some(true);
        self
    }

    fn reads(&self) -> bool {
        READS.contains(&self.name.as_str())
    }

    /// It may change keys that are not among its arguments.
    fn changes_any(&self) -> bool {
        let name = self.name.as_str();
        let names_none = || self.args.get(1).is_none_or(|count| count == "0");
        ALL_KEYS.contains(&name) || SCRIPTS.contains(&name) && names_none()
    }

    fn is_safe(&self) -> bool {
        let name = self.name.as_str();
        self.safe.unwrap_or_else(|| {
            let once =
                |arg: &Bytes| ONCE.iter().any(|word| arg.eq_ignore_ascii_case(word.as_bytes()));
            let onto_itself = || match &self.args[..] {
                [target, rest @ ..] => rest.contains(target),
                [] => false,
            };
            self.reads()
                || SAME.contains(&name) && !self.args.iter().any(once)
                || SAME_ELSEWHERE.contains(&name) && !onto_itself()
        })
    }

    fn raw(self) -> Result<Raw, Error> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let waits = matches!(self.name.as_str(), "XREAD" | "XREADGROUP")
            && self.args.iter().any(|arg| arg.eq_ignore_ascii_case(b"BLOCK"));
        if waits || NOT_HERE.contains(&self.name.as_str()) {
            return Err(Error::invalid(format!(
                "redis: {} would block or change the connection that all callers share; use a \
                 connection of your own for it",
                if waits { "a blocking XREAD" } else { self.name.as_str() },
            )));
        }
        let route = match self.keys.first() {
            Some(n) => Route::Key(*n),
            None if EVERYWHERE.contains(&self.name.as_str()) => Route::Every,
            None => Route::Any,
        };
        Ok(Raw { name: Cow::Owned(self.name), args: self.args, route })
    }
}

/// What these commands are together.
fn operation(name: &'static str, commands: &[Run]) -> Operation {
    if commands.iter().all(Run::reads) {
        Operation::read(name)
    } else if commands.iter().all(Run::is_safe) {
        Operation::new(name, Idempotency::Safe)
    } else {
        Operation::new(name, Idempotency::Unsafe)
    }
}

impl IntoFuture for Run {
    type Output = Result<Value, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let operation = operation("command", std::slice::from_ref(&self));
            let client = self.client.clone();
            let began = Instant::now();
            let mut replies = client.send(&operation, vec![self]).await?;
            let reply = replies.pop().unwrap_or(Ok(Value::Nil));
            reply.map_err(|failure| client.failed(&operation, answered(failure, began)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_change_again_is_not_repeated() {
        let client = RedisClient::builder().name("t-safe").without_server().build().unwrap();
        for (line, safe) in [
            ("GET k", true),
            ("SET k v", true),
            ("SET k v NX", false),
            ("SET k v ifeq w", false),
            ("SET k v IFDNE w", false),
            ("INCR k", false),
            ("MYCOMMAND k", false),
            ("ZUNIONSTORE d 2 a b WEIGHTS 2 3", true),
            ("ZUNIONSTORE a 2 a b", false),
            ("ZINTERSTORE a 1 a WEIGHTS 2", false),
            ("SDIFFSTORE a b a", false),
            ("SDIFFSTORE a b c", true),
            ("ZDIFFSTORE a 2 b a", false),
            ("ZRANGESTORE z z 1 -1", false),
            // A set and itself are the set.
            ("SUNIONSTORE a a b", true),
            ("SINTERSTORE a a b", true),
        ] {
            let mut words = line.split(' ');
            let run = client.run(words.next().unwrap());
            let run = words.fold(run, |run, word| run.arg(word));
            assert_eq!(run.is_safe(), safe, "{line}");
        }
        assert!(client.run("MYCOMMAND").idempotent().is_safe());
    }

    #[test]
    fn only_what_reads_may_have_a_second_copy() {
        let client = RedisClient::builder().name("t-reads").build().unwrap();
        let (get, set, incr) = (|| client.run("GET"), || client.run("SET"), || client.run("INCR"));
        for (commands, idempotency, reads) in [
            (vec![get()], Idempotency::Safe, true),
            (vec![get(), client.run("TTL")], Idempotency::Safe, true),
            (vec![set()], Idempotency::Safe, false),
            (vec![get(), set()], Idempotency::Safe, false),
            (vec![client.run("MYCOMMAND").idempotent()], Idempotency::Safe, false),
            (vec![get(), incr()], Idempotency::Unsafe, false),
        ] {
            let operation = operation("pipeline", &commands);
            assert_eq!((operation.idempotency(), operation.is_read()), (idempotency, reads));
        }
    }
}
