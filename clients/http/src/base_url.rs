//! The base URL and the rules of joining a path to it.
//!
//! The path is appended to the base's own path. What would leave the origin or the base path is
//! refused, so credentials never travel to another host. The table is on the crate's page.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use mainstay_policy::Error;
use percent_encoding::percent_decode_str;
use reqwest::Url;

/// A base URL that has been checked.
#[derive(Clone)]
pub(crate) struct BaseUrl {
    /// Without its query, and as it was written: with a last `/` or not.
    text: String,
    /// `text` with a last `/`: what every URL made here begins with.
    prefix: String,
    /// The base with one more segment, [`ROOM`] long: a copy of it has room for the usual path, which
    /// takes that segment's place, and nobody parses scheme and host again.
    room: Url,
    query: Option<String>,
    origin: String,
}

/// In bytes; a longer path costs one allocation more.
const ROOM: usize = 64;

impl BaseUrl {
    /// The base, and the header that its user and password become: a URL that travels with them
    /// would show them in logs.
    pub(crate) fn parse(text: &str) -> Result<(Self, Option<HeaderValue>), Error> {
        let refuse = |why: &str| Err(Error::invalid(format!("the HTTP base URL {why}")));
        if text.is_empty() {
            return refuse("is empty; write it as https://host/path");
        }
        let mut url = match Url::parse(text) {
            Ok(url) => url,
            Err(problem) => match text.split_once("://") {
                Some((_, rest)) if rest.is_empty() || rest.starts_with('/') => {
                    return refuse("has no host; write it as https://host/path");
                }
                Some(_) => return refuse(&no_url(problem)),
                None => return refuse("has no scheme; write it as https://host/path"),
            },
        };
        if !matches!(url.scheme(), "http" | "https") {
            return refuse("must start with http:// or https://");
        }
        if !names_a_host(text) {
            return refuse("has no host; write it as https://host/path");
        }
        if url.fragment().is_some() {
            return refuse("has a fragment (#...), which is never sent; leave it out");
        }
        let authorization = authorization(&url);
        let cleared = url.set_username("").and_then(|()| url.set_password(None));
        if cleared.is_err() {
            return refuse("holds credentials that cannot be taken out; use basic_auth instead");
        }
        let query = url.query().filter(|query| !query.is_empty()).map(str::to_owned);
        url.set_query(None);
        let origin = url.origin().ascii_serialization();
        let text = url.as_str().to_owned();
        let prefix = if text.ends_with('/') { text.clone() } else { format!("{text}/") };
        let Ok(room) = Url::parse(&format!("{prefix}{}", "x".repeat(ROOM))) else {
            return refuse("is not a URL; write it as https://host/path");
        };
        Ok((Self { text, prefix, room, query, origin }, authorization))
    }

    /// `scheme://host:port`, the name of the dependency.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// The URL of a path. Every request pays for it, so the usual path is looked at once and appended
    /// to a URL that is there.
    pub(crate) fn join(&self, path: &str) -> Result<Url, Error> {
        if self.query.is_none() && is_plain(path) {
            let path = path.strip_prefix('/').unwrap_or(path);
            let (path, query) = match path.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (path, None),
            };
            let mut url = self.room.clone();
            // Always: it is http or https.
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop().extend(path.split('/'));
            }
            if let Some(query) = query.filter(|query| !query.is_empty()) {
                url.set_query(Some(query));
            }
            return Ok(url);
        }
        match Url::parse(&self.join_with_care(path)?) {
            Ok(url) if self.holds(&url) => Ok(url),
            Ok(_) => {
                Err(Error::invalid("the request path leaves the base URL's path; remove the `..`"))
            }
            Err(_) => {
                Err(Error::invalid("the request path makes no URL; check what is put into it"))
            }
        }
    }

    fn join_with_care(&self, path: &str) -> Result<String, Error> {
        let refuse = |why: &str| Err(Error::invalid(format!("the request path {why}")));
        if path.chars().any(|c| c.is_control() || c == '\\') || path.trim() != path {
            return refuse("holds a control character, a backslash or a space at its ends");
        }
        let path = path.split('#').next().unwrap_or_default();
        if path.starts_with("//") || is_absolute(path) {
            return refuse(
                "names another host; give a path below the base URL, or build the client with \
                 allow_absolute_urls()",
            );
        }
        let (path, query) = path.split_once('?').map_or((path, ""), |(p, q)| (p, q));
        let path = path.trim_start_matches('/');
        let mut text = if path.is_empty() { &self.text } else { &self.prefix }.clone();
        text.push_str(path);
        append(&mut text, self.query.as_deref().unwrap_or_default());
        append(&mut text, query);
        Ok(text)
    }

    /// Whether a URL stayed below the base: the parser has resolved `..` and `%2e%2e`.
    fn holds(&self, url: &Url) -> bool {
        let url = url.as_str();
        url.starts_with(&self.prefix)
            || url
                .strip_prefix(&self.text)
                .is_some_and(|rest| matches!(rest.as_bytes(), [] | [b'?', ..]))
    }
}

