//! Values as JSON.

use crate::{
    client::RedisClient,
    strings::Set,
    value::{FromValue, ToValue},
};
use bytes::Bytes;
use mainstay_policy::Error;
use serde::{Serialize, de::DeserializeOwned};

/// A value that is stored as JSON, wherever one may be: `cache.hset("k", "f", Json(&user))`,
/// `cache.get::<Json<User>>("k")`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(
    /// The value.
    pub T,
);

impl<T: Serialize> ToValue for Json<T> {
    fn to_value(self) -> Result<Bytes, Error> {
        let json = serde_json::to_vec(&self.0).map_err(|error| {
            // The error's own text may hold the value.
            Error::invalid(format!(
                "redis: the value cannot be written as JSON ({:?} error); keys of maps must be texts \
                 or numbers",
                error.classify()
            ))
        })?;
        Ok(json.into())
    }
}

impl<T: DeserializeOwned> FromValue for Json<T> {
    fn from_value(bytes: Bytes) -> Result<Self, Error> {
        serde_json::from_slice(&bytes).map(Json).map_err(|error| {
            Error::invalid(format!(
                "redis: the value is not the JSON of this type ({:?} error at line {}, column {}); \
                 was it stored by another version?",
                error.classify(),
                error.line(),
                error.column()
            ))
        })
    }
}

impl RedisClient {
    /// The value at a key, read as JSON; as [`RedisClient::get`].
    ///
    /// # Errors
    /// As [`RedisClient::get`].
    pub async fn get_json<T: DeserializeOwned>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<T>, Error> {
        Ok(self.get::<Json<T>>(key).await?.map(|json| json.0))
    }

    /// Stores a value as JSON; as [`RedisClient::set`].
    ///
    /// # Errors
    /// As [`RedisClient::set`], and when the value has no JSON.
    pub fn set_json(&self, key: impl AsRef<[u8]>, value: &impl Serialize) -> Set {
        self.set(key, Json(value))
    }
}
