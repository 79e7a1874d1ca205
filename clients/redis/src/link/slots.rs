//! Which node of a cluster has which slot, as CLUSTER SLOTS says it.

use crate::value::Value;
use std::fmt;

const SLOTS: usize = 16_384;

/// Where a node listens. In messages and names as `host:port`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Address {
    /// From `host:port`; an IPv6 address has colons of its own. Without a host it is where the
    /// answer came from.
    pub(super) fn parse(text: &str, from: &Self) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = if host.is_empty() { &from.host } else { host };
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }
}

/// A master.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Master {
    pub(super) address: Address,
    /// The name in its certificate, if the cluster says another than the address.
    pub(super) hostname: Option<String>,
}

/// Masters, and for each slot the number of its own; `None` where a slot has none.
pub(super) struct Map {
    pub(super) masters: Vec<Master>,
    pub(super) owners: Vec<Option<u16>>,
}

impl Map {
    pub(super) fn empty() -> Self {
        Self { masters: Vec::new(), owners: vec![None; SLOTS] }
    }

    /// Reads an answer of the node at `from`; `None` if it is none, or names no master.
    pub(super) fn read(answer: &Value, from: &Address) -> Option<Self> {
        let Value::Array(ranges) = answer else { return None };
        let mut map = Self::empty();
        for range in ranges {
            let Value::Array(range) = range else { return None };
            let [Value::Integer(first), Value::Integer(last), master, ..] = &range[..] else {
                return None;
            };
            let number = map.number(read_master(master, from)?)?;
            let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
            map.owners.get_mut(first..=last)?.fill(Some(number));
        }
        (!map.masters.is_empty()).then_some(map)
    }

    /// The number of this master, who joins if he is new.
    pub(super) fn number(&mut self, master: Master) -> Option<u16> {
        let known = self.masters.iter().position(|known| known.address == master.address);
        let number = known.unwrap_or_else(|| {
            self.masters.push(master);
            self.masters.len() - 1
        });
        u16::try_from(number).ok()
    }
}

fn read_master(node: &Value, from: &Address) -> Option<Master> {
    let Value::Array(node) = node else { return None };
    let [host, Value::Integer(port), rest @ ..] = &node[..] else { return None };
    // Nil, an empty name and `?` are how a node says that it does not know its own.
    let host = match text(host) {
        Some(host) if !host.is_empty() && host != "?" => host,
        _ => &from.host,
    };
    let address = Address { host: host.to_owned(), port: u16::try_from(*port).ok()? };
    // The id, then pairs.
    let hostname = rest.get(1).and_then(|more| {
        let Value::Array(more) = more else { return None };
        let mut pairs = more.chunks_exact(2).map(|pair| (text(&pair[0]), text(&pair[1])));
        pairs.find(|(name, _)| *name == Some("hostname"))?.1
    });
    let hostname = hostname.filter(|name| !name.is_empty()).map(str::to_owned);
    Some(Master { address, hostname })
}

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

/// Where a node sends the caller: `MOVED 3999 127.0.0.1:6381`, or `ASK ...` for this once.
pub(super) struct Redirect {
    pub(super) slot: u16,
    pub(super) to: Address,
    pub(super) once: bool,
}

impl Redirect {
    pub(super) fn read(text: &str, from: &Address) -> Option<Self> {
        let mut words = text.split(' ');
        let once = match words.next()? {
            "MOVED" => false,
            "ASK" => true,
            _ => return None,
        };
        let slot = words.next()?.parse().ok().filter(|slot| usize::from(*slot) < SLOTS)?;
        Some(Self { slot, to: Address::parse(words.next()?, from)?, once })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from() -> Address {
        Address { host: "seed".to_owned(), port: 1 }
    }

    fn bytes(text: &'static str) -> Value {
        Value::Bytes(text.into())
    }

    fn range(first: i64, last: i64, node: Vec<Value>) -> Value {
        let replica = Value::Array(vec![bytes("10.0.0.9"), Value::Integer(9)]);
        Value::Array(vec![Value::Integer(first), Value::Integer(last), Value::Array(node), replica])
    }

    #[test]
    fn masters_and_their_slots_are_read_replicas_are_not() {
        let one = vec![bytes("10.0.0.1"), Value::Integer(7001), bytes("id"), Value::Array(vec![])];
        let names = Value::Array(vec![bytes("hostname"), bytes("b.example")]);
        let two = vec![bytes("10.0.0.2"), Value::Integer(7002), bytes("id"), names];
        let unnamed = vec![Value::Nil, Value::Integer(7003)];
        let answer = Value::Array(vec![
            range(0, 99, one.clone()),
            range(100, 199, two),
            range(300, 300, one),
            range(16_383, 16_383, unnamed),
        ]);
        let map = Map::read(&answer, &from()).unwrap();
        let shown: Vec<_> = map.masters.iter().map(|m| m.address.to_string()).collect();
        assert_eq!(shown, ["10.0.0.1:7001", "10.0.0.2:7002", "seed:7003"]);
        assert_eq!(map.masters[1].hostname.as_deref(), Some("b.example"));
        let owners = [0, 99, 100, 199, 200, 300, 16_383].map(|slot| map.owners[slot]);
        assert_eq!(owners, [Some(0), Some(0), Some(1), Some(1), None, Some(0), Some(2)]);
    }

    #[test]
    fn nonsense_is_no_map() {
        let node = || vec![bytes("h"), Value::Integer(1)];
        let answers = [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Integer(1)]),
            Value::Array(vec![range(0, 16_384, node())]),
            Value::Array(vec![range(-1, 5, node())]),
            Value::Array(vec![range(9, 3, node())]),
            Value::Array(vec![range(0, 5, vec![bytes("h"), Value::Integer(70_000)])]),
            Value::Array(vec![range(0, 5, vec![])]),
        ];
        for answer in answers {
            assert!(Map::read(&answer, &from()).is_none(), "{answer:?}");
        }
    }

    #[test]
    fn redirections_are_read() {
        let moved = Redirect::read("MOVED 3999 127.0.0.1:6381", &from()).unwrap();
        assert_eq!(
            (moved.slot, moved.to.to_string().as_str(), moved.once),
            (3999, "127.0.0.1:6381", false)
        );
        let ask = Redirect::read("ASK 1 ::1:6381", &from()).unwrap();
        assert_eq!((ask.to.host.as_str(), ask.to.port, ask.once), ("::1", 6381, true));
        assert_eq!(Redirect::read("MOVED 1 :7", &from()).unwrap().to.host, "seed");
        for text in ["", "MOVED", "MOVED x 1:1", "MOVED 16384 h:1", "MOVED 1 h", "ERR MOVED 1 h:1"]
        {
            assert!(Redirect::read(text, &from()).is_none(), "{text}");
        }
    }
}
