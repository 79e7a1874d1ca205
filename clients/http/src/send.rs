//! The one door to the policy: what one attempt of a request is, redirects included.

use crate::{
    body::{RequestBody, Watch},
    classify::HttpFailure,
    client::HttpClient,
    driver::Driver,
    incoming::{self, Begun, Head, Limits},
    pace::{Pace, Seen, Turn},
    redirect::{self, Hop},
    response::Response,
    retry_after::retry_after,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use mainstay_policy::{
    Attempt, BreakerState, CallError, Classify, Deadline, Decider, Error, Idempotency, Operation,
    Policy,
};
use reqwest::Url;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

const MAX_REDIRECTS: usize = 5;

/// In bytes: what the driver's own type for a URL can hold.
const LONGEST_URL: usize = 65_534;

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
    /// As `policy`.
    pace: Option<Arc<Pace>>,
    deadline: Option<Duration>,
    /// In bytes.
    max_body: usize,
    /// The server has answered 425.
    early: AtomicBool,
    /// When the next retry may be sent, while there are turns.
    turn: Mutex<Option<Turn>>,
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
        if target.url.as_str().len() > LONGEST_URL {
            return Err(Error::invalid(format!(
                "the request's URL is longer than {LONGEST_URL} bytes; send what is long in the body"
            )));
        }
        let (mut policy, mut pace) = (None, None);
        if target.elsewhere {
            let (other, its_pace) = client.policy_of(&target.url.origin().ascii_serialization())?;
            (policy, pace) = (Some(other), Some(its_pace));
        }
        if let Some(timeout) = timeout {
            policy = Some(policy.as_ref().unwrap_or(client.policy()).with_timeout(timeout));
        }
        let max_body = max_body.unwrap_or(client.0.options.max_body);
        Ok(Self {
            client,
            method,
            target,
            headers,
            body,
            idempotency,
            policy,
            pace,
            deadline,
            max_body,
            early: AtomicBool::new(false),
            turn: Mutex::default(),
        })
    }

    pub(crate) fn policy(&self) -> &Policy {
        self.policy.as_ref().unwrap_or(self.client.policy())
    }

    fn pace(&self) -> &Arc<Pace> {
        self.pace.as_ref().unwrap_or(&self.client.0.pace)
    }

    /// Whether requests are held back when the server asks for less load.
    fn slows_down(&self) -> bool {
        self.client.0.options.slow_down && self.policy().acts()
    }

    pub(crate) const fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    pub(crate) fn body_idle(&self) -> Duration {
        self.client.0.options.body_idle
    }

    /// In bytes.
    pub(crate) const fn max_body(&self) -> usize {
        self.max_body
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
            pace: self.pace.clone(),
            deadline: None,
            max_body: self.max_body,
            early: AtomicBool::new(false),
            turn: Mutex::default(),
        }
    }

    /// The answer with its body.
    pub(crate) async fn whole(&self) -> Result<Response, Error> {
        let driver = self.client.driver()?;
        self.run(self.operation(), |attempt| {
            let driver = &driver;
            async move {
                let seen = self.pace().seen();
                let rest = match self.read(self.head(driver, Some(attempt)).await?, seen)? {
                    Begun::Whole(response) => return Ok(response),
                    Begun::Rest(rest) => rest,
                };
                rest.await
            }
        })
        .await
    }

    /// The body of an answer, as far as it is there. Not `async`, or the future of every call would
    /// keep room for an answer that it does not hold.
    fn read(&self, answer: reqwest::Response, seen: Seen) -> Result<Begun<'_>, HttpFailure> {
        if HttpFailure::is_failing(answer.status()) {
            let failure = async move { Err(self.failure(answer, seen).await) };
            return Ok(Begun::Rest(Box::pin(failure)));
        }
        self.answered(seen);
        let limits = Limits { size: self.max_body, idle: self.body_idle() };
        let announced = incoming::announced(&self.method, &answer);
        let elsewhere = self.is_elsewhere(&answer);
        let begun = incoming::begin(answer, announced, limits);
        if !elsewhere {
            return begun;
        }
        match begun.map_err(HttpFailure::of_another_server)? {
            Begun::Rest(rest) => Ok(Begun::Rest(Box::pin(async {
                rest.await.map_err(HttpFailure::of_another_server)
            }))),
            whole => Ok(whole),
        }
    }

    /// The head of the answer, its body still to be read.
    pub(crate) async fn begin(&self) -> Result<Head, Error> {
        let driver = self.client.driver()?;
        let begin = self.run(self.operation().streamed(), |attempt| {
            let driver = &driver;
            async move {
                let seen = self.pace().seen();
                let answer = self.head(driver, Some(attempt)).await?;
                if HttpFailure::is_failing(answer.status()) {
                    return Err(Box::pin(self.failure(answer, seen)).await);
                }
                self.answered(seen);
                Ok((answer, attempt.number()))
            }
        });
        let (answer, attempts) = begin.await?;
        let announced = incoming::announced(&self.method, &answer);
        // After the head is told: that of a probe has closed the breaker.
        let own = !self.is_elsewhere(&answer);
        let begun = own.then(|| self.policy().breaker().generation());
        Ok(Head { answer, announced, attempts, begun })
    }

    fn operation(&self) -> Operation {
        let name = name(&self.method);
        if self.method.is_safe() && self.idempotency == Idempotency::Safe {
            Operation::read(name)
        } else {
            Operation::new(name, self.idempotency)
        }
    }

    async fn run<T, F, Fut>(&self, operation: Operation, attempt: F) -> Result<T, Error>
    where
        F: FnMut(Attempt) -> Fut,
        Fut: Future<Output = Result<T, HttpFailure>>,
    {
        // What is rare is boxed here and above, so that the usual call's future stays small.
        let mut deadline = self.deadline;
        if self.pace().is_on() && self.slows_down() {
            deadline = Box::pin(self.turn()).await?;
        }
        let end = match deadline {
            None => self.policy().run_in_turn(&operation, |left| self.hold(left), attempt).await,
            Some(deadline) => {
                let hold = |left| self.hold(left);
                let run = Box::pin(self.policy().run_in_turn(&operation, hold, attempt));
                Deadline::within(deadline).scope(run).await
            }
        };
        end.map_err(|error| self.error(error))
    }

    /// Waits until this request may be sent to a server that asked for less load; gives what is left
    /// of its deadline then.
    async fn turn(&self) -> Result<Option<Duration>, Error> {
        let policy = self.policy();
        // What will be refused anyway need not wait for it.
        if matches!(policy.breaker().state(), BreakerState::Open | BreakerState::Isolated) {
            return Ok(self.deadline);
        }
        let around = Deadline::current().map(Deadline::left);
        let limit = [self.deadline, policy.deadline(), around].into_iter().flatten().min();
        let started = Instant::now();
        match self.pace().turn(limit).await {
            Ok(()) => Ok(limit.map(|limit| limit.saturating_sub(started.elapsed()))),
            Err(wait) => {
                let (by, retry_after) = (Decider::Throttle, Some(wait));
                Err(self.error(CallError::Rejected { by, retry_after, opened_by: None }))
            }
        }
    }

    /// How long a retry has to wait still: it takes a turn, as a first attempt does, unless that would
    /// come too late.
    fn hold(&self, left: Duration) -> Option<Duration> {
        let mut held = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = held.take();
        if !self.pace().is_on() || !self.slows_down() {
            return None;
        }
        let now = Instant::now();
        let turn = match turn.filter(Turn::holds) {
            Some(turn) => turn,
            None => match self.pace().take_turn(now.checked_add(left)) {
                Ok(turn) => turn,
                Err(wait) => return Some(wait),
            },
        };
        // One that has come is used now.
        let wait = turn.at().checked_duration_since(now).filter(|wait| !wait.is_zero())?;
        *held = Some(turn);
        Some(wait)
    }

    #[inline]
    fn answered(&self, seen: Seen) {
        if self.pace().answered(seen) {
            self.policy().tell_slowed(None);
        }
    }

    pub(crate) fn error(&self, error: CallError<HttpFailure>) -> Error {
        // A POST that met 503 has an unknown outcome, which says nothing of when to come again.
        let hint = error.last().and_then(Classify::retry_after);
        Error::from_call(self.policy().name(), name(&self.method), error).or_retry_after(hint)
    }

    /// A failing status, with what is worth having of its body.
    async fn failure(&self, answer: reqwest::Response, seen: Seen) -> HttpFailure {
        let status = answer.status();
        let elsewhere = self.is_elsewhere(&answer);
        let hint = retry_after(answer.headers());
        let refused = status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::SERVICE_UNAVAILABLE && hint.is_some();
        let slows = refused && !elsewhere && self.slows_down();
        // Before the body is waited for: whoever comes meanwhile is to know.
        if slows && let Some(stop) = self.pace().refused(seen, hint) {
            self.policy().tell_slowed(Some(stop));
        }
        let response = incoming::of_failure(answer, self.max_body).await;
        let again = status == StatusCode::TOO_EARLY && self.early.swap(true, Relaxed);
        // A look: who does repeat it takes its turn then.
        let turn = slows.then(|| self.pace().wait()).flatten();
        let mut failure = HttpFailure::status(response, self.idempotency, again, turn);
        if elsewhere {
            failure = failure.of_another_server();
        }
        if self.body.is_spent() { failure.of_a_spent_body() } else { failure }
    }

    /// Whether a redirect has led to another server than the call is for.
    fn is_elsewhere(&self, answer: &reqwest::Response) -> bool {
        let may_be = self.client.0.options.redirects_elsewhere;
        may_be && answer.extensions().get::<Elsewhere>().is_some()
    }

    /// One attempt, to the head of the answer that counts.
    async fn head(
        &self,
        driver: &Driver,
        attempt: Option<Attempt>,
    ) -> Result<reqwest::Response, HttpFailure> {
        if self.body.is_empty_stream() {
            Box::pin(self.body.read_empty_stream()).await?;
        }
        // Only what may not be sent twice needs to know how far its bytes came; a double shows them as they are.
        let sent_once = self.idempotency == Idempotency::Unsafe;
        let watched = self.body.is_stream() || sent_once && matches!(driver, Driver::Reqwest(_));
        let watch = watched.then(Arc::<Watch>::default);
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

    /// What a failure means, given how far the body came.
    fn of_body(&self, failure: HttpFailure, watch: Option<&Arc<Watch>>) -> HttpFailure {
        match watch {
            Some(watch) if watch.failed.load(Relaxed) => failure.of_an_upload(),
            _ if self.body.is_spent() => failure.of_a_spent_body(),
            Some(watch) if watch.begun.load(Relaxed) => failure.of_a_begun_body(),
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
        watch: Option<&Arc<Watch>>,
    ) -> Result<reqwest::Response, HttpFailure> {
        let elsewhere = self.client.0.options.redirects_elsewhere;
        let mut from = self.first_hop();
        for _ in 0..MAX_REDIRECTS {
            let Some(next) = from.next(&answer, elsewhere) else { return Ok(answer) };
            // To its end, so that the connection can be used again.
            incoming::beginning(&mut answer, usize::MAX).await;
            let stays = next.url.origin() == self.target.url.origin();
            let sent = driver.execute(self.request(next.clone(), attempt, watch)?).await;
            answer = match sent {
                Err(failure) if !stays => return Err(failure.of_another_server()),
                sent => sent?,
            };
            if !stays {
                answer.extensions_mut().insert(Elsewhere);
            }
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
        watch: Option<&Arc<Watch>>,
    ) -> Result<reqwest::Request, HttpFailure> {
        let inner = &self.client.0;
        let Hop { url, method, defaults, secrets, body } = hop;
        let mut request = reqwest::Request::new(method, url);
        if body {
            *request.body_mut() = self.body.for_attempt(watch)?;
        }
        let headers = request.headers_mut();
        if !self.headers.is_empty() {
            headers.clone_from(&self.headers);
        }
        if defaults {
            for (name, value) in &inner.headers {
                headers.entry(name).or_insert_with(|| value.clone());
            }
        }
        if !secrets {
            // A value of the request's own, such as another tenant's key, is as secret as the default.
            for name in inner.headers.keys() {
                headers.remove(name);
            }
        }
        let left = attempt.and_then(|attempt| attempt.timeout());
        if let (Some(name), Some(left)) = (&inner.options.deadline_header, left) {
            let left = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            headers.insert(name.clone(), HeaderValue::from(left));
        }
        redirect::clean(headers, secrets, body);
        Ok(request)
    }
}

/// Marks an answer to which a redirect led, of another server than the call is for.
#[derive(Clone, Copy)]
struct Elsewhere;

/// Of a health check's answer, so much is read and waited for; a longer one ends with its connection.
const WORTH_A_CONNECTION: usize = 64 * 1024;
const WAIT_FOR_A_BODY: Duration = Duration::from_millis(200);

/// One attempt past the policy, for a health check.
pub(crate) async fn ask(call: &Call, driver: &Driver) -> Result<StatusCode, HttpFailure> {
    let mut answer = call.head(driver, None).await?;
    let status = answer.status();
    // Read to its end, the connection serves the next probe too; the status is known in any case.
    let rest = async {
        let mut left = WORTH_A_CONNECTION;
        while let Ok(Some(piece)) = answer.chunk().await {
            left = left.checked_sub(piece.len())?;
        }
        Some(())
    };
    let _ = tokio::time::timeout(WAIT_FOR_A_BODY, rest).await;
    Ok(status)
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
