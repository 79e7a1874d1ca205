use mainstay_policy::{CallError, resilient};

#[resilient(max_attempts = 0, failure_threshold = 0)]
async fn no_attempts() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(timeout_seconds = -1.5, base_delay = -1)]
async fn negative() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(timeout_seconds = 0, deadline_seconds = 0.0, recovery_timeout = 0)]
async fn no_time() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(exponential_base = 0.5)]
async fn shrinks() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(max_delay = 1e30, exponential_base = 1e999)]
async fn too_large() -> Result<(), CallError<()>> {
    Ok(())
}

fn main() {}
