//! A server on a real socket that does what a test tells it, and keeps every request it got.

use mainstay_http::{HttpClient, HttpClientBuilder};
use mainstay_policy::PolicyBuilder;
use mainstay_test_support::Port;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What is done with one request.
#[derive(Clone)]
pub(crate) enum Step {
    /// These bytes, and the connection stays open.
    Keep(Vec<u8>),
    /// These bytes, then the connection is closed.
    Close(Vec<u8>),
    /// These bytes, then the connection is reset.
    Reset(Vec<u8>),
    /// These bytes, then nothing for as long as the client holds on.
    Stall(Vec<u8>),
    /// These bytes, then these one by one, so long after each other.
    Drip(Vec<u8>, Vec<u8>, Duration),
}

impl From<&str> for Step {
    fn from(answer: &str) -> Self {
        Self::Close(answer.as_bytes().to_vec())
    }
}

/// A head with these extra headers, and this body with its length.
pub(crate) fn answer(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

type Script = dyn Fn(usize, &str) -> Step + Send + Sync;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    /// Answers request n with script n, the last one from then on, each on a connection of its own.
    pub(crate) async fn start(script: &[&str]) -> Self {
        let steps: Vec<Step> = script.iter().map(|&answer| answer.into()).collect();
        Self::scripted(move |n, _| steps[(n - 1).min(steps.len() - 1)].clone()).await
    }

    /// One answer for every request.
    pub(crate) async fn always(step: Step) -> Self {
        Self::scripted(move |_, _| step.clone()).await
    }

    /// `script` is given the number of the request, from 1, and its text in lower case.
    pub(crate) async fn scripted(
        script: impl Fn(usize, &str) -> Step + Send + Sync + 'static,
    ) -> Self {
        let port = Port::reserve();
        let (listener, address) = (port.listen(), port.address());
        let server = Self { address, seen: Arc::default(), accepted: Arc::default() };
        let (seen, accepted) = (Arc::clone(&server.seen), Arc::clone(&server.accepted));
        let script: Arc<Script> = Arc::new(script);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, SeqCst);
                tokio::spawn(serve(stream, Arc::clone(&script), Arc::clone(&seen)));
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(crate) fn client(&self) -> HttpClient {
        self.builder().build().unwrap()
    }

    pub(crate) fn builder(&self) -> HttpClientBuilder {
        builder(&self.url())
    }

    pub(crate) fn seen(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn request(&self, n: usize) -> String {
        self.seen.lock().unwrap()[n - 1].clone()
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

/// Short waits, three attempts.
pub(crate) fn quick(policy: PolicyBuilder) -> PolicyBuilder {
    policy
        .timeout(Duration::from_secs(5))
        .max_attempts(3)
        .base_delay(Duration::from_millis(1))
        .max_delay(Duration::from_millis(5))
}

pub(crate) fn builder(url: &str) -> HttpClientBuilder {
    HttpClient::builder(url).without_proxy().policy(quick)
}

async fn serve(mut stream: TcpStream, script: Arc<Script>, seen: Arc<Mutex<Vec<String>>>) {
    let _ = stream.set_nodelay(true);
    let mut left = Vec::new();
    while let Some(request) = read(&mut stream, &mut left).await {
        let n = {
            let mut seen = seen.lock().unwrap();
            seen.push(request.clone());
            seen.len()
        };
        match script(n, &request) {
            Step::Keep(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
                continue;
            }
            Step::Close(bytes) => {
                let _ = stream.write_all(&bytes).await;
            }
            Step::Reset(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.set_zero_linger();
            }
            Step::Stall(bytes) => {
                let _ = stream.write_all(&bytes).await;
                // Until the client has gone.
                while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
            }
            Step::Drip(head, bytes, gap) => {
                let _ = stream.write_all(&head).await;
                for byte in bytes {
                    if stream.write_all(&[byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(gap).await;
                }
            }
        }
        return;
    }
}

/// One request with the body it announces, in lower case; `None` when there is no more.
async fn read(stream: &mut TcpStream, left: &mut Vec<u8>) -> Option<String> {
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(length) = complete(left) {
            let rest = left.split_off(length);
            let request = String::from_utf8_lossy(left).to_lowercase();
            *left = rest;
            return Some(request);
        }
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => left.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}

fn complete(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let field = |name: &str| {
        let rest = text.split(name).nth(1)?;
        Some(rest.split("\r\n").next().unwrap().trim().to_owned())
    };
    if field("\r\ntransfer-encoding:").is_some_and(|coding| coding == "chunked") {
        let end = bytes[head..].windows(5).position(|five| five == b"0\r\n\r\n")?;
        return Some(head + end + 5);
    }
    let length = field("\r\ncontent-length:").map_or(0, |length| length.parse().unwrap());
    (bytes.len() >= head + length).then_some(head + length)
}
