//! The one door to the policy: what one attempt of a request is, redirects included.

use crate::{
    body::RequestBody,
    classify::HttpFailure,
    client::HttpClient,
    driver::Driver,
    incoming::{self, Limits},
    redirect::Hop,
    response::Response,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use mainstay_policy::{Attempt, CallError, Deadline, Error, Idempotency, Operation, Policy};
use reqwest::Url;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

const MAX_REDIRECTS: usize = 5;

/// Where a request goes.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) url: Url,
    /// Another origin than the base's, which gets no default header.
    pub(crate) elsewhere: bool,
}

/// A request that is ready to be sent, any number of times.
pub(crate) struct Call {
    client: HttpClient,
    method: Method,
    target: Target,
    headers: HeaderMap,
    body: RequestBody,
    idempotency: Idempotency,
    /// `None`: the client's own.
    policy: Option<Policy>,
    deadline: Option<Duration>,
    limits: Limits,
    /// The server has answered 425.
    early: AtomicBool,
}

/// What a streamed body needs to know beside the answer.
pub(crate) struct Head {
    pub(crate) answer: reqwest::Response,
    pub(crate) attempts: u32,
}

impl Call {
    pub(crate) fn new(
        client: HttpClient,
        method: Method,
        target: Target,
        headers: HeaderMap,
        body: RequestBody,
        idempotency: Idempotency,
        (timeout, deadline, max_body): (Option<Duration>, Option<Duration>, Option<usize>),
    ) -> Result<Self, Error> {
        let mut policy = None;
        if target.elsewhere {
            policy = Some(client.policy_of(&target.url.origin().ascii_serialization())?);
        }
        if let Some(timeout) = timeout {
            policy = Some(policy.as_ref().unwrap_or(client.policy()).with_timeout(timeout));
        }
        let options = &client.0.options;
        let size = max_body.unwrap_or(options.max_body);
        let limits = Limits { size, idle: options.body_idle };
        let early = AtomicBool::new(false);
        Ok(Self {
            client,
            method,
            target,
            headers,
            body,
            idempotency,
            policy,
            deadline,
            limits,
            early,
        })
    }

    pub(crate) fn policy(&self) -> &Policy {
        self.policy.as_ref().unwrap_or(self.client.policy())
    }

    pub(crate) const fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    pub(crate) const fn body_idle(&self) -> Duration {
        self.limits.idle
    }

    /// A GET whose answer is the whole of something.
    pub(crate) fn is_plain_get(&self) -> bool {
        self.method == Method::GET && !self.headers.contains_key(header::RANGE)
    }

    /// The same GET for what comes after so many bytes of this version.
    pub(crate) fn ranged(&self, from: u64, etag: &HeaderValue) -> Self {
        let mut headers = self.headers.clone();
        if let Ok(range) = HeaderValue::try_from(format!("bytes={from}-")) {
            headers.insert(header::RANGE, range);
        }
        headers.insert(header::IF_RANGE, etag.clone());
        Self {
            client: self.client.clone(),
            method: self.method.clone(),
            target: self.target.clone(),
            headers,
            body: RequestBody::empty(),
            idempotency: self.idempotency,
            policy: self.policy.clone(),
            deadline: None,
            limits: self.limits,
            early: AtomicBool::new(false),
        }
    }

    /// The answer with its body.
    pub(crate) async fn whole(&self) -> Result<Response, Error> {
        let driver = self.client.driver()?;
        self.run(|attempt| {
            let driver = &driver;
            async move {
                let mut answer = self.head(driver, Some(attempt)).await?;
                if HttpFailure::is_failing(answer.status()) {
                    return Err(Box::pin(self.failure(answer)).await);
                }
                let body = incoming::whole(&mut answer, &self.limits).await?;
                let status = answer.status();
                Ok(Response { status, headers: std::mem::take(answer.headers_mut()), body })
            }
        })
        .await
    }

    /// The head of the answer, its body still to be read.
    pub(crate) async fn begin(&self) -> Result<Head, Error> {
        let driver = self.client.driver()?;
        self.run(|attempt| {
            let driver = &driver;
            async move {
                let answer = self.head(driver, Some(attempt)).await?;
                if HttpFailure::is_failing(answer.status()) {
                    return Err(Box::pin(self.failure(answer)).await);
                }
                Ok(Head { answer, attempts: attempt.number() })
            }
        })
        .await
    }

    async fn run<T, F, Fut>(&self, attempt: F) -> Result<T, Error>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, HttpFailure>>,
    {
        // What is rare is boxed here and above, so that the usual call's future stays small.
        let operation = Operation::new(name(&self.method), self.idempotency);
        let end = match self.deadline {
            None => self.policy().run(&operation, attempt).await,
            Some(deadline) => {
                let run = Box::pin(self.policy().run(&operation, attempt));
                Deadline::within(deadline).scope(run).await
            }
        };
        end.map_err(|error| self.error(error))
    }

