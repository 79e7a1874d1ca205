//! A server's stand-in for tests, at the seam where the driver is: everything of ours before it,
//! retries, breaker, redirects, limits, is the real thing.

use crate::classify::HttpFailure;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde::Serialize;
use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

type Answers = dyn Fn(&SentRequest) -> Reply + Send + Sync;

/// Answers requests in the place of a server, and remembers them; clones share everything.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), mainstay_policy::Error> {
/// use mainstay_http::{HttpClient, HttpDouble, Reply};
/// use std::time::Duration;
///
/// let server = HttpDouble::new(|request| match request.number {
///     1 => Reply::status(503),
///     _ => Reply::json(&["John"]),
/// });
/// let api = HttpClient::builder("https://api.example.com")
///     .double(&server)
///     .policy(|p| p.base_delay(Duration::ZERO))
///     .build()?;
/// let users: Vec<String> = api.get("users").await?.json()?;
/// assert_eq!((users.len(), server.requests().len()), (1, 2));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct HttpDouble {
    answers: Arc<Answers>,
    seen: Arc<Mutex<Vec<SentRequest>>>,
}

impl fmt::Debug for HttpDouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpDouble").field("requests", &self.requests().len()).finish()
    }
}

/// A request as the server would have got it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SentRequest {
    /// Its place among all requests of the double, from 1.
    pub number: usize,
    /// Its method.
    pub method: Method,
    /// Where it goes, its query included.
    pub url: String,
    /// Its headers, without those that the driver adds, such as Host.
    pub headers: HeaderMap,
    /// Its body; `None` for a stream, which the double does not read.
    pub body: Option<Bytes>,
}

/// What the double does with a request.
#[derive(Clone)]
#[must_use]
pub struct Reply {
    what: What,
    after: Duration,
}

#[derive(Clone)]
enum What {
    Answer { status: StatusCode, headers: HeaderMap, body: Bytes, cut: bool },
    Refused,
    Lost,
    Silent,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.what {
            What::Answer { status, .. } => status.as_str(),
            What::Refused => "refused",
            What::Lost => "lost",
            What::Silent => "silent",
        };
        f.debug_struct("Reply").field("what", &what).field("after", &self.after).finish()
    }
}

impl Reply {
    const fn of(what: What) -> Self {
        Self { what, after: Duration::ZERO }
    }

    /// This status, without a body. One that no server could send, such as 42, becomes 500.
    pub fn status(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Self::of(What::Answer { status, headers, body, cut: false })
    }

    /// Status 200 with this body.
    pub fn body(body: impl Into<Bytes>) -> Self {
        Self::status(200).with_body(body)
    }

    /// Status 200 with this value as JSON; one that cannot be written gives no body.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Self {
        let body = serde_json::to_vec(value).unwrap_or_default();
        Self::body(body).with_header("content-type", "application/json")
    }

    /// The connection is refused: nothing was sent.
    pub const fn refused() -> Self {
        Self::of(What::Refused)
    }

    /// The connection is lost after the request was sent: nobody knows what came of it.
    pub const fn lost() -> Self {
        Self::of(What::Lost)
    }

    /// No answer ever comes.
    pub const fn silent() -> Self {
        Self::of(What::Silent)
    }

    /// With this body. Means nothing for a reply that is no answer.
    pub fn with_body(mut self, bytes: impl Into<Bytes>) -> Self {
        if let What::Answer { body, .. } = &mut self.what {
            *body = bytes.into();
        }
        self
    }

    /// With this header; one that HTTP does not allow is left out.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let What::Answer { headers, .. } = &mut self.what
            && let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name), HeaderValue::try_from(value))
        {
            headers.append(name, value);
        }
        self
    }

    /// The connection is lost after the body's bytes, before its end.
    pub fn cut_off(mut self) -> Self {
        if let What::Answer { cut, .. } = &mut self.what {
            *cut = true;
        }
        self
    }

    /// The reply comes after this time, by tokio's clock.
    pub const fn after(mut self, delay: Duration) -> Self {
        self.after = delay;
        self
    }
}

impl HttpDouble {
    /// A double that answers by this function, which is called once for each attempt.
    pub fn new(answers: impl Fn(&SentRequest) -> Reply + Send + Sync + 'static) -> Self {
        Self { answers: Arc::new(answers), seen: Arc::default() }
    }

    /// Every request so far, attempts and redirects counted one by one.
    #[must_use]
    pub fn requests(&self) -> Vec<SentRequest> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn execute(
        self,
        request: reqwest::Request,
    ) -> Result<reqwest::Response, HttpFailure> {
        let sent = self.note(&request);
        let Reply { what, after } = (self.answers)(&sent);
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
        match what {
            What::Answer { status, headers, body, cut } => Ok(answer(status, headers, body, cut)),
            What::Refused => Err(HttpFailure::lost(false)),
            What::Lost => Err(HttpFailure::lost(true)),
            What::Silent => std::future::pending().await,
        }
    }

    fn note(&self, request: &reqwest::Request) -> SentRequest {
        let body = match request.body() {
            Some(body) => body.as_bytes().map(Bytes::copy_from_slice),
            None => Some(Bytes::new()),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = SentRequest {
            number: seen.len() + 1,
            method: request.method().clone(),
            url: Url::as_str(request.url()).to_owned(),
            headers: request.headers().clone(),
            body,
        };
        seen.push(sent.clone());
        sent
    }
}

fn answer(status: StatusCode, headers: HeaderMap, body: Bytes, cut: bool) -> reqwest::Response {
    let body = if cut { reqwest::Body::wrap(Cut(Some(body))) } else { reqwest::Body::from(body) };
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.into()
}

/// Bytes, then an error where the end should be.
struct Cut(Option<Bytes>);

impl http_body::Body for Cut {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(Some(match self.0.take().filter(|body| !body.is_empty()) {
            Some(body) => Ok(http_body::Frame::data(body)),
            None => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }))
    }
}
