//! An object read piece by piece, which goes on where a body broke off.

use crate::{
    S3Failure,
    call::{GET, Target},
    checksum::Running,
    get::{Get, whole},
    numbers::{Direction, count_bytes, count_repeat},
    object::ObjectHead,
    stall::within,
};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use futures_util::{Stream, stream};
use mainstay_policy::{CallError, Deadline, Effect, Error, Generation};
use std::{fmt, mem, ops::Range};
use tokio::time::Instant;

/// So many breaks in a row, each of which brought less than [`PROGRESS`].
const MOST_RESUMES: u32 = 5;
const PROGRESS: u64 = 64 * 1024;

/// The bytes of an object, as they come.
///
/// A body that breaks off, or of which nothing comes for the [idle timeout](Get::idle_timeout), is a
/// failed attempt of a call that goes on from there: with the policy's backoff, budget and breaker, and pinned to the
/// same version by its ETag. Without an ETag the stream ends there.
///
/// The checksum of the whole object, if the store sends one, is known at the end: until `None` has
/// come the bytes may be damaged, and the end is an error if they were.
pub struct ObjectStream {
    get: Get,
    head: ObjectHead,
    body: Option<ByteStream>,
    /// Which the breaker was in when the body began: in a later one its end says nothing of the store.
    begun: Generation,
    /// What is still to come of the whole object.
    left: Range<u64>,
    received: u64,
    sum: Option<Running>,
    /// The body is gone, for this reason.
    broken: Option<S3Failure>,
    in_a_row: u32,
    since: u64,
    started: Instant,
}

impl fmt::Debug for ObjectStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStream").field("received", &self.received).finish_non_exhaustive()
    }
}

impl ObjectStream {
    pub(crate) async fn open(get: Get) -> Result<Self, Error> {
        let target = get.target()?;
        let (asked, started) = (&get, Instant::now());
        let got = get.client.call(&GET, target, 0, |sdk, attempt| {
            count_repeat(Direction::Download, attempt);
            let send = asked.request(&sdk, asked.range.as_ref(), None).send();
            async move {
                let got = send.await.map_err(|e| S3Failure::sdk(e, attempt).of_a_read())?;
                let held = whole(&got).filter(|_| asked.is_answered_by(&got));
                let (left, total) = held.ok_or_else(S3Failure::garbled)?;
                Ok((got, left, total))
            }
        });
        let (got, left, total) = got.await?;
        let head = ObjectHead::of_get(&got, total);
        let sum = if get.range.is_none() { Running::of(&got) } else { None };
        Ok(Self {
            begun: get.client.policy().breaker().generation(),
            get,
            head,
            body: Some(got.body),
            left,
            received: 0,
            sum,
            broken: None,
            in_a_row: 0,
            since: 0,
            started,
        })
    }

    /// What the store says about the object; its size is the whole object's.
    #[must_use]
    pub const fn head(&self) -> &ObjectHead {
        &self.head
    }

