//! TLS is verified by every client: a certificate that does not fit ends the call before anything is
//! sent. Each client's own suite has this for its settings (`tls.rs`); here is S3, which trusts whom
//! the system trusts.

use crate::{alone::alone, subject::ms};
use mainstay::S3Client;
use mainstay_test_support::{Authority, TlsRedis, s3::BUCKET};

/// Any server with TLS will do: what comes after the handshake is not an answer of a store.
#[test]
fn s3_trusts_no_stranger_and_no_other_name() {
    const NAME: &str = "certificates::s3_trusts_no_stranger_and_no_other_name";
    if let Ok(url) = std::env::var("STORE") {
        return ask(&url);
    }
    let (authority, other) = (Authority::new(), Authority::new());
    let told = |trusted: &Authority, name: &str| {
        let server = TlsRedis::start(&authority, name);
        let url = format!("https://{}", server.address());
        let file = trusted.file();
        let environment = [("STORE", &*url), ("SSL_CERT_FILE", file.to_str().unwrap())];
        alone(NAME, &environment).unwrap()
    };
    let trusted = told(&authority, "127.0.0.1");
    assert!(!trusted.contains("InvalidCertificate"), "{trusted}");
    for (trusts, name, why) in
        [(&other, "127.0.0.1", "UnknownIssuer"), (&authority, "store.example", "NotValidForName")]
    {
        let told = told(trusts, name);
        assert!(told.contains("InvalidCertificate") && told.contains(why), "{told}");
    }
}

fn ask(url: &str) {
    let client = S3Client::builder()
        .endpoint_url(url)
        .credentials("access", "secret")
        .policy(|policy| policy.timeout(ms(5_000)).max_attempts(2).base_delay(ms(1)))
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(client.get(BUCKET, "key").into_future()).unwrap_err();
    println!("{} {:?} {}", mainstay::report(&error), error.effect(), error.attempts());
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        println!("because: {cause:?}");
        source = cause.source();
    }
}
