//! Large futures on the heap, made where they stay.

use std::pin::Pin;

/// As `Box::pin(make())` without the copy: made by a call that is not inlined and, if it only fills
/// the future in, cannot panic, so that the compiler has it write into the box.
pub(crate) fn boxed<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    #[inline(never)]
    fn made<F>(make: impl FnOnce() -> F) -> F {
        make()
    }
    Box::into_pin(Box::write(Box::new_uninit(), made(make)))
}
