//! A capture, as a child of this program.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Stdio},
    sync::mpsc::{Sender, channel},
};

use super::{
    capturing::Outcome,
    error::TopError,
    event::{Event, start},
};
use crate::{
    program::{Handle, own_program},
    target::ProcessId,
};

/// Longer lines are cut: nobody's memory is to depend on what a child says.
const LONGEST_LINE: u64 = 256 * 1024;
const REPORT: &str = "report.txt";

/// A capture that was started.
#[derive(Debug)]
pub(super) struct CaptureChild(Handle);

impl CaptureChild {
    /// Starts it. What it says and that it has ended comes as events.
    pub(super) fn start(
        process: ProcessId,
        overhead: &str,
        directory: &Path,
        events: Sender<Event>,
    ) -> Result<Self, TopError> {
        // Whoever listens is there before it is: one that nobody hears is never begun.
        let (give_live, given_live) = channel::<ChildStdout>();
        let (give_child, given_child) = channel::<(Child, ChildStderr)>();
        let (live, report) = (events.clone(), directory.join(REPORT));
        start("live", move || {
            let Ok(stdout) = given_live.recv() else { return };
            // One that cannot be read is left out: the next one comes soon.
            pass_on(stdout, |line| match serde_json::from_str(&line) {
                Ok(stacks) => live.send(Event::Stacks(stacks)).is_ok(),
                Err(_) => true,
            });
        })?;
        start("capture", move || {
            let Ok((child, stderr)) = given_child.recv() else { return };
            pass_on(stderr, |line| events.send(Event::Said(line)).is_ok());
            let _ = events.send(Event::Ended(outcome(child, report)));
        })?;
        let failed = |source| TopError::Capture { directory: directory.to_owned(), source };
        let mut child = own_program("capture")
            .args(["--live", "--pid", &process.pid.to_string(), "--overhead", overhead])
            .args(["--started", &process.start_ticks.to_string(), "--out"])
            .arg(directory)
            // What is live; the report is read from its file.
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let handle = Handle::of_child(child.id()).map_err(|error| {
            let _ = child.kill().and_then(|()| child.wait());
            failed(error)
        })?;
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            // Both threads wait for this.
            let _ = give_live.send(stdout);
            let _ = give_child.send((child, stderr));
        }
        Ok(Self(handle))
    }

    /// Asks it to end early, with what it has.
    pub(super) fn end(&self) {
        self.0.terminate();
    }

    /// Asks it, the second time, to leave at once.
    pub(super) fn leave_at_once(&self) {
        self.0.interrupt();
    }
}

/// Passes lines on as long as they are wanted.
fn pass_on(stream: impl Read, mut wanted: impl FnMut(String) -> bool) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    // Ends with the stream, or with an error that ends it as well.
    while stream.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        if !wanted(String::from_utf8_lossy(&line).trim_end().to_owned()) {
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
