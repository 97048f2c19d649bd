//! Ctrl-C and its relatives: the first ends the capture early, a second Ctrl-C leaves at once.

use std::{
    ffi::c_int,
    fs,
    future::pending,
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// Exit code after a second interrupt, as a shell reports SIGINT.
const LEFT_AT_ONCE: i32 = 130;

/// A second interrupt that follows this soon is the same wish: a terminal and the program that
/// runs pgleak may both pass it on.
const SAME_WISH: Duration = Duration::from_millis(500);

/// Requests to end.
#[derive(Debug)]
pub struct Interrupts {
    /// The time of the first, when there was one.
    first: watch::Receiver<Option<Instant>>,
    /// Whether somebody was told of it.
    told: bool,
    /// Signals that are not ignored.
    ours: Vec<c_int>,
}

impl Interrupts {
    /// Takes the signals over from their default, which would leave without writing. Those that
    /// are ignored, as by nohup, stay so. `directory` was made for the artifacts and goes again
    /// when pgleak leaves at once.
    ///
    /// They are received on a thread of their own, so that their times are true and a second Ctrl-C
    /// leaves whatever the other threads do.
    ///
    /// # Errors
    /// If they cannot be handled.
    pub fn listen(directory: Option<&Path>) -> io::Result<Self> {
        // A capture that is suspended from the terminal would leave its probes in place, so the
        // terminal's stop is not obeyed meanwhile.
        // SAFETY: setting a disposition.
        unsafe { libc::signal(libc::SIGTSTP, libc::SIG_IGN) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let mut interrupt = take_over(SignalKind::interrupt())?;
        let mut terminate = take_over(SignalKind::terminate())?;
        let mut hangup = take_over(SignalKind::hangup())?;
        drop(entered);
        let kinds = [(libc::SIGINT, &interrupt), (libc::SIGTERM, &terminate), (libc::SIGHUP, &hangup)];
        let ours = kinds.into_iter().filter_map(|(number, signal)| signal.as_ref().map(|_| number)).collect();

        let (sender, first) = watch::channel(None);
        let directory = directory.map(Path::to_owned);
        let receive = async move {
            loop {
                let is_interrupt = tokio::select! {
                    () = next(&mut interrupt) => true,
                    () = next(&mut terminate) => false,
                    () = next(&mut hangup) => false,
                };
                let first: Option<Instant> = *sender.borrow();
                match first {
                    None => drop(sender.send_replace(Some(Instant::now()))),
                    Some(first) if is_interrupt && first.elapsed() > SAME_WISH => leave(directory.as_deref()),
                    Some(_) => {}
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(receive))?;
        Ok(Self { first, told: false, ours })
    }

    /// Returns when the capture is to end, once. After that only a second Ctrl-C counts, which
    /// leaves at once: a closed terminal, a shell and a service manager send more than one signal
    /// for one wish. The kernel takes the probes of a process that exits.
    pub async fn requested(&mut self) {
        if self.told || self.first.wait_for(Option::is_some).await.is_err() {
            pending::<()>().await;
        }
        self.told = true;
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

    /// Gives the signals back to their default, which leaves at once: everything is written. A
    /// second signal for the same wish may be on its way and is waited for.
    pub async fn end(self) {
        let first = *self.first.borrow();
        if let Some(first) = first {
            tokio::time::sleep(SAME_WISH.saturating_sub(first.elapsed())).await;
        }
        for signal in self.ours.into_iter().chain([libc::SIGTSTP]) {
            // SAFETY: setting a disposition.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

fn leave(directory: Option<&Path>) -> ! {
    if let Some(directory) = directory {
        // Files appear whole or not at all, so what is in there has its name already or is half of
        // a file.
        let whole = fs::read_dir(directory).is_ok_and(|entries| {
            entries.flatten().any(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        });
        if !whole {
            let _ = fs::remove_dir_all(directory);
        }
    }
    std::process::exit(LEFT_AT_ONCE);
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
