//! The service of `examples/service`, and its callers: an order that was answered 201 is there once, is
//! read as it was written, and so is its receipt.

use crate::{
    ROOM, Shift,
    app::App,
    tally::{Claims, Shared, Tally},
};
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use mainstay::{PgDatabase, sqlx};
use mainstay_test_support::s3::Memory;
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::sleep};
use tower::ServiceExt;

const CALLERS: u64 = 6;
const PAUSE: Duration = Duration::from_millis(20);
/// Receipts stay in the store until the end.
const RECEIPT_EVERY: i64 = 5;

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

impl Answer {
    /// The service says so whenever it does not know.
    pub(crate) fn may_have_happened(&self) -> bool {
        self.body.contains("it may have happened")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// Without a socket: the networks that fail are those behind the service.
async fn ask(service: &Router, method: &str, path: &str, body: String) -> Answer {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("content-type", "application/json").body(Body::from(body));
    let Ok(response) = service.clone().oneshot(request.expect("a request")).await;
    let (head, body) = response.into_parts();
    let body = to_bytes(body, 1 << 20).await.expect("a body in memory");
    Answer { status: head.status, body: String::from_utf8_lossy(&body).into_owned() }
}

/// What the callers were told; numbers only, or the books would be the memory that grows.
pub(crate) struct Books {
    /// By the item's number: the order's, or whether the order may have been taken all the same.
    orders: Mutex<HashMap<u64, Result<i64, bool>>>,
    receipts: Mutex<HashSet<i64>>,
    wrong: Mutex<Vec<String>>,
    next: AtomicU64,
}

impl Books {
    fn new() -> Self {
        Self {
            orders: Mutex::new(HashMap::with_capacity(ROOM)),
            receipts: Mutex::new(HashSet::with_capacity(ROOM)),
            wrong: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    pub(crate) async fn check(&self, db: &PgDatabase, store: &Memory, claims: &mut Claims) {
        let rows: Vec<(i64, String)> =
            sqlx::query_as("select id, item from orders").fetch_all(db).await.expect("all is well");
        let mut there: HashMap<String, Vec<i64>> = HashMap::new();
        for (id, item) in rows {
            there.entry(item).or_default().push(id);
        }
        let orders = self.orders.lock().unwrap();
        let of = |n: &u64| there.get(&item(*n)).map_or(&[][..], Vec::as_slice);
        let acknowledged = orders.values().filter(|end| end.is_ok()).count();
        let unknown = orders.values().filter(|end| **end == Err(true)).count();
        let lost = orders.iter().filter(|(n, end)| end.is_ok_and(|id| !of(n).contains(&id)));
        let ghosts = orders.iter().filter(|(n, end)| **end == Err(false) && !of(n).is_empty());
        let twice = there.values().filter(|ids| ids.len() > 1).count();
        let (lost, ghosts) = (lost.count(), ghosts.count());
        claims.check(
            acknowledged > 0 && lost == 0,
            &format!("service: {acknowledged} orders answered 201, {lost} of them not there"),
        );
        claims
            .check(ghosts == 0, &format!("service: {ghosts} orders answered as failed are there"));
        claims.check(twice == 0, &format!("service: {twice} are there twice; {unknown} unknown"));
        let receipts = self.receipts.lock().unwrap();
        let differ = receipts.iter().filter(|id| {
            store.object(&format!("receipts/{id}")).as_deref() != Some(receipt(**id).as_bytes())
        });
        let differ = differ.count();
        claims.check(
            !receipts.is_empty() && differ == 0,
            &format!("service: of {} receipts that were taken, {differ} differ", receipts.len()),
        );
        let wrong = self.wrong.lock().unwrap();
        claims.check(
            wrong.is_empty(),
            &format!("service: {} answers were wrong {:?}", wrong.len(), wrong.first()),
        );
    }
}

/// Orders, reads them again, leaves receipts and asks for the rates; and a probe, as a cluster sends it.
pub(crate) fn work(app: App, shift: &Shift, callers: &mut JoinSet<()>) -> (Arc<Books>, Shared) {
    let (books, tally) = (Arc::new(Books::new()), Shared::new(Tally::default()));
    let readiness = app.readiness();
    readiness.started();
    let service = app.router(readiness, Vec::new());
    for caller in 0..CALLERS {
        let (service, shift) = (service.clone(), shift.clone());
        let (books, tally) = (Arc::clone(&books), Arc::clone(&tally));
        callers.spawn(async move {
            let mut random = fastrand::Rng::with_seed(caller);
            let wrong = |what: String| books.wrong.lock().unwrap().push(what);
            let call = async |method, path: &str, body| {
                let answer = tally.answer(ask(&service, method, path, body)).await;
                // 500 is a mistake of the service's own.
                if answer.status == StatusCode::INTERNAL_SERVER_ERROR {
                    wrong(format!("{method} {path}: {}", answer.body));
                }
                answer
            };
            // The last few, with what was ordered.
            let mut taken: Vec<(i64, u64)> = Vec::with_capacity(64);
            while let Some(round) = shift.round().await {
                let n = books.next.fetch_add(1, Relaxed);
                let order = json!({ "item": item(n) }).to_string();
                let answer = call("POST", "/orders", order).await;
                let end = match answer.json()["id"].as_i64() {
                    Some(id) if answer.status == StatusCode::CREATED => Ok(id),
                    _ => Err(answer.may_have_happened()),
                };
                books.orders.lock().unwrap().insert(n, end);
                if let Ok(id) = end {
                    if id % RECEIPT_EVERY == 0 {
                        let path = format!("/orders/{id}/receipt");
                        let answer = call("PUT", &path, receipt(id)).await;
                        if answer.status == StatusCode::NO_CONTENT {
                            books.receipts.lock().unwrap().insert(id);
                        }
                    }
                    if taken.len() == 64 {
                        taken.swap_remove(0);
                    }
                    taken.push((id, n));
                }
                if let Some((id, n)) = random.choice(&taken) {
                    let answer = call("GET", &format!("/orders/{id}"), String::new()).await;
                    let same = answer.json()["item"].as_str() == Some(&item(*n));
                    if answer.status == StatusCode::NOT_FOUND
                        || (answer.status.is_success() && !same)
                    {
                        wrong(format!("order {id} is {} {}", answer.status, answer.body));
                    }
                }
                let rates = call("GET", "/rates", String::new()).await;
                if rates.status.is_success() && rates.json()["EUR"] != 1 {
                    wrong(format!("the rates are {}", rates.body));
                }
                let _ = ask(&service, "GET", "/health/ready", String::new()).await;
                drop(round);
                sleep(PAUSE).await;
            }
        });
    }
    (books, tally)
}

fn item(n: u64) -> String {
    format!("item-{n}")
}

fn receipt(id: i64) -> String {
    format!("receipt of order {id}; ").repeat(100)
}
