use super::{Redis, Resp, Sentinel, Server};
use crate::{Authority, Port, directory};
use std::net::SocketAddr;

/// A Redis server that speaks TLS on one port, and plainly on another, for the referee.
pub type TlsRedis = Tls<Redis>;
/// A sentinel of that kind, which watches nobody yet.
pub type TlsSentinel = Tls<Sentinel>;

/// A server that speaks TLS on one port, and plainly on another.
#[derive(Debug)]
pub struct Tls<P: Resp> {
    /// By its plain port.
    pub server: Server<P>,
    pub(super) port: Port,
}

impl<P: Resp> Tls<P> {
    /// With a certificate of this authority for this name; clients need none.
    #[must_use]
    pub fn start(authority: &Authority, name: &str) -> Self {
        Self::start_on(Port::reserve(), authority, name, &[])
    }

    /// With these arguments too.
    pub(super) fn start_on(
        port: Port,
        authority: &Authority,
        name: &str,
        arguments: &[&str],
    ) -> Self {
        let dir = directory::temporary();
        P::prepare(dir.path());
        authority.sign(name, dir.path());
        let number = port.number().to_string();
        let files = ["--tls-cert-file", "tls.pem", "--tls-key-file", "tls.key"];
        // For other servers: nobody is asked for a certificate.
        let others = ["--tls-ca-cert-file", "ca.pem", "--tls-auth-clients", "no"];
        let own = [&["--tls-port", &number][..], &files, &others, arguments].concat();
        Self { server: Server::start_in(dir, &own), port }
    }

    /// Where it speaks TLS.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.port.address()
    }
}
