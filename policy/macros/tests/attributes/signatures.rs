//! The shapes a function may have.

use super::Runs;
use mainstay_policy::{CallError, Error, api_resilient, cache_resilient, database_resilient};
use std::{
    cell::Cell,
    fmt::{Debug, Display},
    future::Future,
    io,
    sync::{Arc, Mutex},
};

/// The policy's own words are fixed: nothing that a body uses is theirs.
#[tokio::test(start_paused = true)]
async fn a_body_sees_its_own_names_only() {
    const POLICY: u32 = 1;
    static RUNS: Runs = Runs::none();

    fn here() -> u32 {
        2
    }

    #[api_resilient(operation_name = "names")]
    async fn sum(policy: u32, operation: u32, typed: u32) -> Result<u32, CallError<io::Error>> {
        RUNS.fail_twice()?;
        Ok(policy + operation + typed + POLICY + here())
    }

    #[api_resilient]
    async fn sum_of_the_unnamed(policy: u32) -> Result<u32, CallError<io::Error>> {
        Ok(policy + POLICY + here())
    }

    assert_eq!(sum(10, 20, 30).await.unwrap(), 63);
    assert_eq!(sum_of_the_unnamed(10).await.unwrap(), 13);
}

#[tokio::test(start_paused = true)]
async fn owned_arguments_are_cloned_for_each_attempt() {
    static RUNS: Runs = Runs::none();

    #[database_resilient(operation_name = "owned")]
    async fn consume(
        mut list: Vec<u32>,
        (left, mut right): (String, String),
        [first, ..]: [u32; 3],
        key: &str,
        mut rest: &str,
    ) -> Result<String, CallError<io::Error>> {
        list.push(first);
        right.push('!');
        rest = rest.trim();
        RUNS.fail_twice()?;
        assert_eq!(list, [1, 7]);
        Ok(left + &right + key + rest)
    }

    let made = consume(vec![1], ("a".into(), "b".into()), [7, 8, 9], "c", " d ").await;
    assert_eq!(made.unwrap(), "ab!cd");
    assert_eq!(RUNS.count(), 3);
}

#[test]
fn owned_arguments_are_cloned_for_each_attempt_of_a_sync_function() {
    static RUNS: Runs = Runs::none();

    #[database_resilient(operation_name = "owned_sync", base_delay = 0)]
    fn consume(
        mut list: Vec<u32>,
        (left, mut right): (String, String),
        (ref borrowed, _): (String, u32),
    ) -> Result<String, CallError<io::Error>> {
        list.push(7);
        right.push('!');
        RUNS.fail_twice()?;
        assert_eq!(list, [1, 7]);
        Ok(left + &right + borrowed)
    }

    let made = consume(vec![1], ("a".into(), "b".into()), ("c".into(), 0));
    assert_eq!(made.unwrap(), "ab!c");
    assert_eq!(RUNS.count(), 3);
}

struct Repository<T> {
    runs: Runs,
    name: T,
}

impl<T: Display + Sync> Repository<T> {
    #[database_resilient(operation_name = "method")]
    async fn find<K>(&self, key: K) -> Result<String, CallError<io::Error>>
    where
        K: Display + Clone + Send,
    {
        self.runs.fail_twice()?;
        Ok(self.label(&key))
    }

    /// A value that borrows from `self` and from an argument.
    #[database_resilient(operation_name = "borrowing_method", base_delay = 0)]
    fn longest<'a>(&'a self, other: &'a T) -> Result<&'a T, CallError<io::Error>>
    where
        T: AsRef<str>,
    {
        self.runs.fail_twice()?;
        Ok(if other.as_ref().len() > self.name.as_ref().len() { other } else { &self.name })
    }

    #[database_resilient(operation_name = "elided", base_delay = 0)]
    fn name(&self) -> Result<&T, CallError<io::Error>> {
        Ok(&self.name)
    }

    #[database_resilient(operation_name = "elided_async")]
    async fn name_async(&self) -> Result<&T, CallError<io::Error>> {
        Ok(&self.name)
    }

    #[database_resilient(operation_name = "shared_self")]
    async fn shared(self: &Arc<Self>) -> Result<usize, CallError<io::Error>> {
        Ok(Arc::strong_count(self))
    }

    fn label(&self, key: impl Display) -> String {
        format!("{} {key}", self.name)
    }
}

#[tokio::test(start_paused = true)]
async fn methods_work() {
    let users = Repository { runs: Runs::none(), name: "users" };
    assert_eq!(users.find(7).await.unwrap(), "users 7");
    assert_eq!(users.runs.count(), 3);
    assert_eq!(*users.name_async().await.unwrap(), "users");
    let users = Repository { runs: Runs::none(), name: "users" };
    assert_eq!(*users.longest(&"everybody").unwrap(), "everybody");
    assert_eq!(users.runs.count(), 3);
    assert_eq!(*users.name().unwrap(), "users");
    assert_eq!(Arc::new(users).shared().await.unwrap(), 1);
}

