//! Programs of a moment: this one with another command, within a time.

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// For so long one may run.
const LONGEST: Duration = Duration::from_secs(60);

/// How often it is looked whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// This very program, be it replaced by now, with another command.
pub(super) fn own_program(command: &str) -> Command {
    let mut program = Command::new("/proc/self/exe");
    program.arg(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    program
}

/// Runs a program to its end.
///
/// # Errors
/// Why it did not succeed.
pub(super) fn run_for(mut command: Command) -> Result<(), String> {
    let child = command.process_group(0).spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    wait_for(child)
}

/// Waits for the end of a program that leads a group of its own, which ends with it when its time is over.
///
/// # Errors
/// Why it did not succeed.
pub(super) fn wait_for(mut child: Child) -> Result<(), String> {
    let deadline = Instant::now() + LONGEST;
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("it ended with {status}")),
            None if Instant::now() > deadline => {
                // SAFETY: the group of a child that was not waited for.
                unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
                let _ = child.wait();
                return Err(format!("it did not end within {} s, and was ended", LONGEST.as_secs()));
            }
            None => thread::sleep(POLL),
        }
    }
}
