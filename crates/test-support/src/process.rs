//! Running the workspace's binaries as a user would.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;

use crate::child::Child;
use crate::eventually;

/// What a program inherits from the test's environment. Anything else could change what it does.
const INHERITED: [&str; 4] = ["HOME", "LLVM_PROFILE_FILE", "PATH", "TMPDIR"];

/// A running program whose output is kept. Killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    stdout: Lines,
    stderr: Lines,
}

type Lines = Arc<Mutex<Vec<String>>>;

impl Process {
    /// Starts `program` (in a test, `env!("CARGO_BIN_EXE_<name>")`) with `args`, and with `env` as its environment:
    /// besides that it sees `PATH`, `HOME` and `TMPDIR` alone.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start<'a>(
        program: impl AsRef<Path>,
        args: impl IntoIterator<Item = &'a str>,
        env: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut command = Command::new(program.as_ref());
        command
            .args(args)
            .env_clear()
            .envs(
                INHERITED
                    .into_iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .envs(env)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Child::spawn(&mut command, None);
        let stdout = collect(child.process().stdout.take().expect("stdout is piped"));
        let stderr = collect(child.process().stderr.take().expect("stderr is piped"));
        Self {
            child: Mutex::new(child),
            stdout,
            stderr,
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.lock().expect("no holder panics").id()
    }

    /// The lines that it wrote to stdout so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lock().expect("no holder panics").clone()
    }

    /// The lines that it wrote to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lock().expect("no holder panics").clone()
    }

    /// The first line, of stdout or stderr, that contains `text`.
    ///
    /// # Panics
    /// When none comes within `timeout`, with all output.
    pub async fn line(&self, text: &str, timeout: Duration) -> String {
        eventually(&format!("a line with {text:?}"), timeout, async || {
            let lines = self.output();
            lines
                .iter()
                .find(|line| line.contains(text))
                .cloned()
                .ok_or_else(|| lines.join("\n"))
        })
        .await
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to end as Ctrl-C in a terminal does (SIGINT).
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Ends it without a chance to clean up (SIGKILL).
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Waits for its end, and for the end of its output.
    ///
    /// # Panics
    /// When it runs on past `timeout`, with all output.
    pub async fn wait(&self, timeout: Duration) -> ExitStatus {
        eventually("the end of the process", timeout, async || {
            let status = self.child.lock().expect("no holder panics").exit_status();
            // The readers hold their clones of the lines until the pipes end.
            let read = [&self.stdout, &self.stderr]
                .iter()
                .all(|lines| Arc::strong_count(lines) == 1);
            status
                .filter(|_| read)
                .ok_or_else(|| self.output().join("\n"))
        })
        .await
    }

    fn output(&self) -> Vec<String> {
        [self.stdout(), self.stderr()].concat()
    }

    fn signal(&self, signal: Signal) {
        self.child.lock().expect("no holder panics").signal(signal);
    }
}

/// Collects lines on a thread: the pipe must be drained whatever the test's runtime does, or the program would block.
fn collect(stream: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let collected = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            collected.lock().expect("no holder panics").push(line);
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Process {
        Process::start("/bin/sh", ["-c", script], [("GREETING", "你好")])
    }

    #[tokio::test]
    async fn output_and_exit_code_are_collected() {
        let process = shell("echo \"$GREETING\"; echo oops >&2; exit 64");
        assert_eq!(process.wait(SOON).await.code(), Some(64));
        assert_eq!(process.stdout(), ["你好"]);
        assert_eq!(process.stderr(), ["oops"]);
    }

    #[tokio::test]
    async fn terminate_lets_the_program_clean_up_and_kill_does_not() {
        let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
        let polite = shell(script);
        polite.line("ready", SOON).await;
        polite.terminate();
        assert_eq!(polite.wait(SOON).await.code(), Some(0));
        assert_eq!(polite.stdout(), ["ready", "bye"]);

        let abrupt = shell(script);
        abrupt.line("ready", SOON).await;
        abrupt.kill();
        assert_eq!(abrupt.wait(SOON).await.signal(), Some(9));
        assert_eq!(abrupt.stdout(), ["ready"]);
    }

    #[tokio::test]
    async fn the_environment_of_the_test_does_not_leak_in() {
        let process = shell("env");
        process.wait(SOON).await;
        assert!(
            !process
                .stdout()
                .iter()
                .any(|line| line.starts_with("CARGO")),
            "{:?}",
            process.stdout()
        );
    }

    #[tokio::test]
    #[should_panic(
        expected = "a line with \"never\": not within 100ms; last: what it said instead"
    )]
    async fn a_line_that_does_not_come_shows_what_came() {
        let process = shell("echo what it said instead; sleep 60");
        process.line("what", SOON).await;
        process.line("never", Duration::from_millis(100)).await;
    }
}
