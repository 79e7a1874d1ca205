//! Nothing we write holds a credential, a value, a key or a query: no error of ours, no `Debug`, no
//! health, no event and no line to `tracing`.
//!
//! What a driver says is in `source()`, and what it logs goes to its own targets: both are left out.

mod said;

use crate::{
    alone::alone,
    database, faults,
    faults::Fault,
    http, redis, s3,
    subject::{Client, Mood, Remote, Subject, Tune, Work, in_time, ms},
};
use mainstay::{
    DatabaseClient, Error, FallbackConfig, HttpClient, HttpDouble, PgDatabase, RedisClient, Reply,
    Response, S3Client, sqlx,
};
use mainstay_test_support::s3::{BUCKET, KEY, SECRET};
use said::Said;

const BRIEF: Tune = |policy| {
    let policy = policy.timeout(ms(100)).max_attempts(2).failure_threshold(4);
    policy.base_delay(ms(1)).max_delay(ms(2)).recovery_timeout(ms(5))
};

/// Calls with secrets in them, in every mood of the server and under every fault.
async fn work<S: Remote>(
    said: &Said,
    server: &S,
    clients: &[&S::Client],
    calls: fn(&S::Client) -> Vec<Work>,
) {
    for client in clients {
        said.note("client", client);
        said.note("policy", client.policy());
        for mood in [Mood::Well, Mood::NotNow, Mood::Never, Mood::Silent, Mood::Well] {
            server.set(mood).await;
            for call in calls(client) {
                said.end::<S::Client>(call.await);
            }
        }
        said.health(&client.health().await);
        for fault in faults::ALL {
            fault.start(server.proxy());
            let call = calls(client).into_iter().next().unwrap();
            said.end::<S::Client>(call.await);
            if fault.name == faults::REFUSED.name {
                said.health(&client.health().await);
            }
            Fault::end(server.proxy());
        }
    }
}

#[tokio::test]
async fn stay_in_the_database() {
    let said = Said::listen("s3cr3t-sql");
    let server = database::Subject::start().await;
    server.run("create role \"user-s3cr3t-sql\" superuser login").await;
    server.run("create table secrets (secret text unique)").await;
    server.run("create table late (secret text unique deferrable initially deferred)").await;
    let make = |name: &str, user: &str| {
        let url = server.url(&format!("{user}:pass-s3cr3t-sql"));
        let builder = PgDatabase::builder()
            .name(name)
            .url(format!("{url}?application_name=app-s3cr3t-sql"))
            .max_connections(1)
            .policy(BRIEF);
        said.note("builder", &builder);
        builder.build().unwrap()
    };
    let known = make("secrets-known", "user-s3cr3t-sql");
    let unknown = make("secrets-unknown", "nobody-s3cr3t-sql");
    work(&said, &server, &[&known, &unknown], |db| {
        let mut calls = Vec::new();
        for sql in [
            "select work('selects'), $1",
            "insert into secrets values ($1)",
            // The second one fails at COMMIT.
            "insert into late values ($1)",
            "select $1::text::int",
            "select $1 from no_such_table",
        ] {
            for door in ["plain", "idempotent", "session"] {
                calls.push(bound(db.clone(), sql, door));
            }
        }
        calls
    })
    .await;
    said.note("view", &known.idempotent());
    let session = async {
        loop {
            if let Ok(session) = known.session().await {
                break session;
            }
            tokio::task::yield_now().await;
        }
    };
    said.note("session", &in_time("a session", session).await);
    for url in ["mysql://user-s3cr3t-sql:pass@h/d", "postgres://user-s3cr3t-sql:pass@h:port/d"] {
        said.built(PgDatabase::builder().url(url).build());
        said.built(DatabaseClient::<sqlx::Sqlite>::builder().url(url).build());
    }
    said.held_no_secret();
}

/// One statement with a secret bound to it.
fn bound(db: PgDatabase, sql: &'static str, door: &'static str) -> Work {
    Box::pin(async move {
        let query = sqlx::query(sql).bind("value-s3cr3t-sql");
        match door {
            "idempotent" => {
                query.execute(db.idempotent()).await?;
            }
            "session" => {
                let mut session = db.session().await?;
                query.execute(&mut session).await?;
                session.commit().await?;
            }
            _ => {
                query.execute(&db).await?;
            }
        }
        Ok(())
    })
}

