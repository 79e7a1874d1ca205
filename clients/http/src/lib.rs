//! An HTTP client for one base URL, over reqwest and the policy engine.
//!
//! Awaiting a request reads the body too, inside the attempt, so a cut body is retried like any
//! failure. GET, HEAD, PUT and DELETE are repeated; POST and PATCH only when nothing was sent, when
//! the server refused before working (425, 429), or with an idempotency key. Statuses 408, 425, 429,
//! 500, 502, 503 and 504 that remain are an error; every other status is a response.
//!
//! Redirects are followed on the same origin, and never for a POST or PATCH without a key: its first
//! hop may have done the work, so the redirect itself is the response.
//!
//! ```no_run
//! # async fn main_() -> Result<(), mainstay_policy::Error> {
//! let api = mainstay_http::get_http_client_for("https://api.example.com/v1")?;
//! let users: Vec<String> = api.get("users").await?.json()?;
//! api.post("users").json(&"John").idempotency_key("order-17").await?;
//! # Ok(()) }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod base_url;
mod classify;
mod client;
mod health;
mod request;
mod response;

pub use classify::HttpFailure;
pub use client::{
    HttpClient, HttpClientBuilder, get_http_client, get_http_client_for, set_http_client,
};
pub use request::Request;
pub use response::Response;
