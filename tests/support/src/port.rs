use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};
use tokio::net::{TcpListener, TcpSocket};

/// A port of this machine that nobody else is given for as long as this lives.
///
/// It is bound and not listening: connections are refused until someone listens, [`Port::listen`]
/// here or a server that is given the number (the kernel lets a socket with `SO_REUSEADDR` listen
/// beside ours), and are refused again when that someone is gone. A port that is merely free can
/// meanwhile go to another test, or to the very connection that should be refused.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    _held: TcpSocket,
}

impl Port {
    /// Takes a free one, which this process was not given before: a breaker is known by the address of its
    /// server, and outlives it.
    #[must_use]
    pub fn reserve() -> Self {
        static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
        // Held meanwhile, so that they are not given once more.
        let mut again = Vec::new();
        loop {
            let held = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
            let address = held.local_addr().unwrap();
            if GIVEN.lock().unwrap().insert(address.port()) {
                return Self { address, _held: held };
            }
            again.push(held);
        }
    }

    /// Where it is, on 127.0.0.1.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.address.port()
    }

    /// Accepts connections, until what this returns is dropped.
    #[must_use]
    pub fn listen(&self) -> TcpListener {
        let end = Instant::now() + PATIENCE;
        loop {
            match bind(self.address).and_then(|socket| socket.listen(1024)) {
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                    thread::sleep(Duration::from_millis(1));
                }
                listener => return listener.unwrap(),
            }
        }
    }
}

/// A child that is being started has copies of our descriptors until it becomes its own program: on a
/// machine that is very busy the listener of before may live that long.
const PATIENCE: Duration = Duration::from_secs(5);

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// A process that is being started elsewhere may hold a copy of the listener for a moment.
#[cfg(test)]
pub(crate) fn until_refused(address: std::net::SocketAddr) {
    use crate::process::{LIMIT, POLL};
    let end = std::time::Instant::now() + LIMIT;
    loop {
        match std::net::TcpStream::connect(address) {
            Ok(_) => assert!(std::time::Instant::now() < end, "{address} still listens"),
            Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused),
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[tokio::test]
    async fn connections_are_refused_before_between_and_after_listeners() {
        let port = Port::reserve();
        for _ in 0..2 {
            until_refused(port.address());
            let listener = port.listen();
            TcpStream::connect(port.address()).unwrap();
            drop(listener);
        }
        until_refused(port.address());
    }
}
