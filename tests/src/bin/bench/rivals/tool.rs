//! A program at work beside the server. Whatever it does, nobody waits for it for ever.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use pgleak_tests::pgleak::{Finished, Running};

use super::PATIENCE;

/// It, by the name that messages call it. Dropping it kills it.
pub(super) struct Tool {
    name: &'static str,
    running: Option<Running>,
}

/// How often it is looked at.
const POLL: Duration = Duration::from_millis(5);

impl Tool {
    /// Starts it in a session of its own, so that all that it starts can be killed with it and nothing of it asks
    /// for the terminal; it ends with the thread that starts it.
    pub(super) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null());
        // SAFETY: all are async-signal-safe and take no pointers.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                // Whoever runs in the background of a shell ignores it, and what it starts would as well.
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let running = Running::spawn(command)?;
        Ok(Self { name, running: Some(running) })
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("it has ended")
    }

    pub(super) fn pid(&self) -> Result<u32> {
        self.running().map(Running::pid)
    }

    /// The last of what it has said.
    pub(super) fn said(&self) -> String {
        self.running().map(Running::said).unwrap_or_default()
    }

    /// Waits until it has said this.
    pub(super) fn wait_for(&self, text: &str) -> Result<()> {
        let said = self.running()?.wait_for(text, PATIENCE);
        said.map(drop).with_context(|| format!("{} did not begin", self.name))
    }

    /// Waits for its end, to which a signal may be needed.
    pub(super) fn end(mut self, signal: Option<libc::c_int>) -> Result<Finished> {
        if let (Some(number), Ok(running)) = (signal, self.running()) {
            running.signal(number).with_context(|| format!("{} has ended by itself", self.name))?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.running()?.is_running() {
            if Instant::now() > deadline {
                bail!("{} did not end within {PATIENCE:?} and was killed", self.name);
            }
            thread::sleep(POLL);
        }
        let running = self.running.take().context("it is taken once")?;
        running.finish().with_context(|| format!("cannot wait for {}", self.name))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if let Some(group) = self.running.as_ref().and_then(|running| i32::try_from(running.pid()).ok()) {
            // SAFETY: kill takes no pointers. It leads its session until it is waited for, which nobody did yet.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tool {
        let mut command = Command::new("sh");
        Tool::start("sh", command.args(["-c", script])).expect("sh")
    }

    #[test]
    fn ends_by_a_signal() {
        let tool = shell("trap 'echo bye; exit 3' INT; echo ready; while :; do sleep 0.01; done");
        tool.wait_for("ready").expect("it says so");
        let finished = tool.end(Some(libc::SIGINT)).expect("it ends");
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(3), "ready\nbye\n"));
    }

    #[test]
    fn takes_all_that_it_has_started_with_it() {
        let tool = shell("sleep 600 & echo child $!; wait");
        let line =
            tool.running().and_then(|running| running.wait_for("child", PATIENCE)).expect("it says so");
        let child: u32 = line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid");
        drop(tool);
        let deadline = Instant::now() + PATIENCE;
        while xtask::process::is_running(child) {
            assert!(Instant::now() < deadline, "{child} still runs");
            thread::sleep(POLL);
        }
    }
}
