//! The page in a real browser, over a real service and servers that are killed and restarted.
//!
//! Each state is left as a picture in `target/tmp/page/`.

use crate::{alone, app::App, ask::health, browser::Browser};
use axum::Router;
use mainstay::{
    BreakGrowth, BreakerState, HealthStatus, HttpClient, Kind, PgDatabase, Policy, Readiness,
    RedisClient, S3Client, web::Routes,
};
use mainstay_test_support::{
    Postgres, Redis, S3,
    s3::{BUCKET, KEY, SECRET},
};
use serde_json::json;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{net::TcpListener, task::JoinHandle};

/// In a process whose breakers are this test's own, as the page shows all there are.
fn alone(test: &str) -> Option<String> {
    alone::alone(test, &[])
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// On a port of its own; aborted when it is dropped.
struct Served {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Served {
    async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, server }
    }

    fn page(&self) -> String {
        format!("http://{}/resilience", self.address)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The word in the State column of a dependency.
fn state_of(name: &str) -> String {
    format!("rows.get({name:?})?.state.textContent")
}

async fn until_state(browser: &mut Browser, name: &str, word: &str) {
    browser.until(&format!("{} === {word:?}", state_of(name))).await;
}

/// What the service asks for rates.
fn rates_api() -> Router {
    Router::new()
        .route("/health", axum::routing::get(async || "fine"))
        .route("/rates", axum::routing::get(async || r#"{"EUR": 1}"#))
}

/// ```text
/// all closed | PostgreSQL is killed: open | restarted: closed | an operator isolates, and resets
/// ```
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_change_live_and_an_operator_has_a_hand_in_them() {
    if let Some(told) = alone("page::states_change_live_and_an_operator_has_a_hand_in_them") {
        return println!("{told}");
    }
    let (mut postgres, redis, s3) = (Postgres::start(), Redis::start(), S3::start().await);
    let api = Served::start(rates_api()).await;
    let brief = |policy: mainstay::PolicyBuilder| {
        policy.base_delay(ms(10)).recovery_timeout(ms(1_000)).timeout(ms(2_000))
    };
    let db = PgDatabase::builder().name("orders").url(postgres.url()).policy(brief);
    let store = S3Client::builder().endpoint_url(s3.endpoint()).credentials(KEY, SECRET);
    let rates = format!("http://{}", api.address);
    let app = App {
        db: db.build().unwrap(),
        cache: RedisClient::builder().name("orders").url(redis.url()).build().unwrap(),
        rates: HttpClient::builder(&rates).build().unwrap(),
        store: store.bucket(BUCKET).build().unwrap(),
        bucket: BUCKET.to_owned(),
    };
    app.migrate().await.unwrap();
    let readiness = app.readiness();
    readiness.started();
    let served =
        Served::start(app.clone().router(readiness.clone(), vec!["anna".to_owned()])).await;
    let base = format!("http://{}", served.address);
    let service = HttpClient::builder(&base).build().unwrap();
    // As users do all the time; whatever becomes of it.
    let work = async || {
        let order = service.post("/orders").json(&json!({"item": "tea"})).await;
        let id =
            order.ok().and_then(|order| order.json::<serde_json::Value>().ok()?["id"].as_i64());
        let id = id.unwrap_or(1);
        let _ = service.get(&format!("/orders/{id}")).await;
        let _ = service.get("/rates").await;
        let _ = service
            .request("PUT".parse().unwrap(), &format!("/orders/{id}/receipt"))
            .body("paid")
            .await;
    };

    let mut browser = Browser::start().await;
    browser.size(1280, 900).await;
    browser.open(&served.page()).await;
    for _ in 0..5 {
        work().await;
    }
    until_state(&mut browser, "database:orders", "Closed").await;
    browser
        .until(
            r#"byId("checks").children.length === 4 && byId("overall").textContent === "Healthy""#,
        )
        .await;
    assert_eq!(browser.ask(r#"byId("tools").hidden"#).await, true, "five need no filter");
    browser
        .until(r#"rows.get("database:orders").pool.textContent.includes("of 10 connections")"#)
        .await;
    browser.until(r#"rows.get("database:orders").p50.main.textContent !== "–""#).await;
    browser.picture("closed-light").await;
    browser.dark(true).await;
    browser.picture("closed-dark").await;
    browser.dark(false).await;

    postgres.kill();
    let killed = tokio::time::Instant::now();
    while app.db.policy().breaker().state() == BreakerState::Closed {
        work().await;
        assert!(killed.elapsed() < ms(60_000), "it opens");
    }
    browser.until(r#"picture.transitions.some((t) => t.dependency === "database:orders" && t.to === "open")"#).await;
    browser
        .until(&format!("[\"Open\", \"Half-open\"].includes({})", state_of("database:orders")))
        .await;
    browser.until(r#"byId("spoken").textContent.includes("database:orders is now")"#).await;
    browser.until(r#"rows.get("database:orders").when.textContent.includes("ago")"#).await;
    let first = r#"byId("rows").firstElementChild.firstElementChild.textContent.includes("database:orders")"#;
    browser.until(first).await;
    browser
        .until(r#"[...byId("checks").children].some((li) => li.innerText.includes("Unhealthy"))"#)
        .await;
    browser.picture("open-light").await;
    browser.dark(true).await;
    browser.size(390, 844).await;
    browser.picture("open-phone-dark").await;
    let wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
    assert_eq!(browser.ask(wide).await, false, "nothing sticks out on a phone");
    browser.dark(false).await;
    browser.picture("open-phone-light").await;
    browser.size(1280, 900).await;

    postgres.restart();
    let back = tokio::time::Instant::now();
    while app.db.policy().breaker().state() != BreakerState::Closed {
        work().await;
        assert!(back.elapsed() < ms(60_000), "it closes");
    }
    until_state(&mut browser, "database:orders", "Closed").await;
    browser.picture("recovered").await;
    assert_eq!(browser.errors, Vec::<String>::new());

    // Nobody has said who this is.
    let press =
        |action: &str| format!(r#"document.querySelector('.choice[value="{action}"]').click()"#);
    browser.ask(r#"rows.get("redis:orders").change.firstChild.click()"#).await;
    assert_eq!(browser.ask(r#"byId("dialog").open"#).await, true);
    browser.picture("dialog").await;
    browser.ask(&press("isolate")).await;
    browser.until(r#"byId("said").textContent.includes("does not allow you")"#).await;
    assert_eq!(app.cache.policy().breaker().state(), BreakerState::Closed);
    browser.ask(r#"byId("cancel").click()"#).await;
    assert!(browser.errors.iter().all(|error| error.contains("403")), "{:?}", browser.errors);
    browser.errors.clear();

    // As the proxy in front would say it; and by the keyboard alone.
    let user = json!({"headers": {"x-auth-request-user": "anna"}});
    browser.tell("Network.setExtraHTTPHeaders", user).await;
    browser.ask(r#"rows.get("redis:orders").change.firstChild.focus()"#).await;
    browser.press("Enter", 13).await;
    browser.until(r#"byId("dialog").open && document.activeElement.value === "isolate""#).await;
    browser.press("Enter", 13).await;
    until_state(&mut browser, "redis:orders", "Isolated").await;
    assert_eq!(app.cache.policy().breaker().state(), BreakerState::Isolated);
    assert_eq!(browser.ask(r#"byId("dialog").open"#).await, false);
    browser.ask("document.activeElement.blur()").await;
    browser.until(r#"byId("rows").firstElementChild.innerText.includes("redis:orders")"#).await;
    browser.picture("isolated").await;
    browser.ask(r#"rows.get("redis:orders").change.firstChild.click()"#).await;
    browser.ask(&press("reset")).await;
    until_state(&mut browser, "redis:orders", "Closed").await;
    assert_eq!(browser.errors, Vec::<String>::new());

    // A page that is open does not hold up the end, and says that it is old.
    readiness.drain();
    browser.until(r#"!byId("stale").hidden && document.body.classList.contains("stale")"#).await;
    browser.picture("draining").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_right_with_two_hundred_dependencies_and_with_one() {
    if let Some(told) = alone("page::it_is_right_with_two_hundred_dependencies_and_with_one") {
        return println!("{told}");
    }
    let mut policies = Vec::new();
    for n in 0..200 {
        let policy = Policy::builder(Kind::Api, format!("page:{n:03}")).failure_threshold(1);
        let policy = policy.max_attempts(1).recovery_timeout(ms(600_000));
        let policy = policy.break_growth(BreakGrowth::Fixed).build().unwrap();
        policy.call(|| async { Ok::<_, io::Error>(()) }).await.unwrap();
        policies.push(policy);
    }
    for n in [7, 150] {
        let down = || async { Err::<(), _>(io::Error::other("down")) };
        policies[n].call(down).await.unwrap_err();
    }
    policies[42].breaker().isolate();
    policies[43].breaker().force_closed();
    let mut readiness = Readiness::builder();
    for n in 0..12 {
        let status = if n == 3 { HealthStatus::Unhealthy } else { HealthStatus::Healthy };
        readiness =
            readiness.optional(format!("page:{n:03}"), status, |s| async move { health(s) });
    }
    let served = Served::start(Routes::new(readiness.build()).router()).await;
    let mut browser = Browser::start().await;
    browser.size(1440, 1000).await;
    browser.open(&served.page()).await;
    browser.until("rows.size >= 200").await;
    let order = "[...document.querySelectorAll('#rows tr:not([hidden])')].map((row) => \
                 row.firstElementChild.firstChild.textContent).filter((name) => name.startsWith('page:'))";
    let names = browser.ask(order).await;
    let names: Vec<_> =
        names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(names.len(), 200);
    assert_eq!(names[..5], ["page:007", "page:150", "page:042", "page:043", "page:000"]);
    assert_eq!(browser.ask("'change' in rows.get('page:000')").await, false, "no hand in it");
    browser.picture("200-light").await;
    // Two hundred drawn anew in a tenth of the second that there is.
    let took = browser
        .ask("(() => { const t = performance.now(); show(); return performance.now() - t })()");
    let took = took.await.as_f64().unwrap();
    browser.dark(true).await;
    browser.picture("200-dark").await;
    browser.size(390, 844).await;
    browser.picture("200-phone").await;
    browser.size(1440, 1000).await;
    browser.ask("byId('troubled').click()").await;
    browser
        .ask("byId('filter').value = 'page:'; byId('filter').dispatchEvent(new Event('input'))")
        .await;
    let shown = browser.ask("document.querySelectorAll('#rows tr:not([hidden])').length").await;
    assert_eq!(shown, 4, "those in trouble");
    browser.picture("200-in-trouble").await;
    browser
        .ask("byId('filter').value = 'nobody'; byId('filter').dispatchEvent(new Event('input'))")
        .await;
    assert_eq!(browser.ask("byId('none').innerText").await, "No dependency is like that.");
    assert_eq!(browser.errors, Vec::<String>::new());
    println!("200 rows drawn in {took:.1} ms");

    // One: what the page is told of the others is left out on the way.
    browser.dark(false).await;
    browser.open("about:blank").await;
    let only = "const Real = EventSource; window.EventSource = class extends Real { set onmessage(f) { \
                super.onmessage = (m) => { const p = JSON.parse(m.data); p.dependencies = \
                p.dependencies.filter((d) => d.name === 'page:007'); p.checks = {}; p.transitions = \
                p.transitions.filter((t) => t.dependency === 'page:007'); \
                f({ data: JSON.stringify(p) }) } } }";
    browser.tell("Page.addScriptToEvaluateOnNewDocument", json!({"source": only})).await;
    browser.open(&served.page()).await;
    browser.until("rows.size === 1 && byId('tools').hidden && byId('checks-part').hidden").await;
    browser.picture("1-light").await;
    browser.size(390, 844).await;
    browser.picture("1-phone").await;
    assert_eq!(browser.errors, Vec::<String>::new());
    for policy in policies {
        policy.breaker().reset();
    }
}

/// What a reader gets who does not see colours, or nothing at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_reads_well_aloud() {
    if let Some(told) = alone("page::it_reads_well_aloud") {
        return println!("{told}");
    }
    let policy = Policy::api("t-aloud");
    policy.breaker().isolate();
    let served = Served::start(Routes::new(Readiness::builder().build()).router()).await;
    let mut browser = Browser::start().await;
    browser.open(&served.page()).await;
    browser.until("rows.has('api:t-aloud')").await;
    for width in [1280, 390] {
        browser.size(width, 844).await;
        let tree = browser.tell("Accessibility.getFullAXTree", json!({})).await;
        let nodes = tree["nodes"].as_array().unwrap();
        let named = |role: &str, part: &str| {
            nodes.iter().any(|node| {
                node["role"]["value"] == role
                    && node["name"]["value"].as_str().is_some_and(|name| name.contains(part))
            })
        };
        for (role, name) in [
            ("main", ""),
            ("banner", ""),
            ("heading", "Resilience"),
            ("region", "Dependencies"),
            ("region", "Last changes"),
            ("table", "Dependencies"),
            ("columnheader", "State"),
            // Where a line may break, the voice pauses.
            ("rowheader", "api: t-aloud"),
            ("cell", "Isolated"),
            ("image", "Isolated"),
        ] {
            let of_role = || nodes.iter().filter(|node| node["role"]["value"] == role);
            let names: Vec<_> = of_role().map(|node| node["name"]["value"].to_string()).collect();
            assert!(named(role, name), "no {role} `{name}` at {width} pixels, but {names:?}");
        }
    }
    // Text against what is behind it, in both schemes: 4.5 to 1 as WCAG asks.
    let contrast = r#"(() => {
        const channel = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4 };
        const light = (css) => { const [r, g, b] = css.match(/\d+(\.\d+)?/g).map(Number);
            return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b) };
        const probe = document.body.appendChild(document.createElement("i"));
        const of = (name) => { probe.style.color = `var(--${name})`; return light(getComputedStyle(probe).color) };
        let least = 99;
        for (const text of ["text", "quiet", "good", "wary", "bad", "held"]) for (const behind of ["page", "sheet"]) {
            const [a, b] = [of(text), of(behind)].sort((x, y) => y - x);
            least = Math.min(least, (a + 0.05) / (b + 0.05));
        }
        probe.remove(); return least })()"#;
    for dark in [false, true] {
        browser.dark(dark).await;
        let least = browser.ask(contrast).await.as_f64().unwrap();
        assert!(least >= 4.5, "{least}, dark: {dark}");
    }
    assert_eq!(browser.errors, Vec::<String>::new());
    policy.breaker().reset();
}
