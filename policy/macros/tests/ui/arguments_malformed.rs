use mainstay_policy::{CallError, database_resilient};

#[database_resilient("get_user")]
async fn no_name() -> Result<(), CallError<()>> {
    Ok(())
}

#[database_resilient(idempotent)]
async fn no_value() -> Result<(), CallError<()>> {
    Ok(())
}

#[database_resilient(max_attempts = 2 base_delay = 1)]
async fn no_comma() -> Result<(), CallError<()>> {
    Ok(())
}

fn main() {}
