//! Reading the body of an answer, within an idle limit and a size.

use crate::{classify::HttpFailure, response::Response};
use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body::Body;
use mainstay_policy::{Deadline, Generation};
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// What is kept of the body of a failure, and how long the rest of it is waited for: it is shown to
/// the caller, and read to its end so that the connection can be used again.
pub(crate) const FAILURE_BODY: usize = 64 * 1024;
const FAILURE_PATIENCE: Duration = Duration::from_secs(1);

/// The limits of one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// In bytes, after decompression.
    pub(crate) size: usize,
    /// Between two pieces.
    pub(crate) idle: Duration,
}

/// An answer whose body is being read.
pub(crate) enum Begun<'a> {
    Whole(Response),
    Rest(Pin<Box<dyn Future<Output = Result<Response, HttpFailure>> + Send + 'a>>),
}

/// The length of the body, where it is known. An answer without one may name the length that another
/// would have, which over HTTP/2 is given for its own.
pub(crate) fn announced(method: &Method, answer: &reqwest::Response) -> Option<u64> {
    let bodiless = *method == Method::HEAD
        || matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    answer.content_length().filter(|_| !bodiless)
}

/// Reads what of the body is there with its head, which mostly is all.
pub(crate) fn begin(
    mut answer: reqwest::Response,
    announced: Option<u64>,
    limits: Limits,
) -> Result<Begun<'static>, HttpFailure> {
    if announced.is_some_and(|length| length > limits.size as u64) {
        return Err(HttpFailure::too_large(limits.size));
    }
    let announced = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let mut pieces = Pieces { announced, ..Pieces::default() };
    // Who wakes us is said when there is something to wait for.
    let mut nobody = Context::from_waker(Waker::noop());
    if pieces.poll_pieces(&mut answer, limits.size, &mut nobody)?.is_ready() {
        return Ok(Begun::Whole(pieces.join(answer)));
    }
    Ok(Begun::Rest(Box::pin(async move {
        pieces.wait_for_rest(&mut answer, &limits).await?;
        Ok(pieces.join(answer))
    })))
}

/// Most bodies come in one piece, which is then the body: nothing is copied. Others are put together
/// as they come while there is [`Room`] enough, else at their end; or sooner, if there are so many
/// pieces that they may be tiny, each of which would cost more than it holds.
#[derive(Default)]
struct Pieces {
    /// The length of the whole, or 0 where it is not known.
    announced: usize,
    first: Bytes,
    more: Vec<Bytes>,
    size: usize,
    /// What came first, once it is put together.
    joined: Option<Box<BytesMut>>,
    room: Option<Room>,
}

impl Pieces {
    const MOST: usize = 256;

    /// Ready when the body is over.
    fn poll_pieces(
        &mut self,
        answer: &mut reqwest::Response,
        limit: usize,
        cx: &mut Context<'_>,
    ) -> Result<Poll<()>, HttpFailure> {
        // A future for each look at the body: it has no state of its own.
        while let Poll::Ready(piece) = pin!(answer.chunk()).poll(cx) {
            match piece.map_err(HttpFailure::body)? {
                Some(piece) => self.add(piece, limit)?,
                None if self.size < self.announced => return Err(HttpFailure::short()),
                None => return Ok(Poll::Ready(())),
            }
        }
        Ok(Poll::Pending)
    }

    async fn wait_for_rest(
        &mut self,
        answer: &mut reqwest::Response,
        limits: &Limits,
    ) -> Result<(), HttpFailure> {
        // Armed when there is something to wait for, and once for a body: what comes is noted, and
        // the timer then runs on.
        let mut timer = pin!(None::<Sleep>);
        let mut since = (self.size, Instant::now());
        poll_fn(|cx| {
            if self.poll_pieces(answer, limits.size, cx)?.is_ready() {
                return Poll::Ready(Ok(()));
            }
            if since.0 != self.size {
                since = (self.size, Instant::now());
            }
            let until = since.1 + limits.idle;
            if timer.is_none() {
                timer.set(Some(sleep_until(until)));
            }
            while let Some(mut armed) = timer.as_mut().as_pin_mut()
                && armed.as_mut().poll(cx).is_ready()
            {
                if armed.deadline() >= until {
                    return Poll::Ready(Err(HttpFailure::stalled(limits.idle)));
                }
                armed.reset(until);
            }
            Poll::Pending
        })
        .await
    }

    fn add(&mut self, piece: Bytes, limit: usize) -> Result<(), HttpFailure> {
        if piece.len() > limit - self.size {
            return Err(HttpFailure::too_large(limit));
        }
        self.size += piece.len();
        if let Some(joined) = &mut self.joined {
            joined.extend_from_slice(&piece);
        } else if self.size == piece.len() {
            self.first = piece;
            if self.size < self.announced {
                let room = self.room.insert(Room::take(self.announced));
                if room.is_enough {
                    self.joined = Some(Box::new(self.copied(self.announced)));
                }
            }
        } else {
            if self.more.is_empty() {
                // What a megabyte comes in.
                self.more.reserve(32);
            }
            self.more.push(piece);
            if self.more.len() == Self::MOST {
                self.joined = Some(Box::new(self.copied(self.size)));
            }
        }
        Ok(())
    }

    /// What is there, in one place; each piece is let go as soon as it is copied.
    fn copied(&mut self, capacity: usize) -> BytesMut {
        let mut body = BytesMut::with_capacity(capacity);
        body.extend_from_slice(&std::mem::take(&mut self.first));
        for piece in std::mem::take(&mut self.more) {
            body.extend_from_slice(&piece);
        }
        body
    }

