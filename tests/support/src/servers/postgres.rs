use super::{Encrypted, Program, Server};
use crate::{
    directory::{self, Template},
    process::{command, find, run},
};
use rustix::process::Signal;
use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

/// How a PostgreSQL server is run.
#[derive(Debug)]
pub enum Postgres {}

impl Program for Postgres {
    const NAME: &'static str = "PostgreSQL";
    /// A fast shutdown; SIGTERM would wait for the clients.
    const STOP: Signal = Signal::INT;

    fn prepare(dir: &Path) {
        static TEMPLATE: Template = Template::new();
        TEMPLATE.copy(dir, |dir| {
            let mut init = command(&program("initdb"), dir);
            init.args(["-D", "data", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]);
            init.args(["--no-sync", "--no-instructions"]);
            init
        });
    }

    fn command(dir: &Path, port: u16) -> Command {
        let mut command = command(&program("postgres"), dir);
        command.args(["-D", "data", "-p", &port.to_string()]);
        command.arg(format!("--unix_socket_directories={}", dir.display()));
        // A process that is killed leaves what it wrote to the kernel. `synchronous_commit=off`
        // would keep it back, and lose writes that were acknowledged.
        command.args(["--fsync=off", "--full_page_writes=off"]);
        command.args(["--listen_addresses=127.0.0.1", "--max_connections=50"]);
        command.args(["--shared_buffers=16MB", "--autovacuum=off", "--deadlock_timeout=50ms"]);
        command
    }

    fn is_ready(mut stream: TcpStream) -> io::Result<bool> {
        let mut startup = vec![0, 0, 0, 0, 0, 3, 0, 0];
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        startup[3] = u8::try_from(startup.len()).unwrap();
        stream.write_all(&startup)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        // It asks for no password: ready. An E says that it is still starting.
        let ready = answer == *b"R";
        if ready {
            // Its backend is gone when it hangs up, and is not seen by the test.
            stream.write_all(b"X\0\0\0\x04")?;
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(ready)
    }

    fn url(address: SocketAddr) -> String {
        format!("postgres://postgres@{address}/postgres")
    }
}

impl Encrypted for Postgres {
    fn arguments(dir: &Path) -> Vec<String> {
        let file = |option, name| format!("--{option}={}", dir.join(name).display());
        vec!["--ssl=on".into(), file("ssl_cert_file", "tls.pem"), file("ssl_key_file", "tls.key")]
    }
}

impl Server<Postgres> {
    /// A standby of this one, which follows it from now on and takes no writes until
    /// `select pg_promote()`.
    #[must_use]
    pub fn standby(&self) -> Self {
        let dir = directory::temporary();
        let mut copy = command(&program("pg_basebackup"), dir.path());
        copy.args(["-h", "127.0.0.1", "-p", &self.address().port().to_string(), "-U", "postgres"]);
        copy.args(["-D", "data", "-R", "--checkpoint=fast", "-X", "stream", "--no-sync"]);
        run(&mut copy);
        Self::start_in(dir, &[])
    }
}

/// From the newest version here; Debian does not put it in `PATH`.
fn program(name: &str) -> PathBuf {
    let version = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        name.split('.').map(|part| part.parse::<u32>().ok()).collect::<Option<Vec<_>>>()
    };
    let entries = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = entries.map(|entry| entry.path()).collect();
    versions.sort_by_key(version);
    let newest_first: Vec<_> = versions.into_iter().rev().map(|path| path.join("bin")).collect();
    find(name, "postgresql", &newest_first)
}
