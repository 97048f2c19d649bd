//! `perf record` of the same functions at the same instructions, by events of tracefs.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ::pgleak::session::prepare;
use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;
use xtask::process::output;

use super::{PATIENCE, Working, events::Events, plan::AllocSet, tool::Tool};

/// How perf follows stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stacks {
    /// In the kernel.
    FramePointers,
    /// Later, from a copy of the stack.
    Dwarf,
}

struct Perf {
    tool: Tool,
    dir: TempDir,
    _control: [File; 2],
    // Behind the program that has them open.
    events: Events,
}

const DATA: &str = "perf.data";

pub(super) fn begin(pid: u32, stacks: Stacks) -> Result<Box<dyn Working>> {
    let events = Events::define(&AllocSet::of(&prepare(pid, None)?)?)?;
    let dir = tempfile::Builder::new().prefix("pgleak-perf-").tempdir()?;
    let mut control = fifo(&dir.path().join("control"))?;
    let mut answers = fifo(&dir.path().join("answers"))?;
    let mut command = Command::new("perf");
    command
        .args(["record", "--event", &format!("{}:*", events.group()), "--pid", &pid.to_string()])
        .args(["--call-graph", if stacks == Stacks::Dwarf { "dwarf" } else { "fp" }])
        // Nothing that takes its time at the end.
        .args(["--no-buildid", "--no-buildid-cache", "--delay", "-1"])
        .args(["--control", "fifo:control,answers", "--output", DATA])
        .current_dir(dir.path());
    let tool = Tool::start("perf", &mut command)?;
    control.write_all(b"enable\n").context("cannot tell perf to begin")?;
    wait_for_answer(&mut answers).with_context(|| format!("perf did not begin: {}", tool.said()))?;
    Ok(Box::new(Perf { tool, dir, _control: [control, answers], events }))
}

/// A named pipe, open for both directions, so that nobody waits for the other side to open it.
fn fifo(path: &Path) -> Result<File> {
    output(Command::new("mkfifo").arg(path))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// It answers when what it was told is done, and so when its events count.
fn wait_for_answer(answers: &mut File) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut answer = [0; 16];
    while !answers.read(&mut answer).is_ok_and(|length| length > 0) {
        if Instant::now() > deadline {
            bail!("no answer within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

impl Working for Perf {
    fn end(self: Box<Self>) -> Result<Option<u64>> {
        let Self { tool, dir, events, .. } = *self;
        let finished = tool.end(Some(libc::SIGINT))?;
        drop(events);
        let data = dir.path().join(DATA);
        if !fs::metadata(&data).is_ok_and(|data| data.len() > 0) {
            bail!("perf has written nothing: {}", finished.stderr);
        }
        lost(&data).map(Some)
    }
}

/// Events that did not fit into its ring.
fn lost(data: &Path) -> Result<u64> {
    let stats = output(Command::new("perf").args(["report", "--stats", "--input"]).arg(data))?;
    Ok(lost_of(&stats))
}

/// From what `perf report --stats` says: records of losses, each of at least one event.
fn lost_of(stats: &str) -> u64 {
    // The totals of all events come before those of each.
    let totals = stats.split("\n\n").find(|part| part.contains("TOTAL events:")).unwrap_or(stats);
    let count = |line: &str| line.split_once("events:")?.1.split_whitespace().next()?.parse::<u64>().ok();
    totals.lines().filter(|line| line.trim_start().starts_with("LOST")).filter_map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_the_totals() {
        let stats = "\nAggregated stats:\n           TOTAL events:     961084\n            LOST events:         12  ( 0.0%)\n\
                     \x20         SAMPLE events:     960150  (99.9%)\n    LOST_SAMPLES events:          3  ( 0.0%)\n\n\
                     pgleak_x:alloc stats:\n            LOST events:         12\n";
        assert_eq!(lost_of(stats), 15);
        assert_eq!(lost_of("           TOTAL events:     1\n"), 0);
    }
}