    fn into_bytes(mut self) -> Bytes {
        match self.joined.take() {
            Some(joined) => joined.freeze(),
            None if self.more.is_empty() => self.first,
            None => self.copied(self.size).freeze(),
        }
    }

    fn join(self, mut answer: reqwest::Response) -> Response {
        let status = answer.status();
        let body = self.into_bytes();
        Response { status, headers: std::mem::take(answer.headers_mut()), body }
    }
}

/// What a body on its way takes. While few are, each is put together as it comes: a piece is then
/// copied while the processor still has it at hand, and the driver reads the next one into the same
/// buffer. But the whole is held from the first piece on, and the pages of many such bodies are new
/// each time, which costs more than is saved.
struct Room {
    bytes: usize,
    is_enough: bool,
}

impl Room {
    /// In bytes, of the bodies of all clients.
    const MOST: usize = 4 * 1024 * 1024;

    fn take(bytes: usize) -> Self {
        let all = TAKEN.fetch_add(bytes, Relaxed).saturating_add(bytes);
        Self { bytes, is_enough: all <= Self::MOST }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.bytes, Relaxed);
    }
}

static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// A failure, with as much of its body as is worth having; however that ends, the status is what counts.
pub(crate) async fn of_failure(mut answer: reqwest::Response, limit: usize) -> Response {
    let body = beginning(&mut answer, limit).await;
    let (status, headers) = (answer.status(), std::mem::take(answer.headers_mut()));
    Response { status, headers, body }
}

/// The beginning of a body that is not what was asked for. It is read within half of what is left of the
/// attempt, or that would end before its answer is told.
pub(crate) async fn beginning(answer: &mut reqwest::Response, limit: usize) -> Bytes {
    let limit = limit.min(FAILURE_BODY);
    let mut body = BytesMut::new();
    let reading = async {
        while let Ok(Some(piece)) = answer.chunk().await {
            let room = limit - body.len();
            body.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.len() > room {
                break;
            }
        }
    };
    let left = Deadline::current().map(Deadline::left);
    let patience = left.map_or(FAILURE_PATIENCE, |left| FAILURE_PATIENCE.min(left / 2));
    // Slow or cut short: what came is kept, and the connection goes.
    let _ = tokio::time::timeout(patience, reading).await;
    body.freeze()
}

/// What a streamed body needs to know beside the answer.
pub(crate) struct Head {
    pub(crate) answer: reqwest::Response,
    /// As [`announced`] says.
    pub(crate) announced: Option<u64>,
    pub(crate) attempts: u32,
    /// Which the breaker was in when the answer began; `None` for one of another server.
    pub(crate) begun: Option<Generation>,
}

/// A body that its owner reads piece by piece.
pub(crate) struct Incoming {
    body: reqwest::Body,
    /// How many bytes are to come; 0 too where that is not known.
    left: u64,
    begun: Option<Generation>,
    idle: Duration,
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// `until` is the end of the whole body, whatever comes meanwhile.
    pub(crate) fn new(head: Head, idle: Duration, until: Option<Instant>) -> Self {
        let Head { answer, announced, begun, .. } = head;
        let (body, left) = (answer.into(), announced.unwrap_or(0));
        Self { body, left, begun, idle, until, timer: None }
    }

    pub(crate) const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// As [`Head::begun`].
    pub(crate) const fn begun(&self) -> Option<Generation> {
        self.begun
    }

    pub(crate) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, HttpFailure>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(None) if self.left > 0 => {
                    return Poll::Ready(Err(HttpFailure::short().after_head()));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(HttpFailure::body(error).after_head()));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    self.timer = None;
                    if self.until.is_some_and(|until| until <= Instant::now()) {
                        return Poll::Ready(Err(HttpFailure::out_of_time()));
                    }
                    // Trailers and empty pieces are no news.
                    if let Ok(piece) = frame.into_data()
                        && !piece.is_empty()
                    {
                        self.left = self.left.saturating_sub(piece.len() as u64);
                        return Poll::Ready(Ok(Some(piece)));
                    }
                }
                Poll::Pending => return self.poll_timer(cx),
            }
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, HttpFailure>> {
        let (idle, until) = (self.idle, self.until);
        let timer = self.timer.get_or_insert_with(|| {
            Box::pin(match until {
                Some(until) => sleep_until(until.min(Instant::now() + idle)),
                None => sleep(idle),
            })
        });
        match timer.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) if until.is_some_and(|until| until <= Instant::now()) => {
                Poll::Ready(Err(HttpFailure::out_of_time()))
            }
            Poll::Ready(()) => Poll::Ready(Err(HttpFailure::stalled(idle).after_head())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_same_however_it_is_put_together_and_room_comes_back() {
        const MOST: usize = Room::MOST;
        for (size, count) in [(7, 1), (0, 3), (5, 2), (3, Pieces::MOST + 3)] {
            let body: Vec<u8> = (0..size * count).map(|n| n as u8).collect();
            for (announced, others) in [(0, 0), (body.len(), 0), (body.len(), MOST), (MOST + 1, 0)]
            {
                let others = Room::take(others);
                let mut pieces = Pieces { announced, ..Pieces::default() };
                for n in 0..count {
                    let piece = Bytes::copy_from_slice(&body[n * size..][..size]);
                    pieces.add(piece, body.len()).unwrap();
                }
                let early = size > 0 && count > 1 && announced == body.len() && others.bytes == 0;
                let many = count > Pieces::MOST;
                assert_eq!(pieces.joined.is_some(), early || many, "{size} {count} {announced}");
                assert!(pieces.add(Bytes::from_static(b"x"), body.len()).is_err());
                assert_eq!(pieces.into_bytes(), body);
                drop(others);
                assert_eq!(TAKEN.load(Relaxed), 0);
            }
        }
    }
}
