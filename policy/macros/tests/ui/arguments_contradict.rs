use mainstay_policy::{CallError, cache_resilient, database_resilient};

#[database_resilient(timeout_seconds = 10, deadline_seconds = 5)]
async fn deadline_within_an_attempt() -> Result<(), CallError<()>> {
    Ok(())
}

#[database_resilient(base_delay = 2, max_delay = 1.5)]
async fn base_over_max() -> Result<(), CallError<()>> {
    Ok(())
}

#[database_resilient(deadline_seconds = 5)]
async fn deadline_within_the_kinds_attempt() -> Result<(), CallError<()>> {
    Ok(())
}

#[cache_resilient(base_delay = 2)]
async fn base_over_the_kinds_max() -> Result<(), CallError<()>> {
    Ok(())
}

#[database_resilient(max_delay = 0.1)]
async fn max_below_the_kinds_base() -> Result<(), CallError<()>> {
    Ok(())
}

fn main() {}
