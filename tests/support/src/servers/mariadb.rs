use super::{Encrypted, Program};
use crate::{
    directory::Template,
    process::{command, find},
};
use rustix::process::Signal;
use std::{
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

const PACKAGES: &str = "mariadb-server-core mariadb-client-core";
const SMALL: [&str; 3] =
    ["--skip-name-resolve", "--innodb-log-file-size=5M", "--innodb-buffer-pool-size=8M"];

/// How a MariaDB server is run.
#[derive(Debug)]
pub enum Mariadb {}

impl Program for Mariadb {
    const NAME: &'static str = "MariaDB";
    const STOP: Signal = Signal::TERM;

    fn prepare(dir: &Path) {
        static TEMPLATE: Template = Template::new();
        TEMPLATE.copy(dir, |dir| {
            let mut install = command(&find("mariadb-install-db", PACKAGES, &[]), dir);
            install.args(["--no-defaults", &datadir(dir), "--skip-test-db"]);
            install.arg("--auth-root-authentication-method=normal").args(SMALL);
            install.env("TMPDIR", dir);
            install
        });
    }

    fn command(dir: &Path, port: u16) -> Command {
        let program = find("mariadbd", PACKAGES, &["/usr/sbin", "/usr/libexec"].map(PathBuf::from));
        let mut command = command(&program, dir);
        command.args(["--no-defaults", &datadir(dir), &format!("--port={port}")]);
        command.arg(format!("--socket={}", dir.join("s").display()));
        command.arg(format!("--pid-file={}", dir.join("pid").display()));
        command.args(["--bind-address=127.0.0.1", "--innodb-flush-method=nosync"]);
        command.arg("--performance-schema=OFF").args(SMALL);
        // One that starts deletes all temporary tables in its directory for them, also another's.
        command.env("TMPDIR", dir);
        command
    }

    /// It greets first: length, number, then the version of its protocol, or 255 for an error.
    fn is_ready(mut stream: TcpStream) -> io::Result<bool> {
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting)?;
        Ok(greeting[4] == 10)
    }

    fn url(address: SocketAddr) -> String {
        format!("mysql://root@{address}/mysql?ssl-mode=disabled")
    }
}

impl Encrypted for Mariadb {
    fn arguments(dir: &Path) -> Vec<String> {
        let file = |option, name| format!("--{option}={}", dir.join(name).display());
        vec![file("ssl-cert", "tls.pem"), file("ssl-key", "tls.key")]
    }
}

fn datadir(dir: &Path) -> String {
    format!("--datadir={}", dir.join("data").display())
}
