//! The program itself, as a user runs it.

use std::time::Duration;

use ::pgleak::profile::EndReason;
use anyhow::{Result, bail};
use pgleak_tests::{findings::losses, pgleak::Running};

use super::{PATIENCE, Working};

/// How long windows are looked at, and run: they come every few seconds.
pub(super) const WINDOWS: Duration = Duration::from_secs(30);

struct Pgleak(Running);

/// Records without an end, whatever it costs.
pub(super) fn begin(pid: u32, arguments: &[&str]) -> Result<Box<dyn Working>> {
    let all = [&["--duration", "1h", "--settle", "0", "--force"], arguments].concat();
    wait(pid, &all, "recording for")
}

/// Records in windows for a little longer than it is looked at.
pub(super) fn begin_windows(pid: u32, arguments: &[&str]) -> Result<Box<dyn Working>> {
    let seconds = format!("{}s", WINDOWS.as_secs() + 1);
    let all = [&["--duration", &*seconds], arguments].concat();
    wait(pid, &all, "recording in windows")
}

fn wait(pid: u32, arguments: &[&str], begun: &str) -> Result<Box<dyn Working>> {
    let running = Running::capture(pid, arguments)?;
    running.wait_for(begun, PATIENCE)?;
    Ok(Box::new(Pgleak(running)))
}

impl Working for Pgleak {
    fn end(self: Box<Self>) -> Result<Option<u64>> {
        // One that has ended by itself says why in what follows.
        let _ = self.0.signal(libc::SIGINT);
        let capture = self.0.finish()?.success()?.capture()?;
        if !matches!(capture.window.end, EndReason::Interrupted | EndReason::Completed) {
            bail!("it ended while it was looked at: {:?}", capture.window.end);
        }
        Ok(Some(losses(&capture).iter().map(|(_, count)| count).sum()))
    }
}
