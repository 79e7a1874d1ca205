//! A child process that ends when we do, and the signals it gets.

use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::{
    fs, io,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{LazyLock, mpsc},
    thread,
    time::{Duration, Instant},
};

const NOBODY: u32 = 65534;
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// The program in `PATH` or in one of these directories.
pub(crate) fn find(name: &str, package: &str, also: &[PathBuf]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates =
        also.iter().cloned().chain(std::env::split_paths(&path)).map(|dir| dir.join(name));
    match candidates.find(|program| program.is_file()) {
        Some(program) => program,
        None => panic!("needs {name} (apt-get install {package})"),
    }
}

/// This test binary once more, for one of its tests. It gets SIGKILL when the thread that spawns it
/// ends.
#[must_use]
pub fn again(test: &str) -> Command {
    let mut command = tied(&std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    command
}

/// `setpriv` ties it to our thread: to say so ourselves takes unsafe code.
fn tied(program: &Path) -> Command {
    let mut command = Command::new(find("setpriv", "util-linux", &[]));
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A command in a directory that it owns: as `nobody` where we are root, since PostgreSQL refuses
/// root. It gets SIGKILL when the thread that spawns it ends.
pub(crate) fn command(program: &Path, dir: &Path) -> Command {
    let mut command = tied(program);
    command.current_dir(dir).stdin(Stdio::null());
    give(dir);
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Makes them owners of this who run our commands.
pub(crate) fn give(path: &Path) {
    if geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) {
    try_run(command).unwrap_or_else(|told| panic!("{told}"));
}

/// As [`run`]; an error is what it said.
pub(crate) fn try_run(command: &mut Command) -> Result<(), String> {
    let output = command.output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    let told = [output.stdout, output.stderr].concat();
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&told)))
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// The one thread that spawns, since it lives as long as this process. A test's own thread ends with
/// its test, and would take servers with it that others share.
static SUPERVISOR: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::channel::<Order>();
    let supervise = move || {
        for (mut command, reply) in inbox {
            let _ = reply.send(command.spawn());
        }
    };
    thread::Builder::new().name("supervisor".to_owned()).spawn(supervise).unwrap();
    orders
});

/// A running child and what it forked. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    waker: Option<Child>,
}

impl Process {
    pub(crate) fn spawn(command: Command) -> Self {
        let (reply, answer) = mpsc::channel();
        SUPERVISOR.send((command, reply)).unwrap();
        Self { child: answer.recv().unwrap().unwrap(), waker: None }
    }

    pub(crate) fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(&mut self, signal: Signal) {
        self.resume();
        if !self.has_ended() {
            kill_process(self.id(), signal).unwrap();
        }
        assert!(within_limit(|| self.has_ended()), "it did not end on {signal:?}");
    }

    /// Kills the whole tree, and waits.
    pub(crate) fn kill(&mut self) {
        if !self.has_ended() {
            // The parent first, and only stopped: it forks no more, and a child that is dead but not
            // yet waited for keeps its number, so that nobody else's process is hit.
            let children = self.freeze();
            for &child in &children {
                let _ = kill_process(child, Signal::KILL);
            }
            // Not asserted: a panic in a drop would hide the one that came before.
            within_limit(|| children.iter().all(|&child| matches!(state(child), None | Some('Z'))));
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
        if let Some(mut waker) = self.waker.take() {
            waker.kill().unwrap();
            waker.wait().unwrap();
        }
    }

    /// Stops the whole tree in its tracks.
    pub(crate) fn hang(&mut self) {
        if self.waker.is_some() || self.has_ended() {
            return;
        }
        let mut tree = self.freeze();
        for &child in &tree {
            kill_process(child, Signal::STOP).unwrap();
        }
        let stopped = within_limit(|| tree.iter().all(|&child| is_stopped(child)));
        assert!(stopped && is_stopped(self.id()), "it went on after SIGSTOP");
        tree.push(self.id());
        // What we forked dies with us, but what that forked would stay stopped for ever: this shell
        // wakes all when the pipe closes, be it by `resume` or by our sudden end. In a group of its
        // own, a Ctrl-C does not reach it.
        let mut waker = Command::new("sh");
        waker.args(["-c", "read nothing; kill -CONT \"$@\"", "waker"]);
        waker.args(tree.iter().map(|pid| pid.to_string())).process_group(0);
        waker.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.waker = Some(waker.spawn().unwrap());
    }

    /// Lets it go on.
    pub(crate) fn resume(&mut self) {
        if let Some(mut waker) = self.waker.take() {
            // Closes the pipe first.
            waker.wait().unwrap();
        }
    }

    /// Stops the parent, and tells its children.
    fn freeze(&self) -> Vec<Pid> {
        let id = self.id();
        kill_process(id, Signal::STOP).unwrap();
        within_limit(|| is_stopped(id));
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The kernel's letter for what it does, if it is there.
fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything but ends with the last bracket.
    stat.rsplit_once(") ")?.1.chars().next()
}

fn is_stopped(pid: Pid) -> bool {
    // A small t where somebody traces it.
    matches!(state(pid), None | Some('T' | 't' | 'Z'))
}

/// Blocks until it is so, and says whether it came in time.
pub(crate) fn within_limit(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + LIMIT;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

#[cfg(test)]
mod tests {
    #[test]
    #[should_panic(expected = "needs no-such-server (apt-get install its-package)")]
    fn a_missing_program_says_what_to_install() {
        super::find("no-such-server", "its-package", &[]);
    }
}
