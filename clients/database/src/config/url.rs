//! The URL of a database, read. It may hold a password, and when it cannot be read, anywhere: nothing
//! of it is ever shown but a scheme and the names of parameters.

use crate::{
    backend::{Backend, Sealed, Tuning},
    hosts::Target,
};
use mainstay_policy::Error;

pub(super) fn check_scheme<DB: Backend>(url: &str) -> Result<(), Error> {
    let (this, example) = (DB::LABEL, DB::EXAMPLE);
    let (scheme, rest) = url.split_once(':').unwrap_or_default();
    if DB::SCHEMES.contains(&scheme) && (!DB::HAS_HOSTS || rest.starts_with("//")) {
        return Ok(());
    }
    let wrong = if url.trim().is_empty() {
        "is empty".to_owned()
    } else if DB::SCHEMES.contains(&scheme) {
        format!("has no // after {scheme}:")
    } else if rest.starts_with("//") && is_name(scheme) {
        format!("begins with `{scheme}`")
    } else {
        "does not begin with a scheme (look for spaces and quotes)".to_owned()
    };
    Err(Error::invalid(format!(
        "database: the URL {wrong}, and this client is for {this}: {example}; for another database \
         take PgDatabase, MySqlDatabase or SqliteDatabase"
    )))
}

/// Why a URL cannot be read. The driver's words may hold a piece of it: only those are handed on
/// that are known.
pub(crate) fn unreadable<DB: Sealed>(url: &str, tuning: &Tuning, error: &sqlx::Error) -> Error {
    let example = DB::EXAMPLE;
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    // Read without its parameters, it is one of those.
    let parameter = DB::options(base, tuning).ok().and_then(|_| {
        let mut pairs = query.split('&').filter(|pair| !pair.is_empty());
        pairs.find(|pair| DB::options(&format!("{base}?{pair}"), tuning).is_err())
    });
    if let Some(parameter) = parameter {
        let name = parameter.split_once('=').map(|(name, _)| name).filter(|name| is_name(name));
        let is_mode = name.is_some_and(|name| DB::HAS_HOSTS && name.ends_with("mode"));
        let allowed = if is_mode { DB::TLS_MODES } else { example };
        let name = name.map_or("a parameter".to_owned(), |name| format!("parameter `{name}`"));
        return Error::invalid(format!(
            "database: {name} of the URL is unknown, or has a value that is not; allowed: {allowed}"
        ));
    }
    let said = match error {
        sqlx::Error::Configuration(cause) => cause.to_string(),
        _ => String::new(),
    };
    let known =
        ["invalid port number", "invalid IPv6 address", "invalid IPv4 address", "empty host"];
    let why = known.iter().find(|known| said == **known);
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    Error::invalid(format!(
        "database: the URL cannot be read{why}; allowed: {example}, where / : @ ? # [ ] % in user or \
         password are written as %2F %3A %40 %3F %23 %5B %5D %25"
    ))
}

/// One URL for each host, and the target that the URL names.
///
/// Parameters that the driver does not know are left out, so that a URL may be shared with programs
/// that do; one about TLS is refused, as without it the connection might not be what was meant.
pub(crate) fn split<DB: Sealed>(url: &str) -> Result<(Vec<String>, Option<Target>), Error> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let mut target = None;
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name == "target_session_attrs" {
            target = Some(target_of(value)?);
        } else if DB::PARAMETERS.contains(&name) || name.starts_with("options[") {
            kept.push(pair);
        } else if name.starts_with("ssl") || name.starts_with("tls") {
            let known: Vec<_> =
                DB::PARAMETERS.iter().copied().filter(|name| name.starts_with("ssl")).collect();
            return Err(Error::invalid(format!(
                "database: the URL has an unknown parameter about TLS; known: {}",
                known.join(", ")
            )));
        } else {
            let name = if is_name(name) { name } else { "(not a name)" };
            tracing::warn!(name, "database: a parameter of the URL is unknown and has no effect");
        }
    }
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    let Some((scheme, rest)) = base.split_once("://") else {
        return Ok((vec![format!("{base}{query}")], target));
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let (user, hosts) = match authority.rfind('@') {
        Some(at) => authority.split_at(at + 1),
        None => ("", authority),
    };
    let urls = hosts.split(',').map(|host| format!("{scheme}://{user}{host}{path}{query}"));
    Ok((urls.collect(), target))
}

