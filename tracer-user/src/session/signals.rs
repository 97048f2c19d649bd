//! Ctrl-C and its relatives: the first ends the capture early, a second Ctrl-C leaves at once.

use std::{
    fs,
    future::pending,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code after a second interrupt, as a shell reports SIGINT.
const LEFT_AT_ONCE: i32 = 130;

/// A second interrupt that follows this soon is the same wish: a terminal and the program that
/// runs pgleak may both pass it on.
const SAME_WISH: Duration = Duration::from_millis(500);

/// Requests to end.
#[derive(Debug)]
pub struct Interrupts {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
    first: Option<Instant>,
    directory: Option<PathBuf>,
}

impl Interrupts {
    /// Takes the signals over from their default, which would leave without writing. Those that
    /// are ignored, as by nohup, stay so. `directory` was made for the artifacts and goes again
    /// when pgleak leaves at once.
    ///
    /// # Errors
    /// If they cannot be handled.
    pub fn listen(directory: Option<&Path>) -> io::Result<Self> {
        // A capture that is suspended from the terminal would leave its probes in place, so the
        // terminal's stop is not obeyed meanwhile.
        // SAFETY: setting a disposition.
        unsafe { libc::signal(libc::SIGTSTP, libc::SIG_IGN) };
        Ok(Self {
            interrupt: take_over(SignalKind::interrupt())?,
            terminate: take_over(SignalKind::terminate())?,
            hangup: take_over(SignalKind::hangup())?,
            first: None,
            directory: directory.map(Path::to_owned),
        })
    }

    /// Returns when the capture is to end, once. After that only a second Ctrl-C counts, which
    /// leaves right here: a closed terminal, a shell and a service manager send more than one
    /// signal for one wish. The kernel takes the probes of a process that exits.
    pub async fn requested(&mut self) {
        loop {
            let interrupt = tokio::select! {
                () = next(&mut self.interrupt) => true,
                () = next(&mut self.terminate) => false,
                () = next(&mut self.hangup) => false,
            };
            match self.first {
                None => {
                    self.first = Some(Instant::now());
                    return;
                }
                Some(first) if interrupt && first.elapsed() > SAME_WISH => self.leave(),
                Some(_) => {}
            }
        }
    }

    /// Does what has to be done whatever is requested meanwhile: a first request calls `hurry`, and
    /// only a second Ctrl-C leaves.
    pub async fn during<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
        hurry: impl Fn(),
    ) -> T {
        let mut work = tokio::task::spawn_blocking(work);
        loop {
            tokio::select! {
                // It panics only by a mistake in there, and then what it does is lost either way.
                done = &mut work => {
                    return done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                }
                () = self.requested() => hurry(),
            }
        }
    }

    fn leave(&self) -> ! {
        if let Some(directory) = &self.directory {
            // Files appear whole or not at all, so what is in there has its name already or is
            // half of a file.
            let whole = fs::read_dir(directory).is_ok_and(|entries| {
                entries.flatten().any(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            });
            if !whole {
                let _ = fs::remove_dir_all(directory);
            }
        }
        std::process::exit(LEFT_AT_ONCE);
    }

    /// Gives the signals back to their default, which leaves at once: everything is written. A
    /// second signal for the same wish may be on its way and is waited for.
    pub async fn end(self) {
        if let Some(first) = self.first {
            tokio::time::sleep(SAME_WISH.saturating_sub(first.elapsed())).await;
        }
        let ours = [
            (libc::SIGINT, self.interrupt.is_some()),
            (libc::SIGTERM, self.terminate.is_some()),
            (libc::SIGHUP, self.hangup.is_some()),
            (libc::SIGTSTP, true),
        ];
        for (signal, _) in ours.into_iter().filter(|(_, ours)| *ours) {
            // SAFETY: setting a disposition.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

fn take_over(kind: SignalKind) -> io::Result<Option<Signal>> {
    if is_ignored(kind)? { Ok(None) } else { signal(kind).map(Some) }
}

fn is_ignored(kind: SignalKind) -> io::Result<bool> {
    // SAFETY: all zeros is a valid sigaction to write into; a null action only asks.
    let (result, now) = unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(kind.as_raw_value(), std::ptr::null(), &raw mut now), now)
    };
    if result == 0 { Ok(now.sa_sigaction == libc::SIG_IGN) } else { Err(io::Error::last_os_error()) }
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => pending().await,
    }
}