/// A path of which the parser changes nothing and that stays where it is put: not empty, of these
/// characters, no segment begins with a dot, and it does not begin with two slashes.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let begins = match bytes {
        [b'/', first, ..] | [first, ..] => !matches!(first, b'/' | b'?'),
        [] => false,
    };
    let mut before = b'/';
    begins
        && bytes.iter().all(|&byte| {
            let dots = byte == b'.' && before == b'/';
            before = byte;
            !dots
                && (byte.is_ascii_alphanumeric()
                    || matches!(byte, b'-' | b'_' | b'~' | b'.' | b'/' | b'?' | b'&' | b'='))
        })
}

fn append(url: &mut String, query: &str) {
    if !query.is_empty() {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(query);
    }
}

/// Adds pairs that are encoded already.
pub(crate) fn append_query(url: &mut Url, pairs: &str) {
    match url.query() {
        _ if pairs.is_empty() => {}
        None | Some("") => url.set_query(Some(pairs)),
        Some(query) => {
            let query = format!("{query}&{pairs}");
            url.set_query(Some(&query));
        }
    }
}

/// `scheme://`, as RFC 3986 spells a scheme.
pub(crate) fn is_absolute(path: &str) -> bool {
    path.split_once("://").is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c))
    })
}

/// Of what the parser took: it is lenient, and finds the host `v1` in `http:///v1`.
fn names_a_host(text: &str) -> bool {
    text.split_once("://").is_some_and(|(_, rest)| !rest.starts_with(['/', '\\', '?', '#']))
}

/// The parser's word for it, which holds nothing of the text.
fn no_url(problem: impl std::fmt::Display) -> String {
    format!("is not a URL ({problem}); write it as https://host/path")
}

/// A whole URL in a path's place: another host than the base's, perhaps.
pub(crate) fn absolute(text: &str) -> Result<Url, Error> {
    let refuse = |why: &str| Err(Error::invalid(format!("the request URL {why}")));
    let mut url = match Url::parse(text) {
        Ok(url) => url,
        Err(problem) => return refuse(&no_url(problem)),
    };
    if !matches!(url.scheme(), "http" | "https") {
        return refuse("must start with http:// or https://");
    }
    if !names_a_host(text) {
        return refuse("has no host; write it as https://host/path");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("holds credentials; leave them out and use basic_auth or bearer_auth");
    }
    url.set_fragment(None);
    Ok(url)
}

/// A path of these segments, each encoded whole: a `/`, `?` or `#` in one stays in it. For values
/// that come from elsewhere.
///
/// # Errors
/// A segment that is empty, `.` or `..`, which no encoding keeps from being resolved.
///
/// # Examples
/// ```
/// let path = mainstay_http::path_of(["users", "a/b?c"])?;
/// assert_eq!(path, "users/a%2Fb%3Fc");
/// assert!(mainstay_http::path_of(["users", ".."]).is_err());
/// # Ok::<(), mainstay_policy::Error>(())
/// ```
pub fn path_of<'a>(segments: impl IntoIterator<Item = &'a str>) -> Result<String, Error> {
    let mut path = String::new();
    for segment in segments {
        if matches!(segment, "" | "." | "..") {
            let what = "a segment of the request path is empty, `.` or `..`; check the value";
            return Err(Error::invalid(what));
        }
        if !path.is_empty() {
            path.push('/');
        }
        path.extend(percent_encoding::utf8_percent_encode(segment, KEPT));
    }
    Ok(path)
}

/// RFC 3986's unreserved characters.
const KEPT: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn authorization(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let user = percent_decode_str(url.username()).collect::<Vec<u8>>();
    let password = percent_decode_str(url.password().unwrap_or_default()).collect::<Vec<u8>>();
    basic(&user, &password)
}

