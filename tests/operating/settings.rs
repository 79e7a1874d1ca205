//! What file and environment say, as the clients take it. Each in a process of its own.

use crate::alone::alone;
use mainstay::{
    Error, HealthStatus, PgDatabase, RedisClient, S3Client, SqliteDatabase,
    get_database_client_named, get_redis_client_named, get_s3_client_named,
    set_database_client_named, set_redis_client_named, set_s3_client_named,
};
use mainstay_test_support::Port;
use std::time::Duration;

fn file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("settings.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

/// Otherwise the connection would be less than it was meant to be, and nobody would know.
#[test]
fn tls_and_pooler_of_another_type_are_errors() {
    let (_directory, path) =
        file("[database]\nurl = \"postgres://h/d\"\ntls = true\npooler = true\n");
    let environment = [("MAINSTAY_CONFIG", &*path)];
    let test = "settings::tls_and_pooler_of_another_type_are_errors";
    if alone(test, &environment).is_none() {
        let error: Error = mainstay::get_database_client::<mainstay::sqlx::Postgres>().unwrap_err();
        for part in [
            "database.tls in the settings file is true; allowed: disable, prefer, require",
            "database.pooler in the settings file is true; allowed: transaction, none",
        ] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
}

#[tokio::test]
async fn a_builder_takes_the_url_that_it_is_not_given_from_settings() {
    let refused = Port::reserve();
    let redis = format!("redis://{}", refused.address());
    let environment = [
        ("DATABASE_URL", "postgres://h/d"),
        ("MAINSTAY_DATABASE_REPORTS_URL", "sqlite::memory:"),
        ("MAINSTAY_REDIS_URL", &redis),
        ("AWS_REGION", "us-west-2"),
        ("MAINSTAY_S3_ENDPOINT_URL", "http://store.example:9000"),
        ("MAINSTAY_S3_REGION", "eu-central-1"),
        ("MAINSTAY_S3_BUCKET", "shared"),
        ("MAINSTAY_S3_TENANT_BUCKET", "tenant"),
        ("MAINSTAY_S3_ARCHIVE_REGION", "eu-north-1"),
    ];
    let test = "settings::a_builder_takes_the_url_that_it_is_not_given_from_settings";
    if alone(test, &environment).is_none() {
        PgDatabase::builder().max_connections(5).build().unwrap();
        PgDatabase::builder().name("archive").build().unwrap();
        SqliteDatabase::builder().name("reports").build().unwrap();
        let error = PgDatabase::builder().name("reports").build().unwrap_err();
        assert!(error.to_string().contains("postgres://"), "its own comes first: {error}");

        let detail = async |cache: RedisClient| {
            let health = cache.health_check().await;
            assert_eq!(health.status, HealthStatus::Degraded, "{}", health.detail);
            health.detail
        };
        let shared = RedisClient::builder().key_prefix("shop:").build().unwrap();
        assert!(!detail(shared).await.contains("no Redis configured"));
        let alone = RedisClient::builder().name("alone").without_server().build().unwrap();
        assert!(detail(alone).await.contains("no Redis configured"));

        let host = "http://store.example:9000";
        let aws = |region: &str| format!("https://bucket.s3.{region}.amazonaws.com");
        let s3 = || S3Client::builder();
        for (builder, to, region, bucket) in [
            (s3(), format!("{host}/bucket"), "eu-central-1", Some("shared")),
            (s3().name("tenant"), format!("{host}/bucket"), "eu-central-1", Some("tenant")),
            // A store of its own, of which nothing is another's.
            (s3().name("archive"), aws("eu-north-1"), "eu-north-1", None),
            (
                s3().region("eu-west-1").bucket("mine"),
                format!("{host}/bucket"),
                "eu-west-1",
                Some("mine"),
            ),
            (s3().endpoint_url("http://mine"), "http://mine/bucket".into(), "eu-central-1", None),
        ] {
            let s3 = builder.credentials("key", "secret").build().unwrap();
            let url = s3.presign_get("bucket", "k", Duration::from_secs(60)).await.unwrap().url;
            let scope = format!("%2F{region}%2Fs3%2F");
            assert!(url.starts_with(&format!("{to}/k?")) && url.contains(&scope), "{url}");
            assert_eq!(s3.bucket(), bucket, "{url}");
        }
        // What the SDK's client was built with is its own.
        let sdk = s3().region("eu-west-1").credentials("key", "secret").build().unwrap();
        let adopted = S3Client::from_sdk(sdk.sdk().unwrap()).unwrap();
        assert_eq!(adopted.policy().name(), "s3:https://s3.eu-west-1.amazonaws.com");
        assert_eq!(adopted.bucket(), None);
    }
}

#[test]
fn without_any_the_errors_name_the_variables_that_are_read() {
    let test = "settings::without_any_the_errors_name_the_variables_that_are_read";
    if alone(test, &[("DATABASE_URL", ""), ("REDIS_URL", "")]).is_none() {
        mainstay::set_settings_prefix("SHOP_").unwrap();
        let error = PgDatabase::builder().build().unwrap_err();
        assert!(error.to_string().contains("set SHOP_DATABASE_URL or DATABASE_URL"), "{error}");
        let strict = mainstay::FallbackConfig::off();
        let error = RedisClient::builder().fallback(strict).build().unwrap_err();
        assert!(error.to_string().contains("set SHOP_REDIS_URL"), "{error}");
        let error = S3Client::builder().build().unwrap_err();
        let words = "set SHOP_S3_REGION or AWS_REGION, or SHOP_S3_ENDPOINT_URL";
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_client_of_ones_own_is_what_the_getter_of_its_name_gives() {
    let cache = RedisClient::builder().name("mine").without_server().build().unwrap();
    set_redis_client_named("t-sessions", cache);
    assert_eq!(get_redis_client_named("t-sessions").unwrap().policy().name(), "redis:mine");
    let db = SqliteDatabase::builder().name("mine").url("sqlite::memory:").build().unwrap();
    set_database_client_named("t-reports", db);
    let db: SqliteDatabase = get_database_client_named("t-reports").unwrap();
    assert_eq!(db.policy().name(), "database:mine");
    let s3 = S3Client::builder().name("mine").endpoint_url("http://127.0.0.1:1").build().unwrap();
    set_s3_client_named("t-archive", s3);
    assert_eq!(get_s3_client_named("t-archive").unwrap().policy().name(), "s3:mine");
}
