//! TLS: verified with an authority of one's own, and what is said when it does not fit.

use crate::{ms, text, until_true};
use mainstay_redis::{FallbackConfig, RedisClient, RedisClientBuilder};
use mainstay_test_support::{Authority, RedisCluster, TlsRedis, TlsSentinel};

fn builder(name: &str, url: String) -> RedisClientBuilder {
    RedisClient::builder()
        .name(name)
        .url(url)
        .policy(|p| p.timeout(ms(1500)).max_attempts(1).enable_circuit_breaker(false))
        .fallback(FallbackConfig::off())
}

async fn refusal(client: RedisClient) -> String {
    let error = client.get::<String>("k").await.unwrap_err();
    mainstay_policy::report(&error).to_string()
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_when_named() {
    let authority = Authority::new();
    let redis = TlsRedis::start(&authority, "127.0.0.1");
    let (address, file) = (redis.address(), authority.file());
    let by_url = format!("rediss://{address}/0?ssl_ca_certs={}", file.display());
    let client = builder("t-tls-url", by_url).build().unwrap();
    client.set("k", "1").await.unwrap();
    assert_eq!(redis.server.say("GET k"), "$1\r\n1\r\n");
    let pem = std::fs::read(&file).unwrap();
    let client = builder("t-tls-pem", format!("valkeys://{address}")).trust_only(pem);
    assert_eq!(text(&client.build().unwrap(), "k").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_certificate_that_does_not_fit_is_refused_in_words() {
    let (authority, other) = (Authority::new(), Authority::new());
    let redis = TlsRedis::start(&authority, "127.0.0.1");
    let address = redis.address();
    let system = builder("t-tls-system", format!("rediss://{address}")).build().unwrap();
    let text = refusal(system).await;
    assert!(text.contains("certificate") && text.contains("ssl_ca_certs"), "{text}");
    let pem = std::fs::read(other.file()).unwrap();
    let wrong = builder("t-tls-other", format!("rediss://{address}")).trust_only(pem);
    let text = refusal(wrong.build().unwrap()).await;
    assert!(text.contains("certificate"), "{text}");
    // The right authority, for another name.
    let named = TlsRedis::start(&authority, "redis.example");
    let pem = std::fs::read(authority.file()).unwrap();
    let wrong = builder("t-tls-name", format!("rediss://{}", named.address())).trust_only(pem);
    let text = refusal(wrong.build().unwrap()).await;
    assert!(text.contains("certificate") && text.contains("name"), "{text}");
}

/// One node is named in the URL, by its address; the certificate of the other is for the name that the
/// cluster tells.
#[tokio::test]
async fn the_nodes_of_a_cluster_are_spoken_to_in_tls_by_their_names() {
    let authority = Authority::new();
    let cluster = RedisCluster::start_with_tls(&authority, &["127.0.0.1", "node.example"]);
    let file = authority.file();
    for scheme in ["rediss-cluster", "valkeys-cluster"] {
        let url = format!("{scheme}://{}?ssl_ca_certs={}", cluster.tls(0), file.display());
        let client = builder(&format!("t-tls-{scheme}"), url).build().unwrap();
        for master in 0..2 {
            let key = cluster.key_of(master, 0);
            client.set(&key, scheme).await.unwrap();
            assert!(cluster.nodes[master].say(&format!("GET {key}")).contains(scheme));
        }
    }
}

#[tokio::test]
async fn sentinels_and_the_master_they_name_are_spoken_to_in_tls() {
    let authority = Authority::new();
    let redis = TlsRedis::start(&authority, "127.0.0.1");
    let sentinel = TlsSentinel::start(&authority, "127.0.0.1");
    let watch = format!("SENTINEL MONITOR mymaster 127.0.0.1 {} 1", redis.address().port());
    assert_eq!(sentinel.server.say(&watch), "+OK\r\n");
    let pem = std::fs::read(authority.file()).unwrap();
    for scheme in ["rediss-sentinel", "valkeys-sentinel"] {
        let url = format!("{scheme}://{}?sentinelServiceName=mymaster", sentinel.address());
        let client = builder(&format!("t-tls-{scheme}"), url).trust_only(pem.clone());
        client.build().unwrap().set("k", scheme).await.unwrap();
        assert!(redis.server.say("GET k").contains(scheme));
    }
}

#[tokio::test]
async fn tls_and_no_tls_do_not_go_together() {
    let authority = Authority::new();
    let redis = TlsRedis::start(&authority, "127.0.0.1");
    let pem = std::fs::read(authority.file()).unwrap();
    let url = format!("rediss://{}", redis.server.address());
    let client = builder("t-tls-to-plain", url).trust_only(pem).build().unwrap();
    // The server waits for the rest of a line that never comes.
    until_true("given up", ms(30_000), async || {
        client.health_check().await.detail.contains("rediss for TLS")
    })
    .await;
    let url = format!("redis://{}", redis.address());
    let text = refusal(builder("t-plain-to-tls", url).build().unwrap()).await;
    assert!(text.contains("could not be reached; check"), "{text}");
}

#[test]
fn what_cannot_be_trusted_is_said_at_build() {
    let missing = builder("t-tls-file", "rediss://h?ssl_ca_certs=/no/such/file".to_owned());
    let error = missing.build().unwrap_err().to_string();
    assert!(error.contains("ssl_ca_certs") && error.contains("not found"), "{error}");
    let empty = builder("t-tls-empty", "rediss://h".to_owned()).trust_only("no PEM");
    assert!(empty.build().unwrap_err().to_string().contains("no certificate"));
    let plain = builder("t-tls-plain", "redis://h".to_owned()).trust_only("no PEM");
    assert!(plain.build().unwrap_err().to_string().contains("rediss"));
    let lax = builder("t-tls-lax", "rediss://h?ssl_cert_reqs=none".to_owned());
    assert!(lax.build().unwrap_err().to_string().contains("always verified"));
}