    pub(crate) fn error(&self, error: CallError<HttpFailure>) -> Error {
        // A POST that met 503 has an unknown outcome, which says nothing of when to come again.
        let hint = error.last().and_then(HttpFailure::retry_after);
        Error::from_call(self.policy().name(), name(&self.method), error).or_retry_after(hint)
    }

    /// A failing status, with what is worth having of its body.
    async fn failure(&self, mut answer: reqwest::Response) -> HttpFailure {
        let status = answer.status();
        let body = incoming::of_failure(&mut answer, self.limits.size).await;
        let response = Response { status, headers: std::mem::take(answer.headers_mut()), body };
        let again = status == StatusCode::TOO_EARLY && self.early.swap(true, Relaxed);
        let failure = HttpFailure::status(response, self.idempotency, again);
        if self.body.is_spent() { failure.of_a_spent_body() } else { failure }
    }

    /// One attempt, to the head of the answer that counts.
    async fn head(
        &self,
        driver: &Driver,
        attempt: Option<Attempt>,
    ) -> Result<reqwest::Response, HttpFailure> {
        let watch = self.body.is_stream().then(Arc::<AtomicBool>::default);
        let request = self.request(self.first_hop(), attempt, watch.as_ref())?;
        // In blocks, since what is borrowed in one keeps its room in the future until its end.
        let redirected = {
            match driver.execute(request).await {
                Ok(answer) if answer.status().is_redirection() && self.follows() => {
                    Box::pin(self.redirected(driver, answer, attempt, watch.as_ref()))
                }
                sent => return sent.map_err(|failure| self.of_body(failure, watch.as_ref())),
            }
        };
        redirected.await.map_err(|failure| self.of_body(failure, watch.as_ref()))
    }

    /// What a failure means, given that the body may be a stream.
    fn of_body(&self, failure: HttpFailure, watch: Option<&Arc<AtomicBool>>) -> HttpFailure {
        match watch {
            Some(failed) if failed.load(Relaxed) => failure.of_an_upload(),
            _ if self.body.is_spent() => failure.of_a_spent_body(),
            _ => failure,
        }
    }

    /// A request that must not be repeated is not redirected: after a redirect, "never sent" would
    /// be true of the second hop only, while the first may have done the work.
    const fn follows(&self) -> bool {
        !matches!(self.idempotency, Idempotency::Unsafe)
    }

    async fn redirected(
        &self,
        driver: &Driver,
        mut answer: reqwest::Response,
        attempt: Option<Attempt>,
        watch: Option<&Arc<AtomicBool>>,
    ) -> Result<reqwest::Response, HttpFailure> {
        let elsewhere = self.client.0.options.redirects_elsewhere;
        let mut from = self.first_hop();
        for _ in 0..MAX_REDIRECTS {
            let Some(next) = from.next(&answer, elsewhere) else { return Ok(answer) };
            // To its end, so that the connection can be used again.
            incoming::of_failure(&mut answer, usize::MAX).await;
            answer = driver.execute(self.request(next.clone(), attempt, watch)?).await?;
            from = next;
        }
        match from.next(&answer, elsewhere) {
            Some(_) => Err(HttpFailure::redirects(MAX_REDIRECTS)),
            None => Ok(answer),
        }
    }

    fn first_hop(&self) -> Hop {
        let (url, method) = (self.target.url.clone(), self.method.clone());
        Hop { url, method, defaults: !self.target.elsewhere, secrets: true, body: true }
    }

    fn request(
        &self,
        hop: Hop,
        attempt: Option<Attempt>,
        watch: Option<&Arc<AtomicBool>>,
    ) -> Result<reqwest::Request, HttpFailure> {
        let inner = &self.client.0;
        let mut headers = HeaderMap::new();
        if !self.headers.is_empty() {
            headers.clone_from(&self.headers);
        }
        if hop.defaults {
            for (name, value) in &inner.headers {
                headers.entry(name).or_insert_with(|| value.clone());
            }
        }
        let left = attempt.and_then(|attempt| attempt.timeout());
        if let (Some(name), Some(left)) = (&inner.options.deadline_header, left) {
            let left = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            headers.insert(name.clone(), HeaderValue::from(left));
        }
        hop.clean(&mut headers);
        let body = if hop.body { self.body.for_attempt(watch)? } else { None };
        let mut request = reqwest::Request::new(hop.method, hop.url);
        *request.headers_mut() = headers;
        *request.body_mut() = body;
        Ok(request)
    }
}

/// One attempt past the policy, for a health check.
pub(crate) async fn ask(call: &Call, driver: &Driver) -> Result<StatusCode, HttpFailure> {
    Ok(call.head(driver, None).await?.status())
}

fn name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::POST => "POST",
        _ => "request",
    }
}