/// Letters and what joins them: no piece of a password, which would stand elsewhere.
fn is_name(text: &str) -> bool {
    let joins = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '-' | '+');
    !text.is_empty() && text.len() <= 30 && text.chars().all(joins)
}

fn target_of(name: &str) -> Result<Target, Error> {
    let found = Target::NAMES.iter().find(|(known, _)| *known == name);
    found.map(|(_, target)| *target).ok_or_else(|| {
        let known: Vec<_> = Target::NAMES.iter().map(|(name, _)| *name).collect();
        Error::invalid(format!(
            "database: the URL's target_session_attrs is unknown; allowed: {}",
            known.join(", ")
        ))
    })
}

#[cfg(all(test, feature = "postgres"))]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_several_hosts_is_one_for_each() {
        let url = "postgres://u:p%40@one:1,two:2/db?sslmode=disable&target_session_attrs=primary";
        let (urls, target) = split::<sqlx::Postgres>(url).unwrap();
        let expected =
            ["one:1", "two:2"].map(|h| format!("postgres://u:p%40@{h}/db?sslmode=disable"));
        assert_eq!(urls, expected);
        assert_eq!(target, Some(Target::Primary));
        assert_eq!(split::<sqlx::Postgres>("postgres:///db").unwrap().0, ["postgres:///db"]);
        assert_eq!(
            split::<sqlx::Postgres>("postgres://h?a=b").unwrap(),
            (vec!["postgres://h".to_owned()], None)
        );
        let error = split::<sqlx::Postgres>("postgres://u:s3cret@h/d?target_session_attrs=s3cret")
            .unwrap_err();
        assert!(error.to_string().contains("read-write"), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_it() {
        let wrong = |url: &str| {
            let built = crate::PgDatabase::builder().name("urls").url(url).build();
            let error = built.unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
            error
        };
        for (url, words) in [
            ("", "is empty"),
            (" \n", "is empty"),
            (" postgres://u:s3cret@h/x", "look for spaces and quotes"),
            ("\"postgres://u:s3cret@h/x\"", "look for spaces and quotes"),
            ("u:s3cret@h/x", "does not begin with a scheme"),
            ("postgres:u:s3cret@h/x", "has no // after postgres:"),
            ("postgresql+asyncpg://u:s3cret@h/x", "begins with `postgresql+asyncpg`"),
            ("mysql://u:s3cret@h/x", "begins with `mysql`"),
            ("postgres://u:s3cret@h:port/x", "(invalid port number)"),
            ("postgres://u:s3/cret@h/x", "/ : @ ? # [ ] % in user or password are written as %2F"),
            ("postgres://u:s3cret?s3cret@h/x", "are written as %2F"),
            ("postgres://u:s3cret@[::1/x", "(invalid IPv6 address)"),
            ("postgres://u:s3cret@h,/x", "(empty host)"),
            ("postgres://u:s3cret@h/x?sslmode=s3cret", "parameter `sslmode` of the URL"),
            ("postgres://u:s3cret@h/x?sslmode=s3cret", "allowed: disable, allow, prefer"),
            ("postgres://u:s3cret@h/x?options=a&port=s3cret", "parameter `port` of the URL"),
            (
                "postgres://u:s3cret@h/x?sslmod=require",
                "unknown parameter about TLS; known: sslmode",
            ),
            ("postgres://u:s3cret@h/x?target_session_attrs=s3cret", "allowed: any, read-write"),
        ] {
            assert!(wrong(url).contains(words), "{url}: {}", wrong(url));
        }
        for url in ["postgres://", "postgres://h/x?connect_timeout=5&pgbouncer=true&s3cret"] {
            crate::PgDatabase::builder().name("urls").url(url).build().unwrap();
        }
    }
}