#[tokio::test]
async fn stay_in_redis() {
    let said = Said::listen("s3cr3t-redis");
    let server = redis::Subject::start().await;
    let user = "ACL SETUSER user-s3cr3t-redis on >pass-s3cr3t-redis ~* +@all -hdel";
    assert_eq!(server.redis.say(user), "+OK\r\n");
    let make = |user: &str, fallback| {
        let address = server.proxy().addr();
        let builder = RedisClient::builder()
            .name(format!("{}-{}", &user[..4], server.proxy().port()))
            .url(format!("redis://{user}:pass-s3cr3t-redis@{address}"))
            .fallback(fallback)
            .policy(BRIEF);
        said.note("builder", &builder);
        builder.build().unwrap()
    };
    let clients = [
        make("user-s3cr3t-redis", FallbackConfig::off()),
        make("nobody-s3cr3t-redis", FallbackConfig::off()),
        make("user-s3cr3t-redis", FallbackConfig::new()),
    ];
    said.note("set", &clients[0].set("key-s3cr3t-redis", "value-s3cr3t-redis"));
    work(&said, &server, &clients.each_ref(), |redis| {
        let (key, field, value) = ("key-s3cr3t-redis", "field-s3cr3t-redis", "value-s3cr3t-redis");
        let doors = ["set", "get", "hset", "hget", "hdel", "del"];
        let call = |door| -> Work {
            let redis = redis.clone();
            Box::pin(async move {
                match door {
                    "set" => redis.set(key, value).await?,
                    "get" => drop(redis.get::<String>(key).await?),
                    // The key holds a text.
                    "hset" => redis.hset(key, field, value).await?,
                    "hget" => drop(redis.hget::<String>(key, field).await?),
                    // Not allowed to this user.
                    "hdel" => drop(redis.hdel(key, field).await?),
                    _ => drop(redis.del(key).await?),
                }
                Ok(())
            })
        };
        doors.map(call).into()
    })
    .await;
    for url in ["http://user-s3cr3t-redis@h", "redis://user-s3cr3t-redis:pass@h:port"] {
        said.built(RedisClient::builder().url(url).build());
    }
    said.held_no_secret();
}

#[tokio::test]
async fn stay_in_http() {
    let said = Said::listen("s3cr3t-http");
    let server = http::Subject::start().await;
    let url = format!("http://user-s3cr3t-http:pass-s3cr3t-http@{}", server.proxy().addr());
    let builder =
        HttpClient::builder(&url).default_header("x-api-key", "key-s3cr3t-http").policy(BRIEF);
    said.note("builder", &builder);
    let client = builder.build().unwrap();
    work(&said, &server, &[&client], |api| {
        let path = "path-s3cr3t-http?token=query-s3cr3t-http";
        let requests = [
            api.get(path).query(&[("q", "query-s3cr3t-http")]).bearer_auth("token-s3cr3t-http"),
            api.post(path).header("x-token", "header-s3cr3t-http").body("body-s3cr3t-http"),
            api.post(path).json(&["body-s3cr3t-http"]).idempotency_key("key-s3cr3t-http"),
            api.put(path).form(&[("secret", "body-s3cr3t-http")]),
            api.get("//path-s3cr3t-http"),
            api.get("http://path-s3cr3t-http/"),
            api.get("ok").header("x", "a\nb-s3cr3t-http"),
            api.get("ok").header("b\ns3cr3t-http", "a"),
        ];
        requests.into_iter().map(|request| sent(request)).collect()
    })
    .await;
    said.note("request", &client.get("path-s3cr3t-http").body("body-s3cr3t-http"));
    // What a server answers where JSON is expected, as OAuth's do with a form.
    for body in [
        "{\"secret\": \"body-s3cr3t-http\"}",
        "access_token=body-s3cr3t-http&scope=repo",
        "body-s3cr3t-http",
        "<token>body-s3cr3t-http</token>",
        "<meta content='body-s3cr3t-http'>",
        "{'secret': 'body-s3cr3t-http'}",
    ] {
        let double = HttpDouble::new(move |_| Reply::body(body));
        let client = HttpClient::builder("http://double").double(&double).policy(BRIEF);
        let response = client.build().unwrap().get("path-s3cr3t-http").await.unwrap();
        said.note("response", &response);
        said.error::<HttpClient>(&response.json::<u32>().unwrap_err());
    }
    for url in ["http://user-s3cr3t-http:p@h:port", "http://h?k=s3cr3t-http", "s3cr3t-http"] {
        said.built(HttpClient::builder(url).build());
    }
    let builder = || HttpClient::builder("http://h");
    said.built(builder().default_header("x", "a\ns3cr3t-http").build());
    said.built(builder().proxy("nonsense://user-s3cr3t-http:p@h:port").build());
    said.built(builder().ca_certificates(b"s3cr3t-http").build());
    said.built(builder().client_certificate(b"s3cr3t-http").build());
    said.held_no_secret();
}

