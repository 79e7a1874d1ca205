//! An HTTP client for one base URL, over reqwest and the policy engine.
//!
//! Awaiting a request reads the body too, inside the attempt, so a cut body is retried like any
//! failure; [`Request::stream`] gives it piece by piece instead. Statuses 408, 425, 429, 500, 502, 503
//! and 504 that remain are an error that [carries the response](ErrorResponse); every other status is
//! a response, which [`Response::error_for_status`] makes an error of where it is 4xx or 5xx.
//!
//! What is repeated (RFC 9110 section 9.2.2):
//!
//! | what happened | GET, HEAD, OPTIONS, PUT, DELETE, or with a key | POST, PATCH |
//! |---|---|---|
//! | nothing was sent: no connection, a name not found, HTTP/2's REFUSED_STREAM | yes | yes |
//! | HTTP/2's GOAWAY, in good health, instead of an answer | yes | if the body had been begun: else the request may have crossed the GOAWAY |
//! | 429; 425, once | yes | yes |
//! | connection lost, timeout, 408, 500, 502, 503, 504 | yes | no: it may have happened |
//! | a body that is cut off or stalls | yes | no |
//! | a certificate that is not valid, a body over the limit, too many redirects | no | no |
//!
//! Retry-After, in seconds or as a date, is the least that is waited, whichever of these statuses it comes
//! with; a wait beyond the deadline ends
//! the call at once, and the error says when to come again. 4xx and 429 never count against the
//! breaker, of which there is one for each scheme, host and port.
//!
//! A 429, or a 503 with Retry-After, slows down every request to its origin: until the time that the
//! server named, at most 30 s, nothing is sent there, and then one request after another with a gap
//! between them, 10 ms at first. Further refusals double the gap, to at most 1 s; each success
//! takes a sixteenth off, and a gap below 1 ms is none. A request whose turn would come after its
//! deadline is refused at once ([`Decider::Throttle`](mainstay_policy::Decider)), and the error says
//! when to come again; [`HttpClient::slowed_for`] tells it before.
//!
//! # Base URL
//!
//! A path is appended to the base URL's own path. What would leave its origin or that path is refused
//! before anything is sent, so that credentials never travel to another host. Characters that no URL
//! has are encoded, and what is encoded stays as it is.
//!
//! | base URL | path | asked |
//! |---|---|---|
//! | `http://h/v1`, `http://h/v1/` | `users`, `/users` | `http://h/v1/users` |
//! | `http://h/v1` | an empty one, `/` | `http://h/v1`, the base as it is written |
//! | `http://h/v1?key=1` | `users?q=2` | `http://h/v1/users?key=1&q=2` |
//! | `http://h/v1` | `users:cancel`, `a/../b`, `a b`, `a%20b` | `/v1/users:cancel`, `/v1/b`, `/v1/a%20b`, `/v1/a%20b` |
//! | `http://h/v1` | `users#top` | `/v1/users`: a fragment is never sent |
//! | `http://h/v1` | `../admin`, `%2e%2e/x`, `//evil/x`, `https://evil/x`, `\\evil`, ` a`, control characters | refused |
//!
//! [`path_of`] makes a path of values from elsewhere, each of which stays one segment.
//!
//! # Redirects
//!
//! Redirects are followed on the same origin, and never for a POST or PATCH without a key: its first
//! hop may have done the work, so the redirect itself is the response. Cookies are neither kept nor
//! sent, other than as headers that the caller sets.
//!
//! ```no_run
//! # async fn main_() -> Result<(), mainstay_policy::Error> {
//! let api = mainstay_http::get_http_client_for("https://api.example.com/v1")?;
//! let users: Vec<String> =
//!     api.get("users").query(&[("page", 2)]).await?.error_for_status()?.json()?;
//! api.post("users").json(&"John").idempotency_key("order-17").await?;
//! # Ok(()) }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod base_url;
mod body;
mod builder;
mod classify;
mod client;
mod dns;
mod double;
mod download;
mod driver;
mod file;
mod getters;
mod health;
mod incoming;
mod multipart;
mod pace;
mod redirect;
mod request;
mod response;
mod retry_after;
mod send;
mod trace;

pub use base_url::path_of;
pub use body::RequestBody;
pub use builder::HttpClientBuilder;
pub use classify::HttpFailure;
pub use client::HttpClient;
pub use double::{HttpDouble, Reply, SentRequest};
pub use download::Download;
pub use getters::{
    get_http_client, get_http_client_for, get_http_client_named, set_http_client,
    set_http_client_for, set_http_client_named,
};
pub use multipart::Multipart;
pub use request::Request;
pub use response::{ErrorResponse, Response};
// What stands in the signatures of these.
pub use bytes::Bytes;
pub use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
pub use mainstay_policy::Error;

/// Held by a test that resets everything, and by those that this would disturb.
#[cfg(test)]
static RESETS: std::sync::Mutex<()> = std::sync::Mutex::new(());
