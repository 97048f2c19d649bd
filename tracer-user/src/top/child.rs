//! A capture, as a child of this program.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc::Sender,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{
    capturing::Outcome,
    error::TopError,
    event::{Event, start},
};
use crate::target::ProcessId;

/// This program, even if its file was replaced meanwhile.
const PROGRAM: &str = "/proc/self/exe";
/// Longer lines are cut: nobody's memory is to depend on what a child says.
const LONGEST_LINE: u64 = 64 * 1024;
const REPORT: &str = "report.txt";

/// A capture that was started.
#[derive(Debug)]
pub(super) struct CaptureChild {
    /// Does not lead to another process that gets the pid later.
    pidfd: OwnedFd,
}

impl CaptureChild {
    /// Starts it. What it says and that it has ended comes as events.
    pub(super) fn start(
        process: ProcessId,
        overhead: &str,
        directory: &Path,
        events: Sender<Event>,
    ) -> Result<Self, TopError> {
        let failed = |source| TopError::Capture { directory: directory.to_owned(), source };
        let mut child = Command::new(PROGRAM)
            .arg0("pgleak")
            .args(["capture", "--pid", &process.pid.to_string(), "--overhead", overhead, "--out"])
            .arg(directory)
            .stdin(Stdio::null())
            // The report is read from its file.
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let pidfd = pidfd_of(&child).map_err(failed)?;
        let stderr = child.stderr.take();
        let report = directory.join(REPORT);
        start("capture", move || {
            if let Some(stderr) = stderr {
                pass_on(stderr, &events);
            }
            let _ = events.send(Event::Ended(outcome(child, report)));
        })?;
        Ok(Self { pidfd })
    }

    /// Asks it to end early, with what it has.
    pub(super) fn end(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it, the second time, to leave at once.
    pub(super) fn leave_at_once(&self) {
        self.signal(Signal::INT);
    }

    fn signal(&self, signal: Signal) {
        // It fails if the capture has just ended, which is what was wanted.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

fn pidfd_of(child: &Child) -> io::Result<OwnedFd> {
    // A child that was not waited for keeps its pid.
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

fn pass_on(stderr: ChildStderr, events: &Sender<Event>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    // Ends with the stream, or with an error that ends it as well.
    while stderr.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if events.send(Event::Said(text)).is_err() {
            return;
        }
        line.clear();
    }
}

fn outcome(mut child: Child, report: PathBuf) -> Outcome {
    match child.wait() {
        Ok(status) if status.success() => match fs::read_to_string(&report) {
            Ok(text) => Outcome::Report(text),
            Err(error) => Outcome::Failed(format!("cannot read {}: {error}", report.display())),
        },
        Ok(status) => Outcome::Failed(format!("the capture ended with {status}")),
        Err(error) => Outcome::Failed(format!("cannot wait for the capture: {error}")),
    }
}
