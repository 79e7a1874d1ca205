//! What went wrong with one attempt; the only file that looks into fred's errors.

use crate::{command::IfAway, fallback::Refusal, value::Value};
use fred::error::{Error as Driver, ErrorKind};
use mainstay_policy::{Classify, Effect, Outcome, Verdict};
use std::{error::Error as StdError, fmt};

/// Why one attempt failed, or why the fallback could not answer for it.
// On the heap, since it would make every answer that is none of these larger.
pub struct RedisFailure(Box<Failure>);

struct Failure {
    what: What,
    verdict: Verdict,
}

enum What {
    Driver(Driver),
    /// Our own link was down; with what took it down.
    Closed(Option<Driver>),
    Silent,
    Refused(Refusal),
}

impl RedisFailure {
    fn new(what: What, verdict: Verdict) -> Self {
        Self(Box::new(Failure { what, verdict }))
    }

    pub(crate) fn driver(error: Driver) -> Self {
        let verdict = verdict(&error);
        Self::new(What::Driver(error), verdict)
    }

    /// The gate is closed, so nothing is sent. A refused password stays what it is: no outage.
    /// With a fallback it is not worth a wait: the verdict keeps the policy from repeating it.
    pub(crate) fn closed(cause: Option<Driver>, away: IfAway) -> Self {
        match cause {
            // The server has the connection and refuses it until somebody changes a setting.
            Some(error) if is_auth(&error) => {
                let verdict = Verdict::permanent().with_outcome(Outcome::Failure);
                Self::new(What::Driver(error), verdict)
            }
            cause => {
                let verdict = if away == IfAway::FallBack {
                    Verdict::permanent().with_outcome(Outcome::Failure)
                } else {
                    Verdict::never_sent()
                };
                Self::new(What::Closed(cause), verdict)
            }
        }
    }

    /// As [`Self::closed`], while the first connection has not taken long yet: that a caller would
    /// not wait says nothing of the server.
    pub(crate) fn connecting(away: IfAway) -> Self {
        let mut closed = Self::closed(None, away);
        closed.0.verdict = closed.0.verdict.with_outcome(Outcome::Neutral);
        closed
    }

    pub(crate) fn silent() -> Self {
        Self::new(What::Silent, Verdict::unknown())
    }

    /// The fallback cannot answer for the server.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        let verdict = match refusal {
            Refusal::Full | Refusal::TooHeavy | Refusal::Unavailable => {
                Verdict::transient().with_outcome(Outcome::Neutral)
            }
            Refusal::WrongType | Refusal::NotANumber => Verdict::permanent(),
        };
        Self::new(What::Refused(refusal), verdict)
    }

    /// The same of several commands, of which some were done or may have been.
    fn in_part(mut self) -> Self {
        self.0.verdict.effect = Effect::Unknown;
        self
    }

    /// The server answered that it will not do this, where others have done it.
    pub(crate) fn refused_in_part(self) -> Self {
        let mut failure = self.in_part();
        // Only what ends a call may be a success.
        failure.0.verdict.outcome = Outcome::Neutral;
        failure
    }

    /// Whether the server is the problem, so that the fallback may answer instead.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        self.is_closed() || self.0.verdict.outcome == Outcome::Failure && !self.is_auth()
    }

    /// The server refused the user name or password, or wants one.
    #[must_use]
    pub fn is_auth(&self) -> bool {
        matches!(&self.0.what, What::Driver(e) if *e.kind() == ErrorKind::Auth)
    }

    /// The fallback holds as many unsynchronised writes as it may, or without a server has no room for
    /// a value of this size; this one was not taken.
    #[must_use]
    pub fn is_fallback_full(&self) -> bool {
        matches!(self.0.what, What::Refused(Refusal::Full | Refusal::TooHeavy))
    }

    /// Only the server can do it, and it is away or has not been told yet of what was written here.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self.0.what, What::Refused(Refusal::Unavailable))
    }

    /// The key holds another type of value than the command is for.
    #[must_use]
    pub fn is_wrong_type(&self) -> bool {
        match &self.0.what {
            What::Refused(refusal) => matches!(refusal, Refusal::WrongType),
            What::Driver(error) => code(error) == "WRONGTYPE",
            _ => false,
        }
    }

    /// A counter's value is no whole number of 64 bits, or its sum would be none.
    #[must_use]
    pub fn is_not_a_number(&self) -> bool {
        match &self.0.what {
            What::Refused(refusal) => matches!(refusal, Refusal::NotANumber),
            What::Driver(error) => is_about_a_number(error),
            _ => false,
        }
    }
}

