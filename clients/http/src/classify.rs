//! What went wrong with one attempt; the only file that looks into reqwest's errors.

use crate::{response::Response, retry_after::retry_after};
use http::StatusCode;
use mainstay_policy::{Classify, Effect, Error, Idempotency, Outcome, Verdict};
use rustls::{AlertDescription, CertificateError};
use std::{error::Error as StdError, fmt, time::Duration};

/// Why one attempt failed.
pub struct HttpFailure {
    what: What,
    verdict: Verdict,
}

enum What {
    Status(Box<Response>),
    Transport(reqwest::Error),
    /// The answer had begun.
    Body(reqwest::Error),
    TooLarge(usize),
    Stalled(Duration),
    /// It ended before its length.
    Short,
    OutOfTime,
    Redirects(usize),
    Upload(Option<Box<dyn StdError + Send + Sync>>),
    Changed,
    /// A test double's; whether the request had been sent.
    Lost(bool),
}

impl HttpFailure {
    /// The response, if the server gave one with a failing status.
    #[must_use]
    pub const fn response(&self) -> Option<&Response> {
        match &self.what {
            What::Status(response) => Some(response),
            _ => None,
        }
    }

    const fn of(what: What, verdict: Verdict) -> Self {
        Self { what, verdict }
    }

    /// Our own limit: the server did answer.
    pub(crate) const fn too_large(limit: usize) -> Self {
        Self::of(What::TooLarge(limit), Verdict::permanent())
    }

    /// No more of the body came.
    pub(crate) const fn stalled(idle: Duration) -> Self {
        Self::of(What::Stalled(idle), Verdict::unknown())
    }

    /// The body was over before its length, with no error: so a stream of HTTP/2 ends that the server
    /// resets with NO_ERROR.
    pub(crate) const fn short() -> Self {
        Self::of(What::Short, Verdict::unknown())
    }

    /// The caller's own deadline: it says nothing about the server.
    pub(crate) const fn out_of_time() -> Self {
        Self::of(What::OutOfTime, Verdict::permanent().with_outcome(Outcome::Neutral))
    }

    pub(crate) const fn redirects(most: usize) -> Self {
        Self::of(What::Redirects(most), Verdict::permanent().with_outcome(Outcome::Neutral))
    }

    /// A body that is there once was read by an attempt before.
    pub(crate) const fn spent() -> Self {
        Self::of(What::Upload(None), Verdict::permanent().with_outcome(Outcome::Neutral))
    }

    /// What was to be resumed is no longer what it was.
    pub(crate) const fn changed() -> Self {
        Self::of(What::Changed, Verdict::permanent().with_outcome(Outcome::Neutral))
    }

    /// A test double's connection, lost before (`sent` is false) or after the request was sent.
    pub(crate) const fn lost(sent: bool) -> Self {
        let verdict = if sent { Verdict::unknown() } else { Verdict::never_sent() };
        Self::of(What::Lost(sent), verdict)
    }

    /// The caller's stream gave an error: not the server's fault, and not to be repeated, though
    /// part of it was sent.
    pub(crate) fn upload(error: impl StdError + Send + Sync + 'static) -> Self {
        let verdict = Verdict::permanent().with_outcome(Outcome::Neutral);
        Self::of(What::Upload(Some(Box::new(error))), verdict)
    }

    /// As [`Self::upload`], of what the driver made of it.
    pub(crate) fn of_an_upload(self) -> Self {
        match self.what {
            What::Transport(error) => Self::upload(error),
            _ => self,
        }
    }

    /// Not our own limit, and not the caller's deadline.
    pub(crate) const fn is_of_the_server(&self) -> bool {
        matches!(self.what, What::Body(_) | What::Stalled(_) | What::Short)
    }

    /// Before the head of an answer.
    pub(crate) fn transport(error: reqwest::Error) -> Self {
        // The URL may hold secrets in its query.
        let error = error.without_url();
        let verdict = verdict_of(&error);
        Self::of(What::Transport(error), verdict)
    }

    /// The answer had begun, so the request was sent whatever the error looks like.
    pub(crate) fn body(error: reqwest::Error) -> Self {
        Self::of(What::Body(error.without_url()), Verdict::unknown())
    }

    /// Of a body whose attempt has ended: a failure that is not repeated.
    pub(crate) const fn after_head(mut self) -> Self {
        self.verdict = Verdict::permanent().with_outcome(Outcome::Failure);
        self
    }

    /// After the body of a request that cannot be sent again was begun, nothing is repeated, whatever
    /// the server said of it; and that nothing was sent is not known.
    pub(crate) fn of_a_spent_body(mut self) -> Self {
        self.verdict = match self.verdict.effect {
            Effect::NeverSent => Verdict::unknown(),
            Effect::Transient | Effect::Throttled { .. } => {
                Verdict::permanent().with_outcome(self.verdict.outcome)
            }
            _ => self.verdict,
        };
        self
    }

    /// The driver had sent the head: where the peer goes away, it was this peer that gave the request up.
    pub(crate) fn of_a_begun_body(mut self) -> Self {
        if matches!(&self.what, What::Transport(error) if is_given_up(error)) {
            self.verdict = Verdict::never_sent().with_outcome(Outcome::Neutral);
        }
        self
    }

