use mainstay_policy::{CallError, database_resilient};

struct Connection;

#[database_resilient]
async fn query(connection: Connection, id: u32) -> Result<u32, CallError<()>> {
    let _connection = connection;
    Ok(id)
}

#[database_resilient]
fn generic<T: Into<u32>>((id, _): (T, u32)) -> Result<u32, CallError<()>> {
    Ok(id.into())
}

fn main() {}
