use mainstay_policy::{CallError, resilient};

#[resilient(operation_name = get_user)]
async fn name_without_quotes() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(dependency = "")]
async fn empty_name() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(operation_type = "sql")]
async fn unknown_kind() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(timeout_seconds = "2s", deadline_seconds = 5ms)]
async fn text_for_seconds() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(jitter = "some")]
async fn unknown_jitter() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(max_attempts = 2.5, failure_threshold = true)]
async fn not_whole() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(idempotent = "yes", enable_retry = 1)]
async fn not_a_bool() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(retry_if = |error| true)]
async fn closure_for_a_path() -> Result<(), CallError<()>> {
    Ok(())
}

fn main() {}
