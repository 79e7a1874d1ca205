//! A private redis-server, in a process of its own.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One that writes nothing to disk; it ends when this is dropped.
pub fn start() -> Server {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("needs redis-server (apt-get install redis-server)");
    let server = Server { child, address };
    for _ in 0..500 {
        if pings(address) {
            return server;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("redis-server did not start on {address}");
}

fn pings(address: SocketAddr) -> bool {
    let mut answer = [0; 5];
    TcpStream::connect(address).is_ok_and(|mut stream| {
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok()
    })
}
