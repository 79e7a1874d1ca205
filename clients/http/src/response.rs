//! A response whose body has been read.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use mainstay_policy::Error;
use serde::de::DeserializeOwned;
use std::fmt;

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
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The body; cloning it copies nothing.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.body
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// The status, the size and where the JSON ends to be right, when it is not what was expected.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|e| {
            Error::invalid(format!(
                "the {}-byte body of a response with status {} is not the JSON expected \
                 (line {}, column {}); check the type asked for",
                self.body.len(),
                self.status.as_u16(),
                e.line(),
                e.column()
            ))
        })
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
