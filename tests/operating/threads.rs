//! What tasks and threads may share, and what may be spawned: a table that does not compile where a
//! line is not so. No future here is polled.

use futures_util::TryStreamExt;
use mainstay::{http, redis, s3, *};
use std::{future::IntoFuture, io, time::Duration};

const S: Duration = Duration::from_secs(1);

fn crosses<T: Send + Sync + 'static>() {}
fn moves<T: Send + 'static>() {}
fn sends(_: impl Send) {}

#[test]
fn clients_builders_and_errors_cross_threads() {
    crosses::<PgDatabase>();
    crosses::<MySqlDatabase>();
    crosses::<SqliteDatabase>();
    crosses::<RedisClient>();
    crosses::<HttpClient>();
    crosses::<S3Client>();
    crosses::<HttpDouble>();
    crosses::<Policy>();
    crosses::<ResilientContext>();
    crosses::<Readiness>();
    crosses::<Breaker>();
    crosses::<Deadline>();
    crosses::<Settings>();
    crosses::<Subscription>();
    crosses::<Storm>();

    crosses::<PolicyBuilder>();
    crosses::<ContextBuilder>();
    moves::<DatabaseClientBuilder<sqlx::Postgres>>();
    moves::<redis::RedisClientBuilder>();
    moves::<http::HttpClientBuilder>();
    moves::<s3::S3ClientBuilder>();
    moves::<ReadinessBuilder>();
    moves::<web::Routes>();

    crosses::<Error>();
    crosses::<ConfigError>();
    crosses::<CallError<io::Error>>();
    crosses::<DatabaseFailure>();
    crosses::<RedisFailure>();
    crosses::<HttpFailure>();
    crosses::<S3Failure>();

    crosses::<http::Request>();
    crosses::<Response>();
    crosses::<Event>();
    crosses::<Health>();
    crosses::<ReadinessReport>();
}

#[test]
fn what_one_task_works_on_can_go_to_another() {
    moves::<Session<sqlx::Postgres>>();
    moves::<Session<sqlx::MySql>>();
    moves::<Session<sqlx::Sqlite>>();
    moves::<DatabaseConnection<sqlx::Postgres>>();
    moves::<Savepoint<'static, sqlx::Postgres>>();
    moves::<Download>();
    moves::<Multipart>();
    moves::<RequestBody>();
    moves::<ObjectStream>();
    moves::<Watch<'static>>();
}

#[tokio::test]
async fn every_door_can_be_spawned_sql() {
    let db = SqliteDatabase::builder().name("threads").url("sqlite::memory:").build().unwrap();
    let query = || sqlx::query("select 1");
    sends(query().execute(&db));
    sends(query().fetch_one(db.read()));
    sends(query().fetch(&db).try_collect::<Vec<_>>());
    sends(query().fetch_all(db.idempotent()));
    sends(db.session());
    sends(db.session_with(SessionOptions::new()));
    sends(db.acquire());
    sends(db.transaction(async |tx| Ok::<_, Error>(query().execute(tx).await?)));
    sends(db.health_check());
    sends(db.close(S));
    sends(async {
        let mut session = db.session().await?;
        query().execute(&mut session).await?;
        let savepoint = session.savepoint().await?;
        savepoint.release().await?;
        session.commit().await
    });
    let pg = PgDatabase::builder().name("threads").url("postgres://127.0.0.1:9/x").build().unwrap();
    sends(pg.commit_outcome("1"));
    let checked = async |_: &PgDatabase| Ok(CommitOutcome::Unknown);
    let options = SessionOptions::new();
    sends(pg.transaction_checked(options, async |_| Ok::<_, Error>(()), checked));
}

#[test]
fn every_door_can_be_spawned_redis() {
    let cache = RedisClient::builder().name("threads").without_server().build().unwrap();
    sends(cache.get::<String>("k"));
    sends(cache.get_answer::<String>("k"));
    sends(cache.set("k", "v").ttl(S).into_future());
    sends(cache.set_if_absent("k", "v").into_future());
    sends(cache.get_set::<String>("k", "v"));
    sends(cache.del("k"));
    sends(cache.exists("k"));
    sends(cache.expire("k", S));
    sends(cache.ttl("k"));
    sends(cache.incr("k"));
    sends(cache.hset("k", "f", "v"));
    sends(cache.hget::<String>("k", "f"));
    sends(cache.hgetall::<String>("k"));
    sends(cache.mget::<String>(["k"]));
    sends(cache.mset([("k", "v")]));
    sends(cache.get_json::<u32>("k"));
    sends(cache.set_json("k", &1).into_future());
    sends(cache.run("PING").into_future());
    sends(cache.pipeline([cache.run("PING")]));
    sends(cache.scan::<String>("*"));
    let load = || async { Ok::<_, io::Error>("v".to_owned()) };
    sends(cache.get_or_load("k", S, load).into_future());
    sends(cache.health_check());
    sends(cache.close(S));
}

#[test]
fn every_door_can_be_spawned_http() {
    let api = HttpClient::builder("http://127.0.0.1:9").name("threads").build().unwrap();
    sends(api.get("x").into_future());
    sends(api.post("x").json(&1).into_future());
    sends(api.get("x").stream());
    sends(async { api.get("x").resume_by_range().stream().await?.chunk().await });
    sends(RequestBody::file("x"));
    sends(api.health_check());
    sends(api.health_check_at("/"));
}

#[test]
fn every_door_can_be_spawned_s3() {
    let s3 = S3Client::builder().name("threads").endpoint_url("http://127.0.0.1:9");
    let s3 = s3.build().unwrap();
    sends(s3.put("b", "k", "v").into_future());
    sends(s3.get("b", "k").into_future());
    sends(s3.get("b", "k").stream());
    sends(async { s3.get("b", "k").stream().await?.chunk().await });
    sends(s3.head("b", "k"));
    sends(s3.exists("b", "k"));
    sends(s3.list("b", "p").into_future());
    sends(s3.list("b", "p").stream());
    sends(s3.list("b", "p").pages());
    sends(s3.copy(("b", "k"), ("b", "l")).into_future());
    sends(s3.delete("b", "k"));
    sends(s3.delete_many("b", ["k"]));
    sends(s3.tags("b", "k"));
    sends(s3.set_tags("b", "k", [("n", "v")]));
    sends(s3.presign_get("b", "k", S));
    sends(s3.presign_put("b", "k", S).into_future());
    sends(s3.upload_file("f", "b", "k").into_future());
    sends(s3.download_file("b", "k", "f").into_future());
    sends(s3.abort_uploads("b", "p", S));
    sends(remove_partial_downloads("d"));
    sends(s3.health_check());
    sends(s3.health_check_at("b"));
}

#[test]
fn every_door_can_be_spawned_policy() {
    #[resilient(operation_name = "threads")]
    async fn attributed() -> Result<(), CallError<io::Error>> {
        Ok(())
    }
    let (policy, context) = (Policy::api("threads"), ResilientContext::api("threads"));
    let context = context.build().unwrap();
    let work = || async { Ok::<_, io::Error>(()) };
    sends(policy.call(work));
    sends(policy.operation("x").idempotent(false).call(work));
    sends(policy.operation("x").call_or(work, |error| async { Err(error) }));
    sends(context.call(work));
    sends(attributed());
    sends(Deadline::within(S).scope(policy.call(work)));
    sends(Readiness::builder().build().report());
    sends(shutdown(S));
}
