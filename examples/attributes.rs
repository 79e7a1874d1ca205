//! How does a function of one's own get a policy?
//!
//! The first two connections are refused; the third attempt answers, and the breaker has stayed
//! closed. Then the function is given something that no attempt can answer.
#![allow(missing_docs)]

use mainstay::{CallError, breaker, database_resilient};
use std::{
    io,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

static ATTEMPTS: AtomicU32 = AtomicU32::new(0);

/// The caller gets `CallError<io::Error>`: the body's error, and what the policy did about it.
#[database_resilient(operation_name = "get_user", base_delay = 0.05)]
async fn get_user(id: u32) -> Result<String, CallError<io::Error>> {
    let attempt = ATTEMPTS.fetch_add(1, SeqCst) + 1;
    println!("attempt {attempt}");
    if attempt < 3 {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    find(id)
}

fn find(id: u32) -> io::Result<String> {
    if id == 0 { Err(io::ErrorKind::NotFound.into()) } else { Ok(format!("user {id}")) }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("{}", get_user(7).await?);
    println!("breaker: {:?}", breaker("database:get_user").ok_or("no breaker")?.state());
    if let Err(error) = get_user(0).await {
        println!("{error}: {:?}", error.last());
    }
    Ok(())
}
