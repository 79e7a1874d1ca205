//! The base URL and the rules of joining a path to it.
//!
//! The path is appended to the base's own path. What would leave the origin or the base path is
//! refused, so credentials never travel to another host.

use mainstay_policy::Error;
use reqwest::Url;

#[derive(Clone)]
pub(crate) struct BaseUrl(Url);

impl BaseUrl {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |why: &str| Err(Error::invalid(format!("the HTTP base URL {why}")));
        let Ok(mut url) = Url::parse(text) else {
            return refuse("is not a URL; write it as https://host/path");
        };
        if !matches!(url.scheme(), "http" | "https") {
            return refuse("must start with http:// or https://");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("holds credentials; leave them out and set a default header instead");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return refuse("has a query or a fragment; leave it out and add queries per request");
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self(url))
    }

    /// `scheme://host:port`, the name of the dependency.
    pub(crate) fn origin(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    pub(crate) fn join(&self, path: &str) -> Result<Url, Error> {
        let refuse = |why: &str| Err(Error::invalid(format!("the request path {why}")));
        if path.chars().any(|c| c.is_control() || c == '\\') || path.trim() != path {
            return refuse("holds a control character, a backslash or a space at its ends");
        }
        let path = path.split('#').next().unwrap_or_default();
        if path.starts_with("//") || is_absolute(path) {
            return refuse("names another host; give a path below the base URL");
        }
        let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
        let mut url = self.0.clone();
        url.set_path(&format!("{}{}", self.0.path(), path.trim_start_matches('/')));
        url.set_query(query);
        // The parser resolved `..` and `%2e%2e`; what is left must still be below the base.
        if url.origin() != self.0.origin() || !url.path().starts_with(self.0.path()) {
            return refuse("leaves the base URL's path; remove the `..`");
        }
        Ok(url)
    }
}

/// `scheme://`, as RFC 3986 spells a scheme.
fn is_absolute(path: &str) -> bool {
    path.split_once("://").is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_by_the_table() {
        let base = BaseUrl::parse("http://h/v1").unwrap();
        for (path, joined) in [
            ("users", "http://h/v1/users"),
            ("/users", "http://h/v1/users"),
            ("", "http://h/v1/"),
            ("users?q=2#top", "http://h/v1/users?q=2"),
            ("users:cancel", "http://h/v1/users:cancel"),
            ("a%20b", "http://h/v1/a%20b"),
            ("a/../b", "http://h/v1/b"),
            ("go?to=https://x/", "http://h/v1/go?to=https://x/"),
        ] {
            assert_eq!(base.join(path).unwrap().as_str(), joined, "{path}");
        }
        for path in
            ["//evil/x", "https://evil/x", "\\\\evil", "\t//evil", "../admin", "%2e%2e/x", " a"]
        {
            assert!(base.join(path).is_err(), "{path}");
        }
    }

    #[test]
    fn bad_bases_are_refused_without_their_secrets() {
        for base in ["example.com", "ftp://h", "http://u:hunter2@h", "http://h?k=hunter2", "/v1"] {
            let error = BaseUrl::parse(base).err().unwrap().to_string();
            assert!(!error.contains("hunter2") && error.contains("base URL"), "{error}");
        }
    }
}