/// The server has no code for these.
fn is_about_a_number(error: &Driver) -> bool {
    let answers = [
        "ERR value is not an integer or out of range",
        "ERR hash value is not an integer",
        "ERR increment or decrement would overflow",
    ];
    answers.contains(&error.details())
}

impl RedisFailure {
    pub(crate) fn into_driver(self) -> Option<Driver> {
        match self.0.what {
            What::Driver(error) => Some(error),
            What::Closed(cause) => cause,
            _ => None,
        }
    }

    /// The server answered that it will not do this. One that refuses the credentials has not looked
    /// at it.
    pub(crate) fn is_final(&self) -> bool {
        self.0.verdict == Verdict::permanent()
    }

    /// Our own link was down, so that nothing was sent.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.0.what, What::Closed(_))
    }

    /// Nothing was sent: our own link was down, or the server lets nobody in with these credentials.
    pub(crate) fn was_not_sent(&self) -> bool {
        self.is_closed() || self.is_auth() && self.0.verdict.effect == Effect::Permanent
    }

    /// What the server itself said, its code first.
    pub(crate) fn server_text(&self) -> Option<&str> {
        match &self.0.what {
            What::Driver(error) if is_code(code(error)) => Some(error.details()),
            _ => None,
        }
    }
}

/// All answered, if only with a refusal; else the batch as a whole has failed.
pub(crate) fn whole(
    replies: Vec<Result<Value, RedisFailure>>,
) -> Result<Vec<Result<Value, RedisFailure>>, RedisFailure> {
    let Some(n) = replies.iter().position(|reply| matches!(reply, Err(f) if !f.is_final())) else {
        return Ok(replies);
    };
    let maybe = |reply: &Result<Value, RedisFailure>| match reply {
        Ok(_) => true,
        Err(failure) => failure.classify().effect == Effect::Unknown,
    };
    let partly = replies.iter().any(maybe);
    match replies.into_iter().nth(n) {
        Some(Err(failure)) if partly => Err(failure.in_part()),
        Some(Err(failure)) => Err(failure),
        _ => Ok(Vec::new()),
    }
}

/// The credentials are refused, or missing.
pub(crate) fn is_auth(error: &Driver) -> bool {
    *error.kind() == ErrorKind::Auth
}

/// The server is a replica, or has become one.
pub(crate) fn is_readonly(error: &Driver) -> bool {
    code(error) == "READONLY"
}

/// The server says that it serves nobody now, so there is no use in asking it until a PING works.
pub(crate) fn closes_gate(error: &Driver) -> bool {
    is_auth(error) || matches!(code(error), "LOADING" | "BUSY" | "READONLY")
}

/// The server works: it answered, be it that this is not allowed.
pub(crate) fn is_answer(error: &Driver) -> bool {
    verdict(error).outcome == Outcome::Success
}

impl Classify for RedisFailure {
    fn classify(&self) -> Verdict {
        self.0.verdict
    }

    fn code(&self) -> Option<String> {
        let What::Driver(error) = &self.0.what else { return None };
        let code = code(error);
        let is_code = !code.is_empty() && code.bytes().all(|b| b.is_ascii_uppercase());
        is_code.then(|| code.to_owned())
    }
}

/// Redis puts an error's code first: `WRONGTYPE Operation against ...`.
fn code(error: &Driver) -> &str {
    error.details().split(' ').next().unwrap_or_default()
}

fn verdict(error: &Driver) -> Verdict {
    match error.kind() {
        // fred ends everything on that connection with these words, done or not.
        ErrorKind::Auth => Verdict::unknown(),
        ErrorKind::Sentinel | ErrorKind::Routing => Verdict::never_sent(),
        ErrorKind::Backpressure => Verdict::never_sent().with_outcome(Outcome::Neutral),
        ErrorKind::Cluster if code(error) == "CLUSTERDOWN" => Verdict::unknown(),
        // Before an answer; the redirections that a server sends are followed.
        ErrorKind::Cluster if !is_code(code(error)) => Verdict::never_sent(),
        ErrorKind::Cluster => Verdict::transient().with_outcome(Outcome::Neutral),
        ErrorKind::InvalidArgument
        | ErrorKind::InvalidCommand
        | ErrorKind::Config
        | ErrorKind::Url
        | ErrorKind::Parse
        | ErrorKind::NotFound => Verdict::permanent(),
        ErrorKind::Unknown => match error.details() {
            // fred's own words for what it did not send.
            "Too many failed write attempts."
            | "Client is not initialized."
            | "Failed to send command to router."
            | "Failed to route command." => Verdict::never_sent(),
            _ => match code(error) {
                "LOADING" | "MASTERDOWN" | "TRYAGAIN" | "NOREPLICAS" | "BUSY" | "MISCONF"
                | "OOM" | "READONLY" => Verdict::transient(),
                code if is_code(code) => Verdict::permanent(),
                // fred's own words, such as those for a connection that was given up.
                _ => Verdict::unknown(),
            },
        },
        // Timeout, IO, TLS, cancelled, a damaged stream: nobody knows.
        _ => Verdict::unknown(),
    }
}

