//! What went wrong with one attempt; the only file that looks into the SDK's errors.

use crate::{credentials::Tried, transfer::OutOfTime};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    primitives::{ByteStreamError, DateTime, DateTimeFormat},
};
use mainstay_policy::{Classify, Effect, Error, Outcome, Verdict, settings};
use std::{
    error::Error as StdError,
    fmt, io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

type Source = Box<dyn StdError + Send + Sync>;

/// Why one attempt failed.
///
/// Its text names the bucket once a call is over, never the key; events of single attempts do
/// without both.
pub struct S3Failure {
    what: What,
    verdict: Verdict,
    code: Option<String>,
    status: Option<u16>,
    target: Option<Box<Target>>,
    source: Option<Source>,
    /// Another attempt of the same write may have done it.
    in_doubt: bool,
}

/// What a call was about, so far as it may be said.
struct Target {
    bucket: String,
    is_object: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Credentials,
    Setup,
    Connect,
    Transport,
    Timeout,
    /// No byte moved for so long.
    Stalled(Duration),
    Garbled,
    Body,
    /// The object is not the one the transfer began with.
    Changed,
    /// The object is not the one that a write's condition names.
    Condition,
    TooLong {
        length: Option<u64>,
        limit: u64,
    },
    /// The bytes that came, or the store's, are not what their checksum says.
    Damaged,
    Local(&'static str, PathBuf),
    NoObject,
    NoBucket,
    NotFound,
    Denied,
    WrongCredentials,
    WrongRegion(Option<String>),
    /// This machine's clock is off.
    Skewed,
    Throttled,
    Answer,
}

impl S3Failure {
    /// The error code of the store's answer, such as `NoSuchKey`; HEAD requests get none.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The status of the store's answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// The bucket or the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.what, What::NoObject | What::NoBucket | What::NotFound)
    }

    /// The object is not the version, or not as absent, as the condition of the request says.
    #[must_use]
    pub fn is_precondition_failed(&self) -> bool {
        matches!(self.what, What::Changed | What::Condition)
    }

    /// Nothing happened there, for certain.
    pub(crate) fn is_undone(&self) -> bool {
        self.verdict.effect != Effect::Unknown
    }

    pub(crate) fn in_doubt(mut self) -> Self {
        self.in_doubt = true;
        self
    }

    pub(crate) fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// New credentials may help. HEAD gives no code, and answers an expired token with 400.
    pub(crate) fn may_be_expired(&self) -> bool {
        match self.code() {
            Some(code) => matches!(code, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired"),
            None => self.status == Some(400),
        }
    }

    pub(crate) fn repeatable(mut self) -> Self {
        self.verdict = Verdict::transient().with_outcome(Outcome::Neutral);
        self
    }

    /// A 412 to a read that named its version, rather than to a transfer's next part.
    pub(crate) fn of_a_read(self) -> Self {
        if self.what == What::Changed { self.of_the_condition() } else { self }
    }

    /// A 416 to bytes of a version that has them: it is another by now.
    pub(crate) fn of_a_version(mut self) -> Self {
        if self.status == Some(416) {
            self.what = What::Changed;
        }
        self
    }

    /// Of one key among many, all of which were answered.
    pub(crate) fn is_of_a_key(&self) -> bool {
        self.status == Some(200) && self.source.is_none()
    }

    pub(crate) fn of_the_condition(mut self) -> Self {
        self.what = What::Condition;
        self
    }

    /// A download may find it right when it begins anew.
    pub(crate) fn begins_anew(&self) -> bool {
        self.what == What::Changed || self.is_damaged()
    }

    /// Of a transfer, all of which was moved.
    pub(crate) fn is_damaged(&self) -> bool {
        self.what == What::Damaged
    }

    /// Of a list that was asked for: the store has none, or answers with something else. An answer that broke off
    /// may have been one.
    pub(crate) fn is_no_list(&self) -> bool {
        let whole = self.status.is_some();
        (self.what == What::Garbled && whole) || matches!(self.status, Some(405 | 501))
    }

    /// The store asks for less load, in words (`SlowDown`) or by its status.
    pub(crate) fn is_throttled(&self) -> bool {
        self.what == What::Throttled || self.status == Some(503)
    }

    /// Refused for who we are, or for what we may not do.
    pub(crate) fn is_denied(&self) -> bool {
        self.what == What::Denied
    }

    fn new(what: What, verdict: Verdict, source: Option<Source>) -> Self {
        Self { what, verdict, code: None, status: None, target: None, source, in_doubt: false }
    }

    pub(crate) fn about(mut self, bucket: &str, is_object: bool) -> Self {
        self.target = Some(Box::new(Target { bucket: bucket.to_owned(), is_object }));
        self
    }

    pub(crate) fn changed() -> Self {
        Self::new(What::Changed, Verdict::permanent(), None)
    }

    pub(crate) fn other_bytes() -> Self {
        Self::new(What::Damaged, Verdict::permanent().with_outcome(Outcome::Failure), None)
    }

    /// An answer that does not fit the request.
    pub(crate) fn garbled() -> Self {
        Self::new(What::Garbled, Verdict::permanent(), None)
    }

    /// More bytes than the caller wants in memory.
    pub(crate) fn too_long(length: Option<u64>, limit: u64) -> Self {
        Self::new(What::TooLong { length, limit }, Verdict::permanent(), None)
    }

    /// A body that stood still for so long: of a request, the store does not have it all.
    pub(crate) fn stalled(idle: Duration) -> Self {
        Self::new(What::Stalled(idle), Verdict::transient(), None)
    }

    /// The bytes have been handed out: they cannot be asked for again.
    pub(crate) fn damaged() -> Self {
        Self::short().for_good()
    }

    /// Not to be repeated, and the server's fault.
    pub(crate) fn for_good(mut self) -> Self {
        self.verdict = Verdict::permanent().with_outcome(Outcome::Failure);
        self
    }

    /// What the store says of one key of many.
    pub(crate) fn of_a_key(code: &str, attempt: u32) -> Self {
        let (what, verdict) = judge(Some(code), 200, None, attempt);
        Self { code: Some(code.to_owned()), status: Some(200), ..Self::new(what, verdict, None) }
    }

    pub(crate) fn is_repeatable(&self) -> bool {
        self.verdict.effect != Effect::Permanent
    }

    #[cfg(test)]
    pub(crate) fn throttled() -> Self {
        Self::new(What::Throttled, Verdict::throttled(None), None)
    }

    /// A body shorter than it was announced.
    pub(crate) fn short() -> Self {
        Self::new(What::Body, Verdict::transient(), None)
    }

    pub(crate) fn body(error: ByteStreamError) -> Self {
        Self::new(What::Body, Verdict::transient(), Some(Box::new(error)))
    }

    pub(crate) fn local(doing: &'static str, path: PathBuf, error: io::Error) -> Self {
        let verdict = Verdict::permanent().with_outcome(Outcome::Neutral);
        Self::new(What::Local(doing, path), verdict, Some(Box::new(error)))
    }

    /// Whether this machine's disk was too slow for the deadline.
    pub(crate) fn out_of_time(&self) -> Option<OutOfTime> {
        let error = self.source.as_ref()?.downcast_ref::<io::Error>()?;
        OutOfTime::of(error)
    }

    /// The order matters: a `DispatchFailure` may be anything from a missing region to a reset.
    pub(crate) fn sdk<E>(error: SdkError<E, HttpResponse>, attempt: u32) -> Self
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let ours = Verdict::permanent().with_outcome(Outcome::Neutral);
        let on_the_wire = Error::find_in::<hyper::Error>(&error).is_some()
            || Error::find_in::<hyper_util::client::legacy::Error>(&error).is_some()
            || Error::find_in::<io::Error>(&error).is_some();
        let never_connected = Error::find_in::<hyper_util::client::legacy::Error>(&error)
            .is_some_and(hyper_util::client::legacy::Error::is_connect);
        let canceled =
            Error::find_in::<hyper::Error>(&error).is_some_and(hyper::Error::is_canceled);
        let (what, verdict) = if let SdkError::ServiceError(answer) = &error {
            return Self::answer(answer.err().code().map(str::to_owned), answer.raw(), attempt)
                .caused_by(error);
        } else if Error::find_in::<CredentialsError>(&error).is_some() {
            (What::Credentials, ours)
        } else {
            match &error {
                SdkError::TimeoutError(_) => (What::Timeout, Verdict::unknown()),
                SdkError::ResponseError(_) => (What::Garbled, Verdict::unknown()),
                SdkError::DispatchFailure(_) if never_connected => {
                    (What::Connect, Verdict::never_sent())
                }
                SdkError::DispatchFailure(_) if canceled => {
                    (What::Transport, Verdict::never_sent())
                }
                SdkError::DispatchFailure(d) if d.is_user() => (What::Setup, ours),
                SdkError::DispatchFailure(d) if d.is_timeout() => {
                    (What::Timeout, Verdict::unknown())
                }
                SdkError::DispatchFailure(d)
                    if d.is_io() || d.as_other().is_some() || on_the_wire =>
                {
                    (What::Transport, Verdict::unknown())
                }
                _ => (What::Setup, ours),
            }
        };
        Self::new(what, verdict, None).caused_by(error)
    }

    /// The same for a request that writes, whose 412 is about its condition.
    pub(crate) fn of_write<E>(error: SdkError<E, HttpResponse>, attempt: u32) -> Self
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let failure = Self::sdk(error, attempt);
        if failure.what == What::Changed { failure.of_the_condition() } else { failure }
    }

    fn caused_by(mut self, error: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(error));
        self
    }

    fn answer(code: Option<String>, raw: &HttpResponse, attempt: u32) -> Self {
        let status = raw.status().as_u16();
        let header = |name| raw.headers().get(name);
        let wait = retry_after(header("retry-after"), header("x-amz-retry-after"));
        // HEAD gives no code: a clock that is off looks like a lack of rights.
        let skewed = code.is_none() && status == 403 && attempt <= 1 && is_off(header("date"));
        let known = if skewed { Some("RequestTimeTooSkewed") } else { code.as_deref() };
        let (what, verdict) = judge(known, status, wait, attempt);
        let what = match what {
            What::WrongRegion(_) => {
                let named = || region_in(raw.body().bytes()?);
                let region = header("x-amz-bucket-region").map(str::to_owned).or_else(named);
                What::WrongRegion(region.filter(|region| is_region(region)))
            }
            what => what,
        };
        Self { code, status: Some(status), ..Self::new(what, verdict, None) }
    }
}

