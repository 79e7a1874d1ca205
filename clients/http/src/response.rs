//! A response whose body has been read.

use crate::{classify::HttpFailure, incoming::FAILURE_BODY};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use mainstay_policy::Error;
use serde::de::DeserializeOwned;
use std::{borrow::Cow, fmt};

/// How much of a Content-Type, or of a page's first tag, an error shows, in bytes.
const SHOWN: usize = 40;

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

    /// This response, unless its status says that the request was refused or failed, 400 to 599: that
    /// is an error then, as are those that the policy has repeated in vain.
    ///
    /// # Errors
    /// When the status is 4xx or 5xx. The error [carries the response](ErrorResponse), with the first 64
    /// KiB of its body.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn main_(api: mainstay_http::HttpClient) -> Result<(), mainstay_http::Error> {
    /// let users: Vec<String> = api.get("users").await?.error_for_status()?.json()?;
    /// # Ok(()) }
    /// ```
    pub fn error_for_status(mut self) -> Result<Self, Error> {
        if !self.status.is_client_error() && !self.status.is_server_error() {
            return Ok(self);
        }
        if self.body.len() > FAILURE_BODY {
            // What is kept must not keep the rest.
            self.body = Bytes::copy_from_slice(&self.body[..FAILURE_BODY]);
        }
        let failure = HttpFailure::answered(self);
        Err(Error::unusable(failure.to_string(), Some(Box::new(failure))))
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When the body is no JSON, or JSON of another shape: the status, the place, the Content-Type,
    /// and of a page the name of its first tag. Nothing else of it, which may hold a token:
    /// [`Self::text`] has it all. The server did answer, so it is of the kind
    /// [`Backend`](mainstay_policy::ErrorKind::Backend).
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|e| Error::unusable(self.not_json(&e), None))
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
        let typed = self.content_type().map(|typed| format!(" of type {typed}"));
        let begins = self.first_tag().map(|tag| format!("; it begins with {tag}"));
        format!(
            "the {length}-byte body{} of a response with status {status} is not JSON ({place}){}; \
             text() has it",
            typed.unwrap_or_default(),
            begins.unwrap_or_default()
        )
    }

    /// Without its parameters, and nothing that is not one.
    fn content_type(&self) -> Option<&str> {
        let value = self.headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let typed = value.split(';').next()?.trim();
        let letters = typed.bytes().all(|b| b.is_ascii_alphanumeric() || b"/+-.".contains(&b));
        (letters && typed.len() <= SHOWN && typed.contains('/')).then_some(typed)
    }

    /// Of a page or of XML, such as a proxy's in the server's place: the name of its first tag, since
    /// attributes and text may hold secrets, as forms and tokens do.
    fn first_tag(&self) -> Option<String> {
        let text = self.body.trim_ascii_start();
        // As many systems begin a text.
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        let text = text.strip_prefix(b"<")?;
        let letter = |b: &u8| b.is_ascii_alphabetic() || matches!(b, b'!' | b'?' | b':' | b'-');
        let length = text.iter().take(SHOWN).take_while(|b| letter(b)).count();
        let (name, rest) = text.split_at(length);
        let ends = rest.first().is_some_and(|b| b.is_ascii_whitespace() || b"/>".contains(b));
        (length > 0 && ends).then(|| format!("<{}>", String::from_utf8_lossy(name)))
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
