//! A server that does as little as it can, on threads of its own.

use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
};

/// Serves `/small` (200 bytes) and `/large` (1 MiB) for as long as the process lives.
pub fn start() -> SocketAddr {
    let (tell, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let _ = tell.send(listener.local_addr().expect("an address"));
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                tokio::spawn(serve(stream));
            }
        });
    });
    address.recv().expect("the server started")
}

async fn serve(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let answer = |length: usize| {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Sun, 06 Nov 1994 08:49:37 \
             GMT\r\ncontent-length: {length}\r\n\r\n"
        );
        [head.into_bytes(), vec![b'x'; length]].concat()
    };
    let (small, large) = (answer(200), answer(1024 * 1024));
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
            _ => return,
        }
        if request.ends_with(b"\r\n\r\n") {
            let answer = if request.starts_with(b"GET /large") { &large } else { &small };
            if stream.write_all(answer).await.is_err() {
                return;
            }
            request.clear();
        }
    }
}
