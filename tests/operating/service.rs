//! What the example's service answers where those that it asks say no.

use crate::{app::App, ask};
use axum::http::StatusCode;
use mainstay::{HttpClient, HttpDouble, PgDatabase, RedisClient, Reply, S3Client};
use mainstay_test_support::Port;

#[tokio::test]
async fn a_refusal_by_another_service_is_no_answer_of_its_own() {
    let (nowhere, said) = (Port::reserve(), r#"{"error": "the token has expired"}"#);
    let rates = HttpDouble::new(move |r| {
        Reply::status(if r.number == 1 { 200 } else { 401 }).with_body(said)
    });
    let store = S3Client::builder().endpoint_url(format!("http://{}", nowhere.address()));
    let app = App {
        db: PgDatabase::builder()
            .name("refused")
            .url(format!("postgres://{}/refused", nowhere.address()))
            .build()
            .unwrap(),
        cache: RedisClient::builder()
            .name("refused")
            .url(format!("redis://{}", nowhere.address()))
            .build()
            .unwrap(),
        rates: HttpClient::builder("http://rates.example").double(&rates).build().unwrap(),
        store: store.credentials("key", "secret").bucket("bucket").build().unwrap(),
        bucket: "bucket".to_owned(),
    };
    let readiness = app.readiness();
    let router = app.router(readiness, Vec::new());
    assert_eq!(ask::get(&router, "/rates").await.json()["error"], "the token has expired");
    let refused = ask::get(&router, "/rates").await;
    assert_eq!((refused.status, &*refused.body), (StatusCode::BAD_GATEWAY, "no usable answer\n"));
}
