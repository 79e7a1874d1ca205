//! An answer that says where it comes from.

use std::time::Duration;

/// Who gave an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The server.
    Redis,
    /// This process's memory: what this client wrote or last saw.
    Fallback,
    /// Nobody: the server is away and memory knows nothing of the key. A miss for a cache, and no
    /// statement about what the server holds.
    Nobody,
}

/// A value, and who gave it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mainstay_policy::Error> {
/// use mainstay_redis::{RedisClient, Source};
///
/// let cache = RedisClient::builder().name("answer").without_server().build()?;
/// cache.set("key", "value").await?;
/// let answer = cache.get_answer::<String>("key").await?;
/// assert_eq!((answer.value.as_deref(), answer.source), (Some("value"), Source::Fallback));
/// assert_eq!(cache.get_answer::<String>("other").await?.source, Source::Nobody);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer<T> {
    /// The value.
    pub value: T,
    /// Who gave it.
    pub source: Source,
    /// How long ago a value from memory was written or last seen at the server.
    pub age: Option<Duration>,
}

impl<T> Answer<T> {
    pub(crate) fn try_map<U, E>(
        self,
        change: impl FnOnce(T) -> Result<U, E>,
    ) -> Result<Answer<U>, E> {
        Ok(Answer { value: change(self.value)?, source: self.source, age: self.age })
    }
}
