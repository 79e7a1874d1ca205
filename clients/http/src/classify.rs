//! What went wrong with one attempt; the only file that looks into reqwest's errors.

use crate::response::Response;
use http::StatusCode;
use mainstay_policy::{Classify, Idempotency, Outcome, Verdict};
use std::{
    error::Error as StdError,
    fmt,
    time::{Duration, SystemTime},
};

/// Why one attempt failed.
#[derive(Debug)]
pub struct HttpFailure {
    what: What,
    verdict: Verdict,
}

#[derive(Debug)]
enum What {
    Status(Box<Response>),
    Transport(reqwest::Error),
    TooLarge(usize),
}

impl HttpFailure {
    /// The response, if the server gave one.
    #[must_use]
    pub fn response(&self) -> Option<&Response> {
        match &self.what {
            What::Status(response) => Some(response),
            _ => None,
        }
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        Self { what: What::TooLarge(limit), verdict: Verdict::permanent() }
    }

    pub(crate) fn transport(error: reqwest::Error) -> Self {
        // The URL may hold secrets in its query.
        let error = error.without_url();
        let hyper = find::<hyper::Error>(&error);
        let verdict = if error.is_builder() || error.is_redirect() {
            Verdict::permanent().with_outcome(Outcome::Neutral)
        } else if error.is_connect() || hyper.is_some_and(hyper::Error::is_canceled) {
            Verdict::never_sent()
        } else {
            Verdict::unknown()
        };
        Self { what: What::Transport(error), verdict }
    }

    /// The answer had begun, so the request was sent whatever the error looks like.
    pub(crate) fn body(error: reqwest::Error) -> Self {
        Self { what: What::Transport(error.without_url()), verdict: Verdict::unknown() }
    }

    /// RFC 9110: a method that may be repeated is, after any of these; another only if the server
    /// refused before it did any work.
    pub(crate) fn status(response: Response, idempotency: Idempotency) -> Result<Response, Self> {
        let retry_after = retry_after(&response);
        let verdict = match response.status.as_u16() {
            408 => Verdict::unknown().with_outcome(Outcome::Neutral),
            425 => Verdict::transient().with_outcome(Outcome::Neutral),
            429 => Verdict::throttled(retry_after),
            503 if idempotency != Idempotency::Unsafe => {
                Verdict::throttled(retry_after).with_outcome(Outcome::Failure)
            }
            500 | 502 | 503 | 504 => Verdict::unknown(),
            _ => return Ok(response),
        };
        Err(Self { what: What::Status(Box::new(response)), verdict })
    }
}

/// The first error of this type; at an `io::Error` its payload is next, which `source()` skips.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(payload) => Some(payload),
            None => error.source(),
        };
    }
    None
}

impl Classify for HttpFailure {
    fn classify(&self) -> Verdict {
        self.verdict
    }

    fn code(&self) -> Option<String> {
        match &self.what {
            What::Status(response) => Some(response.status.as_u16().to_string()),
            _ => None,
        }
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
                write!(f, "the body is over the limit of {limit} bytes; raise max_body")
            }
            What::Transport(e) if e.is_connect() => {
                f.write_str(
                    "the server could not be reached; check that it runs and the base URL",
                )?;
                match find::<std::io::Error>(e) {
                    Some(io) => write!(f, " ({})", io.kind()),
                    None => Ok(()),
                }
            }
            What::Transport(e) if e.is_builder() => f.write_str("the request cannot be built"),
            What::Transport(e) if e.is_redirect() => f.write_str("too many redirects"),
            What::Transport(e) if e.is_decode() => {
                f.write_str("the body of the answer was cut off")
            }
            What::Transport(_) => f.write_str("the connection was lost before an answer"),
        }
    }
}

impl StdError for HttpFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.what {
            What::Transport(error) => Some(error),
            _ => None,
        }
    }
}

/// RFC 9110 section 10.2.3, both forms; anything else is ignored.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = |name| response.headers.get(name).and_then(|v| v.to_str().ok());
    let value = text(http::header::RETRY_AFTER)?.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let then = httpdate::parse_http_date(value).ok()?;
    let now = text(http::header::DATE).and_then(|d| httpdate::parse_http_date(d).ok());
    Some(then.duration_since(now.unwrap_or_else(SystemTime::now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_vectors() {
        let wait = |value: &str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("date", "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap());
            headers.insert("retry-after", value.parse().unwrap());
            retry_after(&Response { status: StatusCode::OK, headers, body: bytes::Bytes::new() })
        };
        assert_eq!(wait("120"), Some(Duration::from_secs(120)));
        assert_eq!(wait("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:07 GMT"), Some(Duration::ZERO));
        for bad in ["-1", "+3", "1.5", "", "soon"] {
            assert_eq!(wait(bad), None, "{bad}");
        }
    }
}
