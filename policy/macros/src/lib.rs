//! The attributes of Mainstay: a policy around a function.
//!
//! ```
//! # extern crate mainstay_policy as mainstay;
//! use mainstay::{CallError, database_resilient};
//! use std::io;
//!
//! #[database_resilient(operation_name = "get_user", timeout_seconds = 2.5)]
//! async fn get_user(id: u32) -> Result<String, CallError<io::Error>> {
//!     load(id).await.map(|name| name.to_uppercase())
//! }
//! # async fn load(_: u32) -> io::Result<String> { Ok("John".to_owned()) }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), CallError<io::Error>> {
//! assert_eq!(get_user(7).await?, "JOHN");
//! # Ok(()) }
//! ```
//!
//! | attribute | around | timeout of an attempt | attempts | wait before a retry |
//! |---|---|---|---|---|
//! | [`macro@database_resilient`] | SQL | 30 s | 3 | 0.5 s to 10 s |
//! | [`macro@cache_resilient`] | a cache | 5 s | 2 | 0.1 s to 1 s |
//! | [`macro@api_resilient`] | an HTTP service | 60 s | 5 | 1 s to 30 s |
//! | [`macro@file_resilient`] | files, object stores | 10 s | 3 | 0.2 s to 5 s |
//! | [`macro@ml_resilient`] | models | 300 s | 2 | 5 s to 30 s |
//! | [`macro@resilient`] | anything | 5 s | 3 | 1 s to 30 s |
//!
//! # The signature
//!
//! The function is async or not, free or a method of `&self`, and returns a `Result`:
//!
//! | it returns | its body is typed |
//! |---|---|
//! | `Result<T, CallError<E>>` | `Result<T, E>` |
//! | `Result<T, E>`, with `E: From<CallError<E>>` | `Result<T, E>` |
//! | an alias named `Result`, such as `io::Result<T>`, whose error has that `From` | the same |
//!
//! In the first form the caller learns who decided, after how many attempts, and whether it may have
//! happened. In the others the error's own `From` says what is left of that, and the function can be
//! given the attribute without a change to its callers; `mainstay::Error` and `std::io::Error` have
//! that `From`, and say the dependency's name. An alias that hides a `CallError` does not work: write
//! the `Result` out.
//!
//! The body runs once for each attempt. Arguments are shared references, or are cloned for each
//! attempt. An argument that is named `_` or `_something`, and not used, need not be `Clone`. What
//! only one attempt could have is refused: `&mut` anything, and `self` by value.
//!
//! `#[tracing::instrument]` below the attribute has a span for the whole call. Above it the span is of each
//! attempt, and the signature cannot name `CallError`.
//!
//! A function that is not async runs on its caller's thread: time is checked between attempts, and
//! the body can ask `Deadline::current()` how long it has.
//!
//! # The policy
//!
//! Each function has one policy, built on its first call: the defaults of its kind, then settings of
//! file and environment, then the arguments. When settings cannot be used it warns and goes on
//! without them, as `Policy::database` does. Its breaker and budget are named
//! `{kind}:{operation_name}`, or as `dependency` says; functions with one name share them. Without an
//! `operation_name` that is the function's path, such as `shop::Users::get`. Around a client of the same
//! `dependency` a failure counts once, but `total_calls` has both calls, and both earn for the budget.
//!
//! # Arguments
//!
//! All are optional; seconds may have a fraction.
//!
//! | argument | meaning | default |
//! |---|---|---|
//! | `operation_name = "..."` | the name in errors, events and the breaker's name | the path |
//! | `operation_type = "..."` | only for `#[resilient]`: the kind | `"default"` |
//! | `dependency = "..."` | the whole name of breaker and budget, to share them | by name |
//! | `timeout_seconds = 2.5` | the limit of one attempt | by kind |
//! | `deadline_seconds = 5` | the limit of the whole call, waits included | twice the timeout |
//! | `max_attempts = 3` | attempts in all; 1 means no retries | by kind |
//! | `base_delay = 0.5` | the wait before the first retry, in seconds | by kind |
//! | `max_delay = 10` | the longest wait, in seconds | by kind |
//! | `exponential_base = 2` | what each wait is multiplied by | 2 |
//! | `jitter = "full"` | or `"equal"`, `"decorrelated"`, `"none"`; `true` is full, `false` none | full |
//! | `failure_threshold = 3` | failed calls in a row that open the breaker | by kind |
//! | `recovery_timeout = 30` | the longest break, in seconds | by kind |
//! | `retry_if = path` | a `fn(&E) -> bool`: whether this error is worth repeating | see below |
//! | `classify = true` | the error's own `Classify` says what it means | `false`: see below |
//! | `idempotent = false` | only what was never sent is repeated | `true` |
//! | `enable_timeout = false` | no limit of time | `true` |
//! | `enable_retry = false` | one attempt | `true` |
//! | `enable_circuit_breaker = false` | no breaker | `true` |
//!
//! Without `retry_if` and `classify` every error may pass and is a failure, except what this crate knows
//! better: its own errors, `std::io::Error`, and sqlx's of a missing row or a constraint. Around our clients
//! let the body's error be `mainstay::Error`: it says of all that they met what it means. Arguments that
//! contradict each other, or the kind's defaults where the other one is not given, do not compile.
//!
//! # For those who depend on `mainstay-policy` alone
//!
//! It has the same attributes under its feature `macros`. They name their crate: those of `mainstay`
//! say `::mainstay`, those of `mainstay-policy` say `::mainstay_policy`. Where a crate has another
//! name, `extern crate other as mainstay;` in the root makes it known under this one.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod expand;
mod parse;
mod validate;

