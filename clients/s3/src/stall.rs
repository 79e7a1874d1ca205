//! Bodies that stand still. An attempt's timeout allows for the length of what it moves, so a connection that
//! died early would be noticed late: nothing moving for the idle timeout is a failed attempt already.
//!
//! The SDK's own protection is off: it does not see a body that it was given in one piece.

use crate::S3Failure;
use aws_sdk_s3::{
    config::{
        ConfigBag, Intercept, RuntimeComponents, interceptors::BeforeTransmitInterceptorContextMut,
    },
    error::BoxError,
    primitives::SdkBody,
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    mem,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, timeout, timeout_at};

/// Handed to the connection at once. Smaller ones tell more, and cost more writes.
const SLICE: usize = 256 * 1024;

/// The next of what is awaited; an error if it takes longer than this.
pub(crate) async fn within<T>(
    idle: Option<Duration>,
    next: impl Future<Output = T>,
) -> Result<T, S3Failure> {
    match idle {
        Some(idle) => timeout(idle, next).await.map_err(|_| S3Failure::stalled(idle)),
        None => Ok(next.await),
    }
}

/// The answer to a request with a long body, which `send` puts the [`Watch`] on.
pub(crate) async fn watched<T, Fut>(
    idle: Option<Duration>,
    send: impl FnOnce(Watch) -> Fut,
) -> Result<T, S3Failure>
where
    Fut: Future<Output = Result<T, S3Failure>>,
{
    let watch = Watch::begun();
    let mut send = pin!(send(watch.clone()));
    let Some(idle) = idle else { return send.await };
    loop {
        // What was taken whole is the store's turn, and the attempt's timeout.
        let Some(taken) = watch.taken() else { return send.await };
        let until = taken.checked_add(idle);
        let Some(until) = until else { return send.await };
        match timeout_at(until, &mut send).await {
            Ok(end) => return end,
            Err(_) if watch.taken() == Some(taken) => return Err(S3Failure::stalled(idle)),
            Err(_) => {}
        }
    }
}

/// When the connection last took bytes of a request's body; `None` when it has all of them.
#[derive(Clone, Debug)]
pub(crate) struct Watch(Arc<Mutex<Option<Instant>>>);

impl Watch {
    fn begun() -> Self {
        Self(Arc::new(Mutex::new(Some(Instant::now()))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) -> Option<Instant> {
        *self.lock()
    }

    fn put_on(&self, body: &mut SdkBody) {
        let whole = mem::replace(body, SdkBody::taken());
        let left = whole.content_length();
        // Nobody asks an empty body for anything.
        if left == Some(0) {
            *self.lock() = None;
        }
        let sliced = Sliced { body: whole, rest: Bytes::new(), left, watch: self.clone() };
        *body = SdkBody::from_body_1_x(sliced);
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }

    /// After signing, for which the body has to be in memory.
    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.put_on(context.request_mut().body_mut());
        Ok(())
    }
}

/// A body that comes in slices, so that it is known how far it has gone.
struct Sliced {
    body: SdkBody,
    rest: Bytes,
    left: Option<u64>,
    watch: Watch,
}

impl Body for Sliced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    *self.watch.lock() = None;
                    return Poll::Ready(None);
                }
            }
        }
        let length = SLICE.min(self.rest.len());
        let slice = self.rest.split_to(length);
        self.left = self.left.map(|left| left.saturating_sub(length as u64));
        *self.watch.lock() = (self.left != Some(0)).then(Instant::now);
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn an_empty_body_is_sent_at_once_and_one_that_nobody_takes_has_stalled() {
        let idle = Duration::from_secs(1);
        for (text, answered) in [("", true), ("x", false)] {
            let end = watched(Some(idle), |watch| async move {
                watch.put_on(&mut SdkBody::from(text));
                sleep(idle * 3).await;
                Ok(())
            });
            assert_eq!(end.await.is_ok(), answered, "{text:?}");
        }
    }
}
