use mainstay_policy::{CallError, database_resilient};
use std::fmt;

#[derive(Debug)]
struct MyError;

#[database_resilient]
async fn its_own_error() -> Result<u32, MyError> {
    Err(MyError)
}

#[database_resilient]
async fn alias_of_std() -> fmt::Result {
    Ok(())
}

mod alias {
    pub type Result<T> = std::result::Result<T, super::CallError<std::io::Error>>;
}

#[database_resilient]
fn alias_that_hides_a_call_error() -> alias::Result<u32> {
    Ok(1)
}

fn main() {}