impl fmt::Debug for RedisFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisFailure")
            .field("message", &format_args!("{self}"))
            .field("verdict", &self.0.verdict)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for RedisFailure {
    /// Our own words: the server's text may hold keys and arguments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match &self.0.what {
            What::Closed(Some(error)) | What::Driver(error) => error,
            What::Closed(None) => return f.write_str(UNREACHABLE),
            What::Silent => return f.write_str("the server does not answer"),
            What::Refused(refusal) => {
                return f.write_str(match refusal {
                    Refusal::Full => {
                        "the server is away and the fallback is full; raise FallbackConfig's \
                         max_dirty limits, or write less while degraded"
                    }
                    Refusal::TooHeavy => {
                        "the value, or its hash with it, is larger than this process's memory of \
                         values may be; raise FallbackConfig's max_bytes, or store it in parts"
                    }
                    Refusal::Unavailable => {
                        "only the server can do this, and it is away, not configured, or has not \
                         been told yet of what was written without it; try again later"
                    }
                    Refusal::WrongType => WRONG_TYPE,
                    Refusal::NotANumber => NOT_A_NUMBER,
                });
            }
        };
        match error.kind() {
            ErrorKind::Auth => f.write_str(
                "the server refused the credentials; check the user name and password in the \
                 Redis URL",
            ),
            ErrorKind::IO if certificate(error.details()).is_some() => {
                let refusal = certificate(error.details()).unwrap_or_default();
                if refusal.starts_with("NotValidForName") {
                    f.write_str(
                        "the server's certificate is for another name than the host in the Redis \
                         URL",
                    )
                } else {
                    write!(
                        f,
                        "the server's certificate is refused ({refusal}); name its authority with \
                         ssl_ca_certs in the Redis URL, or renew it"
                    )
                }
            }
            ErrorKind::IO => {
                f.write_str(if matches!(self.0.what, What::Closed(_)) {
                    UNREACHABLE
                } else {
                    "the connection was lost before an answer"
                })?;
                match io_message(error.details()) {
                    Some(message) => write!(f, " ({message})"),
                    None => Ok(()),
                }
            }
            ErrorKind::Timeout if matches!(self.0.what, What::Closed(_)) => f.write_str(
                "the server does not answer; check that it runs and the Redis URL, rediss for TLS \
                 and redis without",
            ),
            ErrorKind::Timeout => f.write_str("no answer in time"),
            _ if code(error) == "WRONGTYPE" => f.write_str(WRONG_TYPE),
            _ if is_about_a_number(error) => f.write_str(NOT_A_NUMBER),
            ErrorKind::Unknown if is_code(code(error)) => match misused(error.details()) {
                Some((words, name, advice)) => {
                    write!(f, "the server answered \"{words}")?;
                    name.map_or(Ok(()), |name| write!(f, " '{name}'"))?;
                    write!(f, "\"; {advice}")
                }
                None => write!(
                    f,
                    "the server answered with {}; the rest of its words, which may hold keys and \
                     values, is in source()",
                    code(error)
                ),
            },
            ErrorKind::Canceled if matches!(self.0.what, What::Closed(_)) => {
                f.write_str("the connection was closed")
            }
            kind => f.write_str(match kind {
                ErrorKind::Canceled => "the connection was closed before an answer",
                ErrorKind::Cluster if code(error) == "CLUSTERDOWN" => {
                    "the cluster says it is down (CLUSTERDOWN)"
                }
                ErrorKind::Cluster => "the cluster has no node for this key now",
                ErrorKind::Sentinel if error.details() == NO_SUCH_MASTER => {
                    "the sentinels know no master of this name; check sentinelServiceName in the \
                     Redis URL"
                }
                ErrorKind::Sentinel => "no sentinel answers; check the hosts in the Redis URL",
                ErrorKind::Routing => "no master is known",
                ErrorKind::Config if error.details().contains("cluster support disabled") => {
                    "the server is in no cluster; write redis in place of redis-cluster in the \
                     Redis URL"
                }
                ErrorKind::Config => "the server cannot be used with this Redis URL",
                ErrorKind::Protocol => "the answer was damaged",
                _ => "the command failed",
            }),
        }
    }
}

