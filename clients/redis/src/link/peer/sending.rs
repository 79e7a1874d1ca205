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

/// One command that is to go to one server.
struct Call<'a> {
    core: &'a Core,
    command: &'a Command<'a>,
    asking: bool,
    away: IfAway,
}

/// A command on its way. Written by hand, since each `async` layer would copy the answer once more.
pub(crate) struct Sending<'a>(Stage<'a>);

enum Stage<'a> {
    New(Call<'a>, Option<Duration>),
    Sent(Sent<'a>),
    /// What few wait for: a connection, or another server than the first.
    Apart(Pin<Box<dyn Future<Output = Result<Value, RedisFailure>> + Send + 'a>>),
    /// The policy ends this in a moment, or has its answer.
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
    pub(super) const fn new(
        core: &'a Core,
        command: &'a Command<'a>,
        asking: bool,
        away: IfAway,
        timeout: Option<Duration>,
    ) -> Self {
        Self(Stage::New(Call { core, command, asking, away }, timeout))
    }

    pub(in crate::link) fn apart(
        rest: Pin<Box<dyn Future<Output = Result<Value, RedisFailure>> + Send + 'a>>,
    ) -> Self {
        Self(Stage::Apart(rest))
    }
}

impl Future for Sending<'_> {
    type Output = Result<Value, RedisFailure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let stage = &mut self.get_mut().0;
        if let Stage::New(call, timeout) = stage {
            *stage = call.begin(*timeout);
        }
        match stage {
            Stage::Sent(sent) => {
                let Poll::Ready(answer) = sent.answer.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                let ended = match answer {
                    Ok(answer) => {
                        sent.core.note_answer();
                        Poll::Ready(Ok(driver::value(answer)))
                    }
                    Err(error) => match sent.failed(error) {
                        Some(failure) => Poll::Ready(Err(failure)),
                        None => Poll::Pending,
                    },
                };
                *stage = Stage::Over;
                ended
            }
            Stage::Apart(rest) => rest.as_mut().poll(cx),
            Stage::New(..) | Stage::Over => Poll::Pending,
        }
    }
}

impl<'a> Call<'a> {
    fn begin(&self, timeout: Option<Duration>) -> Stage<'a> {
        if self.core.up.load(Ordering::Acquire) {
            return Stage::Sent(self.send(timeout));
        }
        let Self { core, command, asking, away } = *self;
        Stage::Apart(Box::pin(async move {
            let left = core.admit(away, timeout).await?;
            Sending(Stage::Sent(Call { core, command, asking, away }.send(left))).await
        }))
    }

    fn send(&self, left: Option<Duration>) -> Sent<'a> {
        let core = self.core;
        let pace = core.limits.pace(self.away, left);
        let before = core.answered.load(Ordering::Relaxed);
        let answer = match self.asking {
            false => core.call(self.command, pace.told),
            true => after_asking(core, self.command, pace.told),
        };
        Sent { core, answer, before, patient: pace.patient, in_full: pace.in_full }
    }
}

impl Sent<'_> {
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
    static ASKING: Command<'static> = Command::Raw(Raw::asking());
    let asking = core.call(&ASKING, limit);
    let both = futures_util::future::join(asking, core.call(command, limit));
    Box::pin(async { both.await.1 })
}
