//! The clients of this process, built from settings on first use.

use crate::client::HttpClient;
use mainstay_policy::{Error, Singletons, settings};
use std::{cell::Cell, sync::Arc};

static DEFAULT: Singletons<HttpClient> = Singletons::new();
static BY_URL: Singletons<HttpClient> = Singletons::new();
/// A second hold on those of `BY_URL` that somebody installed.
static INSTALLED: Singletons<HttpClient> = Singletons::new();
static NAMED: Singletons<HttpClient> = Singletons::new();

/// Half as many as the registry has breakers for, so that there is one for every origin.
const MOST_URLS: usize = 512;

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
/// It is for the hosts that a service knows: each URL, as it is written, is a client with connections
/// of its own. Where there are 512, half of those that nobody holds are let go, and built anew when
/// they are asked for again. For hosts without number, such as those of webhooks, take absolute URLs:
/// [`get_http_client`] without a base URL, or
/// [`allow_absolute_urls`](crate::HttpClientBuilder::allow_absolute_urls).
///
/// # Errors
/// When the base URL or a setting cannot be used.
pub fn get_http_client_for(base_url: &str) -> Result<HttpClient, Error> {
    BY_URL.get_or_try_init(base_url, || {
        // Before it is built, so that their breakers can go in its favour.
        // Half of them, so that not all hosts are connected to anew at one time.
        let stays = Cell::new(false);
        BY_URL.make_room(MOST_URLS, |client| is_in_use(client) || stays.replace(!stays.get()));
        HttpClient::builder(base_url).build()
    })
}

/// Somebody holds it, or its server asked to be left alone for a while, which a new one would not know.
fn is_in_use(client: &HttpClient) -> bool {
    Arc::strong_count(&client.0) > 1 || client.slowed_for().is_some_and(|wait| !wait.is_zero())
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

/// Installs the client that [`get_http_client_for`] gives for this URL, as it is written there.
pub fn set_http_client_for(base_url: &str, client: HttpClient) {
    INSTALLED.set(base_url, client.clone());
    BY_URL.set(base_url, client);
}

/// Installs the client that [`get_http_client_named`] gives for this name.
pub fn set_http_client_named(name: &str, client: HttpClient) {
    NAMED.set(name, client);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn clients_by_url_are_let_go_unless_held_or_installed_and_each_has_a_breaker() {
        let _no_reset = crate::RESETS.lock();
        let url = |n: usize| format!("http://tenant-{n}.example");
        let same = |a: &HttpClient, b: &HttpClient| Arc::ptr_eq(&a.0, &b.0);
        let held = get_http_client_for(&url(0)).unwrap();
        let installed = HttpClient::builder("http://double.example").build().unwrap();
        let known = Arc::downgrade(&installed.0);
        set_http_client_for("http://installed.example", installed);
        let slowed = Arc::downgrade(&get_http_client_for("http://slow.example").unwrap().0);
        let pace = slowed.upgrade().unwrap().pace.clone();
        pace.refused(pace.seen(), Some(Duration::from_secs(30)));
        for n in 1..1_200 {
            let first = get_http_client_for(&url(n)).unwrap();
            assert!(same(&first, &get_http_client_for(&url(n)).unwrap()));
            assert!(mainstay_policy::breaker(first.policy().name()).is_some(), "{n}");
        }
        let left = BY_URL.all().len();
        assert!((MOST_URLS / 2..=MOST_URLS).contains(&left), "{left}");
        assert!(slowed.upgrade().is_some(), "a new one would send at once");
        assert!(same(&held, &get_http_client_for(&url(0)).unwrap()));
        let installed = get_http_client_for("http://installed.example").unwrap();
        assert!(Arc::ptr_eq(&installed.0, &known.upgrade().unwrap()));
        set_http_client_named("billing", installed.clone());
        assert!(same(&installed, &get_http_client_named("billing").unwrap()));
    }
}
