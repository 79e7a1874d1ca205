//! s3s-fs in this process, behind a front that knows which buckets exist (s3s-fs does not always
//! say), records a line per request, and answers in its place when told to.

use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{Body, auth::SimpleAuth, service::S3ServiceBuilder};
use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

pub(crate) const KEY: &str = "test-access-key";
pub(crate) const SECRET: &str = "test-secret-key";
pub(crate) const BUCKET: &str = "bucket";

#[derive(Clone, Copy)]
pub(crate) enum Answer {
    Pass,
    Status(u16, &'static str),
    Close,
    ApplyThenClose,
    Hang,
}

type Front = Box<dyn Fn(&str) -> Answer + Send>;

#[derive(Clone)]
struct Shared {
    root: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
    front: Arc<Mutex<Front>>,
}

pub(crate) struct Store {
    directory: TempDir,
    endpoint: String,
    shared: Shared,
    server: JoinHandle<()>,
}

impl Store {
    pub(crate) async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Shared {
            root: directory.path().to_owned(),
            seen: Arc::default(),
            front: Arc::new(Mutex::new(Box::new(|_| Answer::Pass))),
        };
        let state = shared.clone();
        let server = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (service, state) = (service.clone(), state.clone());
                tokio::spawn(async move {
                    let serve = service_fn(|request| {
                        let (service, state) = (service.clone(), state.clone());
                        async move { answer(&service, &state, request).await }
                    });
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(socket), serve).await;
                });
            }
        });
        Self { directory, endpoint, shared, server }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Decides about each request from now on, by its line.
    pub(crate) fn front(&self, front: impl Fn(&str) -> Answer + Send + 'static) {
        *self.shared.front.lock().unwrap() = Box::new(front);
    }

    /// How many requests there were whose line is like this.
    pub(crate) fn seen(&self, like: impl Fn(&str) -> bool) -> usize {
        self.shared.seen.lock().unwrap().iter().filter(|line| like(line)).count()
    }

    pub(crate) fn path(&self, key: &str) -> PathBuf {
        self.directory.path().join(BUCKET).join(key)
    }

    pub(crate) fn write(&self, key: &str, bytes: &[u8]) {
        let path = self.path(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Method, path and query, then what matters of the headers.
fn line(request: &Request<Incoming>) -> String {
    let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok());
    let mut line = format!("{} {}", request.method(), request.uri());
    if header("authorization").is_some() {
        line.push_str(" signed");
    }
    if let Some(range) = header("range") {
        line.push_str(&format!(" range {range}"));
    }
    if header("x-amz-checksum-crc32").is_some() {
        line.push_str(" crc32");
    }
    if header("x-amz-content-sha256") == Some("UNSIGNED-PAYLOAD") {
        line.push_str(" unsigned");
    }
    line
}

async fn answer(
    service: &s3s::service::S3Service,
    state: &Shared,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let line = line(&request);
    let bucket = request.uri().path().split('/').nth(1).unwrap_or_default().to_owned();
    state.seen.lock().unwrap().push(line.clone());
    let decided = (state.front.lock().unwrap())(&line);
    match decided {
        Answer::Status(status, code) => return Ok(refusal(status, code)),
        Answer::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
        Answer::Hang => std::future::pending().await,
        Answer::Pass | Answer::ApplyThenClose => {}
    }
    if !bucket.is_empty() && !state.root.join(&bucket).exists() {
        return Ok(refusal(404, "NoSuchBucket"));
    }
    let answered = service
        .call(request.map(Body::from))
        .await
        .map_err(|e| io::Error::other(format!("{e:?}")))?;
    match decided {
        Answer::ApplyThenClose => Err(io::ErrorKind::ConnectionAborted.into()),
        _ => Ok(answered),
    }
}

fn refusal(status: u16, code: &str) -> Response<Body> {
    let xml = format!("<Error><Code>{code}</Code><Message>told to</Message></Error>");
    let body = if code.is_empty() { String::new() } else { xml };
    Response::builder().status(status).body(Body::from(body)).unwrap()
}

/// An address that nobody listens on.
pub(crate) async fn closed_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
