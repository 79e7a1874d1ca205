//! What only the server can do.

use crate::{
    classify::RedisFailure,
    client::RedisClient,
    command::{Change, Command, IfAway, Slot},
    ends::{answered, was_never_sent},
    fallback::{Fallback, OnKeys, Refusal, Ticket},
    patience::Patience,
    value::Value,
};
use bytes::Bytes;
use mainstay_policy::{Error, Operation};
use std::time::Instant;

/// A command on its way. Dropped with its caller it may have happened.
struct OnItsWay<'a> {
    fallback: &'a Fallback,
    keys: &'a [Bytes],
    effect: OnKeys,
    ticket: Ticket,
    sent: Instant,
    is_over: bool,
}

impl OnItsWay<'_> {
    fn never_sent(mut self) {
        self.is_over = true;
    }

    fn stored(mut self, slot: &Slot, change: &Change) {
        self.is_over = true;
        self.fallback.landed(slot, change, self.ticket, self.sent);
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.fallback.end_direct(self.keys, self.effect);
        }
    }
}

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
                // Without keys: all of them.
                let named = if effect == OnKeys::MayChangeAll { &[] } else { keys };
                let ticket = loop {
                    match fallback.begin_direct(keys, effect) {
                        Some(ticket) => break ticket,
                        None if patience.wait(named).await => {}
                        None => return Err(self.refused(operation, Refusal::Unavailable)),
                    }
                };
                let (sent, is_over) = (Instant::now(), false);
                Some(OnItsWay { fallback, keys, effect, ticket, sent, is_over })
            }
        };
        let result = self.ask_all(operation, keys, effect, commands, IfAway::Fail).await;
        if let Some(began) = began {
            match (&result, stores) {
                (Ok(Ok(replies)), Some((slot, change))) if matches!(&replies[..], [Ok(reply)] if *reply != Value::Nil) =>
                {
                    began.stored(slot, change);
                }
                (Ok(Err(error)), _) if was_never_sent(error) => began.never_sent(),
                (Err(_), _) => began.never_sent(),
                _ => drop(began),
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
