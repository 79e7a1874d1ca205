use mainstay_policy::{CallError, database_resilient};

#[database_resilient]
const fn constant() -> Result<(), CallError<()>> {
    Ok(())
}

#[database_resilient]
extern "C" fn foreign() -> Result<(), CallError<()>> {
    Ok(())
}

trait Users {
    #[database_resilient]
    async fn no_body(&self) -> Result<(), CallError<()>>;
}

#[database_resilient]
struct NotAFunction;

#[database_resilient]
pub const NOT_A_FUNCTION: u32 = 1;

struct Repository;

#[database_resilient]
impl Repository {}

fn main() {}
