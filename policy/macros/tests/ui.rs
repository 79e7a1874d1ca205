//! What the compiler says of bad attributes, word for word. After a change on purpose:
//! `TRYBUILD=overwrite cargo test -p mainstay-macros --test ui`.
#![allow(missing_docs)]

#[test]
fn mistakes_are_told_on_the_users_own_token() {
    let tests = trybuild::TestCases::new();
    tests.compile_fail("tests/ui/*.rs");
    // These words are the compiler's own, and may differ with its version.
    tests.compile_fail("tests/ui/compiler/*.rs");
}
