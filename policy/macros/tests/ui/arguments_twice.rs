use mainstay_policy::{CallError, database_resilient};

#[database_resilient(max_attempts = 2, base_delay = 1, max_attempts = 3)]
async fn twice() -> Result<(), CallError<()>> {
    Ok(())
}

fn main() {}