fn sent<R>(request: R) -> Work
where
    R: IntoFuture<Output = Result<Response, Error>, IntoFuture: Send> + Send + 'static,
{
    Box::pin(async move { request.await.map(drop) })
}

#[tokio::test]
async fn stay_in_s3() {
    let said = Said::listen("s3cr3t-s3");
    let server = s3::Subject::start().await;
    let make = |key: &str, secret: &str| {
        let builder = S3Client::builder()
            .endpoint_url(format!("http://{}", server.proxy().addr()))
            .credentials(key, secret)
            .bucket(BUCKET)
            .policy(BRIEF);
        said.note("builder", &builder);
        builder.build().unwrap()
    };
    let (known, unknown) = (make(KEY, SECRET), make("access-s3cr3t-s3", "secret-s3cr3t-s3"));
    work(&said, &server, &[&known, &unknown], |s3| {
        let (key, none) = ("key-s3cr3t-s3", "none-s3cr3t-s3");
        let doors = ["put", "get", "head", "delete", "list", "upload", "download"];
        let call = |door| -> Work {
            let client = s3.clone();
            Box::pin(async move {
                match door {
                    "put" => drop(client.put(BUCKET, key, "body-s3cr3t-s3").await?),
                    "get" => drop(client.get(BUCKET, none).await?),
                    "head" => drop(client.head(BUCKET, none).await?),
                    "delete" => client.delete(BUCKET, key).await?,
                    "list" => drop(client.list("nowhere", key).await?),
                    "upload" => drop(client.upload_file(s3::file("up"), "nowhere", key).await?),
                    _ => client.download_file(BUCKET, none, s3::file("down")).await?,
                }
                Ok(())
            })
        };
        doors.map(call).into()
    })
    .await;
    for url in ["http://key-s3cr3t-s3:secret@host", "s3cr3t-s3"] {
        said.built(S3Client::builder().endpoint_url(url).credentials("a", "b").build());
    }
    said.held_no_secret();
    said.held_none_of(&[SECRET, KEY]);
}

/// In a process of its own, whose environment holds them.
#[test]
fn stay_in_settings() {
    const NAME: &str = "secrets::stay_in_settings";
    let file = |name: &str, text: &str| {
        let path = s3::file(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let whole = file("whole.toml", "[redis]\nurl = \"redis://user-s3cr3t:pass@h\"\n");
    let cut = file("cut.toml", "[database]\nurl = \"postgres://user:s3cr3t@h\n");
    let wrong = [
        ("MAINSTAY_DATABASE_URL", "mysql://user-s3cr3t:pass-s3cr3t@host/name?token=s3cr3t"),
        ("MAINSTAY_REDIS_URL", "http://user-s3cr3t:pass-s3cr3t@host"),
        ("MAINSTAY_HTTP_BASE_URL", "http://user-s3cr3t:pass-s3cr3t@host:port"),
        ("MAINSTAY_S3_ENDPOINT_URL", "http://key-s3cr3t:secret@host"),
        ("MAINSTAY_DATABASE_PASSWORD", "s3cr3t"),
        ("MAINSTAY_HTTP_TOKEN", "s3cr3t"),
    ];
    let right = [
        ("MAINSTAY_DATABASE_URL", "postgres://user-s3cr3t:pass-s3cr3t@host/name"),
        ("MAINSTAY_HTTP_BASE_URL", "http://user-s3cr3t:pass-s3cr3t@host"),
        ("MAINSTAY_S3_ENDPOINT_URL", "http://host"),
        ("MAINSTAY_CONFIG", &whole),
        ("AWS_ACCESS_KEY_ID", "s3cr3t"),
        ("AWS_SECRET_ACCESS_KEY", "s3cr3t"),
    ];
    for environment in [&wrong[..], &right, &[("MAINSTAY_CONFIG", &cut)]] {
        let Some(told) = alone(NAME, environment) else { return say_all_of_settings() };
        assert!(told.contains("built "), "nothing was said: {told}");
        assert!(!told.contains("s3cr3t"), "{told}");
    }
}

fn say_all_of_settings() {
    let said = Said::listen("s3cr3t");
    let settings = mainstay::settings();
    println!("{settings:?} {:?}", settings.as_ref().map(|settings| settings.warnings().to_vec()));
    said.built(settings.map_err(Error::from));
    said.built(mainstay::get_database_client::<sqlx::Postgres>());
    said.built(mainstay::get_redis_client());
    said.built(mainstay::get_http_client());
    said.built(mainstay::get_s3_client());
    println!("{said:#?}");
}
