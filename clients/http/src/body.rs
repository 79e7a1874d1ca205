//! The body of a request, and whether it can be sent again.

use crate::classify::HttpFailure;
use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body, Frame, SizeHint};
use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// How long a stream of no bytes is read. To open a file takes less, on a busy machine too.
const EMPTY: Duration = Duration::from_secs(1);

pub(crate) type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;
/// A stream until somebody has begun to read it.
type Slot = Arc<Mutex<Option<Pieces>>>;

/// The body of a request: bytes, or a stream that can be made again for each attempt, or a stream
/// that is there once.
///
/// # Examples
/// ```
/// use mainstay_http::RequestBody;
/// use std::io;
///
/// assert!(RequestBody::from("text").is_replayable());
/// # struct Empty;
/// # impl futures_core::Stream for Empty {
/// #     type Item = io::Result<bytes::Bytes>;
/// #     fn poll_next(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>)
/// #         -> std::task::Poll<Option<Self::Item>> { std::task::Poll::Ready(None) }
/// # }
/// let again = RequestBody::streamed_by(|| Empty); // such as a file opened anew
/// assert!(again.is_replayable());
/// let once = RequestBody::streamed_once(Empty).with_length(0);
/// assert!(!once.is_replayable());
/// ```
pub struct RequestBody(Source);

/// Streams with the length that was announced.
enum Source {
    Bytes(Bytes),
    Factory(Arc<dyn Fn() -> Pieces + Send + Sync>, Option<u64>),
    Once(Slot, Option<u64>),
}

impl fmt::Debug for RequestBody {
    /// Never the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").field("is_replayable", &self.is_replayable()).finish()
    }
}

impl<T: Into<Bytes>> From<T> for RequestBody {
    fn from(bytes: T) -> Self {
        Self(Source::Bytes(bytes.into()))
    }
}

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self::from(Bytes::new())
    }

    /// A stream that `make` makes anew for each attempt, so that the request may be repeated as one
    /// with plain bytes would be.
    pub fn streamed_by<S>(make: impl Fn() -> S + Send + Sync + 'static) -> Self
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let make = move || -> Pieces { Box::pin(make()) };
        Self(Source::Factory(Arc::new(make), None))
    }

    /// A stream that is there once: the request is repeated only if nobody has begun to read it,
    /// such as after a refused connection, whatever its method.
    pub fn streamed_once(stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        let slot: Slot = Arc::new(Mutex::new(Some(Box::pin(stream))));
        Self(Source::Once(slot, None))
    }

    /// How many bytes the stream gives. They are announced as Content-Length; a stream that gives
    /// more or fewer fails the request, but for more that comes later than its length over HTTP/1.1,
    /// which is left. One of 0 bytes is read before anything is sent, for 1 s at most; what comes
    /// later is left. Without it the body is sent in chunks. Means nothing for bytes, whose length is
    /// known.
    #[must_use]
    pub fn with_length(mut self, bytes: u64) -> Self {
        match &mut self.0 {
            Source::Bytes(_) => {}
            Source::Factory(_, length) | Source::Once(_, length) => *length = Some(bytes),
        }
        self
    }

    /// Whether it can be sent in a second attempt after a first has begun to send it.
    #[must_use]
    pub const fn is_replayable(&self) -> bool {
        !matches!(self.0, Source::Once(..))
    }

    /// The body for one attempt, which tells `watch` what becomes of it.
    pub(crate) fn for_attempt(
        &self,
        watch: Option<&Arc<Watch>>,
    ) -> Result<Option<reqwest::Body>, HttpFailure> {
        let (slot, left) = match (&self.0, watch) {
            (Source::Bytes(bytes), _) if bytes.is_empty() => return Ok(None),
            (Source::Bytes(bytes), None) => return Ok(Some(bytes.clone().into())),
            (Source::Bytes(bytes), Some(watch)) => {
                let watched = Watched { bytes: bytes.clone(), watch: Arc::clone(watch) };
                return Ok(Some(reqwest::Body::wrap(watched)));
            }
            (Source::Factory(make, length), _) => {
                // One of no bytes was read before.
                let pieces = if *length == Some(0) { Box::pin(Nothing) } else { make() };
                (Arc::new(Mutex::new(Some(pieces))), *length)
            }
            (Source::Once(slot, _), _) if lock(slot).is_none() => return Err(HttpFailure::spent()),
            (Source::Once(slot, length), _) => (Arc::clone(slot), *length),
        };
        let watch = watch.cloned().unwrap_or_default();
        let (pieces, last) = (Mutex::new(None), Bytes::new());
        let upload = Upload { slot, pieces, left, last, ended: false, watch };
        Ok(Some(reqwest::Body::wrap(upload)))
    }

    /// A stream of no bytes, which the driver does not read over HTTP/1.1.
    pub(crate) const fn is_empty_stream(&self) -> bool {
        matches!(self.0, Source::Factory(_, Some(0)) | Source::Once(_, Some(0)))
    }

    /// Reads a stream of no bytes, and puts a like one in the place of one that is there once.
    pub(crate) async fn read_empty_stream(&self) -> Result<(), HttpFailure> {
        let Some(mut stream) = self.pieces() else { return Err(HttpFailure::spent()) };
        let read = async {
            while let Some(piece) = poll_fn(|cx| stream.as_mut().poll_next(cx)).await {
                if !piece?.is_empty() {
                    return Err(too_long());
                }
            }
            Ok(())
        };
        // It may end after the answer only.
        if let Ok(read) = timeout(EMPTY, read).await {
            read.map_err(HttpFailure::upload)?;
        }
        if let Source::Once(slot, _) = &self.0 {
            *lock(slot) = Some(Box::pin(Nothing));
        }
        Ok(())
    }

    /// The bytes, if it is no stream.
    pub(crate) const fn bytes(&self) -> Option<&Bytes> {
        match &self.0 {
            Source::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// In bytes, where it is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match &self.0 {
            Source::Bytes(bytes) => Some(bytes.len() as u64),
            Source::Factory(_, length) | Source::Once(_, length) => *length,
        }
    }

    /// The stream, from its beginning; `None` for bytes, and for one that was begun.
    pub(crate) fn pieces(&self) -> Option<Pieces> {
        match &self.0 {
            Source::Bytes(_) => None,
            Source::Factory(make, _) => Some(make()),
            Source::Once(slot, _) => lock(slot).take(),
        }
    }

    pub(crate) const fn is_stream(&self) -> bool {
        !matches!(self.0, Source::Bytes(_))
    }

    /// A stream that is there once, and has been begun.
    pub(crate) fn is_spent(&self) -> bool {
        matches!(&self.0, Source::Once(slot, _) if lock(slot).is_none())
    }
}

