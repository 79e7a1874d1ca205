//! Reading the body of an answer, within an idle limit and a size.

use crate::classify::HttpFailure;
use bytes::{Bytes, BytesMut};
use http_body::Body;
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// What is kept of the body of a failure, and how long the rest of it is waited for: it is shown to
/// the caller, and read to its end so that the connection can be used again.
const FAILURE_BODY: usize = 64 * 1024;
const FAILURE_PATIENCE: Duration = Duration::from_secs(1);
/// What a server that announces a long body makes us reserve at once.
const RESERVE: u64 = 4 * 1024 * 1024;

/// The limits of one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// In bytes, after decompression.
    pub(crate) size: usize,
    /// Between two pieces; `None` if something else is stricter.
    pub(crate) idle: Option<Duration>,
}

/// The whole body.
pub(crate) async fn whole(
    answer: &mut reqwest::Response,
    limits: Limits,
) -> Result<Bytes, HttpFailure> {
    let announced = answer.content_length();
    if announced.is_some_and(|length| length > limits.size as u64) {
        return Err(HttpFailure::too_large(limits.size));
    }
    // Most bodies come in one piece, which is then the body: nothing is copied.
    let Some(first) = piece(answer, limits.idle).await? else { return Ok(Bytes::new()) };
    let second = if first.len() > limits.size {
        return Err(HttpFailure::too_large(limits.size));
    } else {
        piece(answer, limits.idle).await?
    };
    let Some(second) = second else { return Ok(first) };
    let expected = usize::try_from(announced.unwrap_or_default().min(RESERVE)).unwrap_or_default();
    let mut body = BytesMut::with_capacity(expected.max(first.len() + second.len()));
    body.extend_from_slice(&first);
    let mut next = Some(second);
    while let Some(piece_) = next {
        if piece_.len() > limits.size - body.len() {
            return Err(HttpFailure::too_large(limits.size));
        }
        body.extend_from_slice(&piece_);
        next = piece(answer, limits.idle).await?;
    }
    Ok(body.freeze())
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

async fn piece(
    answer: &mut reqwest::Response,
    idle: Option<Duration>,
) -> Result<Option<Bytes>, HttpFailure> {
    let mut next = pin!(answer.chunk());
    let Some(idle) = idle else { return next.await.map_err(HttpFailure::body) };
    // A timer costs more than a piece that is there already.
    let ready = poll_fn(|cx| {
        Poll::Ready(match next.as_mut().poll(cx) {
            Poll::Ready(piece) => Some(piece),
            Poll::Pending => None,
        })
    });
    let piece = match ready.await {
        Some(piece) => piece,
        None => match tokio::time::timeout(idle, next).await {
            Ok(piece) => piece,
            Err(_) => return Err(HttpFailure::stalled(idle)),
        },
    };
    piece.map_err(HttpFailure::body)
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