/// What the link says when sentinels answer so.
pub(crate) const NO_SUCH_MASTER: &str = "no such master";
const UNREACHABLE: &str = "the server could not be reached; check that it runs and the Redis URL";
const NOT_A_NUMBER: &str =
    "the value is no whole number of 64 bits, or the sum would be none; use a key of its own";
const WRONG_TYPE: &str = "the key holds another type of value (WRONGTYPE); use a key of its own";

/// What the server says of a command or a URL that it cannot use, up to where arguments may follow, the
/// command's name, and what to do about it.
fn misused(text: &str) -> Option<(&'static str, Option<&str>, &'static str)> {
    const SPELLING: &str = "check its spelling, and that this version of the server has it";
    const FORM: &str = "compare what was sent with the command's form in Redis's documentation";
    const DATABASE: &str = "change the database number in the Redis URL, or raise databases in the \
                            server's configuration";
    const CLUSTER: &str = "a cluster has no other: write redis-cluster in place of redis in the Redis \
                           URL, without a database number";
    const CLIENTS: &str = "raise maxclients in the server's configuration, or close connections that \
                           nobody needs";
    let known = [
        ("ERR DB index is out of range", DATABASE),
        ("ERR SELECT is not allowed in cluster mode", CLUSTER),
        ("ERR max number of clients reached", CLIENTS),
        ("ERR unknown command", SPELLING),
        ("ERR wrong number of arguments for", FORM),
        ("ERR unknown subcommand", SPELLING),
        ("ERR syntax error", FORM),
    ];
    let (words, advice) = known.into_iter().find(|(words, _)| text.starts_with(words))?;
    // A subcommand is an argument.
    let names = words.ends_with(" command") || words.ends_with(" for");
    let rest = text[words.len()..].strip_prefix([' ']).filter(|_| names);
    let name = rest.and_then(|rest| rest.strip_prefix(['\'', '`'])?.split(['\'', '`']).next());
    let is_name = |name: &&str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._|-".contains(&b);
        (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain)
    };
    Some((words, name.filter(is_name), advice))
}

/// The longest name of a command that is repeated; none of Redis's own is longer.
const MAX_NAME: usize = 40;

fn is_code(text: &str) -> bool {
    text.len() > 1 && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
}

/// fred keeps an I/O error as its `Debug` text; for people its message is enough.
fn io_message(details: &str) -> Option<&str> {
    let (_, rest) = details.split_once("message: \"")?;
    rest.split_once('"').map(|(message, _)| message)
}

/// Why TLS refused a certificate, in the one word that rustls has for it.
fn certificate(details: &str) -> Option<&str> {
    let (_, why) = details.split_once("InvalidCertificate(")?;
    why.split(|c: char| !c.is_ascii_alphanumeric()).next()
}

impl StdError for RedisFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.what {
            What::Driver(error) | What::Closed(Some(error)) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_says_what_happened() {
        use ErrorKind as K;
        use Outcome::{Failure, Neutral, Success};
        let rows = [
            (K::Timeout, "", Effect::Unknown, Failure),
            (K::IO, "Connection closed.", Effect::Unknown, Failure),
            (K::Canceled, "", Effect::Unknown, Failure),
            (K::Protocol, "", Effect::Unknown, Failure),
            (K::Unknown, "Too many failed write attempts.", Effect::NeverSent, Failure),
            (K::Unknown, "Client is not initialized.", Effect::NeverSent, Failure),
            (K::Sentinel, "", Effect::NeverSent, Failure),
            (K::Unknown, "LOADING Redis is loading", Effect::Transient, Failure),
            (K::Unknown, "OOM command not allowed", Effect::Transient, Failure),
            (K::Unknown, "READONLY You can't write", Effect::Transient, Failure),
            (K::Cluster, "CLUSTERDOWN The cluster is down", Effect::Unknown, Failure),
            (K::Cluster, "no node answers", Effect::NeverSent, Failure),
            (K::Unknown, "channel closed", Effect::Unknown, Failure),
            (K::Unknown, "CROSSSLOT Keys in request", Effect::Permanent, Success),
            (K::Cluster, "MOVED 1 127.0.0.1:1", Effect::Transient, Neutral),
            (K::Auth, "NOAUTH Authentication required.", Effect::Unknown, Failure),
            (K::Unknown, "NOPERM no permission", Effect::Permanent, Success),
            (K::InvalidArgument, "WRONGTYPE Operation", Effect::Permanent, Success),
            (K::Unknown, "ERR unknown command", Effect::Permanent, Success),
            (K::Parse, "", Effect::Permanent, Success),
        ];
        for (kind, details, effect, outcome) in rows {
            let failure = RedisFailure::driver(Driver::new(kind, details));
            let verdict = failure.classify();
            assert_eq!((verdict.effect, verdict.outcome), (effect, outcome), "{details}");
        }
    }