fn judge(code: Option<&str>, status: u16, wait: Option<Duration>, attempt: u32) -> (What, Verdict) {
    let neutral = Verdict::transient().with_outcome(Outcome::Neutral);
    // Worth one more attempt: the SDK has learnt the clock's offset, or the bytes were damaged.
    let once =
        if attempt <= 1 { neutral } else { Verdict::permanent().with_outcome(Outcome::Neutral) };
    let code = code.unwrap_or_default();
    match (code, status) {
        ("SlowDown" | "RequestLimitExceeded" | "BandwidthLimitExceeded", _) | (_, 429) => {
            (What::Throttled, Verdict::throttled(wait))
        }
        (code, _) if code.starts_with("Throttl") => (What::Throttled, Verdict::throttled(wait)),
        // In a 200 too: completing an upload begins to answer before it is done.
        ("InternalError", _) => (What::Answer, Verdict::unknown()),
        ("RequestTimeout" | "OperationAborted" | "ConditionalRequestConflict", _) | (_, 408) => {
            (What::Answer, neutral)
        }
        ("RequestTimeTooSkewed", _) => (What::Skewed, once),
        ("BadDigest" | "XAmzContentChecksumMismatch", _) => (What::Answer, once),
        ("NoSuchKey", _) => (What::NoObject, Verdict::permanent()),
        ("NoSuchBucket", _) => (What::NoBucket, Verdict::permanent()),
        ("ServiceUnavailable", 200) => (What::Answer, Verdict::transient()),
        ("PreconditionFailed", _) | (_, 412) => (What::Changed, Verdict::permanent()),
        (
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "NotSignedUp"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidSecurity",
            _,
        ) => {
            // Every caller of this client meets the same answer.
            (What::WrongCredentials, Verdict::permanent().with_outcome(Outcome::Failure))
        }
        ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) | (_, 301) => {
            (What::WrongRegion(None), Verdict::permanent())
        }
        // HEAD has no code: the object or its bucket.
        ("NotFound" | "", 404) => (What::NotFound, Verdict::permanent()),
        // In an archive: whoever asks may have it, once it has been brought back.
        ("InvalidObjectState", _) => (What::Answer, Verdict::permanent()),
        ("AccessDenied", _) | (_, 403) => (What::Denied, Verdict::permanent()),
        ("ServiceUnavailable", _) | (_, 503) => match wait {
            Some(_) => (What::Answer, Verdict::throttled(wait).with_outcome(Outcome::Failure)),
            None => (What::Answer, Verdict::transient()),
        },
        (_, 501 | 505) => (What::Answer, Verdict::permanent()),
        (_, 500..) => (What::Answer, Verdict::unknown()),
        // Neither what was asked for nor an error of S3's.
        ("", 200..=299) => (What::Garbled, Verdict::permanent()),
        _ => (What::Answer, Verdict::permanent()),
    }
}

