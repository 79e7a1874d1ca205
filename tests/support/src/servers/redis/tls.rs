use super::super::{Redis, Server};
use crate::{Port, directory};
use std::{fs, net::SocketAddr};

/// A Redis server that speaks TLS on one port, and plainly on another, for the referee.
#[derive(Debug)]
pub struct TlsRedis {
    /// By its plain port.
    pub server: Redis,
    port: Port,
}

impl TlsRedis {
    /// With this certificate and key, PEM, for every client.
    #[must_use]
    pub fn start(certificate: &str, key: &str) -> Self {
        let dir = directory::temporary();
        for (name, pem) in [("certificate.pem", certificate), ("key.pem", key)] {
            fs::write(dir.path().join(name), pem).unwrap();
        }
        let port = Port::reserve();
        let number = port.number().to_string();
        let arguments = ["--tls-port", &number, "--tls-cert-file", "certificate.pem"];
        let more = ["--tls-key-file", "key.pem", "--tls-auth-clients", "no"];
        let more = [&more[..], &["--tls-ca-cert-file", "certificate.pem"]].concat();
        let server = Server::start_in(dir, &[&arguments[..], &more].concat());
        Self { server, port }
    }

    /// Where it speaks TLS.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.port.address()
    }
}