fn lock(slot: &Slot) -> std::sync::MutexGuard<'_, Option<Pieces>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn too_long() -> io::Error {
    io::Error::other("the stream is longer than its length says")
}

/// A stream that is over.
struct Nothing;

impl Stream for Nothing {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}

/// What becomes of the body of an attempt.
#[derive(Default)]
pub(crate) struct Watch {
    /// The stream, not the server, has failed.
    pub(crate) failed: AtomicBool,
    /// The driver has asked for some of it, and so has sent the head.
    pub(crate) begun: AtomicBool,
}

/// Bytes on their way out.
struct Watched {
    bytes: Bytes,
    watch: Arc<Watch>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.watch.begun.store(true, Relaxed);
        let bytes = std::mem::take(&mut self.bytes);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

/// A stream on its way out.
struct Upload {
    slot: Slot,
    /// Never locked, only borrowed: the mutex is what makes a `Send` stream `Sync`.
    pieces: Mutex<Option<Pieces>>,
    left: Option<u64>,
    /// The piece that brings the stream to its length, while the stream says at once whether more comes:
    /// over HTTP/1.1 the driver reads on no further.
    last: Bytes,
    ended: bool,
    watch: Arc<Watch>,
}

impl Upload {
    fn fail(&self, error: io::Error) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.watch.failed.store(true, Relaxed);
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        this.watch.begun.store(true, Relaxed);
        let pieces = this.pieces.get_mut().unwrap_or_else(PoisonError::into_inner);
        if pieces.is_none() {
            *pieces = lock(&this.slot).take();
        }
        let Some(stream) = pieces.as_mut() else {
            return this.fail(io::Error::other("the stream was read by another attempt"));
        };
        loop {
            let piece = match stream.as_mut().poll_next(cx) {
                Poll::Pending if this.last.is_empty() => return Poll::Pending,
                // It may end after the answer only.
                Poll::Pending => {
                    return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.last)))));
                }
                Poll::Ready(Some(Ok(piece))) => piece,
                Poll::Ready(Some(Err(error))) => return this.fail(error),
                Poll::Ready(None) if this.left.is_some_and(|left| left > 0) => {
                    let error = io::Error::other("the stream is shorter than its length says");
                    return this.fail(error);
                }
                Poll::Ready(None) => {
                    this.ended = true;
                    let last = std::mem::take(&mut this.last);
                    return Poll::Ready((!last.is_empty()).then(|| Ok(Frame::data(last))));
                }
            };
            let Some(left) = &mut this.left else {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            };
            match left.checked_sub(piece.len() as u64) {
                None => return this.fail(too_long()),
                Some(0) if piece.is_empty() => {}
                Some(0) => (*left, this.last) = (0, piece),
                Some(rest) => {
                    *left = rest;
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let exact = |left| SizeHint::with_exact(left + self.last.len() as u64);
        self.left.map_or_else(SizeHint::default, exact)
    }
}
