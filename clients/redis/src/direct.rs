//! What only the server can do.

use crate::{
    classify::RedisFailure,
    client::{Patience, RedisClient, answered},
    command::{Change, Command, IfAway, Slot},
    fallback::{OnKeys, Refusal},
    value::Value,
};
use bytes::Bytes;
use mainstay_policy::{Error, Operation};
use std::time::Instant;

impl RedisClient {
    /// Commands sent together: one answer for each, or one error when they were not all answered.
    pub(crate) async fn direct(
        &self,
        operation: &Operation,
        keys: &[Bytes],
        effect: OnKeys,
        commands: &[Command<'_>],
    ) -> Result<Vec<Result<Value, RedisFailure>>, Error> {
        self.direct_storing(operation, keys, effect, commands, None).await
    }

    /// The same, of one that stores a value unless the answer is nil: memory knows it then.
    async fn direct_storing(
        &self,
        operation: &Operation,
        keys: &[Bytes],
        effect: OnKeys,
        commands: &[Command<'_>],
        stores: Option<(&Slot, &Change)>,
    ) -> Result<Vec<Result<Value, RedisFailure>>, Error> {
        if !self.is_configured() {
            return Err(self.refused(operation, Refusal::Unavailable));
        }
        let began = match self.fallback() {
            None => None,
            Some(fallback) => {
                let mut patience = Patience::new(self, fallback);
                let ticket = loop {
                    match fallback.begin_direct(keys, effect) {
                        Some(ticket) => break ticket,
                        None if patience.wait().await => {}
                        None => return Err(self.refused(operation, Refusal::Unavailable)),
                    }
                };
                Some((fallback, ticket, Instant::now()))
            }
        };
        let result = self.ask_all(operation, keys, effect, commands, IfAway::Fail).await;
        if let Some((fallback, ticket, sent)) = began {
            let stored = match &result {
                Ok(Ok(replies)) => matches!(&replies[..], [Ok(reply)] if *reply != Value::Nil),
                _ => false,
            };
            match stores {
                Some((slot, change)) if stored => fallback.landed(slot, change, ticket, sent),
                _ => drop(fallback.end_direct(keys, effect)),
            }
        }
        result?.map_err(|error| self.failed(operation, error))
    }

    /// One write; `stores` is the value that its key has then, unless the answer is nil.
    pub(crate) async fn direct_write(
        &self,
        operation: &Operation,
        slot: &Slot,
        command: Command<'_>,
        stores: Option<&Change>,
    ) -> Result<Value, Error> {
        let (keys, commands) = ([slot.key.clone()], [command]);
        let stores = stores.map(|change| (slot, change));
        let began = Instant::now();
        let replies = self.direct_storing(operation, &keys, OnKeys::MayChange, &commands, stores);
        let reply = replies.await?.pop().unwrap_or(Ok(Value::Nil));
        let reply = reply.map_err(|failure| self.failed(operation, answered(failure, began)))?;
        self.wrote();
        Ok(reply)
    }
}
