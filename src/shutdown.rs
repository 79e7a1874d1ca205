//! The end of a process, in good order and in bounded time.

use std::time::Duration;
use tokio::task::JoinSet;

/// Closes the clients that the getters have given, all at once, in no longer than this: connections
/// to databases are waited for while they are in use, and every server is told goodbye. Later calls
/// through these clients are refused, or answered by the Redis fallback.
///
/// The order of an end is: [`Readiness::drain`](crate::Readiness::drain), so that no more work comes;
/// finish what there is; this. The HTTP and S3 clients have nobody to say goodbye to: their idle
/// connections end with the process, and a transfer that is dropped is aborted in any case.
///
/// It closes the connections of the runtime it is called on; those of others end with theirs. Outside
/// of tokio there are none, and it returns at once.
///
/// # Cancel safety
/// What is closed stays closed; the rest is not.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// mainstay::shutdown(std::time::Duration::from_secs(5)).await;
/// # }
/// ```
pub async fn shutdown(within: Duration) {
    if tokio::runtime::Handle::try_current().is_err() {
        return;
    }
    let mut closing = JoinSet::<()>::new();
    #[cfg(feature = "postgres")]
    close_databases::<mainstay_database::sqlx::Postgres>(&mut closing, within);
    #[cfg(feature = "mysql")]
    close_databases::<mainstay_database::sqlx::MySql>(&mut closing, within);
    #[cfg(feature = "sqlite")]
    close_databases::<mainstay_database::sqlx::Sqlite>(&mut closing, within);
    #[cfg(feature = "redis")]
    for client in mainstay_redis::all_redis_clients() {
        closing.spawn(async move { client.close(within).await });
    }
    // Each keeps to its time; this is for a runtime that is too busy to tell them.
    let all = async { while closing.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(within, all).await;
}

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
fn close_databases<DB: mainstay_database::Backend>(closing: &mut JoinSet<()>, within: Duration) {
    for client in mainstay_database::all_database_clients::<DB>() {
        closing.spawn(async move { client.close(within).await });
    }
}
