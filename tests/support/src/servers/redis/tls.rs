use super::super::{Redis, Server};
use crate::{Authority, Port, directory};
use std::net::SocketAddr;

/// A Redis server that speaks TLS on one port, and plainly on another, for the referee.
#[derive(Debug)]
pub struct TlsRedis {
    /// By its plain port.
    pub server: Redis,
    port: Port,
}

impl TlsRedis {
    /// With a certificate of this authority for this name; clients need none.
    #[must_use]
    pub fn start(authority: &Authority, name: &str) -> Self {
        let dir = directory::temporary();
        authority.sign(name, dir.path());
        let port = Port::reserve();
        let number = port.number().to_string();
        let files = ["--tls-cert-file", "tls.pem", "--tls-key-file", "tls.key"];
        // It wants one, though it asks nobody for a certificate.
        let clients = ["--tls-ca-cert-file", "tls.pem", "--tls-auth-clients", "no"];
        let arguments = [&["--tls-port", &number][..], &files, &clients].concat();
        Self { server: Server::start_in(dir, &arguments), port }
    }

    /// Where it speaks TLS.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.port.address()
    }
}
