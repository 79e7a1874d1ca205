//! Redirects: on the same origin; elsewhere only when allowed, and then without what is secret.

use http::{HeaderMap, Method, StatusCode, header};
use reqwest::Url;

/// One request of those that a redirected request is made of.
#[derive(Clone)]
pub(crate) struct Hop {
    pub(crate) url: Url,
    pub(crate) method: Method,
    /// With the client's default headers.
    pub(crate) defaults: bool,
    /// With the request's own Authorization, Cookie, Host, and headers of a default's name.
    pub(crate) secrets: bool,
    pub(crate) body: bool,
}

impl Hop {
    /// Where this answer sends us; `None` if the redirect itself is to be the response.
    pub(crate) fn next(&self, answer: &reqwest::Response, elsewhere: bool) -> Option<Self> {
        let method = match answer.status() {
            StatusCode::SEE_OTHER if self.method == Method::HEAD => Method::HEAD,
            StatusCode::SEE_OTHER => Method::GET,
            // What browsers made of it, and RFC 9110 sections 15.4.2 and 15.4.3 allow.
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND if self.method == Method::POST => {
                Method::GET
            }
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => self.method.clone(),
            _ => return None,
        };
        let location = answer.headers().get(header::LOCATION)?.to_str().ok()?;
        let url = self.url.join(location).ok()?;
        let stays = url.origin() == self.url.origin();
        let downgrade = self.url.scheme() == "https" && url.scheme() != "https";
        if !stays && (!elsewhere || downgrade) || !matches!(url.scheme(), "http" | "https") {
            return None;
        }
        // Credentials that a server puts there are not ours to send.
        if !url.username().is_empty() || url.password().is_some() {
            return None;
        }
        let body = self.body && method == self.method;
        let (defaults, secrets) = (self.defaults && stays, self.secrets && stays);
        Some(Self { url, method, defaults, secrets, body })
    }
}

/// Takes out what does not belong to a hop without secrets, or without a body.
pub(crate) fn clean(headers: &mut HeaderMap, secrets: bool, body: bool) {
    if !secrets {
        // A Host of the caller's own names the server that was asked first.
        for name in
            [header::AUTHORIZATION, header::COOKIE, header::HOST, header::PROXY_AUTHORIZATION]
        {
            headers.remove(name);
        }
    }
    if !body {
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LENGTH] {
            headers.remove(name);
        }
    }
}
