use mainstay_policy::{CallError, database_resilient, resilient};

#[database_resilient(timeout = 2)]
async fn part_of_a_name() -> Result<(), CallError<()>> {
    Ok(())
}

#[database_resilient(max_atempts = 2, colour = "red")]
async fn two_at_once() -> Result<(), CallError<()>> {
    Ok(())
}

#[database_resilient(operation_type = "api")]
async fn of_another_attribute() -> Result<(), CallError<()>> {
    Ok(())
}

#[resilient(retry_exceptions = (ConnectionError, TimeoutError))]
async fn of_the_reference_system() -> Result<(), CallError<()>> {
    Ok(())
}

fn main() {
    // Only the attributes' errors are shown: the functions are there.
    let _ = (part_of_a_name, two_at_once, of_another_attribute, of_the_reference_system);
}