    /// A redirect led there: it says nothing of the server whose breaker this is.
    pub(crate) const fn of_another_server(mut self) -> Self {
        self.verdict = self.verdict.with_outcome(Outcome::Neutral);
        self
    }

    /// Whether a status is a failure; the rest are answers.
    pub(crate) const fn is_failing(status: StatusCode) -> bool {
        matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
    }

    /// An answer as any other, which whoever asked cannot use.
    pub(crate) fn answered(response: Response) -> Self {
        Self::of(What::Status(Box::new(response)), Verdict::permanent())
    }

    /// RFC 9110: a method that may be repeated is, after any of these; another only if the server
    /// refused before it did any work. `again` says that the server has answered 425 before, `turn` is
    /// how long the next request waits.
    pub(crate) fn status(
        response: Response,
        idempotency: Idempotency,
        again: bool,
        turn: Option<Duration>,
    ) -> Self {
        // Of the others [`Classify::retry_after`] tells: they say when to come again, and not that nothing
        // was done.
        let hint = retry_after(&response.headers).max(turn);
        let verdict = match response.status.as_u16() {
            408 => Verdict::unknown().with_outcome(Outcome::Neutral),
            // The second attempt does not come early: if it is refused too, so will be a third.
            425 if again => Verdict::permanent().with_outcome(Outcome::Neutral),
            425 => Verdict::transient().with_outcome(Outcome::Neutral),
            429 => Verdict::throttled(hint),
            503 if !matches!(idempotency, Idempotency::Unsafe) => {
                Verdict::throttled(hint).with_outcome(Outcome::Failure)
            }
            _ => Verdict::unknown(),
        };
        Self::of(What::Status(Box::new(response)), verdict)
    }
}

/// The table of what is known to have been sent.
fn verdict_of(error: &reqwest::Error) -> Verdict {
    if error.is_builder() || error.is_redirect() {
        return Verdict::permanent().with_outcome(Outcome::Neutral);
    }
    if Error::find_in::<rustls::Error>(error).is_some_and(is_about_certificates) {
        // The same certificate is there at the next attempt. As wrong credentials are elsewhere, it
        // is a failure of the dependency.
        return Verdict::permanent().with_outcome(Outcome::Failure);
    }
    if error.is_connect() {
        return Verdict::never_sent();
    }
    // The first of them: one that was cancelled wraps another that looks like half an answer.
    if Error::find_in::<hyper::Error>(error).is_some_and(hyper::Error::is_canceled) {
        return Verdict::never_sent();
    }
    if let Some(h2) = Error::find_in::<h2::Error>(error).filter(|h2| h2.is_remote()) {
        let (refused, calm) = (h2::Reason::REFUSED_STREAM, h2::Reason::ENHANCE_YOUR_CALM);
        if h2.is_reset() && h2.reason() == Some(refused) {
            // It said so itself, in good health.
            return Verdict::never_sent().with_outcome(Outcome::Neutral);
        }
        // A stream beyond the last that the peer has begun ends so, but also one that was sent as the GOAWAY
        // came in and that the peer does answer: hyper (1.12, `ClientTask::poll`) asks once more whether it may
        // send, takes the connection's end for the stream's, and answers in its place.
        if is_going_away(h2) || h2.reason() == Some(calm) {
            return Verdict::unknown().with_outcome(Outcome::Neutral);
        }
    }
    Verdict::unknown()
}

/// The peer takes no more streams, in good health.
fn is_going_away(h2: &h2::Error) -> bool {
    h2.is_remote() && h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR)
}

/// Streams that the peer did begin end with an error of their own.
fn is_given_up(error: &reqwest::Error) -> bool {
    Error::find_in::<h2::Error>(error).is_some_and(is_going_away)
}

const fn is_about_certificates(error: &rustls::Error) -> bool {
    use AlertDescription as A;
    matches!(
        error,
        rustls::Error::InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::UnsupportedNameType
            | rustls::Error::InvalidCertRevocationList(_)
            | rustls::Error::AlertReceived(
                A::BadCertificate
                    | A::UnsupportedCertificate
                    | A::CertificateRevoked
                    | A::CertificateExpired
                    | A::CertificateUnknown
                    | A::UnknownCA
                    | A::AccessDenied
                    | A::CertificateRequired
            )
    )
}

impl Classify for HttpFailure {
    fn classify(&self) -> Verdict {
        self.verdict
    }

    fn retry_after(&self) -> Option<Duration> {
        self.response().and_then(|response| retry_after(&response.headers))
    }

    fn code(&self) -> Option<String> {
        self.response().map(|response| response.status.as_u16().to_string())
    }
}

