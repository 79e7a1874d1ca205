//! Settings that cannot be used do not keep a function from running. In a process of its own, since
//! it brings a file and its working directory.
#![allow(missing_docs, clippy::unwrap_used)]

use mainstay_policy::{CallError, database_resilient};
use std::{env, fs};

#[database_resilient(operation_name = "with_bad_settings", base_delay = 0, max_attempts = 2)]
fn fails() -> Result<(), CallError<&'static str>> {
    Err("no")
}

#[test]
fn bad_settings_are_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("mainstay.toml"), "[database]\nmax_attempts = \"many\"\n")
        .unwrap();
    env::set_current_dir(directory.path()).unwrap();
    assert!(mainstay_policy::settings().is_err());
    let error = fails().unwrap_err();
    // What code says stands.
    assert_eq!((error.attempts(), error.last()), (2, Some(&"no")));
    env::set_current_dir("/").unwrap();
}
