//! A small service that counts what it did: a POST is done at most once, and at least once if it was
//! acknowledged.

use crate::{
    ROOM, Shift,
    tally::{Claims, Shared, Tally},
};
use axum::{
    Router,
    extract::State,
    routing::{get, post},
};
use mainstay::{Effect, Error, HttpClient};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

const WORKERS: u64 = 6;
const PAUSE: Duration = Duration::from_millis(10);

type Done = Arc<Mutex<HashMap<u64, u32>>>;

pub(crate) struct Service {
    address: SocketAddr,
    done: Done,
}

impl Service {
    pub(crate) async fn start() -> Self {
        let done = Done::new(Mutex::new(HashMap::with_capacity(ROOM)));
        let count = |State(done): State<Done>, id: String| async move {
            *done.lock().unwrap().entry(id.parse().unwrap_or(0)).or_default() += 1;
        };
        let service = Router::new()
            .route("/orders", post(count))
            .route("/page", get(|| async { "a page" }))
            .route("/rates", get(|| async { r#"{"EUR":1}"# }))
            .route("/health", get(|| async { "well" }))
            .with_state(Arc::clone(&done));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move { axum::serve(listener, service).await });
        Self { address, done }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What callers were told of their orders.
pub(crate) struct Books {
    ends: Mutex<HashMap<u64, Result<(), Effect>>>,
    next: AtomicU64,
}

impl Books {
    fn new() -> Self {
        Self { ends: Mutex::new(HashMap::with_capacity(ROOM)), next: AtomicU64::new(0) }
    }

    pub(crate) fn check(&self, service: &Service, claims: &mut Claims) {
        let (ends, done) = (self.ends.lock().unwrap(), service.done.lock().unwrap());
        let times = |id: &u64| done.get(id).copied().unwrap_or(0);
        let acknowledged = ends.iter().filter(|(_, end)| end.is_ok()).count();
        let lost = ends.iter().filter(|(id, end)| end.is_ok() && times(id) == 0).count();
        let twice = done.values().filter(|n| **n > 1).count();
        let not_done =
            |end: &Result<(), Effect>| end.is_err_and(|effect| effect != Effect::Unknown);
        let ghosts = ends.iter().filter(|(id, end)| not_done(end) && times(id) > 0).count();
        claims.check(
            acknowledged > 0 && lost == 0,
            &format!("http: {acknowledged} orders acknowledged, {lost} of them not done"),
        );
        claims.check(twice == 0, &format!("http: {twice} orders were done twice"));
        claims.check(ghosts == 0, &format!("http: {ghosts} orders reported as not done were done"));
    }
}

pub(crate) fn work(
    api: &HttpClient,
    shift: &Shift,
    workers: &mut JoinSet<()>,
) -> (Arc<Books>, Shared) {
    let (books, tally) = (Arc::new(Books::new()), Shared::new(Tally::default()));
    for _ in 0..WORKERS {
        let (api, shift) = (api.clone(), shift.clone());
        let (books, tally) = (Arc::clone(&books), Arc::clone(&tally));
        workers.spawn(async move {
            while let Some(round) = shift.round().await {
                let id = books.next.fetch_add(1, Relaxed) + 1;
                let order = async {
                    api.post("/orders").body(id.to_string()).await?;
                    Ok::<_, Error>(())
                };
                let end = tally.count(order).await.map_err(|error| error.effect());
                books.ends.lock().unwrap().insert(id, end);
                let page = async {
                    let page = api.get("/page").await?;
                    assert_eq!(page.text(), "a page");
                    Ok(())
                };
                let _ = tally.count(page).await;
                drop(round);
                sleep(PAUSE).await;
            }
        });
    }
    (books, tally)
}