    /// How many bytes have come.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// The next piece; `None` at the end, and after an error.
    ///
    /// # Errors
    /// A body that could not be gone on with, an object that was replaced meanwhile
    /// ([`is_precondition_failed`](S3Failure::is_precondition_failed)), or at the end bytes that do
    /// not have the object's checksum.
    ///
    /// # Cancel safety
    /// Nothing is lost: the next call goes on.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(body) = &mut self.body {
            let left = Deadline::current().map(Deadline::left);
            let idle = self.get.idle().into_iter().chain(left).min();
            let failure = match within(idle, body.next()).await {
                Ok(Some(Ok(piece))) => return self.take(piece).map(Some),
                Ok(None) if self.left.is_empty() => return self.end().await,
                Ok(None) => S3Failure::short(),
                Ok(Some(Err(error))) => S3Failure::body(error),
                Err(stalled) => stalled,
            };
            self.body = None;
            self.broken = Some(failure);
        }
        match &mut self.broken {
            None => Ok(None),
            Some(failure) => {
                // If this future is dropped, the next call still knows that the body is gone.
                let failure = mem::replace(failure, S3Failure::short());
                let end = self.go_on(failure).await;
                self.broken = None;
                let (piece, body) = end?;
                self.begun = self.get.client.policy().breaker().generation();
                self.body = Some(body);
                self.take(piece).map(Some)
            }
        }
    }

    /// The pieces as a [`Stream`], which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        stream::unfold(Some(self), |this| async {
            let mut this = this?;
            match this.chunk().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(this))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    fn take(&mut self, piece: Bytes) -> Result<Bytes, Error> {
        let length = piece.len() as u64;
        if length > self.left.end - self.left.start {
            self.body = None;
            return Err(self.failed(S3Failure::garbled()));
        }
        self.left.start += length;
        self.received += length;
        count_bytes(Direction::Download, length);
        if let Some(sum) = &mut self.sum {
            sum.update(&piece);
        }
        Ok(piece)
    }

    /// All bytes have come: are they the right ones?
    async fn end(&mut self) -> Result<Option<Bytes>, Error> {
        self.body = None;
        match self.sum.take() {
            Some(sum) if !sum.matches() => Err(self.give_up(S3Failure::damaged()).await),
            _ => Ok(None),
        }
    }

    fn is_of_now(&self) -> bool {
        self.begun == self.get.client.policy().breaker().generation()
    }

    /// Asks for the rest; the failure is the first attempt of that call, if it says something of the
    /// store as it is.
    async fn go_on(&mut self, failure: S3Failure) -> Result<(Bytes, ByteStream), Error> {
        if self.received - self.since >= PROGRESS {
            (self.in_a_row, self.since) = (0, self.received);
        }
        self.in_a_row += 1;
        let resumable = self.head.etag.is_some() && !self.left.is_empty();
        if !resumable || self.in_a_row > MOST_RESUMES {
            return Err(self.give_up(failure).await);
        }
        let (target, started) = (self.target(), self.started);
        let (etag, left, total) = (self.head.etag.as_deref(), &self.left, self.head.size);
        let (mut first, old) =
            if self.is_of_now() { (Some(failure), None) } else { (None, Some(failure)) };
        let rest = self
            .get
            .client
            .call(&GET, target, 0, |sdk, attempt| {
                count_repeat(Direction::Download, attempt);
                let broken = first.take();
                let send = self.get.request(&sdk, Some(left), etag).send();
                async move {
                    if let Some(broken) = broken {
                        return Err(broken);
                    }
                    let got = send.await.map_err(|e| S3Failure::sdk(e, attempt).of_a_version())?;
                    // Some stores ignore If-Match.
                    if got.e_tag() != etag {
                        return Err(S3Failure::changed());
                    }
                    if whole(&got) != Some((left.clone(), total)) {
                        return Err(S3Failure::garbled());
                    }
                    // Headers alone are no progress.
                    let mut body = got.body;
                    let piece = body.next().await.ok_or_else(S3Failure::short)?;
                    Ok((piece.map_err(S3Failure::body)?, body))
                }
            })
            .await;
        match (rest, first.or(old)) {
            // Refused without an attempt: what broke the body is the error behind that.
            (Err(refusal), Some(broken)) if refusal.attempts() == 0 => {
                let Some(by) = refusal.decider() else { return Err(refusal) };
                let end = CallError::Stopped {
                    by,
                    attempts: 1,
                    elapsed: started.elapsed(),
                    effect: Effect::Transient,
                    retry_after: refusal.retry_after(),
                    last: Some(broken.about(target.bucket, true)),
                };
                let name = self.get.client.policy().name();
                Err(Error::from_call(name, GET.name(), end))
            }
            (rest, _) => rest,
        }
    }

    /// The end, told to the breaker.
    async fn give_up(&self, failure: S3Failure) -> Error {
        if !self.is_of_now() {
            return self.failed(failure);
        }
        let mut failure = Some(failure.for_good());
        let end = self.get.client.call(&GET, self.target(), 0, |_, _| {
            let failure = failure.take().unwrap_or_else(S3Failure::short);
            async move { Err::<(), _>(failure) }
        });
        match end.await {
            Err(error) if !error.is_rejected() => error,
            _ => self.failed(failure.take().unwrap_or_else(S3Failure::short)),
        }
    }

    fn failed(&self, failure: S3Failure) -> Error {
        self.get.client.local(&GET, failure.about(&self.get.bucket, true))
    }

    fn target(&self) -> Target<'_> {
        Target { bucket: &self.get.bucket, key: Some(&self.get.key) }
    }
}
