//! A test that runs itself again, in a process of its own.

/// What it said there, or `None` there.
pub(crate) fn alone(test: &str, environment: &[(&str, &str)]) -> Option<String> {
    if std::env::var_os("ALONE").is_some() {
        return None;
    }
    let mut again = mainstay_test_support::again(test);
    let again = again.env("ALONE", "1").envs(environment.iter().copied());
    let output = again.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    Some(told.into_owned())
}
