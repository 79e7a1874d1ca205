//! Hashes: fields of a key.

use crate::{
    answer::Answer,
    client::RedisClient,
    command::Change,
    query::{All, Get},
    value::{FromValue, ToValue},
};
use mainstay_policy::Error;
use std::collections::HashMap;

impl RedisClient {
    /// Stores one field of a hash.
    ///
    /// # Errors
    /// As [`RedisClient::del`], and when the key holds no hash.
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub async fn hset(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
        value: impl ToValue,
    ) -> Result<(), Error> {
        let slot = self.slot(key, Some(field.as_ref()))?;
        let value = self.limits().value(value.to_value()?)?;
        self.write(&slot, &Change::Put { value, ttl: None }).await.map(drop)
    }

    /// One field of a hash, as [`RedisClient::get`].
    ///
    /// # Errors
    /// As [`RedisClient::get`], and when the key holds no hash.
    pub async fn hget<T: FromValue>(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
    ) -> Result<Option<T>, Error> {
        Ok(self.hget_answer(key, field).await?.value)
    }

    /// As [`RedisClient::hget`], saying who answered.
    ///
    /// # Errors
    /// As [`RedisClient::hget`].
    pub async fn hget_answer<T: FromValue>(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
    ) -> Result<Answer<Option<T>>, Error> {
        let slot = self.slot(key, Some(field.as_ref()))?;
        let answer = self.read(&Get(slot)).await?;
        answer.try_map(|value| value.map(T::from_value).transpose())
    }

    /// Deletes one field of a hash, as [`RedisClient::del`].
    ///
    /// # Errors
    /// As [`RedisClient::hset`].
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub async fn hdel(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
    ) -> Result<bool, Error> {
        let slot = self.slot(key, Some(field.as_ref()))?;
        Ok(self.write(&slot, &Change::Remove).await? > 0)
    }

    /// All fields of a hash; empty without one. While degraded: of a hash that this client saw or
    /// wrote as a whole; an error if memory has a part of it, as half a hash is no answer.
    ///
    /// # Errors
    /// As [`RedisClient::hget`]; when a field is not UTF-8.
    pub async fn hgetall<T: FromValue>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<HashMap<String, T>, Error> {
        Ok(self.hgetall_answer(key).await?.value)
    }

    /// As [`RedisClient::hgetall`], saying who answered.
    ///
    /// # Errors
    /// As [`RedisClient::hgetall`].
    pub async fn hgetall_answer<T: FromValue>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Answer<HashMap<String, T>>, Error> {
        let slot = self.slot(key, None)?;
        let answer = self.read(&All::new(slot.key)).await?;
        answer.try_map(|pairs| {
            let pair = |(field, value)| Ok((String::from_value(field)?, T::from_value(value)?));
            pairs.into_iter().map(pair).collect()
        })
    }

    /// Adds to the number in a field, which is 0 without one, and gives the sum; as
    /// [`RedisClient::incr_by`].
    ///
    /// # Errors
    /// As [`RedisClient::incr_by`], and when the key holds no hash.
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub async fn hincr_by(
        &self,
        key: impl AsRef<[u8]>,
        field: impl AsRef<[u8]>,
        n: i64,
    ) -> Result<i64, Error> {
        self.write(&self.slot(key, Some(field.as_ref()))?, &Change::Add(n)).await
    }
}
