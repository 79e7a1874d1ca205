//! The same clients for callers that are not async: [`Wait::wait`] in the place of `.await`.
//!
//! ```
//! # #[cfg(all(feature = "redis", feature = "sqlite"))]
//! # fn example() -> Result<(), mainstay::Error> {
//! use mainstay::{RedisClient, SqliteDatabase, blocking::Wait, sqlx};
//!
//! let cache = RedisClient::builder().without_server().build()?; // or get_redis_client()
//! cache.set("key", "value").wait()?;
//! assert_eq!(cache.get::<String>("key").wait()?.as_deref(), Some("value"));
//!
//! let db = SqliteDatabase::builder().url("sqlite::memory:").build()?; // or get_database_client()
//! let mut session = db.session().wait()?;
//! sqlx::query("create table users (name text)").execute(&mut session).wait()?;
//! session.commit().wait()?;
//! let users: i64 = sqlx::query_scalar("select count(*) from users").fetch_one(&db).wait()?;
//! assert_eq!(users, 0);
//! println!("{:?}", db.health_check().wait().status);
//! # Ok(()) }
//! # #[cfg(all(feature = "redis", feature = "sqlite"))]
//! # example()?;
//! # Ok::<(), mainstay::Error>(())
//! ```
//!
//! Everything holds that holds for async callers: limits, retries, breakers, and
//! [`Deadline::scope_blocking`](crate::Deadline::scope_blocking) around several calls.
//!
//! # Where it works
//! The work is done on the caller's thread; sockets and timers are those of one runtime that all
//! callers share, made on first use, with one thread of its own. So it works on plain threads, in
//! `spawn_blocking`, and, since it waits for another runtime, without a deadlock on an async worker
//! too. But there it keeps the worker from everything else, and says so once as a warning: await
//! instead: a load that a task of this very worker has begun, for `get_or_load` of the same key, cannot
//! end meanwhile. Clients that were used in another runtime connect anew in this one.

use std::{
    future::IntoFuture,
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst},
    },
    task::{self, Poll, Waker},
    thread::{self, Thread},
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::coop,
};

/// What can be awaited can be waited for.
pub trait Wait: IntoFuture + Sized {
    /// Runs it to its end and blocks this thread until then.
    ///
    /// If the system gives no thread for the shared runtime, there is none, and the clients'
    /// calls fail as they do outside any runtime.
    fn wait(self) -> Self::Output;
}

impl<F: IntoFuture> Wait for F {
    fn wait(self) -> Self::Output {
        warn_on_a_worker();
        let _runtime = runtime().map(Handle::enter);
        // The budget of the task around us is used up without it, and never filled again.
        let mut work = pin!(coop::unconstrained(self.into_future()));
        let here = Arc::new(Here { thread: thread::current(), woken: AtomicBool::new(false) });
        let waker = Waker::from(Arc::clone(&here));
        let mut context = task::Context::from_waker(&waker);
        loop {
            if let Poll::Ready(output) = work.as_mut().poll(&mut context) {
                return output;
            }
            // Others may park and unpark this thread too.
            while !here.woken.swap(false, SeqCst) {
                thread::park();
            }
        }
    }
}

struct Here {
    thread: Thread,
    woken: AtomicBool,
}

impl task::Wake for Here {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, SeqCst) {
            self.thread.unpark();
        }
    }
}

/// Never dropped: that would block, or panic on a worker.
fn runtime() -> Option<&'static Handle> {
    static SHARED: OnceLock<Runtime> = OnceLock::new();
    if SHARED.get().is_none() {
        let mut builder = Builder::new_multi_thread();
        let runtime =
            builder.worker_threads(1).thread_name("mainstay-blocking").enable_all().build();
        if let Err(Some(late)) =
            runtime.map_err(|_| None).and_then(|new| SHARED.set(new).map_err(Some))
        {
            late.shutdown_background();
        }
    }
    SHARED.get().map(Runtime::handle)
}

fn warn_on_a_worker() {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.load(Relaxed) && is_worker() && !WARNED.swap(true, Relaxed) {
        tracing::warn!(
            "a blocking call on a thread that runs async tasks keeps it from all of them until it \
             ends: await the call, or make it in tokio::task::spawn_blocking (said once)"
        );
    }
}

/// Tokio counts what a task does in one go, to end its turn, but not on the threads of
/// `spawn_blocking`: there a turn never ends.
fn is_worker() -> bool {
    const TURN: usize = 256;
    let mut context = task::Context::from_waker(Waker::noop());
    Handle::try_current().is_ok()
        && (0..TURN).any(|_| {
            let step: Pin<&mut _> = pin!(coop::consume_budget());
            step.poll(&mut context).is_pending()
        })
}
