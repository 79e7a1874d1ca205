use mainstay_policy::{CallError, database_resilient};
use std::io;

#[database_resilient]
async fn no_answer() -> Result<u32, CallError<io::Error>> {}

#[database_resilient]
fn no_answer_sync() -> Result<u32, CallError<io::Error>> {}

#[derive(Debug)]
struct MyError;

#[database_resilient]
async fn another_error() -> Result<u32, CallError<MyError>> {
    Err("text")?
}

#[database_resilient]
async fn unused(id: u32) -> Result<u32, CallError<io::Error>> {
    #![deny(unused_variables)]
    Ok(1)
}

fn main() {}
