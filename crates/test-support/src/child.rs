//! Child processes that never outlive the test.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child as StdChild, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Reads a pipe whose other end only the test process holds. Its end is the end of the test process, however that
/// came about, and then the child and its folder must go too. (PR_SET_PDEATHSIG would do the first on Linux alone, and too
/// early: it fires when the *thread* that started the child ends, and every test has threads of its own.)
const WATCHDOG: &str = r#"
read -r _
kill -KILL "$1" 2>/dev/null
tries=0
while kill -0 "$1" 2>/dev/null && [ "$tries" -lt 20 ]; do sleep 0.1; tries=$((tries + 1)); done
[ -z "$2" ] || rm -rf "$2"
"#;

/// Where servers are besides `PATH`: distributions put some outside of a plain user's.
const SERVER_FOLDERS: [&str; 6] = [
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/libexec",
    "/opt/homebrew/bin",
    "/opt/homebrew/sbin",
];

/// A running (or ended) child process. Killed, reaped and its folder forgotten by the watchdog on drop.
#[derive(Debug)]
pub(crate) struct Child {
    process: StdChild,
    watchdog: StdChild,
}

impl Child {
    /// Starts `command` in a process group of its own, so that Ctrl-C in the terminal reaches the test alone, which then
    /// takes its children down in order. `folder` is removed when the test process dies.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub(crate) fn spawn(command: &mut Command, folder: Option<&Path>) -> Self {
        let process = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", &process.id().to_string()])
            .arg(folder.unwrap_or_else(|| Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        Self { process, watchdog }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The process's streams, to be taken once.
    pub(crate) fn process(&mut self) -> &mut StdChild {
        &mut self.process
    }

    /// How the process ended, or none while it runs.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process
            .try_wait()
            .expect("the process is a child of this one")
    }

    /// Sends a signal; nothing happens when the process has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.exit_status().is_none() {
            let pid = Pid::from_raw(self.process.id().cast_signed()).expect("a pid is not 0");
            kill_process(pid, signal).expect("a child can be signalled");
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The watchdog goes before the process is reaped: once it is, its pid may be somebody else's.
        // Errors mean that the process in question has ended already.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The first of `names` that is installed.
///
/// # Panics
/// When none is, with the way to get it.
pub(crate) fn program(names: &[&str]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(SERVER_FOLDERS.map(PathBuf::from))
        .collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
        .unwrap_or_else(|| {
            panic!(
                "{} is not installed: ./scripts/test installs what the tests need",
                names.join(" or ")
            )
        })
}

/// A temporary folder with a short path: Unix sockets allow about 100 characters.
pub(crate) fn folder(name: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("wxhub-{name}-"))
        .tempdir()
        .expect("the temporary folder can be written")
}

/// The end of a server's log, for the message of a panic.
pub(crate) fn log_tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_else(|error| error.to_string());
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(20)..)
        .unwrap_or_default()
        .join("\n")
}

/// A new file `log` for a server's output, appended to by later runs of the same server.
pub(crate) fn log_file(log: &Path) -> Stdio {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .expect("the log can be written")
        .into()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::time::Duration;

    use rustix::io::Errno;
    use rustix::process::test_kill_process;

    use super::*;
    use crate::eventually;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    }

    #[test]
    fn a_dropped_child_is_killed_and_reaped() {
        let child = Child::spawn(&mut sleeper(), None);
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        assert!(test_kill_process(pid).is_ok());
        drop(child);
        assert_eq!(test_kill_process(pid), Err(Errno::SRCH));
    }

    /// Set for the process that the test below starts and kills: the same test, which then plays the victim.
    const VICTIM: &str = "WXHUB_TEST_VICTIM";

    fn be_killed() -> ! {
        let folder = folder("victim");
        let _child = Child::spawn(&mut sleeper(), Some(folder.path()));
        println!("\nvictim {}", folder.path().display());
        loop {
            std::thread::park();
        }
    }

    #[tokio::test]
    async fn a_child_and_its_folder_go_when_the_test_process_is_killed() {
        if std::env::var_os(VICTIM).is_some() {
            be_killed();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "--nocapture"])
            .arg("child::tests::a_child_and_its_folder_go_when_the_test_process_is_killed")
            .env(VICTIM, "1")
            .stdout(Stdio::piped());
        let mut test_process = Child::spawn(&mut command, None);
        let stdout = BufReader::new(test_process.process().stdout.take().unwrap());
        let mut lines = stdout.lines().map(Result::unwrap);
        let line = lines.find(|line| line.starts_with("victim ")).unwrap();
        let folder = Path::new(line.trim_start_matches("victim "));
        assert!(folder.exists());

        drop(test_process);

        // The victim's child inherited its stdout: the pipe ends when the last of the two is gone.
        assert_eq!(lines.next(), None);
        eventually("the folder is gone", Duration::from_secs(10), async || {
            !folder.exists()
        })
        .await;
    }

    #[test]
    #[should_panic(expected = "no-such-server is not installed: ./scripts/test installs")]
    fn a_missing_server_names_the_way_to_get_it() {
        program(&["no-such-server"]);
    }
}
