//! heaptrack, which gdb loads into the process. It warns of crashes when it is taken out again, so it is not.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use super::{Working, tool::Tool};

/// What its script says when gdb is done, whatever came of it.
const BEGUN: &str = "injection finished";
/// What gdb has loaded then.
const LIBRARY: &str = "libheaptrack_inject";

struct Heaptrack {
    tool: Option<Tool>,
    /// The pipe that its script makes, at a place of its own.
    pipe: String,
    _dir: TempDir,
}

pub(super) fn begin(pid: u32) -> Result<Box<dyn Working>> {
    let dir = tempfile::Builder::new().prefix("pgleak-heaptrack-").tempdir()?;
    let mut command = Command::new("heaptrack");
    // The pid last: its script takes nothing behind it.
    command.arg("--output").arg(dir.path().join("recorded")).args(["--pid", &pid.to_string()]);
    command.current_dir(dir.path());
    let tool = Tool::start("heaptrack", &mut command)?;
    let pipe = format!("/tmp/heaptrack_fifo{}", tool.pid()?);
    let heaptrack = Heaptrack { tool: Some(tool), pipe, _dir: dir };
    if let Some(tool) = &heaptrack.tool {
        tool.wait_for(BEGUN)?;
        if !is_loaded(pid)? {
            bail!("gdb did not load it: {}", tool.said());
        }
    }
    Ok(Box::new(heaptrack))
}

fn is_loaded(pid: u32) -> Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("the process has ended by it")?;
    Ok(maps.contains(LIBRARY))
}

impl Working for Heaptrack {
    /// When the process has ended: with it ends what heaptrack reads, and then heaptrack.
    fn end(mut self: Box<Self>) -> Result<Option<u64>> {
        let tool = self.tool.take().context("it is taken once")?;
        tool.end(None).map(|_| None)
    }
}

impl Drop for Heaptrack {
    fn drop(&mut self) {
        // Killed first, if it still runs: its script would remove the pipe by itself.
        drop(self.tool.take());
        if Path::new(&self.pipe).exists() {
            let _ = fs::remove_file(&self.pipe);
        }
    }
}