    #[test]
    fn a_refused_password_is_no_outage() {
        let auth = || Driver::new(ErrorKind::Auth, "WRONGPASS invalid");
        assert!(!RedisFailure::driver(auth()).is_outage());
        let closed = RedisFailure::closed(Some(auth()), IfAway::FallBack);
        assert!(!closed.is_outage() && closed.is_auth());
        assert_eq!(closed.classify().effect, Effect::Permanent, "nothing is sent");
        // Nor is it an answer to what was asked, whose turn never came.
        assert!(!closed.is_final());
        assert!(whole(vec![Err(RedisFailure::driver(auth()))]).is_err());
        assert!(RedisFailure::closed(None, IfAway::FallBack).is_outage());
        assert!(RedisFailure::connecting(IfAway::FallBack).is_outage());
        assert!(RedisFailure::silent().is_outage());
    }

    #[test]
    fn the_servers_text_is_not_printed() {
        let answer = Driver::new(ErrorKind::Unknown, "ERR unknown command 'x', args: 's3cret'");
        assert_eq!(
            RedisFailure::driver(answer).to_string(),
            "the server answered \"ERR unknown command 'x'\"; check its spelling, and that this \
             version of the server has it"
        );
        for (text, shown) in [
            ("ERR wrong number of arguments for 'get' command", Some("for 'get'\";")),
            ("ERR unknown command `foo`, with args beginning with: `s3cret`, ", Some("'foo'\";")),
            ("ERR unknown command 's3cret word'", Some("ERR unknown command\";")),
            ("ERR unknown command", Some("ERR unknown command\";")),
            ("ERR unknown subcommand 's3cret'. Try OBJECT HELP.", Some("subcommand\";")),
            ("ERR syntax error", Some("\"ERR syntax error\"; compare")),
            ("ERR DB index is out of range", Some("out of range\"; change the database number")),
            ("ERR max number of clients reached", Some("reached\"; raise maxclients")),
            ("ERR Error running script: s3cret", None),
            ("CROSSSLOT Keys in s3cret", None),
        ] {
            let failure = RedisFailure::driver(Driver::new(ErrorKind::Unknown, text)).to_string();
            assert!(!failure.contains("s3cret"), "{failure}");
            let shown = shown.unwrap_or("; the rest of its words");
            assert!(failure.contains(shown), "{text}: {failure}");
        }
        let refused = "Os { code: 111, kind: ConnectionRefused, message: \"Connection refused\" }";
        let closed =
            RedisFailure::closed(Some(Driver::new(ErrorKind::IO, refused)), IfAway::FallBack);
        assert!(closed.to_string().ends_with("(Connection refused)"), "{closed}");
    }

    /// Answers by which a server refuses for now, all with one meaning.
    const LATER: [&str; 8] =
        ["LOADING", "MASTERDOWN", "TRYAGAIN", "NOREPLICAS", "BUSY", "MISCONF", "OOM", "READONLY"];

    proptest::proptest! {
        /// Whatever a server says: nothing panics, what is known means what the table says, an
        /// unknown code is an answer that is not repeated, and other words leave the outcome open.
        #[test]
        fn any_text_has_a_meaning(
            code in "[A-Z]{2,12}|[A-Z]+_[A-Z]+|[a-z ]{0,9}|\\PC{0,9}",
            known in 0..LATER.len() * 2,
            rest in "\\PC{0,40}",
        ) {
            let code = LATER.get(known).map_or(code, |known| (*known).to_owned());
            let text = format!("{code} {rest}");
            let failure = RedisFailure::driver(Driver::new(ErrorKind::Unknown, text.clone()));
            let verdict = failure.classify();
            let first = text.split(' ').next().unwrap();
            if LATER.contains(&first) {
                assert_eq!((verdict.effect, verdict.outcome), (Effect::Transient, Outcome::Failure));
            } else if is_code(first) {
                assert_eq!((verdict.effect, verdict.outcome), (Effect::Permanent, Outcome::Success));
            } else {
                assert_eq!(verdict.effect, Effect::Unknown, "{text}");
            }
            // Not in our own words, but for the code.
            if rest.len() > 20 && first.is_ascii() {
                assert!(!format!("{failure} {failure:?}").contains(&rest));
            }
        }
    }
}
