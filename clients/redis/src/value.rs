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
    /// The number, if it is a whole one.
    #[must_use]
    pub const fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(n) => Some(*n),
            _ => None,
        }
    }

    /// The answer as a type: of a text or a number; `None` of nothing.
    ///
    /// # Errors
    /// When it is several answers, or no `T`.
    pub fn to<T: FromValue>(self) -> Result<Option<T>, Error> {
        match self {
            Self::Nil => Ok(None),
            Self::Bytes(bytes) => T::from_value(bytes).map(Some),
            Self::Integer(n) => T::from_value(n.to_string().into()).map(Some),
            Self::Double(n) => T::from_value(n.to_string().into()).map(Some),
            Self::Boolean(_) | Self::Array(_) | Self::Map(_) => {
                Err(Error::invalid("redis: the answer is no single value; match on the Value"))
            }
        }
    }

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
    ///
    /// # Errors
    /// When the value has no such form.
    fn to_value(self) -> Result<Bytes, Error>;
}

macro_rules! to_value {
    ($($type:ty: $self:ident => $bytes:expr;)+) => {$(
        impl ToValue for $type {
            fn to_value($self) -> Result<Bytes, Error> {
                Ok($bytes)
            }
        }
    )+};
}

to_value! {
    Bytes: self => self;
    &Bytes: self => self.clone();
    String: self => self.into();
    Vec<u8>: self => self.into();
    &str: self => Bytes::copy_from_slice(self.as_bytes());
    &String: self => Bytes::copy_from_slice(self.as_bytes());
    &[u8]: self => Bytes::copy_from_slice(self);
    &Vec<u8>: self => Bytes::copy_from_slice(self);
    i32: self => self.to_string().into();
    i64: self => self.to_string().into();
    u32: self => self.to_string().into();
    u64: self => self.to_string().into();
    f64: self => self.to_string().into();
}

impl<const N: usize> ToValue for &[u8; N] {
    fn to_value(self) -> Result<Bytes, Error> {
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

macro_rules! from_value {
    ($($type:ty)+) => {$(
        impl FromValue for $type {
            fn from_value(bytes: Bytes) -> Result<Self, Error> {
                let text = std::str::from_utf8(&bytes).ok();
                text.and_then(|text| text.parse().ok()).ok_or_else(|| {
                    Error::invalid(concat!(
                        "redis: the value is no ", stringify!($type), "; read it as String to see it"
                    ))
                })
            }
        }
    )+};
}

from_value!(i32 i64 u32 u64 f64);
