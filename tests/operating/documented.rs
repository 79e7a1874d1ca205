//! What the routes answer is what `docs/health.schema.json` says, field by field.

use crate::ask::{get, health};
use axum::Router;
use boon::{Compiler, Schemas};
use mainstay::{HealthStatus, Kind, Policy, Readiness, web::Routes};
use serde_json::{Value, json};
use std::io;

fn schema() -> Value {
    serde_json::from_str(include_str!("../../docs/health.schema.json")).unwrap()
}

/// A field that the schema does not name is an error here; for its readers it is a newer version.
fn strict(mut schema: Value) -> Value {
    for definition in schema["$defs"].as_object_mut().unwrap().values_mut() {
        forbid_others(definition);
    }
    schema
}

fn forbid_others(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    if let Some(properties) = schema.get_mut("properties") {
        properties.as_object_mut().unwrap().values_mut().for_each(forbid_others);
        schema.insert("additionalProperties".to_owned(), false.into());
    }
}

fn complaint(of: &str, value: &Value) -> Option<String> {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("health.json", strict(schema())).unwrap();
    let place = format!("health.json#/$defs/{of}");
    let schema = compiler.compile(&place, &mut schemas).unwrap();
    schemas.validate(value, schema).err().map(|error| error.to_string())
}

/// With a breaker in use, and one that is open.
async fn router() -> Router {
    let policy = Policy::api("t-schema");
    policy.call(|| async { Ok::<_, io::Error>(()) }).await.unwrap();
    let policy = Policy::builder(Kind::Api, "t-schema-open").failure_threshold(1).max_attempts(1);
    let policy = policy.build().unwrap();
    policy.call(|| async { Err::<(), _>(io::Error::other("down")) }).await.unwrap_err();
    let readiness = Readiness::builder()
        .critical("db", (), |()| async { health(HealthStatus::Healthy) })
        .optional("mail", (), |()| async { health(HealthStatus::Unhealthy) });
    Routes::new(readiness.build()).router()
}

#[tokio::test]
async fn the_schema_describes_every_route() {
    let router = router().await;
    for (path, of) in [
        ("/health", "health"),
        ("/health/live", "live"),
        ("/health/ready", "ready"),
        ("/health/resilience", "resilience"),
        ("/metrics/resilience", "metrics"),
    ] {
        let answer = get(&router, path).await.json();
        assert_eq!(complaint(of, &answer), None, "{path}: {answer:#}");
    }
    let answer = get(&router, "/health/resilience").await.json();
    let open = &answer["circuit_breakers"]["t-schema-open"];
    assert_eq!(open["last_failure"]["reason"], "failures in a row", "{answer:#}");
    assert!(open["next_attempt_in"].is_number());
}

#[tokio::test]
async fn the_schema_refuses_what_is_missing_new_or_of_another_type() {
    let answer = get(&router().await, "/health").await.json();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut answer = answer.clone();
        change(&mut answer);
        complaint("health", &answer)
    };
    assert_eq!(changed(&|_| {}), None);
    assert!(changed(&|all| drop(all.as_object_mut().unwrap().remove("clients"))).is_some());
    assert!(changed(&|all| all["status"] = "fine".into()).is_some());
    let breaker = "/resilience/circuit_breakers/api:t-schema";
    assert!(changed(&|all| all.pointer_mut(breaker).unwrap()["news"] = 1.into()).is_some());
    assert!(changed(&|all| all.pointer_mut(breaker).unwrap()["retries"] = json!(-1)).is_some());
}

/// The page's script is the one that the page may run.
#[tokio::test]
async fn the_page_is_whole_and_runs_only_its_own_script() {
    use base64::Engine as _;
    use sha2::Digest as _;
    let router = Routes::new(Readiness::builder().build()).router();
    let answer = get(&router, "/resilience").await;
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8");
    let (_, rest) = answer.body.split_once("<script>").unwrap();
    let (script, rest) = rest.split_once("</script>").unwrap();
    assert!(!rest.contains("<script"), "there is one");
    let hash = base64::engine::general_purpose::STANDARD.encode(sha2::Sha256::digest(script));
    let policy = answer.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains(&format!("script-src 'sha256-{hash}'")), "write sha256-{hash}");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    // Nothing is loaded from elsewhere, and nothing that is said becomes markup.
    for no in ["http://", "https://", "innerHTML", "insertAdjacentHTML", "document.write", " src="]
    {
        let body = answer.body.replace("http://www.w3.org/2000/svg", "");
        assert!(!body.contains(no), "{no}");
    }
}
