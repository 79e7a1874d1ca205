use mainstay_policy::{CallError, database_resilient};
use std::io;

#[database_resilient]
async fn no_answer() -> Result<u32, CallError<io::Error>> {}

#[database_resilient]
fn no_answer_sync() -> Result<u32, CallError<io::Error>> {}

#[database_resilient]
async fn another_answer() -> Result<u32, CallError<io::Error>> {
    Ok("text")
}

#[database_resilient]
async fn another_error() -> Result<u32, CallError<io::Error>> {
    Err("text")?
}

fn looks_at_another_error(_: &u32) -> bool {
    true
}

#[database_resilient(retry_if = looks_at_another_error)]
async fn judged_by_another() -> Result<u32, CallError<io::Error>> {
    Ok(1)
}

#[database_resilient]
async fn unused(id: u32) -> Result<u32, CallError<io::Error>> {
    #![deny(unused_variables)]
    Ok(1)
}

fn main() {}
