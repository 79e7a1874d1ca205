//! What probes, scrapers and people on call ask a running service, as routes of axum (feature `axum`).
//!
//! | route | answers |
//! |---|---|
//! | `GET /health` | `status`, every breaker and every check of [`Readiness`]; always 200 |
//! | `GET /health/live` | 200 as long as the process answers, whatever its dependencies do |
//! | `GET /health/ready` | 200 or 503, and why |
//! | `GET /health/resilience` | [`get_resilience_health`] |
//! | `GET /metrics/resilience` | states, failure rates and calls by name |
//! | `GET /metrics` (feature `prometheus`) | the same and more, as Prometheus reads it |
//! | `GET /resilience` (feature `dashboard`) | a page that shows it live |
//!
//! The JSON is described by `docs/health.schema.json` and only grows. It names dependencies and hosts,
//! and no secret; still, serve it where your users are not: on a port of its own, or behind a prefix
//! that the outer proxy does not pass on.
//!
//! On Kubernetes, `/health/ready` is the readiness probe and `/health/live` the liveness probe: never
//! the other way round. A liveness probe that asks a database restarts every replica when the
//! database is slow, which makes one outage two. Give the readiness probe more time than the checks
//! take (`timeoutSeconds: 3` for the default of 2 s).

#[cfg(feature = "dashboard")]
mod dashboard;
#[cfg(feature = "dashboard")]
mod feed;
#[cfg(feature = "dashboard")]
mod operators;
#[cfg(feature = "prometheus")]
mod prometheus;

use crate::{HealthStatus, Readiness, ReadinessReport, ResilienceHealth, get_resilience_health};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
    routing::get,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

type ReadGauges = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// What the handlers share.
struct Shared {
    readiness: Readiness,
    gauges: Vec<(String, ReadGauges)>,
    #[cfg(feature = "prometheus")]
    more: Option<Box<dyn Fn() -> String + Send + Sync>>,
    #[cfg(feature = "dashboard")]
    feed: feed::Feed,
    #[cfg(feature = "dashboard")]
    operators: Option<operators::Allow>,
}

