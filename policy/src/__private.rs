//! What the attributes expand to besides the public API. Not for anybody else.

use std::any;

/// The path of the function around `marker`, which is a function in its body: `shop::Users::get`.
///
/// `module_path!()` knows no types, and methods of one name would share a breaker.
#[must_use]
pub fn path_of<F: Fn()>(_: F) -> &'static str {
    let path = any::type_name::<F>();
    let path = path.rsplit_once("::").map_or(path, |(function, _)| function);
    path.strip_suffix("::{{closure}}").unwrap_or(path)
}
