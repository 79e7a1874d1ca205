//! One request, built once and sent once per attempt.

use crate::{
    classify::HttpFailure,
    client::{FOLLOW, HttpClient},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use mainstay_policy::{Error, Idempotency, Operation};
use serde::Serialize;
use std::{fmt, future::IntoFuture, pin::Pin};

/// A request to be awaited.
#[must_use = "a request is sent when it is awaited"]
pub struct Request {
    client: HttpClient,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    keyed: bool,
    problem: Option<Error>,
}

impl fmt::Debug for Request {
    /// Path, headers and body may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("method", &self.method).finish_non_exhaustive()
    }
}

impl Request {
    pub(crate) fn new(client: HttpClient, method: Method, path: &str) -> Self {
        let (path, headers, body) = (path.to_owned(), HeaderMap::new(), Bytes::new());
        Self { client, method, path, headers, body, keyed: false, problem: None }
    }

    /// Adds a header; a name or value that HTTP does not allow is an error when awaited.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Ok(name), Ok(value)) => {
                self.headers.insert(name, value);
            }
            _ => {
                let what = "a header's name or value holds characters that HTTP does not allow";
                self.problem = Some(Error::invalid(what));
            }
        }
        self
    }

    /// Says that the server knows repeats by this key: every attempt carries it.
    pub fn idempotency_key(mut self, key: &str) -> Self {
        self.keyed = true;
        self.header("idempotency-key", &format!("\"{key}\""))
    }

    /// The body; repeating it copies nothing.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// The body as JSON.
    pub fn json<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => {
                self.body = body.into();
                let json = HeaderValue::from_static("application/json");
                self.headers.insert(header::CONTENT_TYPE, json);
            }
            Err(_) => self.problem = Some(Error::invalid("the value cannot be written as JSON")),
        }
        self
    }

    fn operation(&self) -> Operation {
        let (name, idempotency) = match self.method {
            Method::GET => ("GET", Idempotency::Safe),
            Method::HEAD => ("HEAD", Idempotency::Safe),
            Method::PUT => ("PUT", Idempotency::Safe),
            Method::DELETE => ("DELETE", Idempotency::Safe),
            Method::PATCH => ("PATCH", Idempotency::Unsafe),
            _ => ("POST", Idempotency::Unsafe),
        };
        let keyed = self.keyed && idempotency == Idempotency::Unsafe;
        Operation::new(name, if keyed { Idempotency::Keyed } else { idempotency })
    }

    async fn send(self) -> Result<Response, Error> {
        let operation = self.operation();
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let url = self.client.base().join(&self.path)?;
        let driver = self.client.reqwest()?;
        let limit = self.client.max_body();
        let policy = self.client.policy();
        let end = policy
            .run(&operation, |_| {
                let request = driver
                    .request(self.method.clone(), url.clone())
                    .headers(self.headers.clone())
                    .body(self.body.clone());
                let idempotency = operation.idempotency();
                async move { attempt(request, limit, idempotency).await }
            })
            .await;
        end.map_err(|error| Error::from_call(policy.name(), operation.name(), error))
    }
}

async fn attempt(
    request: reqwest::RequestBuilder,
    limit: usize,
    idempotency: Idempotency,
) -> Result<Response, HttpFailure> {
    let follow = idempotency != Idempotency::Unsafe;
    let sent = FOLLOW.scope(follow, request.send()).await;
    let mut answer = sent.map_err(HttpFailure::transport)?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut body = BytesMut::new();
    let mut over = false;
    while let Some(piece) = answer.chunk().await.map_err(HttpFailure::body)? {
        let room = limit - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.len() > room {
            over = true;
            break;
        }
    }
    // A failing status counts as that failure, with the piece of its body that fits.
    let response = Response { status, headers, body: body.freeze() };
    let response = HttpFailure::status(response, idempotency)?;
    if over { Err(HttpFailure::too_large(limit)) } else { Ok(response) }
}

impl IntoFuture for Request {
    type Output = Result<Response, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}
