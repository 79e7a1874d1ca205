//! The service itself: its routes, over four clients that are handed to it.

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use mainstay::{
    Deadline, Error, HttpClient, PgDatabase, Readiness, RedisClient, S3Client, sqlx, web,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a caller waits for at most, whatever its request does on the way.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) db: PgDatabase,
    pub(crate) cache: RedisClient,
    pub(crate) rates: HttpClient,
    pub(crate) store: S3Client,
    pub(crate) bucket: String,
}

impl App {
    /// Before the first order.
    pub(crate) async fn migrate(&self) -> Result<(), Error> {
        let table =
            "create table if not exists orders (id bigserial primary key, item text not null)";
        sqlx::query(table).execute(self.db.idempotent()).await?;
        Ok(())
    }

    /// Without the database there are no orders; without the others, orders without extras.
    pub(crate) fn readiness(&self) -> Readiness {
        Readiness::builder()
            .starts_up()
            .critical("database", self.db.clone(), |db| async move { db.health_check().await })
            .optional(
                "redis",
                self.cache.clone(),
                |cache| async move { cache.health_check().await },
            )
            .optional("rates", self.rates.clone(), |rates| async move {
                rates.health_check_at("/health").await
            })
            .optional("s3", self.store.clone(), |store| async move { store.health_check().await })
            .build()
    }

    /// `operators` are the users, as the proxy in front names them, who may change breakers.
    pub(crate) fn router(self, readiness: Readiness, operators: Vec<String>) -> Router {
        let mut operations = web::Routes::new(readiness).pool(&self.db);
        if !operators.is_empty() {
            operations = operations.operators(move |request| {
                let user = request.headers.get("x-auth-request-user");
                let user = user.and_then(|user| user.to_str().ok());
                let may = user.is_some_and(|user| operators.iter().any(|other| other == user));
                async move { may }
            });
        }
        Router::new()
            .route("/orders", post(create))
            .route("/orders/{id}", get(read))
            .route("/orders/{id}/receipt", put(receipt))
            .route("/rates", get(rates))
            .with_state(self)
            .layer(middleware::from_fn(in_time))
            .layer(middleware::from_fn(web::resilience_status))
            // After the layers: a probe has limits of its own.
            .merge(operations.router())
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    Deadline::within(PATIENCE).scope(next.run(request)).await
}

#[derive(Debug, Deserialize, Serialize)]
struct Order {
    #[serde(default)]
    id: i64,
    item: String,
}

async fn create(State(app): State<App>, Json(order): Json<Order>) -> Result<Response, Error> {
    // Sent once: if its answer is lost, the caller is told that nobody knows.
    let insert = sqlx::query_scalar("insert into orders (item) values ($1) returning id");
    let id = insert.bind(&order.item).fetch_one(&app.db).await?;
    Ok((StatusCode::CREATED, Json(Order { id, ..order })).into_response())
}

async fn read(State(app): State<App>, Path(id): Path<i64>) -> Result<Response, Error> {
    let key = format!("order:{id}");
    if let Some(item) = app.cache.get(&key).await? {
        return Ok(Json(Order { id, item }).into_response());
    }
    let select = sqlx::query_scalar("select item from orders where id = $1").bind(id);
    let item: Option<String> = select.fetch_optional(app.db.read()).await?;
    let Some(item) = item else { return Ok(StatusCode::NOT_FOUND.into_response()) };
    app.cache.set(&key, &item).ttl(Duration::from_secs(60)).await?;
    Ok(Json(Order { id, item }).into_response())
}

async fn receipt(
    State(app): State<App>,
    Path(id): Path<i64>,
    body: axum::body::Bytes,
) -> Result<StatusCode, Error> {
    app.store.put(&app.bucket, &format!("receipts/{id}"), body).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn rates(State(app): State<App>) -> Result<Response, Error> {
    // A refusal of theirs, such as a 401, is no answer of ours.
    let rates: serde_json::Value = app.rates.get("/rates").await?.error_for_status()?.json()?;
    Ok(Json(rates).into_response())
}
