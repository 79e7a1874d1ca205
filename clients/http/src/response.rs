//! A response whose body has been read.

use crate::classify::HttpFailure;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use mainstay_policy::Error;
use serde::de::DeserializeOwned;
use std::{borrow::Cow, fmt};

/// How much of a body that is no JSON an error shows, in characters.
const SHOWN: usize = 80;

/// A response, its body included.
#[derive(Clone)]
pub struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Response {
    /// The status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers. Content-Length and Content-Encoding are gone if the body was decompressed.
    #[must_use]
    pub const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The body, decompressed; cloning it copies nothing. Of a response inside an error it is the
    /// first 64 KiB.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.body
    }

    /// The body as UTF-8; what is not is replaced by `U+FFFD`.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When the body is no JSON: the status and its first 80 characters. When it is JSON of another
    /// shape: the status and the place, and none of its values.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|e| Error::invalid(self.not_json(&e)))
    }

    fn not_json(&self, error: &serde_json::Error) -> String {
        let (status, length) = (self.status.as_u16(), self.body.len());
        if length == 0 {
            return format!(
                "the response with status {status} has no body where JSON was expected; check the \
                 status first"
            );
        }
        let place = format!("line {}, column {}", error.line(), error.column());
        if error.is_data() {
            return format!(
                "the {length}-byte JSON of a response with status {status} is of another shape than \
                 the type asked for ({place}); check the status, then the type"
            );
        }
        let text = self.text();
        let begins: String = text.chars().take(SHOWN).collect();
        let more = if begins.len() < text.len() { "..." } else { "" };
        format!(
            "the {length}-byte body of a response with status {status} is not JSON ({place}); it \
             begins {begins:?}{more}"
        )
    }
}

impl fmt::Debug for Response {
    /// Headers and body may hold secrets: only their sizes are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("headers", &self.headers.len())
            .field("body", &self.body.len())
            .finish()
    }
}

/// The response inside an error, where there is one.
pub trait ErrorResponse {
    /// The response with a failing status: its headers, and the first 64 KiB of its body.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn main_(api: mainstay_http::HttpClient) {
    /// use mainstay_http::ErrorResponse;
    ///
    /// if let Err(error) = api.get("users").await {
    ///     let status = error.response().map(|response| response.status());
    ///     eprintln!("{error} ({status:?})");
    /// }
    /// # }
    /// ```
    fn response(&self) -> Option<&Response>;
}

impl ErrorResponse for Error {
    fn response(&self) -> Option<&Response> {
        self.downcast_ref::<HttpFailure>().and_then(HttpFailure::response)
    }
}
