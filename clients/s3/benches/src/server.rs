//! A store that does as little as it can, in a process of its own: parts are read and forgotten, an object is
//! the same MiB again and again.

use base64::{Engine, engine::general_purpose::STANDARD};
use crc_fast::{CrcAlgorithm, checksum, checksum_combine};
use std::{fs, io::Write, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    runtime::Builder,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

pub const MIB: u64 = 1024 * 1024;

/// What an object is made of.
pub fn pattern() -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..MIB).map(|_| next()).collect()
}

/// The sink's certificate, which it signed itself.
pub const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";

/// Makes one in this directory.
pub fn certify(directory: &Path) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    fs::write(directory.join(CERTIFICATE), made.cert.pem()).expect("room");
    fs::write(directory.join(KEY), made.signing_key.serialize_pem()).expect("room");
}

fn acceptor(directory: &Path) -> TlsAcceptor {
    let chain = CertificateDer::from_pem_file(directory.join(CERTIFICATE)).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(directory.join(KEY)).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth();
    TlsAcceptor::from(Arc::new(config.with_single_cert(vec![chain], key).expect("a pair")))
}

/// Serves until killed, over TLS if there is a directory with a certificate; prints its port. Each answer comes
/// this many milliseconds later.
pub fn run(directory: Option<String>, delay: Option<String>) {
    let tls = directory.map(|directory| acceptor(Path::new(&directory)));
    let delay = Duration::from_millis(delay.and_then(|text| text.parse().ok()).unwrap_or(0));
    // Who started it holds its input open: it ends with that one.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("{}", listener.local_addr().expect("an address").port());
        std::io::stdout().flush().expect("a reader");
        let bytes: &'static [u8] = pattern().leak();
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let _ = stream.set_nodelay(true);
            match tls.clone() {
                Some(tls) => drop(tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, bytes, delay).await;
                    }
                })),
                None => drop(tokio::spawn(serve(stream, bytes, delay))),
            }
        }
    });
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8], delay: Duration) {
    let mut buffer = vec![0; MIB as usize];
    let mut filled = 0;
    loop {
        let end = loop {
            if let Some(end) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read(&mut buffer[filled..]).await {
                Ok(n) if n > 0 => filled += n,
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
        let value = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(':').trim().to_owned())
        };
        let mut left = value("content-length").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        left -= (filled - end) as u64;
        while left > 0 {
            match stream.read(&mut buffer).await {
                Ok(n) if n > 0 => left -= n as u64,
                _ => return,
            }
        }
        filled = 0;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if answer(&mut stream, &head, value("range"), bytes).await.is_err() {
            return;
        }
    }
}

async fn answer(
    stream: &mut (impl AsyncWrite + Unpin),
    head: &str,
    range: Option<String>,
    bytes: &[u8],
) -> std::io::Result<()> {
    let xml = |body: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    // `/bucket/256` is 256 MiB.
    let path = head.split(' ').nth(1).unwrap_or_default();
    let name = path.split('?').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let total = name.parse::<u64>().unwrap_or(0) * MIB;
    if head.starts_with("post") && path.contains("uploads") {
        let id = "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>\
                  <UploadId>id</UploadId></InitiateMultipartUploadResult>";
        stream.write_all(&xml(id)).await?;
        return stream.flush().await;
    }
    if head.starts_with("post") {
        let done = "<CompleteMultipartUploadResult><Location>l</Location><Bucket>b</Bucket>\
                    <Key>k</Key><ETag>\"e\"</ETag></CompleteMultipartUploadResult>";
        stream.write_all(&xml(done)).await?;
        return stream.flush().await;
    }
    if head.starts_with("put") {
        stream.write_all(b"HTTP/1.1 200 OK\r\netag: \"e\"\r\ncontent-length: 0\r\n\r\n").await?;
        return stream.flush().await;
    }
    let common = "etag: \"v\"\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                  accept-ranges: bytes\r\n";
    let limits = range.and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?.min(total - 1)))
    });
    let (first, last) = limits.unwrap_or((0, total - 1));
    let length = last + 1 - first;
    let head_of = match limits {
        Some(_) => format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {first}-{last}/{total}\r\n\
             content-length: {length}\r\n{common}\r\n"
        ),
        None => {
            let crc = crc(bytes, total);
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{common}\
                 x-amz-checksum-crc32: {crc}\r\nx-amz-checksum-type: FULL_OBJECT\r\n\r\n"
            )
        }
    };
    stream.write_all(head_of.as_bytes()).await?;
    if head.starts_with("head") {
        return stream.flush().await;
    }
    let mut at = first;
    while at <= last {
        let from = (at % MIB) as usize;
        let step = (MIB - from as u64).min(last + 1 - at) as usize;
        stream.write_all(&bytes[from..from + step]).await?;
        at += step as u64;
    }
    stream.flush().await
}

/// Of an object of this length.
fn crc(bytes: &[u8], total: u64) -> String {
    const CRC32: CrcAlgorithm = CrcAlgorithm::Crc32IsoHdlc;
    let one = checksum(CRC32, bytes);
    let all = (1..total / MIB).fold(one, |crc, _| checksum_combine(CRC32, crc, one, MIB));
    STANDARD.encode((all as u32).to_be_bytes())
}
