//! A test that runs itself again, in a process of its own.

use std::process::Command;

/// What it said there, or `None` there.
pub(crate) fn alone(test: &str, environment: &[(&str, &str)]) -> Option<String> {
    if std::env::var_os("ALONE").is_some() {
        return None;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture"]).env("ALONE", "1");
    let output = again.envs(environment.iter().copied()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    Some(told.into_owned())
}
