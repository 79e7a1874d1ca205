//! One request, as its caller describes it.

use crate::{
    base_url,
    body::RequestBody,
    client::HttpClient,
    download::Download,
    multipart::{Multipart, random_hex},
    response::Response,
    send::{Call, Target},
    trace,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use mainstay_policy::{Error, Idempotency};
use serde::Serialize;
use std::{fmt, future::IntoFuture, pin::Pin, time::Duration};

/// A request to be awaited, or to be streamed.
///
/// Awaiting it reads the body of the answer too, within the attempt, to the client's limit.
///
/// # Errors
/// Statuses 408, 425, 429, 500, 502, 503 and 504 that remain after the policy are an error that
/// [carries the response](crate::ErrorResponse); every other status is a response. What the caller
/// gave that cannot work is an error before anything is sent.
///
/// # Cancel safety
/// Dropping the future drops the attempt in flight and closes its connection. The server may have
/// got the request.
#[must_use = "a request is sent when it is awaited"]
pub struct Request {
    client: HttpClient,
    method: Method,
    /// Or the first thing that cannot work.
    target: Result<Target, Error>,
    headers: HeaderMap,
    body: RequestBody,
    keyed: bool,
    idempotent: Option<bool>,
    timeout: Option<Duration>,
    deadline: Option<Duration>,
    max_body: Option<usize>,
    trace: Option<String>,
    resume: bool,
}

impl fmt::Debug for Request {
    /// Path, headers and body may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("method", &self.method).finish_non_exhaustive()
    }
}

impl Request {
    pub(crate) fn new(client: HttpClient, method: Method, path: &str) -> Self {
        let target = target(&client, path);
        Self {
            client,
            method,
            target,
            headers: HeaderMap::new(),
            body: RequestBody::empty(),
            keyed: false,
            idempotent: None,
            timeout: None,
            deadline: None,
            max_body: None,
            trace: None,
            resume: false,
        }
    }

    fn refuse(mut self, problem: impl Into<String>) -> Self {
        if self.target.is_ok() {
            self.target = Err(Error::invalid(problem));
        }
        self
    }