impl fmt::Debug for HttpFailure {
    /// Our own words, as everywhere; the driver's error is the source.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpFailure")
            .field("message", &format_args!("{self}"))
            .field("verdict", &self.verdict)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for HttpFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Status(r) if r.status == StatusCode::TOO_MANY_REQUESTS => {
                f.write_str("the server asks for less load (status 429)")
            }
            What::Status(r) => write!(f, "the server answered with status {}", r.status.as_u16()),
            What::TooLarge(limit) => {
                write!(
                    f,
                    "the body is over the limit of {limit} bytes; raise max_body, or stream it"
                )
            }
            What::Stalled(idle) => write!(f, "no more of the body came within {idle:?}"),
            What::OutOfTime => f.write_str("the body was not over by the deadline"),
            What::Redirects(most) => write!(f, "more than {most} redirects, perhaps in a circle"),
            What::Upload(None) => f.write_str(
                "the request's body is a stream that was read by an attempt before; give one that \
                 can be made again (streamed_by)",
            ),
            What::Upload(Some(_)) => f.write_str("the stream that is the request's body failed"),
            What::Changed => f.write_str(
                "what was being downloaded has changed on the server, or the rest of it was not \
                     sent as a whole; begin anew",
            ),
            What::Lost(true) => f.write_str("the connection was lost before an answer"),
            What::Lost(false) => f.write_str("the server could not be reached"),
            What::Short => f.write_str("the body of the answer was cut off"),
            What::Body(error) if error.is_timeout() => f.write_str("the body did not come in time"),
            What::Body(error) if is_broken(error) => {
                f.write_str("the body of the answer was cut off, or is garbled")
            }
            What::Body(_) => f.write_str("the body of the answer could not be decoded"),
            What::Transport(error) => transport_words(error, f),
        }
    }
}

fn is_broken(error: &reqwest::Error) -> bool {
    Error::find_in::<hyper::Error>(error).is_some() || Error::find_in::<h2::Error>(error).is_some()
}

fn transport_words(error: &reqwest::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(tls) =
        Error::find_in::<rustls::Error>(error).filter(|tls| is_about_certificates(tls))
    {
        return f.write_str(match tls {
            rustls::Error::AlertReceived(_) => {
                "the server does not accept our certificate; check client_certificate"
            }
            rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            ) => "the server's certificate has expired",
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => "the server's certificate is for another name; check the host in the base URL",
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                "the server's certificate is from an authority that is not trusted here; add it \
                 with ca_certificates"
            }
            _ => "the server's certificate is not valid",
        });
    }
    if error.is_builder() {
        return f.write_str(
            "the request cannot be built; check the host in the URL for characters that no name has",
        );
    }
    if error.is_connect() {
        if Error::find_in::<rustls::Error>(error).is_some() {
            return f.write_str(
                "what answered does not speak TLS as we do; check the scheme and the port in the \
                 base URL",
            );
        }
        // The driver does not say whether it was a proxy that it tried to reach.
        f.write_str(if error.is_dns() {
            "the name of the host could not be looked up; check the base URL, and the proxy if there \
             is one"
        } else if error.is_timeout() {
            "the server could not be reached: no connection in time; check that it runs, the base \
             URL, and the proxy if there is one"
        } else {
            "the server could not be reached; check that it runs, the base URL, and the proxy if \
             there is one"
        })?;
        return match Error::find_in::<std::io::Error>(error) {
            Some(io) if !error.is_dns() && !error.is_timeout() => write!(f, " ({})", io.kind()),
            _ => Ok(()),
        };
    }
    if Error::find_in::<hyper::Error>(error).is_some_and(hyper::Error::is_parse) {
        return f.write_str(
            "the answer is not HTTP, or its headers are too long; check the scheme and the port in \
             the base URL",
        );
    }
    if Error::find_in::<h2::Error>(error).is_some_and(|h2| h2.is_remote() && h2.is_reset()) {
        return f.write_str("the server gave the request up before an answer");
    }
    f.write_str("the connection was lost before an answer")
}

impl StdError for HttpFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.what {
            What::Transport(error) | What::Body(error) => Some(error),
            What::Upload(Some(error)) => Some(&**error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::{Read, ReadBufCursor, Write};
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    /// A connection that the peer has closed.
    struct Closed;

    impl Read for Closed {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Write for Closed {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A body that fails.
    struct Failing(Option<hyper::Error>);

    impl http_body::Body for Failing {
        type Data = bytes::Bytes;
        type Error = hyper::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, hyper::Error>>> {
            Poll::Ready(self.0.take().map(Err))
        }
    }

    /// reqwest's error with this one inside.
    async fn wrapped(error: hyper::Error) -> reqwest::Error {
        let answer = http::Response::new(reqwest::Body::wrap(Failing(Some(error))));
        reqwest::Response::from(answer).chunk().await.unwrap_err()
    }

    #[tokio::test]
    async fn what_was_cancelled_before_it_was_written_was_never_sent() {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(Closed).await.unwrap();
        let queued = sender.send_request(http::Request::new(reqwest::Body::default()));
        connection.await.unwrap();
        let cancelled = queued.await.unwrap_err();
        let within = cancelled.source().and_then(<dyn StdError>::downcast_ref::<hyper::Error>);
        assert!(within.is_some_and(hyper::Error::is_incomplete_message), "{cancelled:?}");
        let error = wrapped(cancelled).await;
        assert_eq!(verdict_of(&error), Verdict::never_sent(), "{error:?}");
    }
}
