//! Real servers, private to a test: each in a temporary directory, on a port of its own. Killed and
//! removed when dropped, and when this process ends without a word: one may be kept in a static.
//!
//! Every call blocks its thread until the server is there, or gone: 10 to 300 ms, and one to four
//! seconds for the first start of PostgreSQL and MariaDB. A server that does not come within 30 s
//! is a panic with its log, and so is a program that is not installed.

mod mariadb;
mod pgbouncer;
mod postgres;
mod redis;

pub use redis::{Move, RedisCluster, RedisSentinels, Resp, TlsRedis, TlsSentinel};

use crate::{
    Authority, Port, directory,
    process::{LIMIT, POLL, Process},
};
use rustix::process::Signal;
use std::{
    fmt::Debug,
    fs::{self, OpenOptions},
    io,
    marker::PhantomData,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A PostgreSQL server: user `postgres`, no password, database `postgres`.
pub type Postgres = Server<postgres::Postgres>;
/// A MariaDB server: user `root`, no password, database `mysql`.
pub type Mariadb = Server<mariadb::Mariadb>;
/// A PgBouncer in transaction mode, before a PostgreSQL: see [`Server::pooler`].
pub type Pgbouncer = Server<pgbouncer::Pgbouncer>;
/// A Redis server that writes nothing to disk, so that it restarts empty.
pub type Redis = Server<redis::Redis>;

/// A Redis sentinel that watches nobody yet.
pub type Sentinel = Server<redis::Sentinel>;

/// What differs between the servers.
pub trait Program: Debug {
    /// How it is called in messages.
    const NAME: &'static str;
    /// Asks it to end without waiting for its clients.
    const STOP: Signal;

    /// Makes what it needs in an empty directory.
    fn prepare(dir: &Path);

    /// Runs it in that directory, on this port of 127.0.0.1.
    fn command(dir: &Path, port: u16) -> Command;

    /// Whether it is ready, said in its own protocol.
    ///
    /// # Errors
    /// If it hung up instead.
    fn is_ready(stream: TcpStream) -> io::Result<bool>;

    /// For a client.
    fn url(address: SocketAddr) -> String;
}

/// A program that can speak TLS.
pub trait Encrypted: Program {
    /// What its command line says of `tls.pem` and `tls.key` in its directory.
    fn arguments(dir: &Path) -> Vec<String>;
}

/// A server that this process started.
#[derive(Debug)]
pub struct Server<P: Program> {
    // Killed before its directory goes.
    process: Option<Process>,
    dir: TempDir,
    port: Port,
    arguments: Vec<String>,
    program: PhantomData<P>,
}

impl<P: Program> Server<P> {
    /// A new and empty one, ready.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With these arguments on its command line too, now and at every restart.
    #[must_use]
    pub fn start_with(arguments: &[&str]) -> Self {
        let dir = directory::temporary();
        P::prepare(dir.path());
        Self::start_in(dir, arguments)
    }

    /// One that speaks TLS to those who ask for it, with a certificate for this name or address.
    #[must_use]
    pub fn start_with_tls(authority: &Authority, name: &str) -> Self
    where
        P: Encrypted,
    {
        let dir = directory::temporary();
        P::prepare(dir.path());
        authority.sign(name, dir.path());
        let arguments = <P as Encrypted>::arguments(dir.path());
        Self::start_in(dir, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// In a directory that has all it needs.
    fn start_in(dir: TempDir, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let port = Port::reserve();
        let mut server = Self { process: None, dir, port, arguments, program: PhantomData };
        server.restart();
        server
    }

    /// Starts it again on the same port, with what it had on disk; stops it first if it runs.
    pub fn restart(&mut self) {
        self.stop();
        let log = OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut command = P::command(self.dir.path(), self.port.number());
        command.args(&self.arguments).stdout(log.try_clone().unwrap()).stderr(log);
        let process = self.process.insert(Process::spawn(command));
        let end = Instant::now() + LIMIT;
        while !ready::<P>(self.port.address()).unwrap_or(false) {
            if process.has_ended() || Instant::now() > end {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                panic!("{} did not start on {}:\n{log}", P::NAME, self.port.address());
            }
            thread::sleep(POLL);
        }
    }

    /// Ends it in good order, its connections with it.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop(P::STOP);
        }
    }

    /// SIGKILL, for it and its children: nothing is said or written any more. Its port refuses.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGSTOP, for it and its children. The kernel still accepts connections for it.
    pub fn hang(&mut self) {
        if let Some(process) = &mut self.process {
            process.hang();
        }
    }

    /// SIGCONT: it goes on where it was.
    pub fn resume(&mut self) {
        if let Some(process) = &mut self.process {
            process.resume();
        }
    }

    /// Whether it was started and not ended; one that hangs runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// For a client that goes to it directly.
    #[must_use]
    pub fn url(&self) -> String {
        P::url(self.address())
    }

    /// For a client that goes through a proxy at this address.
    #[must_use]
    pub fn url_at(address: SocketAddr) -> String {
        P::url(address)
    }

    fn log(&self) -> std::path::PathBuf {
        self.dir.path().join("log")
    }
}

#[cfg(all(test, feature = "test-servers"))]
mod tests;

fn ready<P: Program>(address: SocketAddr) -> io::Result<bool> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    P::is_ready(stream)
}
