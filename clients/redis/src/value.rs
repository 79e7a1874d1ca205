//! What the server answers, and the types that values are written from and read as.

use bytes::Bytes;
use mainstay_policy::Error;
use std::fmt;

/// An answer to a command that this crate does not know.
///
/// `Debug` shows the shape and no contents.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// Nothing there.
    Nil,
    /// A whole number.
    Integer(i64),
    /// Another number; only servers that speak RESP3 send it.
    Double(f64),
    /// Only servers that speak RESP3 send it.
    Boolean(bool),
    /// A text or bytes; also `OK` and the like.
    Bytes(Bytes),
    /// Several answers.
    Array(Vec<Value>),
    /// Pairs; servers that speak RESP2 send an array instead.
    Map(Vec<(Value, Value)>),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("Nil"),
            Self::Integer(_) => f.write_str("Integer(..)"),
            Self::Double(_) => f.write_str("Double(..)"),
            Self::Boolean(_) => f.write_str("Boolean(..)"),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Array(items) => f.debug_tuple("Array").field(items).finish(),
            Self::Map(pairs) => write!(f, "Map({} pairs)", pairs.len()),
        }
    }
}

impl Value {
    /// The bytes of a text.
    pub(crate) fn into_bytes(self) -> Option<Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Whether something was changed, by commands that say how many.
    pub(crate) const fn is_positive(&self) -> bool {
        matches!(self, Self::Integer(1..))
    }
}

/// A value that can be stored.
pub trait ToValue {
    /// The bytes to store.
    fn to_value(self) -> Bytes;
}

impl ToValue for Bytes {
    fn to_value(self) -> Bytes {
        self
    }
}

impl ToValue for String {
    fn to_value(self) -> Bytes {
        self.into()
    }
}

impl ToValue for Vec<u8> {
    fn to_value(self) -> Bytes {
        self.into()
    }
}

impl ToValue for &str {
    fn to_value(self) -> Bytes {
        Bytes::copy_from_slice(self.as_bytes())
    }
}

impl ToValue for &String {
    fn to_value(self) -> Bytes {
        self.as_str().to_value()
    }
}

impl ToValue for &[u8] {
    fn to_value(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl<const N: usize> ToValue for &[u8; N] {
    fn to_value(self) -> Bytes {
        self.as_slice().to_value()
    }
}

/// A type that a stored value can be read as.
pub trait FromValue: Sized {
    /// The value of these bytes.
    ///
    /// # Errors
    /// When the bytes are no such value.
    fn from_value(bytes: Bytes) -> Result<Self, Error>;
}

impl FromValue for Bytes {
    fn from_value(bytes: Bytes) -> Result<Self, Error> {
        Ok(bytes)
    }
}

impl FromValue for Vec<u8> {
    fn from_value(bytes: Bytes) -> Result<Self, Error> {
        Ok(bytes.into())
    }
}

impl FromValue for String {
    fn from_value(bytes: Bytes) -> Result<Self, Error> {
        let text = Self::from_utf8(bytes.into());
        text.map_err(|_| {
            Error::invalid("redis: the value is not UTF-8 text; read it as Vec<u8> or Bytes")
        })
    }
}
