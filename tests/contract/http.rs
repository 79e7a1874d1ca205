//! `HttpClient` with a small server that keeps its connections and counts by method.

use crate::subject::{Client, Mood, Remote, Tune, Work, quick, servers};
use mainstay::{Error, Health, HttpClient, HttpFailure, Policy};
use mainstay_test_support::{Port, Proxy};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A server of its own.
pub(crate) struct Subject {
    proxy: Proxy,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

struct State {
    mood: Mood,
    asked: HashMap<String, u64>,
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl crate::subject::Subject for Subject {
    type Client = HttpClient;

    async fn start() -> Self {
        let port = Port::reserve();
        let address = port.address();
        let state = Arc::new(Mutex::new(State { mood: Mood::Well, asked: HashMap::new() }));
        let shared = Arc::clone(&state);
        let _entered = servers().enter();
        let listener = port.listen();
        let server = servers().spawn(async move {
            let _port = port;
            serve(listener, shared).await;
        });
        Self { proxy: Proxy::in_front_of(address), state, server }
    }

    fn client(&self, _: u32, tune: Tune) -> HttpClient {
        let base = format!("http://{}", self.proxy.addr());
        HttpClient::builder(&base).policy(move |policy| tune(quick(policy))).build().unwrap()
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    // Ended with this task.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(answer(stream, Arc::clone(&state)));
        while connections.try_join_next().is_some() {}
    }
}

/// Request after request, until the client hangs up or what it says makes no sense.
async fn answer(stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut method, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok().filter(|&n| n > 0)?;
            let line = line.trim_end().to_ascii_lowercase();
            if method.is_none() {
                method = line.split_once(' ').map(|(method, _)| method.to_ascii_uppercase());
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().ok()?;
            } else if line.is_empty() {
                break;
            }
        }
        stream.read_exact(&mut vec![0; length]).await.ok()?;
        let mood = {
            let mut state = state.lock().unwrap();
            *state.asked.entry(method?).or_default() += 1;
            state.mood
        };
        let status = match mood {
            Mood::Well => "200 OK",
            Mood::NotNow => "503 Not Now",
            Mood::Never => "404 Never",
            // Until the client hangs up.
            Mood::Silent => return stream.read(&mut [0]).await.ok().map(drop),
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.ok()?;
    }
}

impl Client for HttpClient {
    const DOORS: &'static [&'static str] =
        &["GET", "HEAD", "POST", "keyed", "PUT", "PATCH", "DELETE", "stream"];
    const REPEATED: &'static str = "GET";
    const REPEATED_TOO: &'static [&'static str] = &["keyed", "PUT"];
    const ONCE: Option<&'static str> = Some("POST");
    type Failure = HttpFailure;
    type Driver = reqwest::Error;

    fn policy(&self) -> &Policy {
        self.policy()
    }

    fn call(&self, door: &'static str) -> Work {
        let request = match door {
            "GET" | "stream" => self.get("path"),
            "HEAD" => self.head("path"),
            "POST" => self.post("path").body("body"),
            "keyed" => self.post("path").body("body").idempotency_key("key"),
            "PUT" => self.put("path").body("body"),
            "PATCH" => self.patch("path").body("body"),
            "DELETE" => self.delete("path"),
            other => panic!("{other}?"),
        };
        Box::pin(async move {
            if door == "stream" {
                let mut download = request.stream().await?;
                while download.chunk().await?.is_some() {}
                return Ok::<_, Error>(());
            }
            request.await?;
            Ok(())
        })
    }

    async fn health(&self) -> Health {
        self.health_check().await
    }

    fn is_answer(error: &Error) -> bool {
        error.downcast_ref().and_then(HttpFailure::response).is_some()
    }
}

impl Remote for Subject {
    const GREETS: bool = false;

    fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    async fn set(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    async fn asked(&self, door: &'static str) -> u64 {
        let method = if door == "keyed" { "POST" } else { door };
        self.state.lock().unwrap().asked.get(method).copied().unwrap_or(0)
    }
}
