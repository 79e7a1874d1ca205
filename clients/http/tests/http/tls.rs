//! TLS: authorities, certificates of both sides, and what a bad one means.

use crate::server::{answer, builder};
use mainstay_http::HttpClientBuilder;
use mainstay_policy::{BreakerState, Effect, report};
use mainstay_test_support::Port;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer},
        server::{WantsServerCert, WebPkiClientVerifier},
    },
    server::TlsStream,
};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for this name, and its key.
fn certificate(
    authority: &Authority,
    name: &str,
    change: fn(&mut CertificateParams),
) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    change(&mut params);
    (params.signed_by(&key, authority).unwrap(), key)
}

fn config() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
}

fn with(
    config: ConfigBuilder<ServerConfig, WantsServerCert>,
    (certificate, key): (rcgen::Certificate, KeyPair),
) -> ServerConfig {
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    config.with_single_cert(chain, key).unwrap()
}

struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    /// Answers every request with "ok"; asks for certificates of `clients`.
    async fn start(
        certificate: (rcgen::Certificate, KeyPair),
        clients: Option<&Authority>,
    ) -> Self {
        let config = match clients {
            None => config().with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der().clone()).unwrap();
                let crypto = Arc::new(aws_lc_rs::default_provider());
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto);
                config().with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        Self::serving(with(config, certificate), |mut stream| async move {
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                let _ = stream.write_all(&answer("200 OK", "", "ok")).await;
            }
        })
        .await
    }

    /// Does `serve` of every connection whose handshake is done.
    async fn serving<S: Future<Output = ()> + Send>(
        config: ServerConfig,
        serve: impl Fn(TlsStream<TcpStream>) -> S + Send + Sync + 'static,
    ) -> Self {
        let (tls, serve) = (TlsAcceptor::from(Arc::new(config)), Arc::new(serve));
        let port = Port::reserve();
        let listener = port.listen();
        let server = Self { address: port.address(), accepted: Arc::default() };
        let accepted = Arc::clone(&server.accepted);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, SeqCst);
                let (tls, serve) = (tls.clone(), Arc::clone(&serve));
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream).await;
                    }
                });
            }
        });
        server
    }

    fn builder(&self, host: &str) -> HttpClientBuilder {
        builder(&format!("https://{host}:{}", self.address.port()))
            .resolve(host, self.address)
            .policy(|p| crate::server::quick(p).failure_threshold(1))
    }

    fn accepted(&self) -> usize {
        self.accepted.swap(0, SeqCst)
    }
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_and_an_unknown_one_is_not() {
    let ours = authority();
    let server = Server::start(certificate(&ours, "api.test", |_| {}), None).await;
    let trusting = server.builder("api.test").ca_certificates(ours.pem().as_bytes());
    assert_eq!(trusting.build().unwrap().get("x").await.unwrap().text(), "ok");
    let only = server.builder("api.test").ca_certificates(ours.pem().as_bytes());
    let only = only.only_these_authorities().build().unwrap();
    assert_eq!(only.post("x").await.unwrap().text(), "ok");
    let directory = std::env::temp_dir().join(format!("mainstay-ca-{}.pem", std::process::id()));
    std::fs::write(&directory, ours.pem()).unwrap();
    let from_file = server.builder("api.test").ca_file(&directory).build();
    std::fs::remove_file(&directory).unwrap();
    assert_eq!(from_file.unwrap().get("x").await.unwrap().text(), "ok");
    server.accepted();
    let stranger = server.builder("api.test").build().unwrap();
    let error = stranger.get("x").await.unwrap_err();
    assert_eq!((error.effect(), error.attempts()), (Effect::Permanent, 1));
    assert_eq!(server.accepted(), 1);
    let text = report(&error).to_string();
    assert!(text.contains("not trusted here; add it with ca_certificates"), "{text}");
    assert_eq!(stranger.policy().breaker().state(), BreakerState::Open, "as wrong credentials do");
}

#[tokio::test]
async fn a_certificate_for_another_name_or_time_is_permanent_and_says_so() {
    let ours = authority();
    for (host, change, why) in [
        ("other.test", (|_| {}) as fn(&mut CertificateParams), "for another name"),
        ("api.test", |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1), "has expired"),
        ("api.test", |params| params.not_before = rcgen::date_time_ymd(3001, 1, 1), "not valid"),
    ] {
        let server = Server::start(certificate(&ours, "api.test", change), None).await;
        let client = server.builder(host).ca_certificates(ours.pem().as_bytes()).build().unwrap();
        let error = client.post("x").await.unwrap_err();
        let text = report(&error).to_string();
        assert_eq!((error.attempts(), server.accepted()), (1, 1), "{text}");
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn who_does_not_speak_tls_is_told_from_who_is_not_there() {
    let port = Port::reserve();
    let (listener, address) = (port.listen(), port.address());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&answer("400 Bad Request", "", "")).await;
                // Until the client has gone.
                while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    let client = builder(&format!("https://{address}")).build().unwrap();
    let error = client.get("x").await.unwrap_err();
    let text = report(&error).to_string();
    assert_eq!(error.effect(), Effect::NeverSent, "{text}");
    assert!(text.contains("does not speak TLS as we do; check the scheme and the port"), "{text}");
}

#[tokio::test]
async fn a_client_shows_its_certificate_and_one_that_has_none_is_told() {
    let (ours, theirs) = (authority(), authority());
    let server = Server::start(certificate(&ours, "api.test", |_| {}), Some(&theirs)).await;
    let (shown, key) = certificate(&theirs, "client.test", |_| {});
    let pem = format!("{}{}", shown.pem(), key.serialize_pem());
    let trusting = || server.builder("api.test").ca_certificates(ours.pem().as_bytes());
    let client = trusting().client_certificate(pem.as_bytes()).build().unwrap();
    assert_eq!(client.get("x").await.unwrap().text(), "ok");
    server.accepted();
    let error = trusting().build().unwrap().get("x").await.unwrap_err();
    let text = report(&error).to_string();
    assert_eq!((error.attempts(), server.accepted()), (1, 1), "{text}");
    assert!(text.contains("does not accept our certificate"), "{text}");
}

#[tokio::test]
async fn certificates_that_are_none_are_refused_without_being_shown() {
    let server = |change: fn(HttpClientBuilder) -> HttpClientBuilder| {
        change(builder("https://api.test")).build().unwrap_err().to_string()
    };
    for (error, why) in [
        (server(|b| b.ca_certificates(b"hunter2")), "no certificate in PEM"),
        (server(|b| b.ca_file("/nonexistent/ca.pem")), "/nonexistent/ca.pem cannot be read"),
        (server(|b| b.client_certificate(b"hunter2")), "unencrypted private key in PEM"),
        (server(HttpClientBuilder::only_these_authorities), "give ca_certificates"),
    ] {
        assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn http2_is_spoken_where_a_server_offers_it() {
    let ours = authority();
    let mut config = with(config().with_no_client_auth(), certificate(&ours, "api.test", |_| {}));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let agreed: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let chosen = Arc::clone(&agreed);
    let server = Server::serving(config, move |stream| {
        chosen.lock().unwrap().extend(stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec));
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                body.send_data(bytes::Bytes::from("ok"), true).unwrap();
            }
        }
    })
    .await;
    let client = server.builder("api.test").ca_certificates(ours.pem().as_bytes());
    let client = client.build().unwrap();
    for _ in 0..3 {
        assert_eq!(client.post("x").body("once").await.unwrap().text(), "ok");
    }
    assert_eq!((&**agreed.lock().unwrap(), server.accepted()), (&[b"h2".to_vec()][..], 1));
}
