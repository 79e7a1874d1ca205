//! What does a caller see while a dependency is down and when it returns?
//!
//! A local TCP server answers, is stopped, and comes back; beside each call stands what the server
//! counted. The delays are set short here so that a person can watch. Exits non-zero if a step did
//! not do what it says.
#![allow(missing_docs)]

use mainstay::{BreakerState, CallError, Kind, Policy, get_resilience_health};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};

type AnyError = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let served = Arc::new(AtomicU32::new(0));
    let (address, server) = serve(([127, 0, 0, 1], 0).into(), &served).await?;
    let policy = Policy::builder(Kind::Custom, "drill")
        .timeout(Duration::from_secs(1))
        .max_attempts(3)
        .base_delay(Duration::from_millis(20))
        .failure_threshold(3)
        .recovery_timeout(Duration::from_secs(2))
        .build()?;

    println!("-- the server is up");
    expect(call(&policy, address, &served).await.is_ok(), "a healthy server answers")?;

    println!("-- the server is stopped");
    server.abort();
    let _ = server.await;
    for _ in 0..3 {
        let end = call(&policy, address, &served).await;
        expect(end.is_err_and(|e| e.attempts() == 3), "three attempts are made")?;
    }
    expect(policy.breaker().state() == BreakerState::Open, "three failures open the breaker")?;
    let end = call(&policy, address, &served).await;
    expect(end.is_err_and(|e| e.is_rejected()), "an open breaker refuses")?;

    println!("-- the server is back");
    let (_, server) = serve(address, &served).await?;
    let back = Instant::now();
    while call(&policy, address, &served).await.is_err() {
        expect(back.elapsed() < Duration::from_secs(15), "it recovers within fifteen seconds")?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    expect(policy.breaker().state() == BreakerState::Closed, "a good probe closes it")?;
    server.abort();
    println!("{}", serde_json::to_string_pretty(&get_resilience_health())?);
    Ok(())
}

async fn call(
    policy: &Policy,
    address: SocketAddr,
    served: &AtomicU32,
) -> Result<u8, CallError<io::Error>> {
    let started = Instant::now();
    let end =
        policy.call(|| async move { TcpStream::connect(address).await?.read_u8().await }).await;
    let seen = match &end {
        Ok(_) => "answered".to_owned(),
        Err(error) => error.to_string(),
    };
    println!("{:>9.1?}  {seen}  (server counted {})", started.elapsed(), served.load(SeqCst));
    end
}

async fn serve(
    address: SocketAddr,
    served: &Arc<AtomicU32>,
) -> io::Result<(SocketAddr, JoinHandle<()>)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener: TcpListener = socket.listen(16)?;
    let address = listener.local_addr()?;
    let served = Arc::clone(served);
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            served.fetch_add(1, SeqCst);
            let _ = stream.write_u8(42).await;
        }
    });
    Ok((address, task))
}

fn expect(held: bool, step: &str) -> Result<(), AnyError> {
    if held { Ok(()) } else { Err(format!("this did not hold: {step}").into()) }
}
