use super::{Program, Server, postgres};
use crate::{
    directory,
    process::{command, find},
};
use rustix::process::Signal;
use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

/// How a PgBouncer is run.
#[derive(Debug)]
pub enum Pgbouncer {}

impl Server<postgres::Postgres> {
    /// A PgBouncer before this server that lends its two connections for one transaction each, and
    /// looks every second whether a server that was gone is back.
    #[must_use]
    pub fn pooler(&self) -> Server<Pgbouncer> {
        let dir = directory::temporary();
        let port = self.address().port();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n\
             max_client_conn = 200\nserver_login_retry = 1\n"
        );
        fs::write(dir.path().join("ini"), settings).unwrap();
        Server::start_in(dir, &[])
    }
}

impl Program for Pgbouncer {
    const NAME: &'static str = "PgBouncer";
    const STOP: Signal = Signal::TERM;

    fn prepare(_: &Path) {}

    /// Its port is said in the settings alone, so they are written anew with it.
    fn command(dir: &Path, port: u16) -> Command {
        let settings = fs::read_to_string(dir.join("ini")).unwrap();
        let listening = format!("{settings}listen_port = {port}\n");
        fs::write(dir.join("ini.port"), listening).unwrap();
        let program = find("pgbouncer", "pgbouncer", &["/usr/sbin"].map(PathBuf::from));
        let mut command = command(&program, dir);
        command.arg("ini.port");
        command
    }

    fn is_ready(mut stream: TcpStream) -> io::Result<bool> {
        let mut startup = vec![0, 0, 0, 0, 0, 3, 0, 0];
        startup.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        startup[3] = u8::try_from(startup.len()).unwrap();
        stream.write_all(&startup)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok(answer == *b"R")
    }

    fn url(address: SocketAddr) -> String {
        format!("postgres://postgres@{address}/postgres")
    }
}
