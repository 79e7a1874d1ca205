//! What went wrong, in words that hold no value, host name or path.

use super::Class;

/// A statement that was not written for this driver, which says so in no other way.
pub(super) fn mistake(said: &str) -> Option<&'static str> {
    let known = [
        (
            "prepared statement expected",
            "the statement has more or fewer placeholders than values were bound; source() counts \
             them",
        ),
        ("PgConnection::run(): too many arguments", "more than 65,535 values were bound"),
        (
            "execute: unexpected message: Copy",
            "COPY from or to the client: take copy_in_raw or copy_out_raw, on the connection that \
             sqlx::Acquire::acquire(&client) gives",
        ),
        ("parameters with non-integer names", "a placeholder has a name; write ?1 or $1"),
        ("unsupported SQL parameter format", "a placeholder cannot be read; write ?1 or $1"),
    ];
    known.iter().find(|(start, _)| said.starts_with(start)).map(|(_, words)| *words)
}

/// A failed handshake in words, and whether the server's certificate is why.
pub(super) const fn tls_words(error: &rustls::Error) -> (bool, &'static str) {
    use rustls::{CertificateError as C, Error as E};
    match error {
        // A bad signature: another authority of the same name.
        E::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => (
            true,
            "the server's certificate is from an authority that is not trusted; name its file in \
             tls_ca, if this is the right server",
        ),
        E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => (
            true,
            "the server's certificate is for another name than the URL's host; use the name that \
             it is for, or tls = verify-ca",
        ),
        E::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            (true, "the server's certificate has expired; renew it there")
        }
        E::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            (true, "the server's certificate is not valid yet; check the clocks")
        }
        E::InvalidCertificate(_) | E::NoCertificatesPresented => {
            (true, "the server's certificate cannot be accepted; look at the cause")
        }
        _ => (false, "the TLS handshake failed; look at the cause and at the server's log"),
    }
}

/// An I/O error in words that hold no host name and no path.
pub(super) fn io(error: &std::io::Error) -> String {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::UnexpectedEof
        | K::InvalidData
        | K::InvalidInput
        | K::TimedOut
        | K::Interrupted
        | K::WriteZero
        | K::Other => error.kind().to_string(),
        // The resolver alone has neither a kind nor a number of the system's.
        _ if error.raw_os_error().is_none() => "the host's name is not known".to_owned(),
        kind => kind.to_string(),
    }
}

pub(crate) const fn words(class: Class) -> &'static str {
    match class {
        Class::Busy => "it takes no more connections or work for now",
        Class::Full => "it takes no more connections for now",
        Class::Contended => "a lock was not to be had in time",
        Class::Conflict => "another transaction was in the way; run this one again",
        Class::Stale => "it was prepared before a table was changed; run it again",
        Class::GoingAway => "the server is going away",
        Class::Cancelled => "ended by a time limit and rolled back",
        Class::Exhausted => "the server's disk or memory is full",
        Class::WrongNode => "this server is read-only; a failover may be under way",
        Class::Refused => "it refuses user or password; check the URL",
        Class::NoDatabase => "there is no such database; check the URL",
        Class::File => {
            "the file cannot be opened or is no database; check the path, and ?mode=rwc to create it"
        }
        Class::Aborted => "the transaction had failed before",
        Class::Damaged => "the data are damaged; look at the server's log",
        Class::Permanent => "the statement cannot be executed as it is",
    }
}
