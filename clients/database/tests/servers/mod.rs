//! Private servers in temporary directories on free ports, and a proxy that loses a reply.

use sqlx::{ConnectOptions, Connection};
use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const NOBODY: u32 = 65534;

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A command that runs as `nobody` where we are root: PostgreSQL refuses root.
fn command(program: impl AsRef<std::ffi::OsStr>, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
    if std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).ok()
        == Some(0)
    {
        chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// A server that this test started; killed when dropped.
pub(crate) struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    child: Option<Child>,
}

impl Server {
    fn new(program: PathBuf, dir: tempfile::TempDir, port: u16, arguments: Vec<String>) -> Self {
        Self { program, arguments, dir, port, child: None }
    }

    fn spawn(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let mut command = command(&self.program, self.dir.path());
        self.child = Some(command.args(&self.arguments).stderr(log).spawn().unwrap());
    }

    /// Starts it, again if need be, and waits until it answers.
    pub(crate) async fn start<O: ConnectOptions<Connection: Sized>>(&mut self, options: &O) {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            // A killed PostgreSQL leaves shared memory for a moment; the next start then ends.
            if self.child.as_mut().is_none_or(|c| c.try_wait().unwrap().is_some()) {
                self.spawn();
            }
            if let Ok(connection) = options.connect().await {
                connection.close().await.unwrap();
                return;
            }
            if Instant::now() > end {
                let log = std::fs::read_to_string(self.dir.path().join("log"));
                panic!("{} did not start: {log:?}", self.program.display());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn run(command: &mut Command) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// PostgreSQL, not yet started.
pub(crate) fn postgres(extra: &[&str]) -> (Server, sqlx::postgres::PgConnectOptions) {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("needs postgresql (apt-get install postgresql)")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("postgres").exists())
        .collect();
    versions.sort();
    let bin = versions.pop().expect("needs postgresql (apt-get install postgresql)");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    run(command(bin.join("initdb"), dir.path())
        .args(["-A", "trust", "-U", "postgres", "--no-sync", "--no-instructions", "-E", "UTF8"])
        .args(["--locale=C", "-D", &data]));
    let port = free_port();
    let mut arguments = vec!["-D".to_owned(), data];
    let sockets = format!("unix_socket_directories={}", dir.path().display());
    for setting in [
        "listen_addresses=127.0.0.1",
        &format!("port={port}"),
        &sockets,
        "fsync=off",
        "full_page_writes=off",
        "shared_buffers=16MB",
        "deadlock_timeout=50ms",
        "autovacuum=off",
    ]
    .iter()
    .chain(extra)
    {
        arguments.extend(["-c".to_owned(), (*setting).to_owned()]);
    }
    let options = postgres_url(port).parse().unwrap();
    (Server::new(bin.join("postgres"), dir, port, arguments), options)
}

pub(crate) fn postgres_url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

/// MariaDB, not yet started.
pub(crate) fn mariadb() -> (Server, sqlx::mysql::MySqlConnectOptions) {
    let program = PathBuf::from("/usr/sbin/mariadbd");
    let needs = "needs MariaDB (apt-get install mariadb-server-core mariadb-client-core)";
    assert!(program.exists(), "{needs}");
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--datadir={}", dir.path().join("data").display());
    let small =
        ["--innodb-log-file-size=5M", "--innodb-buffer-pool-size=8M", "--skip-name-resolve"];
    run(command("mariadb-install-db", dir.path())
        .args(["--no-defaults", &data, "--skip-test-db"])
        .arg("--auth-root-authentication-method=normal")
        .args(small));
    let port = free_port();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut arguments = vec!["--no-defaults".to_owned(), data, format!("--port={port}")];
    arguments.extend([format!("--socket={}", path("s")), format!("--pid-file={}", path("pid"))]);
    arguments.extend(["--bind-address=127.0.0.1", "--innodb-flush-method=nosync"].map(Into::into));
    arguments.extend(small.map(Into::into));
    let options = mariadb_url(port).parse().unwrap();
    (Server::new(program, dir, port, arguments), options)
}

pub(crate) fn mariadb_url(port: u16) -> String {
    format!("mysql://root@127.0.0.1:{port}/mysql?ssl-mode=disabled")
}

/// Forwards to a port; once armed it forwards the next request, waits for the first bytes of the
/// answer, and resets both ends.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    armed: Arc<AtomicBool>,
}

impl Proxy {
    pub(crate) async fn in_front_of(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let armed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&armed);
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                tokio::spawn(serve(client, upstream, Arc::clone(&flag)));
            }
        });
        Self { port, armed }
    }

    pub(crate) fn lose_next_reply(&self) {
        self.armed.store(true, SeqCst);
    }

    pub(crate) fn lost(&self) -> bool {
        !self.armed.load(SeqCst)
    }
}

async fn serve(mut client: TcpStream, upstream: u16, armed: Arc<AtomicBool>) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream));
    let Ok(mut server) = TcpStream::connect(address).await else { return };
    let (mut request, mut reply) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut request) => {
                let Ok(n @ 1..) = read else { return };
                let lose = armed.swap(false, SeqCst);
                if server.write_all(&request[..n]).await.is_err() {
                    return;
                }
                if lose {
                    let _ = server.read(&mut reply).await;
                    let _ = client.set_zero_linger();
                    return;
                }
            }
            read = server.read(&mut reply) => {
                let Ok(n @ 1..) = read else { return };
                if client.write_all(&reply[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
