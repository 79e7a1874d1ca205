//! The clients of this process, built from settings on first use.

use crate::client::HttpClient;
use mainstay_policy::{Error, Singletons, settings};

static DEFAULT: Singletons<HttpClient> = Singletons::new();
static BY_URL: Singletons<HttpClient> = Singletons::new();
static NAMED: Singletons<HttpClient> = Singletons::new();

/// The client of `MAINSTAY_HTTP_BASE_URL`; where that is not set, a client that takes absolute URLs
/// only. No I/O.
///
/// # Errors
/// When a setting cannot be used.
pub fn get_http_client() -> Result<HttpClient, Error> {
    DEFAULT.get_or_try_init("default", || match settings()?.connection("http", "base_url") {
        Some(base) => HttpClient::builder(&base).build(),
        None => HttpClient::builder_without_base().build(),
    })
}

/// The client of this base URL, built from settings on first use; no I/O.
///
/// # Errors
/// When the base URL or a setting cannot be used.
pub fn get_http_client_for(base_url: &str) -> Result<HttpClient, Error> {
    BY_URL.get_or_try_init(base_url, || HttpClient::builder(base_url).build())
}

/// The client of `MAINSTAY_HTTP_{NAME}_BASE_URL`, with a breaker of its own; no I/O.
///
/// # Errors
/// When that setting is missing or a setting cannot be used.
pub fn get_http_client_named(name: &str) -> Result<HttpClient, Error> {
    NAMED.get_or_try_init(name, || {
        let url = settings()?.named_url("http", name, "base_url")?;
        HttpClient::builder(&url).name(name).build()
    })
}

/// Installs the client that [`get_http_client`] gives.
pub fn set_http_client(client: HttpClient) {
    DEFAULT.set("default", client);
}
