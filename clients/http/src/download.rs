//! A body that is read piece by piece, and whose end is told to the breaker.

use crate::{
    classify::HttpFailure,
    incoming::{self, Incoming},
    send::Call,
};
use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mainstay_policy::{CallError, Deadline, Effect, Error, Generation, Idempotency, Operation};
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// So many requests for the rest in a row, each of which brought less than [`PROGRESS`].
const MOST_RESUMES: u32 = 5;
const PROGRESS: u64 = 64 * 1024;

/// What breaks off when a body does.
const BODY: Operation = Operation::new("body", Idempotency::Unsafe);

type Resuming = Pin<Box<dyn Future<Output = Result<Incoming, Error>> + Send>>;

/// The answer to a request whose body is still coming.
///
/// It is also a [`Stream`] of pieces. The body has an idle limit, the client's `body_idle`, and ends
/// by the request's deadline or the one around the call that began it, if there is one. A body that
/// breaks off or stalls is a failure for the breaker, in its window and in a row, unless that has opened
/// or closed since the body began; one that is read to its end is a success. Dropping it before its end
/// closes the connection and tells the breaker nothing.
pub struct Download {
    status: StatusCode,
    headers: HeaderMap,
    state: State,
    call: Arc<Call>,
    attempts: u32,
    started: Instant,
    received: u64,
    most: Option<u64>,
    resume: Option<Resume>,
}

enum State {
    Reading(Incoming),
    Resuming(Resuming),
    Ended,
}

/// What it takes to ask for the rest.
struct Resume {
    etag: HeaderValue,
    /// Of the whole.
    begins: u64,
    in_a_row: u32,
    received: u64,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("status", &self.status)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl Download {
    pub(crate) async fn begin(
        call: Call,
        resume: bool,
        max_body: Option<usize>,
    ) -> Result<Self, Error> {
        let started = Instant::now();
        let around = Deadline::current().map(Deadline::left);
        let limit = match (call.deadline(), around) {
            (Some(own), Some(around)) => Some(own.min(around)),
            (own, around) => own.or(around),
        };
        let until = limit.and_then(|limit| started.checked_add(limit));
        let mut head = call.begin().await?;
        let (status, attempts) = (head.answer.status(), head.attempts);
        let headers = std::mem::take(head.answer.headers_mut());
        let resume = resume.then(|| Resume::of(&call, status, &headers)).flatten();
        let most = max_body.map(|most| most as u64);
        let state = State::Reading(Incoming::new(head, call.body_idle(), until));
        let call = Arc::new(call);
        Ok(Self { status, headers, state, call, attempts, started, received: 0, most, resume })
    }

    /// The status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers. Content-Length and Content-Encoding are gone if the body is decompressed.
    #[must_use]
    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// How many bytes of the body have come, after decompression.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// The next piece of the body; `None` at its end, and after an error.
    ///
    /// # Errors
    /// A body that is cut off, stalls, is over the request's `max_body` or not over by the deadline;
    /// with `resume_by_range`, when the rest could not be had either.
    ///
    /// # Cancel safety
    /// Nothing is lost: the next call goes on.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        loop {
            match &mut self.state {
                State::Ended => return Poll::Ready(Ok(None)),
                State::Resuming(rest) => match ready!(rest.as_mut().poll(cx)) {
                    Ok(rest) => self.state = State::Reading(rest),
                    Err(error) => {
                        self.state = State::Ended;
                        return Poll::Ready(Err(error));
                    }
                },
                State::Reading(incoming) => {
                    let (until, begun) = (incoming.until(), incoming.begun());
                    let failure = match ready!(incoming.poll_piece(cx)) {
                        Ok(Some(piece)) => {
                            self.received += piece.len() as u64;
                            match self.most.filter(|most| self.received > *most) {
                                None => return Poll::Ready(Ok(Some(piece))),
                                Some(most) => HttpFailure::too_large(
                                    usize::try_from(most).unwrap_or(usize::MAX),
                                ),
                            }
                        }
                        Ok(None) => {
                            self.state = State::Ended;
                            if let Some(begun) = begun {
                                self.call.policy().stream_ended(begun);
                            }
                            return Poll::Ready(Ok(None));
                        }
                        Err(failure) => failure,
                    };
                    match self.broken(&failure, until, begun) {
                        Some(rest) => self.state = State::Resuming(rest),
                        None => {
                            self.state = State::Ended;
                            return Poll::Ready(Err(self.error(failure)));
                        }
                    }
                }
            }
        }
    }

    /// Tells the breaker, and asks for the rest if that may be done.
    fn broken(
        &mut self,
        failure: &HttpFailure,
        until: Option<Instant>,
        begun: Option<Generation>,
    ) -> Option<Resuming> {
        if !failure.is_of_the_server() {
            return None;
        }
        // The attempt ended with the head, as a success that forgets no failures. Five broken bodies
        // in a row open the breaker, and so does a server that always breaks off, at half of its
        // attempts.
        if let Some(begun) = begun {
            self.call.policy().stream_broke(begun, &BODY, Effect::Permanent);
        }
        let resume = self.resume.as_mut()?;
        let progress = self.received - resume.received;
        resume.received = self.received;
        resume.in_a_row = if progress < PROGRESS { resume.in_a_row + 1 } else { 1 };
        if progress >= PROGRESS
            && let Some(begun) = begun
        {
            // It gets on: no failure in a row.
            self.call.policy().stream_ended(begun);
        }
        if resume.in_a_row > MOST_RESUMES {
            return None;
        }
        let (etag, from) = (resume.etag.clone(), resume.begins + self.received);
        Some(Box::pin(rest(Arc::clone(&self.call), etag, from, until)))
    }

    fn error(&self, failure: HttpFailure) -> Error {
        failure_of_body(&self.call, self.attempts, self.started.elapsed(), failure)
    }
}

