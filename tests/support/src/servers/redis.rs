mod cluster;
mod sentinel;
mod tls;

pub use cluster::{Move, RedisCluster};
pub use sentinel::RedisSentinels;
pub(super) use sentinel::Sentinel;
pub use tls::{TlsRedis, TlsSentinel};

use super::{Program, Server};
use crate::process::{LIMIT, command, find};
use rustix::process::Signal;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

/// How a Redis server is run.
#[derive(Debug)]
pub enum Redis {}

impl Program for Redis {
    const NAME: &'static str = "redis-server";
    const STOP: Signal = Signal::TERM;

    fn prepare(_: &Path) {}

    fn command(dir: &Path, port: u16) -> Command {
        let mut command = command(&find("redis-server", "redis-server", &[]), dir);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
        command.args(["--appendonly", "no", "--loglevel", "warning"]);
        command.args(["--enable-debug-command", "local"]);
        command
    }

    fn is_ready(mut stream: TcpStream) -> io::Result<bool> {
        stream.write_all(b"PING\r\n")?;
        let answer = reply(stream)?;
        Ok(answer.starts_with("+PONG") || answer.starts_with("-NOAUTH"))
    }

    fn url(address: SocketAddr) -> String {
        format!("redis://{address}")
    }
}

/// What speaks the protocol of Redis.
pub trait Resp: Program {}

impl Resp for Redis {}

impl<P: Resp> Server<P> {
    /// Sends a command on a connection of its own, which sees what the client under test does not,
    /// and gives the answer as it came, marks and all. Strings and lines only.
    #[must_use]
    pub fn say(&self, command: &str) -> String {
        reply(self.tell(command)).unwrap()
    }

    /// Sends a command and does not wait; the answer comes on what this returns.
    #[must_use]
    pub fn tell(&self, command: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
        stream
    }
}

fn reply(stream: TcpStream) -> io::Result<String> {
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    if stream.read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // A string says its length first, or -1 for none; then come its bytes and an end of line.
    let length = answer.strip_prefix('$').and_then(|length| length.trim_end().parse::<u64>().ok());
    if let Some(length) = length {
        stream.take(length + 2).read_to_string(&mut answer)?;
        return Ok(answer);
    }
    // Of an array its lines; what is in it was not asked for in turn.
    if let Some(count) = answer.strip_prefix('*').and_then(|n| n.trim_end().parse::<u32>().ok()) {
        for _ in 0..count {
            let length = answer.len();
            stream.read_line(&mut answer)?;
            if answer[length..].starts_with('$') && !answer[length..].starts_with("$-") {
                stream.read_line(&mut answer)?;
            }
        }
    }
    Ok(answer)
}
