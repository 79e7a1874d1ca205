//! Reading the body of an answer, within an idle limit and a size.

use crate::{classify::HttpFailure, response::Response};
use bytes::{Bytes, BytesMut};
use http_body::Body;
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// What is kept of the body of a failure, and how long the rest of it is waited for: it is shown to
/// the caller, and read to its end so that the connection can be used again.
const FAILURE_BODY: usize = 64 * 1024;
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

/// Reads what of the body is there with its head, which mostly is all.
pub(crate) fn begin(
    mut answer: reqwest::Response,
    limits: Limits,
) -> Result<Begun<'static>, HttpFailure> {
    let announced = answer.content_length();
    if announced.is_some_and(|length| length > limits.size as u64) {
        return Err(HttpFailure::too_large(limits.size));
    }
    let mut pieces = Pieces::default();
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
/// at their end, or else every body on its way would hold memory for the whole of it; unless there
/// are so many pieces that they may be tiny, each of which would cost more than it holds.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    more: Vec<Bytes>,
    size: usize,
    /// What came first, when there were too many.
    joined: Option<Box<BytesMut>>,
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
        } else {
            if self.more.is_empty() {
                // What a megabyte comes in.
                self.more.reserve(32);
            }
            self.more.push(piece);
            if self.more.len() == Self::MOST {
                self.joined = Some(Box::new(self.copied()));
                self.more = Vec::new();
            }
        }
        Ok(())
    }

    fn copied(&self) -> BytesMut {
        let mut body = BytesMut::with_capacity(self.size);
        body.extend_from_slice(&self.first);
        for piece in &self.more {
            body.extend_from_slice(piece);
        }
        body
    }

    fn join(self, mut answer: reqwest::Response) -> Response {
        let body = match self.joined {
            Some(joined) => joined.freeze(),
            None if self.more.is_empty() => self.first,
            None => self.copied().freeze(),
        };
        let status = answer.status();
        Response { status, headers: std::mem::take(answer.headers_mut()), body }
    }
}

/// As much of a failure's body as is worth having; however it ends, the status is what counts.
pub(crate) async fn of_failure(answer: &mut reqwest::Response, limit: usize) -> Bytes {
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
    // Slow or cut short: what came is kept, and the connection goes.
    let _ = tokio::time::timeout(FAILURE_PATIENCE, reading).await;
    body.freeze()
}

/// A body that its owner reads piece by piece.
pub(crate) struct Incoming {
    body: reqwest::Body,
    idle: Duration,
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// `until` is the end of the whole body, whatever comes meanwhile.
    pub(crate) fn new(answer: reqwest::Response, idle: Duration, until: Option<Instant>) -> Self {
        Self { body: answer.into(), idle, until, timer: None }
    }

    pub(crate) const fn until(&self) -> Option<Instant> {
        self.until
    }

    pub(crate) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, HttpFailure>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(HttpFailure::body_after_head(error)));
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
            Poll::Ready(()) => Poll::Ready(Err(HttpFailure::stalled_after_head(idle))),
        }
    }
}
