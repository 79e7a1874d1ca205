//! An S3 store: s3s-fs in this process, behind a front that knows which buckets exist (s3s-fs does not always
//! say), records a line per request, and answers in its place when told to; or [`Memory`], which is nearer to S3
//! where transfers are concerned.

mod memory;

pub use memory::{Memory, Sums};

use crate::{Port, directory};
use futures_util::{Stream, StreamExt, stream};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Incoming},
    header::{CONTENT_LENGTH, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{Body, auth::SimpleAuth, dto::StreamingBlob, service::S3ServiceBuilder};
use std::{
    fmt, fs, io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

/// The access key that the store accepts.
pub const KEY: &str = "test-access-key";
/// The secret that goes with [`KEY`].
pub const SECRET: &str = "test-secret-key";
/// The bucket that is there from the start.
pub const BUCKET: &str = "bucket";

/// What the front does with a request.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// The store answers.
    Pass,
    /// The front answers with this status and error code; without a code, with no body.
    Status(u16, &'static str),
    /// The front answers with this status, headers and body.
    Reply(u16, &'static [(&'static str, &'static str)], &'static str),
    /// The connection is closed, the store untouched.
    Close,
    /// The store does what it was asked, and the connection is closed instead of an answer.
    ApplyThenClose,
    /// Nothing, for ever.
    Hang,
    /// The store does what it was asked, and says nothing of it, for ever.
    ApplyThenHang,
    /// The store answers, once it has done what another request asked meanwhile.
    AfterAnother,
    /// The store answers, and the connection is closed after so many bytes of the body.
    Cut(usize),
    /// The store answers in chunks, and the connection is closed after all of the bytes, before the end.
    CutEnd,
    /// The store answers, and nothing more comes after so many bytes of the body.
    Stall(usize),
    /// The store answers, and the byte at this place of the body is another.
    Flip(usize),
    /// The store gets the request with another byte at this place of its body.
    FlipUp(usize),
}

type Front = Box<dyn Fn(&str) -> Answer + Send>;

#[derive(Clone)]
struct Shared {
    root: PathBuf,
    seen: Arc<Mutex<Vec<String>>>,
    headers: Arc<Mutex<Vec<HeaderMap>>>,
    front: Arc<Mutex<Front>>,
    done: Arc<Notify>,
    memory: Option<Memory>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A store with one bucket, and the front before it. Stopped when dropped.
#[derive(Debug)]
pub struct S3 {
    directory: TempDir,
    port: Port,
    endpoint: String,
    shared: Shared,
    server: Option<JoinHandle<()>>,
}

impl S3 {
    /// An empty store that answers on a port of its own.
    pub async fn start() -> Self {
        Self::over(None).await
    }

    /// An empty store in memory, and the front before it.
    pub async fn in_memory(sums: Sums) -> (Self, Memory) {
        let memory = Memory::new(sums);
        (Self::over(Some(memory.clone())).await, memory)
    }

    async fn over(memory: Option<Memory>) -> Self {
        let directory = directory::temporary();
        fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let port = Port::reserve();
        let endpoint = format!("http://{}", port.address());
        let shared = Shared {
            root: directory.path().to_owned(),
            seen: Arc::default(),
            headers: Arc::default(),
            front: Arc::new(Mutex::new(Box::new(|_| Answer::Pass))),
            done: Arc::default(),
            memory,
        };
        let server = Some(tokio::spawn(serve(port.listen(), shared.clone())));
        Self { directory, port, endpoint, shared, server }
    }

    /// Closes the port and every connection; what was stored stays.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }

    /// Answers again, on the same port. The front stays as it was.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.server = Some(tokio::spawn(serve(self.port.listen(), self.shared.clone())));
    }

    /// For `endpoint_url`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Decides about each request from now on, by its line.
    pub fn front(&self, front: impl Fn(&str) -> Answer + Send + 'static) {
        *self.shared.front.lock().unwrap() = Box::new(front);
    }

    /// How many requests there were whose line is like this.
    #[must_use]
    pub fn seen(&self, like: impl Fn(&str) -> bool) -> usize {
        self.shared.seen.lock().unwrap().iter().filter(|line| like(line)).count()
    }

    /// The value of a header in each request so far; empty where it was not sent.
    #[must_use]
    pub fn sent(&self, header: &str) -> Vec<String> {
        let value = |headers: &HeaderMap| {
            let value = headers.get(header).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        self.shared.headers.lock().unwrap().iter().map(value).collect()
    }

    /// Forgets which requests there were.
    pub fn forget(&self) {
        self.shared.seen.lock().unwrap().clear();
        self.shared.headers.lock().unwrap().clear();
    }

    /// The file that holds an object.
    #[must_use]
    pub fn path(&self, key: &str) -> PathBuf {
        self.directory.path().join(BUCKET).join(key)
    }

    /// Puts an object there behind the store's back, checksums and all.
    pub fn write(&self, key: &str, bytes: &[u8]) {
        let path = self.path(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn serve(listener: TcpListener, shared: Shared) {
    let mut service = match &shared.memory {
        Some(memory) => S3ServiceBuilder::new(memory.clone()),
        None => S3ServiceBuilder::new(s3s_fs::FileSystem::new(&shared.root).unwrap()),
    };
    service.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let service = service.build();
    // Aborted with this task.
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (service, shared) = (service.clone(), shared.clone());
        connections.spawn(async move {
            let serve = service_fn(|request| {
                let (service, shared) = (service.clone(), shared.clone());
                async move { answer(&service, &shared, request).await }
            });
            let builder = Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(socket), serve).await;
        });
        while connections.try_join_next().is_some() {}
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
    shared: &Shared,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let line = line(&request);
    let bucket = request.uri().path().split('/').nth(1).unwrap_or_default().to_owned();
    shared.seen.lock().unwrap().push(line.clone());
    // As they come they would keep the buffer, of up to 400 kB, into which they were read.
    let own = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).unwrap();
    let headers = request.headers().iter().map(|(name, value)| (name.clone(), own(value)));
    shared.headers.lock().unwrap().push(headers.collect());
    let decided = (shared.front.lock().unwrap())(&line);
    match decided {
        Answer::Status(status, code) => return Ok(refusal(status, code)),
        Answer::Reply(status, headers, body) => {
            let reply = Response::builder().status(status);
            let reply =
                headers.iter().fold(reply, |reply, (name, value)| reply.header(*name, *value));
            return Ok(reply.body(Body::from(body.to_owned())).unwrap());
        }
        Answer::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
        Answer::Hang => std::future::pending().await,
        Answer::AfterAnother => shared.done.notified().await,
        _ => {}
    }
    if !bucket.is_empty() && !shared.root.join(&bucket).exists() {
        return Ok(refusal(404, "NoSuchBucket"));
    }
    let request = match decided {
        Answer::FlipUp(at) => request.map(|body| broken(Body::from(body), at, Break::Flip)),
        _ => request.map(Body::from),
    };
    let answered = service.call(request).await.map_err(|e| io::Error::other(format!("{e:?}")))?;
    shared.done.notify_waiters();
    Ok(match decided {
        Answer::ApplyThenClose => return Err(io::ErrorKind::ConnectionAborted.into()),
        Answer::ApplyThenHang => std::future::pending().await,
        Answer::Cut(at) => answered.map(|body| broken(body, at, Break::Cut)),
        Answer::CutEnd => {
            let (mut head, body) = answered.into_parts();
            head.headers.remove(CONTENT_LENGTH);
            Response::from_parts(head, unended(body))
        }
        Answer::Stall(at) => answered.map(|body| broken(body, at, Break::Stall)),
        Answer::Flip(at) => answered.map(|body| broken(body, at, Break::Flip)),
        _ => answered,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Cut,
    Stall,
    Flip,
}

type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + Sync>>;

/// The body, with something wrong at this place of it.
fn broken(body: Body, at: usize, how: Break) -> Body {
    let body = StreamingBlob::from(body).map(|piece| piece.map_err(io::Error::other));
    let body: Pieces = Box::pin(body);
    let step = move |(body, left): (Option<Pieces>, usize)| async move {
        let mut body = body?;
        let piece = match body.next().await? {
            Ok(piece) => piece,
            Err(error) => return Some((Err(error), (None, 0))),
        };
        if left >= piece.len() {
            let left = left - piece.len();
            return Some((Ok(piece), (Some(body), left)));
        }
        match how {
            Break::Flip => {
                let mut bytes = piece.to_vec();
                bytes[left] = !bytes[left];
                Some((Ok(bytes.into()), (Some(body), usize::MAX)))
            }
            // What comes before it first.
            _ if left > 0 => {
                let rest: Pieces = Box::pin(stream::iter([Ok(piece.slice(left..))]).chain(body));
                Some((Ok(piece.slice(..left)), (Some(rest), 0)))
            }
            Break::Cut => {
                // What came before is sent while this waits, and not dropped with the connection.
                tokio::task::yield_now().await;
                Some((Err(io::ErrorKind::ConnectionAborted.into()), (None, 0)))
            }
            Break::Stall => std::future::pending().await,
        }
    };
    StreamingBlob::wrap(stream::unfold((Some(body), at), step)).into()
}

/// All of the body, and no end.
fn unended(body: Body) -> Body {
    let end = stream::once(async {
        tokio::task::yield_now().await;
        Err(io::ErrorKind::ConnectionAborted.into())
    });
    let body = StreamingBlob::from(body).map(|piece| piece.map_err(io::Error::other));
    StreamingBlob::wrap(body.chain(end)).into()
}

fn refusal(status: u16, code: &str) -> Response<Body> {
    let xml = format!("<Error><Code>{code}</Code><Message>told to</Message></Error>");
    let body = if code.is_empty() { String::new() } else { xml };
    Response::builder().status(status).body(Body::from(body)).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    #[tokio::test]
    async fn stopped_it_refuses_and_restarted_it_answers_on_the_same_port() {
        let mut s3 = S3::start().await;
        let address = s3.port.address();
        let mut open = TcpStream::connect(address).await.unwrap();
        s3.stop().await;
        assert_eq!(open.read(&mut [0]).await.unwrap_or(0), 0, "an open connection outlived it");
        tokio::task::spawn_blocking(move || crate::port::until_refused(address)).await.unwrap();

        s3.restart().await;
        let mut again = TcpStream::connect(address).await.unwrap();
        again.write_all(b"HEAD /bucket HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        again.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 403"), "{answer}");
        assert_eq!(s3.seen(|line| line == "HEAD /bucket"), 1);
    }
}
