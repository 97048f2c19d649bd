//! A second process that ends pgleak, and with it every probe, when pgleak no longer moves.
//!
//! It holds no probe and no map, only a pipe and a pidfd: if it dies, the capture goes on; if
//! pgleak dies, the pipe closes and it ends as well.

use std::{
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

/// The hidden subcommand that the child is started with.
pub const SUBCOMMAND: &str = "internal-watchdog";

/// Silence after which pgleak is thought to hang. It beats many times a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// The watching child.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    /// Starts it.
    ///
    /// # Errors
    /// If no process can be started.
    pub fn start() -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("pgleak-watchdog")
            .arg(SUBCOMMAND)
            .arg(std::process::id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: setsid is async-signal-safe. A session of its own keeps the child out of reach
        // of what the terminal sends to pgleak: Ctrl-C, Ctrl-Z, a hang-up.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        let pipe = child.stdin.take();
        if let Some(pipe) = &pipe {
            // SAFETY: a call on an open descriptor. A full pipe must not block the capture.
            unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        }
        Ok(Self { child, pipe })
    }

    /// A sign of life.
    pub fn beat(&mut self) {
        if let Some(pipe) = &mut self.pipe {
            // A full pipe has signs enough; a closed one has nobody to tell.
            let _ = pipe.write(b".");
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Closing the pipe ends the child.
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

/// What the child does: returns when the pipe closes, ends `parent` when it is silent.
///
/// # Errors
/// If `parent` is not this process's parent or cannot be watched.
pub fn run_child(parent: u32) -> io::Result<()> {
    // SAFETY: a call without arguments.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(parent) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only pgleak starts its watchdog"));
    }
    // A descriptor of the process itself, so that a pid that is used again is not hit.
    // SAFETY: plain system calls; the descriptor is owned from here on.
    let pidfd = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, parent, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd as libc::c_int)
    };
    let mut silent = 0;
    loop {
        let mut poll = libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 };
        let wait = libc::c_int::try_from(PATIENCE.as_millis() / 2).unwrap_or(libc::c_int::MAX);
        // SAFETY: one valid entry.
        let ready = unsafe { libc::poll(&raw mut poll, 1, wait) };
        if ready < 0 {
            continue;
        }
        if ready == 0 {
            silent += 1;
            // Twice in a row: the first may be a host that stood still as a whole.
            if silent >= 2 {
                // SAFETY: a system call on an owned descriptor.
                unsafe {
                    libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, 0, 0);
                }
                return Ok(());
            }
            continue;
        }
        silent = 0;
        let mut bytes = [0u8; 4096];
        // SAFETY: the buffer is as large as is said.
        if unsafe { libc::read(0, bytes.as_mut_ptr().cast(), bytes.len()) } <= 0 {
            return Ok(());
        }
    }
}
