//! An HTTP server that keeps what is posted, once per idempotency key, and fails when told to.

use mainstay_test_support::Port;
use std::{
    collections::BTreeSet,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What happens to the next requests; each one uses up one of the count.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// Refused with status 503, nothing stored.
    Busy(u32),
    /// Stored, and the connection cut before the answer.
    CutAfterStoring(u32),
}

#[derive(Default)]
struct State {
    requests: AtomicUsize,
    stored: Mutex<BTreeSet<String>>,
    fault: Mutex<Option<Fault>>,
}

pub(crate) struct Http {
    port: Port,
    state: Arc<State>,
    server: Option<JoinHandle<()>>,
}

impl Http {
    pub(crate) fn start() -> Self {
        let mut server = Self { port: Port::reserve(), state: Arc::default(), server: None };
        server.listen();
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.requests.load(SeqCst)
    }

    /// Different things that were posted.
    pub(crate) fn stored(&self) -> usize {
        self.state.stored.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn fail(&self, fault: Fault) {
        *self.state.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// Listens on the same port as before.
    pub(crate) fn listen(&mut self) {
        self.server = Some(tokio::spawn(serve(self.port.listen(), Arc::clone(&self.state))));
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move { answer(stream, &state).await });
    }
}

async fn answer(mut stream: TcpStream, state: &State) -> io::Result<()> {
    let (method, key) = read(&mut stream).await?;
    let number = state.requests.fetch_add(1, SeqCst);
    let fault = {
        let mut fault = state.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let now = *fault;
        *fault = match now {
            Some(Fault::Busy(n)) if n > 1 => Some(Fault::Busy(n - 1)),
            Some(Fault::CutAfterStoring(n)) if n > 1 => Some(Fault::CutAfterStoring(n - 1)),
            _ => None,
        };
        now
    };
    if matches!(fault, Some(Fault::Busy(_))) {
        return say(&mut stream, "503 Service Unavailable").await;
    }
    if method != "POST" {
        return say(&mut stream, "200 OK").await;
    }
    let key = key.unwrap_or_else(|| format!("request {number}"));
    let new = state.stored.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
    match fault {
        Some(_) => Ok(()),
        None => say(&mut stream, if new { "201 Created" } else { "200 OK" }).await,
    }
}

/// Method and idempotency key; the body is read and dropped.
async fn read(stream: &mut TcpStream) -> io::Result<(String, Option<String>)> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let method = line.split(' ').next().unwrap_or_default().to_owned();
    let (mut length, mut key) = (0_u64, None);
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or_default(),
            "idempotency-key" => key = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await?;
    Ok((method, key))
}

async fn say(stream: &mut TcpStream, status: &str) -> io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.shutdown().await
}
