use mainstay_policy::{api_resilient, database_resilient};
use std::{future::Future, pin::Pin};

#[database_resilient]
async fn nothing() {}

#[database_resilient]
async fn option() -> Option<u32> {
    None
}

type QueryResult = Result<u32, ()>;

#[database_resilient]
async fn other_alias() -> QueryResult {
    Ok(1)
}

#[api_resilient]
fn a_future() -> impl Future<Output = Result<u32, ()>> {
    async { Ok(1) }
}

#[api_resilient]
fn a_boxed_future() -> Pin<Box<dyn Future<Output = Result<u32, ()>>>> {
    Box::pin(async { Ok(1) })
}

fn main() {}