/// Whether the server's clock is so far from ours that S3, which allows 15 minutes, refuses us.
fn is_off(date: Option<&str>) -> bool {
    let theirs = date.and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok());
    let Some(theirs) = theirs.and_then(|date| SystemTime::try_from(date).ok()) else {
        return false;
    };
    let ours = SystemTime::now();
    let apart = ours.duration_since(theirs).or_else(|_| theirs.duration_since(ours));
    apart.is_ok_and(|apart| apart > Duration::from_secs(14 * 60))
}

/// The region that an answer's XML names.
fn region_in(body: &[u8]) -> Option<String> {
    let text = str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<Region>")?;
    Some(rest.split_once("</Region>")?.0.to_owned())
}

/// The variable that sets the region.
fn region_variable() -> String {
    // Who has a client has settings.
    settings().map_or_else(|_| "the region".to_owned(), |all| all.variable("s3", "region"))
}

/// Only what a region looks like is repeated in our words.
fn is_region(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (1..=40).contains(&text.len()) && text.bytes().all(allowed)
}

/// Seconds, or milliseconds in Amazon's own header; dates are left to the normal backoff.
fn retry_after(seconds: Option<&str>, milliseconds: Option<&str>) -> Option<Duration> {
    let milliseconds = milliseconds.and_then(|text| text.parse().ok()).map(Duration::from_millis);
    milliseconds.or_else(|| seconds?.parse().ok().map(Duration::from_secs))
}

