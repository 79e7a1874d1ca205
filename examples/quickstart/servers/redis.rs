//! As much of a Redis server as a cache needs: GET, SET with a lifetime, DEL. Its values outlive a
//! stop, as those of a server that is merely cut off do.

use mainstay_test_support::Port;
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

#[derive(Default)]
struct State {
    values: HashMap<String, (String, Option<Instant>)>,
    /// Commands about keys, as `SET key`.
    commands: Vec<String>,
}

type Shared = Arc<Mutex<State>>;

pub(crate) struct Redis {
    port: Port,
    state: Shared,
    server: Option<JoinHandle<()>>,
}

fn locked(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Redis {
    pub(crate) fn start() -> Self {
        let mut server = Self { port: Port::reserve(), state: Shared::default(), server: None };
        server.listen();
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.port.address())
    }

    /// Commands about keys so far.
    pub(crate) fn commands(&self) -> Vec<String> {
        locked(&self.state).commands.clone()
    }

    /// What it holds, past the client.
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        locked(&self.state).values.get(key).map(|(value, _)| value.clone())
    }

    /// Listens on the same port as before.
    pub(crate) fn listen(&mut self) {
        self.server = Some(tokio::spawn(serve(self.port.listen(), Arc::clone(&self.state))));
    }

    /// Closes the port and every connection.
    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }
}

async fn serve(listener: TcpListener, state: Shared) {
    // Aborted with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move { talk(BufReader::new(stream), &state).await });
        while connections.try_join_next().is_some() {}
    }
}

async fn talk(mut stream: BufReader<TcpStream>, state: &Shared) -> io::Result<()> {
    loop {
        let words = command(&mut stream).await?;
        let answer = answer(&mut locked(state), &words);
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// An array of strings: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
async fn command(stream: &mut BufReader<TcpStream>) -> io::Result<Vec<String>> {
    let mut words = Vec::new();
    for _ in 0..number(stream, '*').await? {
        let mut word = vec![0; number(stream, '$').await?];
        stream.read_exact(&mut word).await?;
        stream.read_exact(&mut [0; 2]).await?;
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    Ok(words)
}

async fn number(stream: &mut BufReader<TcpStream>, mark: char) -> io::Result<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let number = line.trim_end().strip_prefix(mark).and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn answer(state: &mut State, words: &[String]) -> String {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some((name, arguments)) = words.split_first() else { return error() };
    let name = name.to_ascii_uppercase();
    if let ("GET" | "SET" | "DEL", Some(key)) = (name.as_str(), arguments.first()) {
        state.commands.push(format!("{name} {key}"));
    }
    match (name.as_str(), arguments) {
        ("PING", _) => "+PONG\r\n".to_owned(),
        ("CLIENT", ["ID"]) => ":1\r\n".to_owned(),
        ("CLIENT", _) => "+OK\r\n".to_owned(),
        ("INFO", _) => bulk("redis_version:7.0.0\r\n"),
        ("GET", [key]) => match state.values.get(*key) {
            Some((value, end)) if end.is_none_or(|end| end > Instant::now()) => bulk(value),
            _ => "$-1\r\n".to_owned(),
        },
        ("SET", [key, value, lifetime @ ..]) => {
            let end = match lifetime {
                [unit, ms] if unit.eq_ignore_ascii_case("PX") => ms.parse().ok(),
                _ => None,
            };
            let end = end.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
            state.values.insert((*key).to_owned(), ((*value).to_owned(), end));
            "+OK\r\n".to_owned()
        }
        ("DEL", [key]) => format!(":{}\r\n", u8::from(state.values.remove(*key).is_some())),
        _ => error(),
    }
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

fn error() -> String {
    "-ERR this little server does not know that\r\n".to_owned()
}
