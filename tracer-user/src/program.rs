//! Programs that this one starts: itself with another command, and those that have to end within a time.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// For so long one may run.
const LONGEST: Duration = Duration::from_secs(60);

/// How often it is looked whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// This very program, be it replaced by now, with another command. It reads and says nothing unless its streams are set.
pub(crate) fn own_program(command: &str) -> Command {
    let mut program = Command::new("/proc/self/exe");
    program.arg0("pgleak").arg(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    program
}

/// A program that was started here, whoever has its pid by now.
#[derive(Debug)]
pub(crate) struct Handle(OwnedFd);

impl Handle {
    /// Of a child that was not waited for, which keeps its pid.
    ///
    /// # Errors
    /// If there are too many open files.
    pub(crate) fn of_child(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// A second one.
    ///
    /// # Errors
    /// If there are too many open files.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Asks it to come to an end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it for the same as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    fn signal(&self, signal: Signal) {
        // It may have ended, which is what was wanted.
        let _ = pidfd_send_signal(&self.0, signal);
    }
}

/// Why a program did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// There can be none.
    #[error("it cannot be started: {0}")]
    Start(io::Error),
    /// Its end cannot be waited for.
    #[error("its end cannot be awaited: {0}")]
    Wait(io::Error),
    /// It says so itself.
    #[error("it ended with {0}")]
    Failed(ExitStatus),
    /// It took too long.
    #[error("it did not end within {} s, and was ended", LONGEST.as_secs())]
    TooLong,
}

/// Runs a program to its end.
///
/// # Errors
/// Why it did not succeed.
pub(crate) fn run_for(mut command: Command) -> Result<(), ProgramError> {
    wait_for(command.process_group(0).spawn().map_err(ProgramError::Start)?)
}

/// Waits for the end of a program that leads a group of its own, which ends with it when its time is over.
///
/// # Errors
/// Why it did not succeed.
pub(crate) fn wait_for(mut child: Child) -> Result<(), ProgramError> {
    let deadline = Instant::now() + LONGEST;
    loop {
        match child.try_wait().map_err(ProgramError::Wait)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(ProgramError::Failed(status)),
            None if Instant::now() > deadline => {
                // SAFETY: the group of a child that was not waited for.
                unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
                let _ = child.wait();
                return Err(ProgramError::TooLong);
            }
            None => thread::sleep(POLL),
        }
    }
}