/// RFC 7617. `None` is impossible: base64 is always a header's value.
pub(crate) fn basic(user: &[u8], password: &[u8]) -> Option<HeaderValue> {
    let pair = [user, b":", password].concat();
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What has led out of a path or a host before, in every order.
    fn pieces() -> impl Strategy<Value = String> {
        let pieces = vec![
            "/", "//", "\\", "..", ".", "%2e", "%2E", "%2f", "%5c", "@", ":", "?", "#", "a",
            "evil", "http:", "https://", " ", "\t", "\n", "\r\n", "\0", "%00", "%", "[", "]",
            "\u{e9}", "\u{202e}", ";",
        ];
        proptest::collection::vec(proptest::sample::select(pieces), 0..8)
            .prop_map(|all| all.concat())
    }

    proptest! {
        #[test]
        fn no_path_leaves_its_base(path in prop_oneof![pieces(), any::<String>()]) {
            for base in ["http://h", "http://h/v1", "https://u:p@h:8443/v1/x/?key=1"] {
                let (base, _) = BaseUrl::parse(base).unwrap();
                let Ok(url) = base.join(&path) else { continue };
                prop_assert_eq!(url.origin().ascii_serialization(), base.origin());
                prop_assert!(base.holds(&url), "{}", url);
                prop_assert!(url.username().is_empty() && url.password().is_none(), "{}", url);
                prop_assert!(url.as_str().bytes().all(|b| b.is_ascii_graphic()), "{}", url);
            }
        }

        #[test]
        fn no_base_is_a_panic_and_none_shows_what_it_holds(
            base in prop_oneof![pieces(), any::<String>(), "https?://[a-z:@/?#.0-9]{0,20}"],
        ) {
            for base in [base.clone(), format!("http://user:hunter2@{base}"), format!("{base}#hunter2")] {
                match BaseUrl::parse(&base) {
                    Ok((base, _)) => prop_assert!(base.join("x").is_ok()),
                    Err(error) => {
                        let told = format!("{error} {error:?}");
                        prop_assert!(!told.contains("hunter2"), "{}", told);
                    }
                }
            }
        }

        #[test]
        fn a_segment_stays_one_whatever_is_in_it(value in prop_oneof![pieces(), any::<String>()]) {
            let Ok(path) = path_of(["a", &value, "b"]) else {
                prop_assert!(matches!(&*value, "" | "." | ".."));
                return Ok(());
            };
            let (base, _) = BaseUrl::parse("http://h/v1").unwrap();
            let url = base.join(&path).unwrap();
            let segments: Vec<_> = url.path_segments().unwrap().collect();
            prop_assert_eq!(segments.len(), 4, "{}", url);
            let kept = percent_decode_str(segments[2]).decode_utf8().unwrap();
            prop_assert_eq!(kept, value);
        }
    }

    fn joined(base: &str, path: &str) -> Result<String, Error> {
        let (base, _) = BaseUrl::parse(base).unwrap();
        let url = base.join(path)?;
        assert!(base.holds(&url), "{url}");
        if base.query.is_none() && is_plain(path) {
            // Both ways come to the same.
            let with_care = Url::parse(&base.join_with_care(path).unwrap()).unwrap();
            assert_eq!(url, with_care, "{path}");
            assert_eq!(Url::parse(url.as_str()).unwrap(), url, "{path}");
        }
        Ok(url.into())
    }

    #[test]
    fn joins_by_the_table() {
        for (base, path, url) in [
            ("http://h/v1", "users", "http://h/v1/users"),
            ("http://h/v1", "/users", "http://h/v1/users"),
            ("http://h/v1/", "users", "http://h/v1/users"),
            ("http://h/v1/", "/users", "http://h/v1/users"),
            ("http://h", "users", "http://h/users"),
            ("http://h/v1", "", "http://h/v1"),
            ("http://h/v1", "/", "http://h/v1"),
            ("http://h/v1/", "", "http://h/v1/"),
            ("http://h", "", "http://h/"),
            ("http://h/v1", "?q=1", "http://h/v1?q=1"),
            ("http://h/v1", "users/", "http://h/v1/users/"),
            ("http://h/v1", "users?q=2#top", "http://h/v1/users?q=2"),
            ("http://h/v1?k=1", "users?q=2", "http://h/v1/users?k=1&q=2"),
            ("http://h/v1?k=1", "", "http://h/v1?k=1"),
            ("http://h/v1?k=1", "users?k=1", "http://h/v1/users?k=1&k=1"),
            ("http://h/v1", "users:cancel", "http://h/v1/users:cancel"),
            ("http://h/v1", "a%20b", "http://h/v1/a%20b"),
            ("http://h/v1", "a b", "http://h/v1/a%20b"),
            ("http://h/v1", "\u{e9}", "http://h/v1/%C3%A9"),
            ("http://h/v1", "a/../b", "http://h/v1/b"),
            ("http://h/v1", "a//b", "http://h/v1/a//b"),
            ("http://h/v1", "./a/.", "http://h/v1/a/"),
            ("http://h/v1", "a/..", "http://h/v1/"),
            ("http://h/v1", "a?b?c", "http://h/v1/a?b?c"),
            ("http://h/v1", "go?to=https://x/", "http://h/v1/go?to=https://x/"),
            ("http://h:80/v1", "x", "http://h/v1/x"),
            ("HTTP://H:8080/v1", "x", "http://h:8080/v1/x"),
            ("http://h/a/../v1", "x", "http://h/v1/x"),
        ] {
            assert_eq!(joined(base, path).unwrap(), url, "{base} + {path}");
        }
        for path in [
            "//evil/x",
            "https://evil/x",
            "HTTPS://evil/x",
            "\\\\evil\\x",
            "\t//evil",
            "../admin",
            "a/../../admin",
            "%2e%2e/x",
            "%2E%2e",
            ".%2e/v10",
            "..",
            "/..",
            "./..",
            "a/../..",
            "///x",
            " a",
            "a ",
            "a\r\nhost: evil",
        ] {
            assert!(joined("http://h/v1", path).is_err(), "{path}");
        }
    }

    #[test]
    fn usual_paths_are_joined_as_the_parser_would() {
        let pieces = ["a", "B9", "-", "_~", ".", "..", "a.b", "/", "//", "?", "=", "&", "", "x.."];
        let long = "x".repeat(3 * ROOM);
        let mut joins = 0;
        for base in ["http://h", "http://h/v1", "https://h:8443/v1/x/"] {
            for path in ["a", "a/b/", "a.json", "v1..2/x", "a?b=1&c", "a/?b", "a?b?c", &long] {
                assert!(is_plain(path), "{path}");
                joined(base, path).unwrap();
            }
            for a in pieces {
                for b in pieces {
                    for c in pieces {
                        joins += usize::from(joined(base, &[a, b, c].concat()).is_ok());
                    }
                }
            }
        }
        assert!(joins > 3_000, "{joins}");
    }

    #[test]
    fn bad_bases_are_refused_without_their_secrets() {
        for (base, why) in [
            ("", "is empty"),
            ("example.com", "no scheme"),
            ("hunter2@example.com", "no scheme"),
            ("/v1", "no scheme"),
            ("ftp://u:hunter2@h", "must start"),
            ("http://", "no host"),
            ("http:///v1", "no host"),
            ("https://:443", "not a URL (empty host)"),
            ("http://u:hunter2@h:port", "not a URL (invalid port number)"),
            ("http://u:hunter2@h:99999", "not a URL (invalid port number)"),
            ("http://h/v1#hunter2", "fragment"),
        ] {
            let error = BaseUrl::parse(base).err().unwrap().to_string();
            assert!(!error.contains("hunter2") && error.contains("base URL"), "{error}");
            assert!(error.contains(why), "{base}: {error}");
        }
    }

    #[test]
    fn user_and_password_become_a_header_and_leave_the_url() {
        let (base, header) = BaseUrl::parse("http://Aladdin:open%20sesame@h/v1").unwrap();
        assert_eq!(base.join("x").unwrap().as_str(), "http://h/v1/x");
        let header = header.unwrap();
        assert_eq!(header, "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(header.is_sensitive());
    }

    #[test]
    fn a_query_may_hold_anything_and_goes_nowhere_else() {
        assert_eq!(joined("http://h/v1", "a?x=../../y").unwrap(), "http://h/v1/a?x=../../y");
        assert!(absolute("http://u:p@h/").is_err());
        assert!(absolute("file:///etc/passwd").is_err());
        assert!(absolute("https:///evil/x").is_err());
    }
}
