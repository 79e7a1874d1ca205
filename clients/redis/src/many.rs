//! Several keys at once: one command, or in a cluster one for each place, sent together.

use crate::{
    answer::{Answer, Source},
    client::RedisClient,
    command::{Change, Command, IfAway, Raw, Route, Slot},
    ends::{answered, is_own_limit, was_never_sent},
    fallback::{Before, BeginRead, BeginWrite, Known, OnKeys, Refusal, Ticket},
    patience::Patience,
    query::Get,
    value::{FromValue, ToValue, Value},
};
use bytes::Bytes;
use mainstay_policy::{Error, Idempotency, Operation};
use std::{borrow::Cow, collections::BTreeMap, slice::from_ref, time::Instant};

const MGET: Operation = Operation::read("mget");
const MSET: Operation = Operation::new("mset", Idempotency::Safe);

/// A write that is to be sent, by its number, and what memory knew of its key.
type Asked = (usize, Option<(Ticket, Before)>);

impl RedisClient {
    /// The values at these keys, in their order. As [`RedisClient::get`], except that a key which
    /// holds a hash is a miss.
    ///
    /// # Errors
    /// As [`RedisClient::get`].
    pub async fn mget<T: FromValue>(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Vec<Option<T>>, Error> {
        let answers = self.mget_answers(keys).await?;
        Ok(answers.into_iter().map(|answer| answer.value).collect())
    }

    /// As [`RedisClient::mget`], saying who answered for each key.
    ///
    /// # Errors
    /// As [`RedisClient::get`].
    pub async fn mget_answers<T: FromValue>(
        &self,
        keys: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Vec<Answer<Option<T>>>, Error> {
        let slots = keys.into_iter().map(|key| self.slot(key, None));
        let queries: Vec<Get> = slots.map(|slot| slot.map(Get)).collect::<Result<_, _>>()?;
        let answers = self.read_many(&queries).await?;
        if answers.iter().any(|answer| answer.source != Source::Redis) {
            self.fell_back(None);
        }
        let typed = |value: Option<Bytes>| value.map(T::from_value).transpose();
        answers.into_iter().map(|answer| answer.try_map(typed)).collect()
    }

    /// Stores several values without a lifetime. The server does it at once (in a cluster: each
    /// node its part); after an error some may be stored.
    ///
    /// # Errors
    /// As [`RedisClient::set`].
    ///
    /// # Cancel safety
    /// As [`RedisClient::set`].
    pub async fn mset(
        &self,
        pairs: impl IntoIterator<Item = (impl AsRef<[u8]>, impl ToValue)>,
    ) -> Result<(), Error> {
        let pair = |(key, value): (_, _)| {
            let value = ToValue::to_value(value).and_then(|value| self.limits().value(value))?;
            Ok((self.slot(key, None)?, Change::Put { value, ttl: None }))
        };
        let writes: Vec<_> = pairs.into_iter().map(pair).collect::<Result<_, Error>>()?;
        if self.write_many(&writes).await? {
            self.fell_back(None);
        }
        Ok(())
    }

    async fn read_many(&self, queries: &[Get]) -> Result<Vec<Answer<Option<Bytes>>>, Error> {
        // Whatever the server leaves out is a miss.
        let mut answers =
            vec![Answer { value: None, source: Source::Redis, age: None }; queries.len()];
        let mut asked = Vec::new();
        let sent = Instant::now();
        for (n, query) in queries.iter().enumerate() {
            match self.fallback().map(|fallback| fallback.begin_read(query, sent)) {
                None | Some(BeginRead::Mixed) => asked.push((n, None)),
                Some(BeginRead::Ask(ticket)) => asked.push((n, Some(ticket))),
                Some(BeginRead::Local(known)) => answers[n] = self.told_of(known)?,
            }
        }
        if asked.is_empty() {
            return Ok(answers);
        }
        let from_memory = |answers: &mut Vec<Answer<Option<Bytes>>>| {
            let Some(fallback) = self.fallback() else { return Ok::<(), Error>(()) };
            for (n, _) in &asked {
                answers[*n] = self.told_of(fallback.read(&queries[*n], Instant::now()))?;
            }
            Ok(())
        };
        if !self.is_configured() {
            from_memory(&mut answers)?;
            return Ok(answers);
        }
        let places = self.places(asked.iter().map(|(n, _)| &queries[*n].0))?;
        let command =
            |of: &Vec<usize>| many("MGET", of.iter().map(|i| &queries[asked[*i].0].0.key));
        let raws: Vec<_> = places.iter().map(command).collect();
        let commands: Vec<_> = raws.iter().map(Command::Raw).collect();
        let away = if self.has_fallback() { IfAway::FallBack } else { IfAway::Fail };
        match self.ask_all(&MGET, &[], OnKeys::Reads, &commands, away).await? {
            Ok(replies) => {
                for (of, reply) in places.iter().zip(replies) {
                    let reply =
                        reply.map_err(|failure| self.failed(&MGET, answered(failure, sent)))?;
                    let Value::Array(items) = reply else { continue };
                    for (i, item) in of.iter().zip(items) {
                        let (n, ticket) = asked[*i];
                        let found = item.into_bytes();
                        let better = self.fallback().zip(ticket).and_then(|(fallback, ticket)| {
                            fallback.filled(&queries[n], ticket, &found, sent)
                        });
                        answers[n] = match better {
                            None => self.answered(found),
                            Some(known) => self.told_of(known)?,
                        };
                    }
                }
                Ok(answers)
            }
            Err(error) if self.has_fallback() && self.is_outage(&error, &commands) => {
                from_memory(&mut answers)?;
                Ok(answers)
            }
            Err(error) => Err(self.failed(&MGET, error)),
        }
    }

    /// MGET takes a key of another type for a miss.
    fn told_of(
        &self,
        known: Result<Known<Option<Bytes>>, Refusal>,
    ) -> Result<Answer<Option<Bytes>>, Error> {
        let known = match known {
            Err(Refusal::WrongType) => Ok(Known::Absent),
            known => known,
        };
        self.told_one(&MGET, known)
    }

    /// Says whether memory has taken any of them.
    async fn write_many(&self, writes: &[(Slot, Change)]) -> Result<bool, Error> {
        let (mut asked, sent) = (Vec::new(), Instant::now());
        let put_back = |asked: Vec<Asked>| {
            let taken = asked.into_iter().filter_map(|(n, taken)| {
                let (ticket, before) = taken?;
                Some((&writes[n].0, ticket, before))
            });
            if let Some(fallback) = self.fallback() {
                fallback.put_back(taken);
            }
        };
        let begun = self.begin_many(writes, &mut asked).await;
        if asked.is_empty() {
            // Of none at all memory has taken none.
            return begun.map(|()| !writes.is_empty());
        }
        let kept = asked.len() < writes.len();
        let takes = self.fallback().is_some_and(|f| f.takes(&Change::Remove));
        let places = begun.and_then(|()| self.places(asked.iter().map(|(n, _)| &writes[*n].0)));
        let places = match places {
            Ok(places) => places,
            Err(error) => {
                put_back(asked);
                return Err(error);
            }
        };
        let command = |of: &Vec<usize>| {
            let parts = of.iter().flat_map(|i| match &writes[asked[*i].0] {
                (slot, Change::Put { value, .. }) => [&slot.key, value],
                (slot, _) => [&slot.key, &slot.key],
            });
            many("MSET", parts)
        };
        let raws: Vec<_> = places.iter().map(command).collect();
        let commands: Vec<_> = raws.iter().map(Command::Raw).collect();
        let away = if takes { IfAway::FallBack } else { IfAway::Fail };
        let keys: Vec<_> = asked.iter().map(|(n, _)| writes[*n].0.key.clone()).collect();
        match self.ask_all(&MSET, &keys, OnKeys::MayChange, &commands, away).await? {
            Ok(replies) => {
                for reply in replies {
                    reply.map_err(|failure| self.failed(&MSET, answered(failure, sent)))?;
                }
                asked.iter().for_each(|_| self.wrote());
                let landed = asked.iter().filter_map(|(n, taken)| {
                    let ((slot, change), (ticket, _)) = (&writes[*n], taken.as_ref()?);
                    Some((slot, change, *ticket))
                });
                let landed: Vec<_> = landed.collect();
                if let Some(fallback) = self.fallback() {
                    fallback.landed_together(&landed, sent);
                }
                Ok(kept)
            }
            Err(error) => {
                let numbers: Vec<_> = asked.iter().map(|(n, _)| *n).collect();
                // Before any is kept here, which is newer.
                if was_never_sent(&error) {
                    put_back(asked);
                }
                if !takes || is_own_limit(&error) || !self.is_outage(&error, &commands) {
                    return Err(self.failed(&MSET, error));
                }
                for n in numbers {
                    match self.keep_one(&writes[n]) {
                        // That it was not kept here does not mean that it did not happen there.
                        Err(_) if error.is_outcome_unknown() => {
                            return Err(self.failed(&MSET, error));
                        }
                        kept => kept.map_err(|refusal| self.refused(&MSET, refusal))?,
                    }
                }
                Ok(true)
            }
        }
    }

    /// Finds those that are to be sent; the others stay here.
    async fn begin_many(
        &self,
        writes: &[(Slot, Change)],
        asked: &mut Vec<Asked>,
    ) -> Result<(), Error> {
        let refused = |refusal| self.refused(&MSET, refusal);
        if !self.is_configured() {
            return writes.iter().try_for_each(|write| self.keep_one(write)).map_err(refused);
        }
        let Some(fallback) = self.fallback() else {
            asked.extend((0..writes.len()).map(|n| (n, None)));
            return Ok(());
        };
        let mut patience = Patience::new(self, fallback);
        for (n, write) in writes.iter().enumerate() {
            patience.waited = false;
            let key = from_ref(&write.0.key);
            loop {
                match fallback.begin_write(&write.0, Instant::now()) {
                    BeginWrite::Ask(ticket, before) => {
                        asked.push((n, Some((ticket, before))));
                        break;
                    }
                    BeginWrite::Draining if !patience.waited && patience.wait(key).await => {}
                    // What is dirty stays so; the recovery comes back for it.
                    _ => {
                        self.keep_one(write).map_err(refused)?;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn keep_one(&self, (slot, change): &(Slot, Change)) -> Result<(), Refusal> {
        self.0.loads.outdate(&slot.key);
        let kept = self.fallback().map(|f| f.write(slot, change, Instant::now()));
        kept.unwrap_or(Err(Refusal::Unavailable)).map(|_| self.kept_here())
    }

    /// Which of these one command may name together, by their number.
    fn places<'a>(&self, slots: impl Iterator<Item = &'a Slot>) -> Result<Vec<Vec<usize>>, Error> {
        let line = self.reachable_line()?;
        let mut places = BTreeMap::<u16, Vec<usize>>::new();
        for (n, slot) in slots.enumerate() {
            places.entry(line.place(&slot.key)).or_default().push(n);
        }
        Ok(places.into_values().collect())
    }
}

fn many<'a>(name: &'static str, args: impl Iterator<Item = &'a Bytes>) -> Raw {
    let args = args.cloned().collect();
    Raw { name: Cow::Borrowed(name), args, route: Route::Key(0) }
}
