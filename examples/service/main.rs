//! How does a real service use all of it: four clients, probes, metrics, the page, deadlines, and an
//! end in good order?
//!
//! ```sh
//! MAINSTAY_DATABASE_URL=postgres://postgres@127.0.0.1/postgres MAINSTAY_REDIS_URL=redis://127.0.0.1 \
//! MAINSTAY_HTTP_BASE_URL=http://127.0.0.1:9000 MAINSTAY_S3_ENDPOINT_URL=http://127.0.0.1:9001 \
//! MAINSTAY_S3_BUCKET=receipts cargo run --example service --features dashboard,prometheus
//! ```
//!
//! It listens on `SERVICE_ADDRESS` (127.0.0.1:8080): orders at `/orders`, the page at `/resilience`.
//! `SERVICE_OPERATORS=anna,ben` lets these users, as a proxy in front names them in
//! `X-Auth-Request-User`, change breakers on the page; the proxy must drop that header from outside.
//! `deploy/` has the manifest, the dashboard and the alerts that go with it.
#![allow(missing_docs)]

mod app;

use app::App;
use mainstay::{
    Error, get_database_client, get_http_client, get_redis_client, get_s3_client, report,
};
use std::{env, error::Error as StdError, process::ExitCode, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

/// Until every load balancer has seen that we are not ready: longer than the probe's period.
const UNTIL_NOTICED: Duration = Duration::from_secs(6);
/// For the requests that are under way. With the rest below `terminationGracePeriodSeconds`.
const TO_FINISH: Duration = Duration::from_secs(10);
const TO_CLOSE: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let own = error.downcast_ref::<Error>().map(|error| report(error).to_string());
            eprintln!("service: {}", own.unwrap_or_else(|| error.to_string()));
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn StdError>> {
    let store = get_s3_client()?;
    let bucket = store.bucket().ok_or("MAINSTAY_S3_BUCKET is not set")?.to_owned();
    let app = App {
        db: get_database_client()?,
        cache: get_redis_client()?,
        rates: get_http_client()?,
        store,
        bucket,
    };
    let readiness = app.readiness();
    let operators = env::var("SERVICE_OPERATORS").unwrap_or_default();
    let operators = operators.split(',').filter(|user| !user.is_empty()).map(str::to_owned);
    let router = app.clone().router(readiness.clone(), operators.collect());
    let address = env::var("SERVICE_ADDRESS").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
    let listener = TcpListener::bind(&address).await?;
    eprintln!("service: http://{}/resilience", listener.local_addr()?);

    // Probes are answered from the start, and see that we are starting.
    let starting = readiness.clone();
    tokio::spawn(async move {
        while let Err(error) = app.migrate().await {
            eprintln!("service: not started yet: {}", report(&error));
            sleep(Duration::from_secs(1)).await;
        }
        starting.started();
    });

    let mut end = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (finish, finishing) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        let _ = finishing.await;
    });
    let mut server = tokio::spawn(server.into_future());
    tokio::select! {
        stopped = &mut server => return Ok(stopped??),
        _ = end.recv() => {}
        _ = interrupt.recv() => {}
    }
    readiness.drain();
    sleep(UNTIL_NOTICED).await;
    let _ = finish.send(());
    let _ = timeout(TO_FINISH, &mut server).await;
    server.abort();
    mainstay::shutdown(TO_CLOSE).await;
    Ok(())
}