impl Classify for S3Failure {
    fn classify(&self) -> Verdict {
        self.verdict
    }

    fn code(&self) -> Option<String> {
        Self::code(self).map(str::to_owned)
    }
}

impl fmt::Display for S3Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bucket = match &self.target {
            Some(target) => format!("bucket `{}`", target.bucket),
            None => "bucket".to_owned(),
        };
        let object = match self.target.as_deref() {
            Some(Target { is_object: true, .. }) => format!("object in {bucket}"),
            Some(_) => bucket.clone(),
            None => "object".to_owned(),
        };
        match &self.what {
            What::Credentials => {
                f.write_str("no credentials were found")?;
                if let Some(tried) = self.source.as_deref().and_then(|e| Error::find_in::<Tried>(e))
                {
                    write!(f, ", having asked {tried}")?;
                }
                f.write_str(
                    "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give them to the builder, or \
                     choose anonymous()",
                )
            }
            What::Setup => f.write_str("the request cannot be built or signed; nothing was sent"),
            What::Connect => {
                let hint = "the server could not be reached; check that it runs and the endpoint";
                f.write_str(hint)?;
                match self.source.as_deref().and_then(|e| Error::find_in::<io::Error>(e)) {
                    // Of a name that is not found, or of TLS, the kind says nothing.
                    Some(error) if error.raw_os_error().is_none() => write!(f, " ({error})"),
                    Some(error) => write!(f, " ({})", error.kind()),
                    None => Ok(()),
                }
            }
            What::Transport => f.write_str("the connection broke before the answer"),
            What::Timeout => f.write_str("the server did not answer in time"),
            What::Stalled(idle) => write!(f, "no byte moved for {idle:?}, the idle timeout"),
            What::Garbled => f.write_str(
                "the answer does not fit the request; check that the endpoint speaks S3, with byte \
                 ranges and version 2 of listings",
            ),
            What::Body => f.write_str("the object's bytes were cut short or damaged on the way"),
            What::Changed => write!(f, "the {object} changed meanwhile; start again"),
            What::Condition => write!(
                f,
                "the {object} is not as the condition of the request says; read it and decide again"
            ),
            What::TooLong { length, limit } => {
                write!(f, "the {object} has ")?;
                match length {
                    Some(length) => write!(f, "{length} bytes, ")?,
                    None => f.write_str("more bytes ")?,
                }
                write!(f, "over the limit of {limit}; raise limit(), or use stream()")
            }
            What::Damaged => write!(
                f,
                "the {object} is not what its checksum says; it was damaged on the way or in the \
                 store, so send it again"
            ),
            What::Local(doing, path) => {
                write!(f, "local file `{}` cannot be {doing}", path.display())?;
                match self.source.as_deref().and_then(|e| Error::find_in::<io::Error>(e)) {
                    Some(error) => write!(f, ": {error}"),
                    None => Ok(()),
                }
            }
            What::NoObject => write!(f, "there is no such {object}; check key and bucket"),
            What::NoBucket => write!(f, "there is no {bucket}; create it or check the name"),
            What::NotFound => {
                write!(f, "there is no such {object}; check that it and the bucket exist")
            }
            What::Denied => {
                write!(f, "access to the {object} is denied")?;
                self.coded(f)?;
                f.write_str("; check what this client is allowed to do")
            }
            What::WrongCredentials => {
                f.write_str("the credentials are not accepted")?;
                self.coded(f)?;
                f.write_str("; check access key, secret and session token")
            }
            What::WrongRegion(Some(region)) => {
                write!(
                    f,
                    "the {bucket} is in region {region}; set {} or the builder's region() to it",
                    region_variable()
                )
            }
            What::WrongRegion(None) => {
                write!(f, "the {bucket} is in another region; check {}", region_variable())
            }
            What::Skewed => f.write_str(
                "this machine's clock and the server's differ too much; set this one right",
            ),
            What::Throttled => {
                f.write_str("the server asks for less load")?;
                self.coded(f)
            }
            // HEAD has no words for it.
            What::Answer if self.code.is_none() && self.status == Some(400) => f.write_str(
                "the server answered with status 400 and no reason, as it does for expired \
                 credentials and for a bucket in another region; check both",
            ),
            What::Answer if self.code() == Some("InvalidObjectState") => {
                write!(f, "the {object} is in an archive")?;
                self.coded(f)?;
                f.write_str("; restore it there, and ask again when that is done")
            }
            What::Answer => {
                write!(f, "the server answered with status {}", self.status.unwrap_or_default())?;
                self.coded(f)
            }
        }
    }
}

impl S3Failure {
    fn coded(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, " ({code})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for S3Failure {
    /// Without target and source: the SDK's own error holds whole answers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Failure")
            .field("what", &self.what)
            .field("code", &self.code)
            .field("status", &self.status)
            .field("verdict", &self.verdict)
            .finish_non_exhaustive()
    }
}

impl StdError for S3Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests;