use parse::{Arguments, Function};
use proc_macro::TokenStream;
use quote::quote;
use validate::{Call, Kind};

/// An attribute as it was written.
#[derive(Clone, Copy)]
struct Written {
    name: &'static str,
    /// `None`: `operation_type` says it.
    kind: Option<Kind>,
    /// The crate that its expansion names.
    root: &'static str,
}

fn attribute(written: Written, arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = match Function::parse(written.name, item.into()) {
        Ok(function) => function,
        Err(error) => return error.into_compile_error().into(),
    };
    let call = syn::parse::<Arguments>(arguments)
        .and_then(|arguments| Call::new(written, arguments, &function));
    match call {
        Ok(call) => expand::function(written.root, &call, &function).into(),
        Err(error) => {
            let (error, stub) = (error.into_compile_error(), expand::stub(&function));
            quote!(#error #stub).into()
        }
    }
}

/// Each attribute twice: for the crate `mainstay`, and for `mainstay-policy`, which exports it under
/// the same name.
macro_rules! attributes {
    ($($(#[$doc:meta])* $name:ident, $of_policy:ident: $kind:expr;)*) => {
        $(
            $(#[$doc])*
            #[proc_macro_attribute]
            pub fn $name(arguments: TokenStream, item: TokenStream) -> TokenStream {
                let name = stringify!($name);
                attribute(Written { name, kind: $kind, root: "mainstay" }, arguments, item)
            }

            $(#[$doc])*
            #[proc_macro_attribute]
            pub fn $of_policy(arguments: TokenStream, item: TokenStream) -> TokenStream {
                let name = stringify!($name);
                attribute(Written { name, kind: $kind, root: "mainstay_policy" }, arguments, item)
            }
        )*
    };
}

attributes! {
    /// A policy for SQL around a function: 30 s an attempt, 3 attempts, 0.5 s to 10 s between them; 3
    /// failed calls in a row open the breaker, for 30 s at most.
    ///
    /// [The crate's page](crate) says what the signature may be, and lists the arguments.
    ///
    /// # Examples
    /// ```
    /// # extern crate mainstay_policy as mainstay;
    /// use mainstay::{CallError, database_resilient};
    /// use std::io;
    ///
    /// struct Users;
    ///
    /// impl Users {
    ///     /// The caller gets the body's error, and what the policy did about it.
    ///     #[database_resilient(operation_name = "get_user")]
    ///     async fn get(&self, id: u32) -> Result<String, CallError<io::Error>> {
    ///         if id == 0 {
    ///             return Err(io::ErrorKind::NotFound.into());
    ///         }
    ///         Ok(format!("user {id}"))
    ///     }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), CallError<io::Error>> {
    /// assert_eq!(Users.get(7).await?, "user 7");
    /// let error = Users.get(0).await.unwrap_err();
    /// assert_eq!(error.attempts(), 1); // It would not be there the next time either.
    /// # Ok(()) }
    /// ```
    database_resilient, policy_database_resilient: Some(Kind::Database);

    /// A policy for a cache around a function: 5 s an attempt, 2 attempts, 0.1 s to 1 s between them;
    /// 3 failed calls in a row open the breaker, for 15 s at most.
    ///
    /// [The crate's page](crate) says what the signature may be, and lists the arguments.
    ///
    /// # Examples
    /// ```
    /// # extern crate mainstay_policy as mainstay;
    /// use mainstay::{CallError, cache_resilient};
    /// use std::io;
    ///
    /// #[cache_resilient(operation_name = "user_cache", timeout_seconds = 0.2)]
    /// async fn cached(key: &str) -> Result<Option<String>, CallError<io::Error>> {
    ///     Ok(Some(format!("value of {key}")))
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), CallError<io::Error>> {
    /// assert_eq!(cached("user:1").await?.as_deref(), Some("value of user:1"));
    /// # Ok(()) }
    /// ```
    cache_resilient, policy_cache_resilient: Some(Kind::Cache);

    /// A policy for an HTTP service around a function: 60 s an attempt, 5 attempts, 1 s to 30 s
    /// between them; 5 failed calls in a row open the breaker, for 60 s at most.
    ///
    /// [The crate's page](crate) says what the signature may be, and lists the arguments.
    ///
    /// # Examples
    /// A payment must not be made twice: `idempotent = false`. The function keeps its own error, so
    /// that error needs a `From` for what the policy says.
    /// ```
    /// # extern crate mainstay_policy as mainstay;
    /// use mainstay::{CallError, api_resilient};
    ///
    /// #[derive(Debug)]
    /// enum PaymentError {
    ///     Declined,
    ///     /// Look before paying again.
    ///     Unknown,
    ///     TryLater,
    /// }
    ///
    /// impl From<CallError<PaymentError>> for PaymentError {
    ///     fn from(error: CallError<PaymentError>) -> Self {
    ///         match error {
    ///             error if error.is_rejected() => Self::TryLater,
    ///             error => error.into_last().unwrap_or(Self::Unknown),
    ///         }
    ///     }
    /// }
    ///
    /// #[api_resilient(operation_name = "payment_api", idempotent = false, timeout_seconds = 30)]
    /// async fn pay(cents: u64) -> Result<u64, PaymentError> {
    ///     if cents > 10_000 { Err(PaymentError::Declined) } else { Ok(cents) }
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// assert!(matches!(pay(100).await, Ok(100)));
    /// assert!(matches!(pay(20_000).await, Err(PaymentError::Declined)));
    /// # }
    /// ```
    api_resilient, policy_api_resilient: Some(Kind::Api);

    /// A policy for files and object stores around a function: 10 s an attempt, 3 attempts, 0.2 s to
    /// 5 s between them; 3 failed calls in a row open the breaker, for 30 s at most.
    ///
    /// [The crate's page](crate) says what the signature may be, and lists the arguments.
    ///
    /// # Examples
    /// A function that is not async runs on its caller's thread.
    /// ```
    /// # extern crate mainstay_policy as mainstay;
    /// use mainstay::{CallError, file_resilient};
    /// use std::{fs, io, path::Path};
    ///
    /// #[file_resilient(operation_name = "read_model", max_attempts = 2)]
    /// fn read_model(path: &Path) -> Result<Vec<u8>, CallError<io::Error>> {
    ///     fs::read(path)
    /// }
    ///
    /// let error = read_model(Path::new("no/such/file")).unwrap_err();
    /// assert_eq!(error.last().map(io::Error::kind), Some(io::ErrorKind::NotFound));
    /// ```
    file_resilient, policy_file_resilient: Some(Kind::File);

    /// A policy for models around a function: 300 s an attempt, 2 attempts, 5 s to 30 s between them;
    /// 2 failed calls in a row open the breaker, for 120 s at most.
    ///
    /// [The crate's page](crate) says what the signature may be, and lists the arguments.
    ///
    /// # Examples
    /// ```
    /// # extern crate mainstay_policy as mainstay;
    /// use mainstay::{CallError, ml_resilient};
    ///
    /// #[ml_resilient(operation_name = "train", timeout_seconds = 600, enable_retry = false)]
    /// fn train(samples: Vec<f32>) -> Result<f32, CallError<String>> {
    ///     if samples.is_empty() {
    ///         return Err("no samples".to_owned());
    ///     }
    ///     Ok(samples.iter().sum())
    /// }
    ///
    /// assert_eq!(train(vec![1.0, 2.0]).ok(), Some(3.0));
    /// ```
    ml_resilient, policy_ml_resilient: Some(Kind::Ml);

    /// A policy around a function, of the kind that `operation_type` names: `"database"`, `"cache"`,
    /// `"api"`, `"file"`, `"ml"`, `"custom"` or `"default"`. Without it: 5 s an attempt, 3 attempts,
    /// 1 s to 30 s between them; 5 failed calls in a row open the breaker, for 60 s at most.
    ///
    /// [The crate's page](crate) says what the signature may be, and lists the arguments.
    ///
    /// # Examples
    /// ```
    /// # extern crate mainstay_policy as mainstay;
    /// use mainstay::{CallError, resilient};
    /// use std::io;
    ///
    /// fn may_pass(error: &io::Error) -> bool {
    ///     matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::TimedOut)
    /// }
    ///
    /// #[resilient(
    ///     operation_type = "custom",
    ///     operation_name = "critical_operation",
    ///     timeout_seconds = 15.0,
    ///     max_attempts = 5,
    ///     base_delay = 2.0,
    ///     max_delay = 30.0,
    ///     exponential_base = 1.5,
    ///     jitter = true,
    ///     failure_threshold = 3,
    ///     recovery_timeout = 45.0,
    ///     retry_if = may_pass,
    ///     enable_timeout = true,
    ///     enable_retry = true,
    ///     enable_circuit_breaker = true,
    /// )]
    /// async fn critical_operation(data: String) -> Result<usize, CallError<io::Error>> {
    ///     Ok(data.len())
    /// }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), CallError<io::Error>> {
    /// assert_eq!(critical_operation("data".to_owned()).await?, 4);
    /// # Ok(()) }
    /// ```
    resilient, policy_resilient: None;
}
