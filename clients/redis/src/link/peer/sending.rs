//! One command on its way to one server.

use super::Core;
use crate::{
    classify::{self, RedisFailure},
    command::{Command, IfAway, Raw},
    link::driver::{self, Answer},
    value::Value,
};
use fred::error::{Error as Driver, ErrorKind};
use std::{
    future::Future,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll},
    time::Duration,
};

/// A command on its way. Written by hand, since each `async` layer would copy the answer once more.
pub(crate) struct Sending<'a>(Stage<'a>);

enum Stage<'a> {
    Sent(Sent<'a>),
    /// What few wait for: a connection, or another server than the first.
    Apart(Pin<Box<dyn Future<Output = Result<Value, RedisFailure>> + Send + 'a>>),
    /// The policy ends this in a moment.
    Over,
}

struct Sent<'a> {
    core: &'a Core,
    answer: Answer<'a>,
    /// The last answer of this server until then.
    before: u64,
    /// As in [`Pace`](super::Pace).
    patient: bool,
    in_full: bool,
}

impl<'a> Sending<'a> {
    /// Nothing happens until it is polled.
    #[inline]
    pub(super) fn new(
        core: &'a Core,
        command: &'a Command<'a>,
        asking: bool,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Self {
        if core.up.load(Ordering::Acquire) {
            return Self(Stage::Sent(Sent::new(core, command, asking, away, timeout)));
        }
        Self::apart(async move {
            let left = core.admit(away, timeout).await?;
            Sending(Stage::Sent(Sent::new(core, command, asking, away, left))).await
        })
    }

    #[inline(never)]
    pub(in crate::link) fn apart(
        rest: impl Future<Output = Result<Value, RedisFailure>> + Send + 'a,
    ) -> Self {
        Self(Stage::Apart(Box::pin(rest)))
    }
}

impl Future for Sending<'_> {
    type Output = Result<Value, RedisFailure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stage = &mut self.get_mut().0;
        match stage {
            Stage::Sent(sent) => match sent.answer.as_mut().poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(answer)) => {
                    sent.core.note_answer();
                    Poll::Ready(Ok(driver::value(answer)))
                }
                Poll::Ready(Err(error)) => {
                    let failure = sent.failed(error);
                    *stage = Stage::Over;
                    failure.map_or(Poll::Pending, |failure| Poll::Ready(Err(failure)))
                }
            },
            Stage::Apart(rest) => rest.as_mut().poll(cx),
            Stage::Over => Poll::Pending,
        }
    }
}

impl<'a> Sent<'a> {
    #[inline]
    fn new(
        core: &'a Core,
        command: &'a Command<'a>,
        asking: bool,
        away: IfAway,
        left: Option<Duration>,
    ) -> Self {
        let pace = core.limits.pace(away, left);
        let before = core.answered.load(Ordering::Relaxed);
        let answer = match asking {
            false => core.call(command, pace.told),
            true => after_asking(core, command, pace.told),
        };
        Self { core, answer, before, patient: pace.patient, in_full: pace.in_full }
    }

    /// `None`: the policy knows better.
    #[cold]
    fn failed(&self, error: Driver) -> Option<RedisFailure> {
        let core = self.core;
        if *error.kind() != ErrorKind::Timeout {
            core.note_answer();
            if classify::closes_gate(&error) {
                core.down(error.clone());
            }
            return Some(RedisFailure::driver(error));
        }
        // fred has taken the command back.
        if self.patient {
            core.silent_since(self.before);
        } else {
            core.doubt(self.before);
        }
        // If it was sent it may still arrive: before the PING that opens the gate or, on a new
        // connection, before the recovery, which waits a little for that.
        (!self.in_full).then(RedisFailure::silent)
    }
}

/// The two go out one after the other. Another command between them takes the permission, and this
/// one is told to ask again.
fn after_asking<'a>(
    core: &'a Core,
    command: &'a Command<'a>,
    limit: Option<Duration>,
) -> Answer<'a> {
    static RAW: Raw = Raw::asking();
    static ASKING: Command<'static> = Command::Raw(&RAW);
    let asking = core.call(&ASKING, limit);
    let both = futures_util::future::join(asking, core.call(command, limit));
    Box::pin(async { both.await.1 })
}
