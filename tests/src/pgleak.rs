//! The `pgleak` program, as a user runs it.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pgleak::profile::Capture;
use tempfile::TempDir;
use xtask::process::{is_executable, signal};
use xtask::workspace;

/// The program: `PGLEAK_BIN`, or the release build.
pub fn binary() -> Result<PathBuf> {
    let path = env::var_os("PGLEAK_BIN").map_or_else(|| workspace::pgleak(true), PathBuf::from);
    if !is_executable(&path) {
        bail!("no program at {}: run `cargo xtask build --release`, or set PGLEAK_BIN", path.display());
    }
    Ok(path)
}

/// The program with arguments, and nothing of the caller's logging or signals: what a shell starts in the
/// background ignores SIGINT, and what `nohup` starts SIGHUP.
pub fn command<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    // SAFETY: setting a disposition is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    Ok(command)
}

/// Runs the program to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Finished> {
    Running::spawn(&mut command(arguments)?)?.finish()
}

/// `pgleak capture --pid PID` with further arguments, to its end.
pub fn capture(pid: u32, arguments: &[&str]) -> Result<Finished> {
    Running::capture(pid, arguments)?.finish()
}

/// The program at work. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
    out: Option<(TempDir, PathBuf)>,
}

/// What it has printed so far.
#[derive(Debug, Default)]
struct Output {
    text: Mutex<[String; 2]>,
    grown: Condvar,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, [String; 2]> {
        self.text.lock().expect("readers do not panic")
    }
}

/// How it ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that it printed.
    pub stdout: String,
    /// All that it complained.
    pub stderr: String,
    out: Option<(TempDir, PathBuf)>,
}

impl Running {
    /// Starts any command of the program, or another program.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let output = Arc::new(Output::default());
        let stdout = child.stdout.take().expect("started with a pipe");
        let stderr = child.stderr.take().expect("started with a pipe");
        let readers = vec![reader(0, stdout, &output), reader(1, stderr, &output)];
        Ok(Self { child, output, readers, out: None })
    }

    /// Starts `pgleak capture` of a process, its artifacts going to a new temporary directory.
    pub fn capture(pid: u32, arguments: &[&str]) -> Result<Self> {
        Self::capture_of(&["--pid", &pid.to_string()], arguments)
    }

    /// The same for whatever processes are named.
    pub fn capture_of(scope: &[&str], arguments: &[&str]) -> Result<Self> {
        let parent = tempfile::Builder::new().prefix("pgleak-out-").tempdir()?;
        let dir = parent.path().join("capture");
        let mut command = command(["capture"])?;
        command.args(scope).args(arguments).arg("--out").arg(&dir);
        let mut running = Self::spawn(&mut command)?;
        running.out = Some((parent, dir));
        Ok(running)
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until one of its lines holds the text, whether printed or complained; gives the line.
    pub fn wait_for(&self, text: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        let mut printed = self.output.lock();
        loop {
            let found = printed.iter().flat_map(|all| all.lines()).find(|line| line.contains(text));
            if let Some(line) = found {
                return Ok(line.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.readers.iter().all(JoinHandle::is_finished) {
                bail!("it did not say {text:?} but\n{}\n{}", printed[0], printed[1]);
            }
            // Short waits: the end of both streams wakes nobody who waits for a line.
            let wait = left.min(Duration::from_millis(50));
            printed = self.output.grown.wait_timeout(printed, wait).expect("readers do not panic").0;
        }
    }

    /// All that it has printed and complained so far.
    pub fn said(&self) -> String {
        self.output.lock().concat()
    }

    /// Whether it still prints, or might.
    pub fn is_running(&self) -> bool {
        !self.readers.iter().all(JoinHandle::is_finished)
    }

    /// Sends it a signal.
    pub fn signal(&self, number: libc::c_int) -> Result<()> {
        if !signal(self.pid(), number)? {
            bail!("pgleak had ended already");
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<Finished> {
        let status = self.child.wait().context("cannot wait for pgleak")?;
        for reader in self.readers.drain(..) {
            reader.join().ok().context("a reader of pgleak's output panicked")?;
        }
        let [stdout, stderr] = std::mem::take(&mut *self.output.lock());
        Ok(Finished { status, stdout, stderr, out: self.out.take() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Harmless after `finish`: the child is reaped and std sends nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Itself if the program succeeded, otherwise an error with all that it said.
    pub fn success(self) -> Result<Self> {
        if !self.status.success() {
            bail!("pgleak failed: {}\n{}{}", self.status, self.stdout, self.stderr);
        }
        Ok(self)
    }

    /// The directory of its artifacts, there until this is dropped.
    pub fn dir(&self) -> Result<&Path> {
        self.out.as_ref().map(|(_, dir)| dir.as_path()).context("this was no capture")
    }

    /// One of the artifacts as text.
    pub fn artifact(&self, name: &str) -> Result<String> {
        let path = self.dir()?.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// What was captured.
    pub fn capture(&self) -> Result<Capture> {
        let text = self.artifact("capture.json")?;
        serde_json::from_str(&text).context("cannot understand capture.json")
    }
}

fn reader(stream: usize, from: impl Read + Send + 'static, output: &Arc<Output>) -> JoinHandle<()> {
    let output = Arc::clone(output);
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        // Ends with the stream, or with an error that ends it as well.
        while from.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            output.lock()[stream].push_str(&String::from_utf8_lossy(&line));
            output.grown.notify_all();
            line.clear();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        Running::spawn(Command::new("sh").args(["-c", script])).expect("sh")
    }

    #[test]
    fn waits_for_a_line_of_either_stream_and_keeps_all() {
        let running = shell("echo one; echo two words >&2; read -r _; exit 3");
        assert_eq!(running.wait_for("words", Duration::from_secs(10)).expect("it says so"), "two words");
        let finished = running.finish().expect("it ends");
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("one\n", "two words\n"));
        assert_eq!(finished.status.code(), Some(3));
        assert!(finished.success().expect_err("exit 3").to_string().contains("two words"));
    }

    #[test]
    fn a_line_that_never_comes_is_an_error_at_the_end() {
        let started = Instant::now();
        let error = shell("echo one").wait_for("two", Duration::from_secs(60)).expect_err("no such line");
        assert!(error.to_string().contains("one"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
