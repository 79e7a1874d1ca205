//! A temporary directory that goes with this process, if not before.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{ChildStdin, Command, Stdio},
    sync::{LazyLock, Mutex},
};
use tempfile::TempDir;

/// Reads names of directories until the pipe closes, which it does when we end, be it by SIGKILL.
/// What still ends with us may be writing to them, so it tries for a while.
const SWEEP: &str = r#"
while read -r directory; do set -- "$@" "$directory"; done
for try in 1 2 3 4 5 6 7 8 9; do
  rm -rf -- "$@" 2>/dev/null && sleep 0.2 && rm -rf -- "$@" && break
  sleep 0.2
done"#;

static SWEEPER: LazyLock<Mutex<ChildStdin>> = LazyLock::new(|| {
    let mut shell = Command::new("sh");
    // In a group of its own, a Ctrl-C does not reach it.
    shell.args(["-c", SWEEP]).current_dir("/").process_group(0);
    let shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Mutex::new(shell.unwrap().stdin.unwrap())
});

/// A new one, removed when dropped. What lives in a static is never dropped, and a process that is
/// killed drops nothing: then it is removed all the same.
pub(crate) fn temporary() -> TempDir {
    let directory = tempfile::Builder::new().prefix("mainstay-test-").tempdir().unwrap();
    writeln!(SWEEPER.lock().unwrap(), "{}", directory.path().display()).unwrap();
    directory
}