    /// Sets a header, in place of the client's default of that name. With Range, compression is not
    /// asked for.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Ok(name), Ok(value)) => {
                self.headers.insert(name, value);
                self
            }
            (Err(_), _) => self.refuse("a header's name holds characters that HTTP forbids"),
            (Ok(name), Err(_)) => self.refuse(format!(
                "the value of header {name} holds characters that HTTP forbids, such as a line break"
            )),
        }
    }

    fn authorization(mut self, value: Option<HeaderValue>) -> Self {
        let Some(mut value) = value else {
            return self.refuse("the token holds characters that HTTP forbids in a header");
        };
        value.set_sensitive(true);
        self.headers.insert(header::AUTHORIZATION, value);
        self
    }

    /// `Authorization: Bearer ...`, in place of the client's.
    pub fn bearer_auth(self, token: &str) -> Self {
        self.authorization(HeaderValue::try_from(format!("Bearer {token}")).ok())
    }

    /// `Authorization: Basic ...`, in place of the client's.
    pub fn basic_auth(self, user: &str, password: &str) -> Self {
        self.authorization(base_url::basic(user.as_bytes(), password.as_bytes()))
    }

    /// Adds pairs to the query, after those of the base URL and of the path; none replaces another.
    ///
    /// # Examples
    /// ```
    /// # fn main_(api: mainstay_http::HttpClient) {
    /// let request = api.get("users").query(&[("page", "2"), ("sort", "name")]);
    /// # }
    /// ```
    pub fn query<T: Serialize + ?Sized>(mut self, pairs: &T) -> Self {
        match serde_urlencoded::to_string(pairs) {
            Ok(pairs) => {
                if let Ok(target) = &mut self.target {
                    base_url::append_query(&mut target.url, &pairs);
                }
                self
            }
            Err(_) => self.refuse(
                "the query cannot be written as pairs; give a list of pairs, a map, or a struct of \
                 plain fields",
            ),
        }
    }

    /// The body: bytes, text, or a stream. Sending bytes again copies nothing.
    pub fn body(mut self, body: impl Into<RequestBody>) -> Self {
        self.body = body.into();
        self
    }

    fn typed(mut self, content_type: &'static str, body: impl Into<RequestBody>) -> Self {
        // One that the caller has set stays.
        self.headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static(content_type));
        self.body(body)
    }

    /// The body as JSON, written once for all attempts.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => self.typed("application/json", body),
            Err(_) => self.refuse("the value cannot be written as JSON"),
        }
    }

    /// The body as an HTML form: pairs, a map, or a struct of plain fields.
    pub fn form<T: Serialize + ?Sized>(self, pairs: &T) -> Self {
        match serde_urlencoded::to_string(pairs) {
            Ok(body) => self.typed("application/x-www-form-urlencoded", body),
            Err(_) => self.refuse(
                "the form cannot be written as pairs; give a list of pairs, a map, or a struct of \
                 plain fields",
            ),
        }
    }

    /// The body as a form with files.
    pub fn multipart(mut self, form: Multipart) -> Self {
        let (content_type, body) = form.encode();
        match HeaderValue::try_from(content_type) {
            Ok(value) => {
                self.headers.insert(header::CONTENT_TYPE, value);
                self.body(body)
            }
            Err(_) => self.refuse("the form's boundary cannot be written"),
        }
    }

    /// Says that the server knows repeats by this key, which every attempt carries. A server that
    /// ignores it may do the work twice.
    pub fn idempotency_key(mut self, key: &str) -> Self {
        // draft-ietf-httpapi-idempotency-key-header: a string of RFC 8941, in quotes.
        if key.is_empty()
            || key.contains(['"', '\\'])
            || !key.bytes().all(|b| matches!(b, b' '..=b'~'))
        {
            return self.refuse(
                "the idempotency key is empty, or holds quotes, backslashes or other than ASCII; \
                 give letters and digits",
            );
        }
        self.keyed = true;
        self.header("idempotency-key", &format!("\"{key}\""))
    }

    /// [`Self::idempotency_key`] with a key of 128 random bits.
    pub fn with_idempotency_key(self) -> Self {
        self.idempotency_key(&random_hex())
    }

    /// Whether sending it twice is the same as once. Default: by the method, as RFC 9110 has it: yes
    /// for GET, HEAD, OPTIONS, TRACE, PUT and DELETE.
    pub const fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = Some(idempotent);
        self
    }

    /// The limit of one attempt of this request, in place of the policy's; the deadline is then twice
    /// that, unless the policy or [`Self::deadline`] sets one.
    pub const fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// The limit of this request as a whole, waits included, and of the body if it is streamed. The
    /// policy's deadline, or one around the call, holds too if it is earlier; the policy's bounds only
    /// the head of a streamed answer.
    pub const fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = Some(limit);
        self
    }

    /// The longest body that is read, in bytes after decompression, in place of the client's.
    pub const fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = Some(bytes);
        self
    }

    /// The W3C `traceparent` of this request, such as that of the request being served, in place of
    /// what the client's `trace_context` gives.
    pub fn traceparent(mut self, value: &str) -> Self {
        if !trace::is_valid(value) {
            let what = "the traceparent is not 00-{32 hex}-{16 hex}-{2 hex} in lower case";
            return self.refuse(what);
        }
        self.trace = Some(value.to_owned());
        self
    }

    /// For [`Self::stream`]: when a body breaks off, asks for the rest by Range, as long as the
    /// server's ETag (a strong one) says that it is still the same and the server sends the rest to
    /// its end. Compression is then not asked for; a body that is compressed all the same, or has no
    /// Content-Length, is not resumed. It gives up after five requests for the rest in a row that
    /// brought less than 64 KiB each. Default: a broken body is an error.
    pub const fn resume_by_range(mut self) -> Self {
        self.resume = true;
        self
    }

    fn idempotency(&self) -> Idempotency {
        let by_method = matches!(
            self.method,
            Method::GET
                | Method::HEAD
                | Method::OPTIONS
                | Method::TRACE
                | Method::PUT
                | Method::DELETE
        );
        // Nothing can be sent again, so an unknown outcome ends the call, whatever the method.
        if !self.body.is_replayable() {
            return Idempotency::Unsafe;
        }
        match self.idempotent {
            Some(true) => Idempotency::Safe,
            None if by_method => Idempotency::Safe,
            _ if self.keyed => Idempotency::Keyed,
            _ => Idempotency::Unsafe,
        }
    }

    pub(crate) fn into_call(mut self) -> Result<Call, Error> {
        let idempotency = self.idempotency();
        let options = &self.client.0.options;
        let traceparent = self.trace.or_else(|| options.trace.as_ref().and_then(|source| source()));
        if let Some(value) = traceparent.and_then(|value| HeaderValue::try_from(value).ok()) {
            self.headers.insert(HeaderName::from_static("traceparent"), value);
        }
        if self.resume || self.headers.contains_key(header::RANGE) {
            // A range is of the bytes as they are sent: a part of a compressed body is no use.
            let identity = HeaderValue::from_static("identity");
            self.headers.entry(header::ACCEPT_ENCODING).or_insert(identity);
        }
        Call::new(
            self.client,
            self.method,
            self.target?,
            self.headers,
            self.body,
            idempotency,
            (self.timeout, self.deadline, self.max_body),
        )
    }

    /// Sends it and returns as soon as the head of the answer is there: the attempt ends then, and
    /// what breaks off later is not repeated, unless [`Self::resume_by_range`] is set. How the body
    /// ends is told to the breaker.
    ///
    /// # Errors
    /// As for awaiting the request, of the head.
    ///
    /// # Cancel safety
    /// As for awaiting the request.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn main_(api: mainstay_http::HttpClient) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut body = api.get("export.csv").resume_by_range().stream().await?;
    /// let mut bytes = 0;
    /// while let Some(piece) = body.chunk().await? {
    ///     bytes += piece.len();
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn stream(self) -> Result<Download, Error> {
        let (resume, max_body) = (self.resume, self.max_body);
        Download::begin(self.into_call()?, resume, max_body).await
    }
}

fn target(client: &HttpClient, path: &str) -> Result<Target, Error> {
    let inner = &client.0;
    match &inner.base {
        Some(base) if !(inner.options.absolute_urls && base_url::is_absolute(path)) => {
            Ok(Target { url: base.join(path)?, elsewhere: false })
        }
        base => {
            if !base_url::is_absolute(path) {
                return Err(Error::invalid(
                    "the request path is not an absolute URL, and the client has no base URL; set \
                     MAINSTAY_HTTP_BASE_URL, or write https://host/path",
                ));
            }
            let url = base_url::absolute(path)?;
            let origin = url.origin().ascii_serialization();
            let elsewhere = base.as_ref().is_none_or(|base| base.origin() != origin);
            Ok(Target { url, elsewhere })
        }
    }
}

impl IntoFuture for Request {
    type Output = Result<Response, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        // Before the box, so that the future holds what is sent and not also what was asked for.
        match self.into_call() {
            Ok(call) => Box::pin(async move { call.whole().await }),
            Err(problem) => Box::pin(std::future::ready(Err(problem))),
        }
    }
}
