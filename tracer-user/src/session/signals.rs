//! Ctrl-C and its relatives: the first ends the capture early, the second leaves at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code after a second interrupt, as a shell reports SIGINT.
const LEFT_AT_ONCE: i32 = 130;

/// Requests to end.
#[derive(Debug)]
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    seen: bool,
}

impl Interrupts {
    /// Takes the signals over from their default, which would leave without writing.
    ///
    /// # Errors
    /// If they cannot be handled.
    pub fn listen() -> io::Result<Self> {
        // A capture that is suspended from the terminal would leave its probes in place, so the
        // terminal's stop is not obeyed meanwhile.
        // SAFETY: setting a disposition.
        unsafe { libc::signal(libc::SIGTSTP, libc::SIG_IGN) };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            seen: false,
        })
    }

    /// Returns when the capture is to end. The kernel takes the probes of a process that exits,
    /// so a second request exits right here.
    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
        if self.seen {
            std::process::exit(LEFT_AT_ONCE);
        }
        self.seen = true;
    }

    /// Gives the signals back to their default, which leaves at once: from here on the probes are
    /// gone and files appear whole or not at all.
    pub fn end(self) {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGTSTP] {
            // SAFETY: setting a disposition.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}