/// Builds the routes of this module.
///
/// # Examples
/// ```
/// use axum::{Router, middleware, routing::get};
/// use mainstay::{Readiness, web};
///
/// let readiness = Readiness::builder().build();
/// let app: Router = Router::new()
///     .route("/", get(async || "Hello"))
///     .layer(middleware::from_fn(web::resilience_status))
///     .merge(web::Routes::new(readiness).router());
/// ```
#[must_use]
pub struct Routes {
    shared: Shared,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes")
            .field("readiness", &self.shared.readiness)
            .field("gauges", &self.shared.gauges.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Routes {
    /// The routes over these checks.
    pub fn new(readiness: Readiness) -> Self {
        Self {
            shared: Shared {
                #[cfg(feature = "dashboard")]
                feed: feed::Feed::new(),
                #[cfg(feature = "dashboard")]
                operators: None,
                #[cfg(feature = "prometheus")]
                more: None,
                readiness,
                gauges: Vec::new(),
            },
        }
    }

    /// Figures of a dependency that only its client knows, such as `("in use", 3)`; for `/metrics` and
    /// the page. `dependency` is the name of its policy; `read` is called often and must not block.
    pub fn gauges(
        mut self,
        dependency: impl Into<String>,
        read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static,
    ) -> Self {
        self.shared.gauges.push((dependency.into(), Box::new(read)));
        self
    }

    /// The connections of a SQL client, those of all runtimes together, as [`gauges`](Self::gauges).
    #[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
    pub fn pool<DB: mainstay_database::Backend>(
        self,
        client: &mainstay_database::DatabaseClient<DB>,
    ) -> Self {
        let client = client.clone();
        self.gauges(client.policy().name().to_owned(), move || {
            let status = client.pool_status();
            vec![
                ("in use", status.in_use.into()),
                ("idle", status.idle.into()),
                ("waiting", status.waiting.into()),
                ("max", status.max.into()),
            ]
        })
    }

    /// Text that `/metrics` gives after our own: what your recorder of the `metrics` crate renders,
    /// with histograms of our durations and whatever you count yourself.
    #[cfg(feature = "prometheus")]
    pub fn and_metrics(mut self, text: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.shared.more = Some(Box::new(text));
        self
    }

    /// Lets operators isolate, close and reset breakers from the page, those of whom `allow` says so.
    /// Off unless this is called. What they change is this process's own; each other replica has to be told, too.
    ///
    /// `allow` gets the head of the request: decide by a session's cookie, by a header that your
    /// proxy sets, or by what your own layers left in its extensions. That the request comes from the
    /// page itself, and not from another site, has been checked by then.
    ///
    /// # Examples
    /// ```
    /// # use mainstay::{Readiness, web::Routes};
    /// let routes = Routes::new(Readiness::builder().build()).operators(|request| async move {
    ///     request.headers.get("x-user-role").is_some_and(|role| role == "on-call")
    /// });
    /// ```
    #[cfg(feature = "dashboard")]
    pub fn operators<F, Fut>(mut self, allow: F) -> Self
    where
        F: Fn(axum::http::request::Parts) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = bool> + Send + 'static,
    {
        self.shared.operators = Some(Box::new(move |request| Box::pin(allow(request))));
        self
    }

    /// The routes, to be merged into your router or nested in it.
    pub fn router<S>(self) -> Router<S> {
        let routes = Router::new()
            .route("/health", get(health))
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .route("/health/resilience", get(resilience))
            .route("/metrics/resilience", get(metrics));
        #[cfg(feature = "prometheus")]
        let routes = routes.route("/metrics", get(prometheus::metrics));
        #[cfg(feature = "dashboard")]
        let routes = routes
            .route("/resilience", get(dashboard::page))
            .route("/resilience/events", get(feed::events))
            .route("/resilience/breaker", axum::routing::post(operators::breaker));
        routes.with_state(Arc::new(self.shared))
    }
}

/// A layer that says in the header `X-Resilience-Status` of every answer how the dependencies are:
/// `healthy`, `degraded` or `unhealthy`, as of a quarter of a second ago.
///
/// `.layer(axum::middleware::from_fn(mainstay::web::resilience_status))`
pub async fn resilience_status(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let status = HeaderValue::from_static(overall().name());
    response.headers_mut().insert("x-resilience-status", status);
    response
}

/// Not worked out for every request.
fn overall() -> HealthStatus {
    const FRESH: Duration = Duration::from_millis(250);
    static LAST: Mutex<Option<(Instant, HealthStatus)>> = Mutex::new(None);
    let last = || LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let known = *last();
    match known {
        Some((at, status)) if at.elapsed() < FRESH => status,
        _ => {
            let status = get_resilience_health().overall_health;
            *last() = Some((Instant::now(), status));
            status
        }
    }
}

#[derive(Serialize)]
struct Everything {
    status: HealthStatus,
    resilience: ResilienceHealth,
    clients: BTreeMap<String, crate::CheckReport>,
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let report = shared.readiness.report().await;
    let resilience = get_resilience_health();
    // An open breaker is not an outage of this process, whose checks say what it can do.
    let breakers = resilience.overall_health.min(HealthStatus::Degraded);
    let status = report.status().max(breakers);
    json(StatusCode::OK, &Everything { status, resilience, clients: report.checks })
}

async fn live() -> Response {
    #[derive(Serialize)]
    struct Alive {
        status: &'static str,
    }
    json(StatusCode::OK, &Alive { status: "alive" })
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let report: ReadinessReport = shared.readiness.report().await;
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &report)
}

async fn resilience() -> Response {
    json(StatusCode::OK, &get_resilience_health())
}

#[derive(Serialize)]
struct Metrics<'a> {
    circuit_breaker_states: BTreeMap<&'a str, crate::BreakerState>,
    failure_rates: BTreeMap<&'a str, f64>,
    total_calls: BTreeMap<&'a str, u64>,
    overall_health: HealthStatus,
}

async fn metrics() -> Response {
    let health = get_resilience_health();
    let each = || health.circuit_breakers.iter().map(|(name, breaker)| (&**name, breaker));
    let metrics = Metrics {
        circuit_breaker_states: each().map(|(name, b)| (name, b.state)).collect(),
        failure_rates: each().map(|(name, b)| (name, b.failure_rate)).collect(),
        total_calls: each().map(|(name, b)| (name, b.total_calls)).collect(),
        overall_health: health.overall_health,
    };
    json(StatusCode::OK, &metrics)
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => respond(status, "application/json", body),
        // Maps with names as keys, and finite numbers: there is nothing that could not be written.
        Err(_) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Vec::new()),
    }
}

/// An answer that is true now, and that nobody keeps.
fn respond(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
