//! A temporary directory that goes with this process, if not before.

use crate::process::{command, find, run, try_run};
use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{LazyLock, Mutex, OnceLock},
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

/// A new directory, removed when dropped. What lives in a static is never dropped, and a process that is
/// killed drops nothing: then it is removed all the same.
#[must_use]
pub fn temporary() -> TempDir {
    let directory = tempfile::Builder::new().prefix("mainstay-test-").tempdir().unwrap();
    writeln!(SWEEPER.lock().unwrap(), "{}", directory.path().display()).unwrap();
    directory
}

/// What takes seconds to make: made once in this process, and copied from then on.
pub(crate) struct Template(OnceLock<TempDir>);

impl Template {
    /// Machines that are very busy have made one of these programs give up, once.
    const TRIES: usize = 3;

    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Puts a copy of what this command makes into a directory. Each try has a fresh directory.
    pub(crate) fn copy(&self, into: &Path, make: impl Fn(&Path) -> Command) {
        let template = self.0.get_or_init(|| {
            let mut told = Vec::new();
            for _ in 0..Self::TRIES {
                let dir = temporary();
                match try_run(&mut make(dir.path())) {
                    Ok(()) => return dir,
                    Err(said) => told.push(said),
                }
            }
            panic!("failed {} times: {}", Self::TRIES, told.join("\n"));
        });
        let mut copy = command(&find("cp", "coreutils", &[]), into);
        // With its owner, who is also who copies.
        run(copy.arg("-a").arg(template.path().join(".")).arg("."));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, fs};

    #[test]
    fn a_template_is_made_once_and_tried_again_when_it_fails() {
        let (template, made) = (Template::new(), Cell::new(0));
        let make = |dir: &Path| {
            made.set(made.get() + 1);
            let mut shell = command(Path::new("/bin/sh"), dir);
            shell.args(["-c", if made.get() == 1 { "touch half; exit 1" } else { "touch whole" }]);
            shell
        };
        for _ in 0..2 {
            let dir = temporary();
            template.copy(dir.path(), make);
            let names = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name());
            assert_eq!(names.collect::<Vec<_>>(), ["whole"]);
        }
        assert_eq!(made.get(), 2);
    }

    #[test]
    #[should_panic(expected = "no room")]
    fn a_template_that_cannot_be_made_says_why() {
        Template::new().copy(temporary().path(), |dir| {
            let mut shell = command(Path::new("/bin/sh"), dir);
            shell.args(["-c", "echo no room; exit 1"]);
            shell
        });
    }
}
