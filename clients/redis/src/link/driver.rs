//! fred: how it is set up, how a command becomes one of its calls, and its answers ours.

use super::PATIENCE;
use crate::{
    boxed::boxed,
    command::{Command, Raw, Slot},
    value::Value,
};
use bytes::Bytes;
use fred::{
    clients::Client,
    error::Error as Driver,
    interfaces::{ClientLike, HashesInterface, KeysInterface},
    socket2::TcpKeepalive,
    types::{
        Builder, ClusterHash, CustomCommand, Expiration, Key, Map, Value as Driven,
        config::{
            Config, ConnectionConfig, Options, PerformanceConfig, ReconnectPolicy, TcpConfig,
            UnresponsiveConfig,
        },
    },
};
use std::{borrow::Cow, future::Future, pin::Pin, time::Duration};

/// Longer lifetimes would overflow the server's clock.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A client of one server; `usual` is the limit of a command that names no other.
pub(super) fn build(config: Config, usual: Duration) -> Result<Client, Driver> {
    // Connect without an error at the first failure; the gate tells the callers.
    let config = Config { fail_fast: false, ..config };
    let mut reconnect = ReconnectPolicy::new_exponential(0, 50, 2_000, 2);
    reconnect.set_jitter(50);
    let mut builder = Builder::from_config(config);
    builder.set_policy(reconnect);
    builder.set_performance_config(PerformanceConfig {
        default_command_timeout: usual,
        max_feed_count: 200,
        broadcast_channel_capacity: 256,
    });
    builder.set_connection_config(ConnectionConfig {
        connection_timeout: PATIENCE,
        internal_command_timeout: PATIENCE,
        // The policy owns the retries: fred's would replay what may have happened.
        max_command_attempts: 1,
        // max_command_buffer_len stays 0: after one Backpressure error fred stops flushing.
        reconnect_on_auth_error: true,
        // One command's refusal would end all that were sent after it, with its words and with their
        // outcome unknown; `peer` does what is needed for these. CLUSTERDOWN is not to be helped.
        reconnect_errors: Vec::new(),
        // A watch of its own, which anything that is written sets back; `peer` has a better one.
        unresponsive: UnresponsiveConfig { max_timeout: None, ..UnresponsiveConfig::default() },
        // A user may be allowed no more than its own commands: CLIENT SETNAME is not one of them.
        auto_client_setname: false,
        tcp: TcpConfig {
            nodelay: Some(true),
            keepalive: Some(TcpKeepalive::new().with_time(Duration::from_secs(15))),
            // What a connection that is given up has not delivered goes with it. The kernel would try
            // for minutes, and bring a write to the server after its key was deleted there.
            linger: Some(Duration::ZERO),
            ..TcpConfig::default()
        },
        ..ConnectionConfig::default()
    });
    builder.build()
}

/// One command on its way, once. fred's futures take 5 KB each, so they stay where they were made.
pub(super) type Answer<'a> = Pin<Box<dyn Future<Output = Result<Driven, Driver>> + Send + 'a>>;

/// Sends a command when it is polled. fred's own timeout, the client's usual one, takes the command
/// back if it was not sent yet.
pub(super) fn call<'a>(client: &'a Client, command: &Command<'_>) -> Answer<'a> {
    dispatch(client, command)
}

/// The same with another timeout; zero is none.
pub(super) fn call_within<'a>(
    client: &Client,
    command: &'a Command<'a>,
    limit: Duration,
) -> Answer<'a> {
    let options = Options { timeout: Some(limit), ..Options::default() };
    let client = client.with_options(&options);
    Box::pin(async move { dispatch(&client, command).await })
}

/// The only place where a command meets fred, with nothing around its futures: a call beside others
/// fetches its code anew, and each layer is more of it.
#[inline]
fn dispatch<'a, C>(client: &'a C, command: &Command<'_>) -> Answer<'a>
where
    C: ClientLike + KeysInterface + HashesInterface,
{
    // What the futures hold is made before they are, as `boxed` wants it.
    match *command {
        Command::Read(Slot { key, field: None }) => {
            let key = key.clone();
            boxed(move || client.get(key))
        }
        Command::Read(Slot { key, field: Some(field) }) => {
            let (key, field) = (key.clone(), field.clone());
            boxed(move || client.hget(key, field))
        }
        Command::Put { slot: Slot { key, field: None }, value, ttl } => {
            let expire = ttl.map(|ttl| Expiration::PX(milliseconds(ttl)));
            let (key, value) = (key.clone(), value.clone());
            boxed(move || client.set(key, value, expire, None, false))
        }
        Command::Put { slot: Slot { key, field: Some(field) }, value, .. } => {
            let (key, pair) = (key.clone(), (field.clone(), value.clone()));
            boxed(move || client.hset(key, pair))
        }
        Command::Remove(Slot { key, field: None }) => {
            let key = key.clone();
            boxed(move || client.del(key))
        }
        Command::Remove(Slot { key, field: Some(field) }) => {
            let (key, field) = (key.clone(), field.clone());
            boxed(move || client.hdel(key, field))
        }
        Command::Expire(key, ttl) => {
            let key = key.clone();
            match ttl.map(milliseconds) {
                Some(ttl) => boxed(move || client.pexpire(key, ttl, None)),
                None => boxed(move || client.persist(key)),
            }
        }
        Command::Add(Slot { key, field: None }, n) => {
            let key = key.clone();
            boxed(move || client.incr_by(key, n))
        }
        Command::Add(Slot { key, field: Some(field) }, n) => {
            let (key, field) = (key.clone(), field.clone());
            boxed(move || client.hincrby(key, field, n))
        }
        Command::Raw(Raw { name, args, .. }) => {
            // Which server it is for was decided before: fred knows one only.
            let name = match name {
                Cow::Borrowed(name) => CustomCommand::new_static(name, ClusterHash::Random, false),
                Cow::Owned(name) => CustomCommand::new(name.as_str(), ClusterHash::Random, false),
            };
            let args = args.clone();
            boxed(move || client.custom(name, args))
        }
    }
}

#[inline]
pub(super) fn value(answer: Driven) -> Value {
    match answer {
        Driven::Null => Value::Nil,
        Driven::Integer(n) => Value::Integer(n),
        Driven::Double(n) => Value::Double(n),
        Driven::Boolean(b) => Value::Boolean(b),
        Driven::String(text) => Value::Bytes(text.into_inner()),
        Driven::Bytes(bytes) => Value::Bytes(bytes),
        Driven::Queued => Value::Bytes(Bytes::from_static(b"QUEUED")),
        Driven::Array(items) => array(items),
        Driven::Map(pairs) => map(pairs),
    }
}

// Apart from what is answered most.
#[inline(never)]
fn array(items: Vec<Driven>) -> Value {
    Value::Array(items.into_iter().map(value).collect())
}

#[inline(never)]
fn map(pairs: Map) -> Value {
    let pair = |(key, item): (Key, Driven)| {
        (Value::Bytes(Bytes::copy_from_slice(key.as_bytes())), value(item))
    };
    Value::Map(pairs.inner().into_iter().map(pair).collect())
}

/// As PX wants it.
pub(crate) fn milliseconds(ttl: Duration) -> i64 {
    // Rounded up: 0 would be refused by the server.
    let ms = ttl.min(MAX_TTL).as_nanos().div_ceil(1_000_000);
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_whole_milliseconds_within_bounds() {
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_secs(3600)), 3_600_000);
        assert_eq!(milliseconds(Duration::MAX), 3_153_600_000_000);
    }
}