impl Stream for Download {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_chunk(cx).map(Result::transpose)
    }
}

impl Resume {
    /// A whole GET of something that says which version it is.
    fn of(call: &Call, status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let etag = headers.get(header::ETAG)?;
        // A weak one says that it means the same, not that it is the same bytes.
        let strong = etag.as_bytes().starts_with(b"\"");
        let whole = status == StatusCode::OK && call.is_plain_get();
        (strong && whole && is_as_sent(headers)).then(|| Self {
            etag: etag.clone(),
            begins: 0,
            in_a_row: 0,
            received: 0,
        })
    }
}

/// Whether the bytes that come are those that a range counts. A body that is decompressed, whether we
/// asked for that or not, has lost both headers.
fn is_as_sent(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_LENGTH) && !headers.contains_key(header::CONTENT_ENCODING)
}

/// Asks for what is missing, as one more operation of the policy.
async fn rest(
    call: Arc<Call>,
    etag: HeaderValue,
    from: u64,
    until: Option<Instant>,
) -> Result<Incoming, Error> {
    let started = Instant::now();
    let call = call.ranged(from, &etag);
    let begin = async {
        let head = call.begin().await?;
        let (status, headers) = (head.answer.status(), head.answer.headers());
        let place = headers.get(header::CONTENT_RANGE).and_then(begin_of_rest);
        // RFC 9110 section 15.3.7: what answers If-Range in part names the version.
        let same = headers.get(header::ETAG) == Some(&etag) && is_as_sent(headers);
        let failure = match status {
            StatusCode::PARTIAL_CONTENT if place == Some(from) && same => return Ok(head),
            StatusCode::OK
            | StatusCode::PARTIAL_CONTENT
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::RANGE_NOT_SATISFIABLE => HttpFailure::changed(),
            // It says nothing of what was being downloaded, as a 401 for a token that has expired.
            _ => HttpFailure::answered(incoming::of_failure(head.answer, call.max_body()).await),
        };
        Err(failure_of_body(&call, head.attempts, started.elapsed(), failure))
    };
    let head = match until {
        None => begin.await?,
        Some(until) => {
            Deadline::within(until.saturating_duration_since(started)).scope(begin).await?
        }
    };
    Ok(Incoming::new(head, call.body_idle(), until))
}

/// Where a range begins that reaches to the end: a server may send less than it was asked for.
fn begin_of_rest(content_range: &HeaderValue) -> Option<u64> {
    let (range, size) = content_range.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (begin, last) = range.trim().split_once('-')?;
    let (last, size) = (last.parse::<u64>().ok()?, size.trim().parse::<u64>().ok()?);
    (last.checked_add(1)? == size).then(|| begin.parse().ok())?
}

fn failure_of_body(call: &Call, attempts: u32, elapsed: Duration, error: HttpFailure) -> Error {
    call.error(CallError::Backend { attempts, elapsed, effect: Effect::Permanent, error })
}