trait Lookup {
    fn lookup(&self, key: u32) -> impl Future<Output = Result<u32, CallError<io::Error>>> + Send;

    /// A body in the trait.
    #[cache_resilient(operation_name = "trait_body")]
    async fn twice(&self, key: u32) -> Result<u32, CallError<io::Error>>
    where
        Self: Sync,
    {
        match self.lookup(key).await {
            Ok(found) => Ok(found * 2),
            Err(error) => Err(error.into_last().unwrap_or_else(|| io::Error::other("none"))),
        }
    }
}

impl Lookup for Runs {
    #[cache_resilient(operation_name = "trait_impl")]
    async fn lookup(&self, key: u32) -> Result<u32, CallError<io::Error>> {
        if self.next() == 1 { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(key) }
    }
}

#[tokio::test(start_paused = true)]
async fn methods_of_traits_work() {
    let runs = Runs::none();
    assert_eq!(runs.twice(4).await.unwrap(), 8);
    assert_eq!(runs.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn generic_functions_work() {
    static RUNS: Runs = Runs::none();

    #[api_resilient(operation_name = "generic")]
    async fn show<'a, T, const N: usize, E>(
        all: [T; N],
        prefix: &'a str,
        suffix: impl Into<String> + Clone + Send,
    ) -> Result<String, CallError<E>>
    where
        T: Display + Clone + Send,
        E: From<io::Error> + Debug + Send + 'static,
    {
        RUNS.fail_twice()?;
        let suffix: String = suffix.into();
        Ok(all.iter().fold(prefix.to_owned(), |text, next| format!("{text}{next}")) + &suffix)
    }

    assert_eq!(show::<_, 2, io::Error>([1, 2], "n", "!").await.unwrap(), "n12!");
    assert_eq!(show::<_, 1, io::Error>(["x"], "", "").await.unwrap(), "x");
    assert_eq!(RUNS.count(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_generic_error_is_made_from_the_calls() {
    #[api_resilient(operation_name = "generic_error", base_delay = 0)]
    fn fail<E: From<CallError<E>> + From<io::Error> + 'static>(runs: &Runs) -> Result<(), E> {
        runs.next();
        Err(io::Error::from(io::ErrorKind::ConnectionRefused))?
    }

    let runs = Runs::none();
    assert_eq!(fail::<Refused>(&runs), Err(Refused(5)));
    assert_eq!(runs.count(), 5);
}

/// What is left of a call's error: its attempts.
#[derive(Debug, PartialEq)]
struct Refused(u32);

impl From<CallError<Self>> for Refused {
    fn from(error: CallError<Self>) -> Self {
        Self(error.attempts())
    }
}

impl From<io::Error> for Refused {
    fn from(_: io::Error) -> Self {
        Self(0)
    }
}

#[tokio::test(start_paused = true)]
async fn an_unnamed_value_type_is_inferred() {
    #[api_resilient(operation_name = "unnamed")]
    async fn numbers() -> Result<impl Iterator<Item = u32>, CallError<io::Error>> {
        Ok(1..4)
    }

    #[api_resilient(operation_name = "unnamed_sync")]
    fn numbers_sync() -> Result<impl Iterator<Item = u32>, CallError<io::Error>> {
        Ok(1..4)
    }

    assert_eq!(numbers().await.unwrap().sum::<u32>(), 6);
    assert_eq!(numbers_sync().unwrap().sum::<u32>(), 6);
}

/// What a crate usually has.
type Result<T, E = Error> = std::result::Result<T, E>;

#[tokio::test(start_paused = true)]
async fn an_alias_of_result_works_if_its_error_is_made_from_the_calls() {
    static RUNS: Runs = Runs::none();

    #[api_resilient(operation_name = "alias")]
    async fn answer(text: &str) -> Result<u32> {
        if text.is_empty() {
            return Err(Error::invalid("text is empty"));
        }
        RUNS.fail_twice().map_err(|_| Error::invalid("not yet")).or(Ok::<_, Error>(""))?;
        Ok(42)
    }

    #[api_resilient(operation_name = "alias_sync")]
    fn answer_sync() -> Result<u32> {
        Ok(42)
    }

    #[api_resilient(operation_name = "path_of_result")]
    async fn answer_by_path() -> std::result::Result<u32, mainstay_policy::CallError<io::Error>> {
        Ok(42)
    }

    assert_eq!(answer("x").await.unwrap(), 42);
    assert_eq!(answer("").await.unwrap_err().attempts(), 1);
    assert_eq!(answer_sync().unwrap(), 42);
    assert_eq!(answer_by_path().await.unwrap(), 42);
}

#[tokio::test(start_paused = true)]
async fn a_future_can_be_spawned() {
    /// `Send`, and not `Sync`.
    #[derive(Clone)]
    struct Local(Cell<u32>);

    #[database_resilient(operation_name = "spawned")]
    async fn read(local: Local, shared: Arc<Mutex<u32>>) -> Result<u32, CallError<io::Error>> {
        tokio::task::yield_now().await;
        local.0.set(local.0.get() + 1);
        let sum = {
            let mut shared = shared.lock().unwrap();
            *shared += 1;
            *shared + local.0.get()
        };
        tokio::task::yield_now().await;
        if sum < 4 { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(sum) }
    }

    let shared = Arc::new(Mutex::new(0));
    let task = tokio::spawn(read(Local(Cell::new(0)), Arc::clone(&shared)));
    // Each attempt has its own clone of `local`; `shared` is one.
    assert_eq!(task.await.unwrap().unwrap(), 4);
    assert_eq!(*shared.lock().unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_argument_that_is_only_held_need_not_be_clone() {
    struct Guard<'a>(&'a Cell<bool>);
    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    let runs = Runs::none();
    let released = Cell::new(false);

    #[api_resilient(operation_name = "held")]
    async fn work(
        _guard: Guard<'_>,
        _: Guard<'_>,
        runs: &Runs,
    ) -> Result<(), CallError<io::Error>> {
        runs.fail_twice()?;
        Ok(())
    }

    work(Guard(&released), Guard(&released), &runs).await.unwrap();
    assert!(released.get());
    assert_eq!(runs.count(), 3);
}

/// The function keeps what is written on it.
///
/// # Errors
/// None.
#[must_use]
#[inline]
#[api_resilient(operation_name = "attributes")]
#[allow(clippy::unused_async)]
pub(crate) async fn with_attributes(
    #[cfg(not(test))] gone: Missing,
    #[cfg(test)] here: String,
) -> std::result::Result<String, CallError<io::Error>> {
    Ok(here)
}

#[api_resilient(operation_name = "inner_attributes")]
async fn with_an_inner_attribute() -> std::result::Result<(), CallError<io::Error>> {
    #![allow(unused_variables)]
    let unused = ();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn attributes_stay() {
    assert_eq!(with_attributes("x".to_owned()).await.unwrap(), "x");
    with_an_inner_attribute().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_macros_function_works() {
    macro_rules! getter {
        ($name:ident, $argument:ident: $type:ty, $answer:ty, $error:ty, $body:block) => {
            #[api_resilient(operation_name = "of_a_macro", timeout_seconds = 1)]
            async fn $name($argument: $type) -> Result<$answer, $error> $body
        };
    }
    getter!(get, key: &str, usize, CallError<io::Error>, { Ok(key.len()) });
    getter!(get_mine, key: String, usize, Error, { Ok(key.len()) });
    assert_eq!(get("key").await.unwrap(), 3);
    assert_eq!(get_mine("key".into()).await.unwrap(), 3);
}

/// `Box::new(error)` becomes the box of a trait object where the body's type is known.
#[tokio::test(start_paused = true)]
async fn an_early_return_is_coerced_as_in_any_function() {
    type Boxed = Box<dyn std::error::Error + Send + Sync>;

    #[api_resilient(operation_name = "coerced")]
    async fn parse(text: &str) -> Result<u32, CallError<Boxed>> {
        if text == "?" {
            return Err(Box::new(io::Error::from(io::ErrorKind::NotFound)));
        }
        let number = text.parse()?;
        if number == 0 {
            return Err("zero".into());
        }
        Ok(number)
    }

    assert_eq!(parse("7").await.unwrap(), 7);
    assert_eq!(parse("?").await.unwrap_err().attempts(), 1);
    assert!(parse("0").await.is_err());
    assert!(parse("x").await.is_err());
}

/// The error says what was called, though the function's type is that of any other.
#[tokio::test(start_paused = true)]
async fn a_function_may_return_what_the_standard_library_returns() {
    static RUNS: Runs = Runs::none();

    #[database_resilient(operation_name = "std_alias")]
    async fn read() -> io::Result<&'static str> {
        RUNS.fail_twice()
    }

    #[database_resilient(operation_name = "std_fails", max_attempts = 2)]
    async fn fails() -> io::Result<()> {
        Err(io::ErrorKind::ConnectionReset.into())
    }

    #[database_resilient(operation_name = "own_fails", max_attempts = 2)]
    fn fails_blocking() -> Result<(), Error> {
        Err(Error::from(io_end()))
    }

    fn io_end() -> CallError<io::Error> {
        let error = io::ErrorKind::NotFound.into();
        let (elapsed, effect) = (std::time::Duration::ZERO, mainstay_policy::Effect::Permanent);
        CallError::Backend { attempts: 1, elapsed, effect, error }
    }

    assert_eq!(read().await.unwrap(), "success");
    assert_eq!(RUNS.count(), 3);
    let error = fails().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let own = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    assert_eq!(own.attempts(), 2);
    assert!(own.to_string().starts_with("database:std_fails: std_fails stopped after 2"), "{own}");
    let own = fails_blocking().unwrap_err();
    assert!(own.to_string().starts_with("database:own_fails: own_fails failed after 1"), "{own}");
}
