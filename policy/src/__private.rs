//! What the attributes expand to besides the public API. Not for anybody else.

use crate::{
    error::{CallError, Error},
    policy::Policy,
};
use std::{
    any::{self, Any},
    io,
};

/// The path of the function around `here`, which is a function in its body: `shop::Users::get`.
///
/// `module_path!()` knows no types, and methods of one name would share a breaker.
#[must_use]
pub fn path_of<F: Fn()>(_here: F) -> &'static str {
    let path = any::type_name::<F>();
    let mut path = path.strip_suffix("::here").unwrap_or(path);
    // The body of an `async fn`, and the blocks that other attributes put around it.
    while let Some(outer) = path.strip_suffix("::{{closure}}") {
        path = outer;
    }
    path
}

/// An error that a function with an attribute can return besides [`CallError`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot hold what a policy decides: it is not `From<CallError<{Self}>>`",
    label = "has no `From<CallError<{Self}>>`",
    note = "write `Result<T, CallError<E>>` out, or give the error that `From`"
)]
pub trait OfCall: Sized {
    /// By its `From`; ours is told what was called.
    fn of_call(error: CallError<Self>, policy: &Policy, operation: &str) -> Self;
}

#[diagnostic::do_not_recommend]
impl<E: From<CallError<E>> + 'static> OfCall for E {
    fn of_call(error: CallError<Self>, policy: &Policy, operation: &str) -> Self {
        let mut error = Self::from(error);
        let any: &mut dyn Any = &mut error;
        let own = match any.downcast_mut::<io::Error>() {
            Some(io) => io.get_mut().and_then(|inner| inner.downcast_mut()),
            None => any.downcast_mut::<Error>(),
        };
        if let Some(own) = own {
            own.name(policy.name(), operation);
        }
        error
    }
}
