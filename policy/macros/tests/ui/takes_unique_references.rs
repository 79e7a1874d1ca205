use mainstay_policy::{CallError, database_resilient};

#[database_resilient]
async fn argument(list: &mut Vec<u32>) -> Result<(), CallError<()>> {
    list.push(1);
    Ok(())
}

#[database_resilient]
fn with_lifetime<'a>(name: &str, list: &'a mut Vec<u32>) -> Result<&'a u32, CallError<()>> {
    list.first().ok_or(())
}

#[database_resilient]
fn in_a_pattern((ref mut list, _): (Vec<u32>, u32)) -> Result<(), CallError<()>> {
    list.push(1);
    Ok(())
}

struct Users;

impl Users {
    #[database_resilient]
    async fn unique_self(&mut self) -> Result<(), CallError<()>> {
        Ok(())
    }

    #[database_resilient]
    async fn typed_self(self: &mut Self) -> Result<(), CallError<()>> {
        Ok(())
    }

    #[database_resilient]
    async fn self_by_value(self) -> Result<(), CallError<()>> {
        Ok(())
    }

    #[database_resilient]
    async fn self_in_a_box(self: Box<Self>) -> Result<(), CallError<()>> {
        Ok(())
    }
}

fn main() {}
