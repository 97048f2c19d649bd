//! The child's side: it waits for signs of life, and closes probes.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::wire::{self, Packet};

/// Silence after which pgleak is thought to hang. It beats many times a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns when pgleak is gone and every probe as well; ends `parent` when it is silent.
///
/// # Errors
/// If `parent` is not this process's parent or cannot be watched.
pub fn run(parent: u32) -> io::Result<()> {
    // SAFETY: a call without arguments.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(parent) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only pgleak starts its watchdog"));
    }
    // What ends pgleak is not meant for whoever cleans up after it: a service manager sends its
    // signal to both, and the kernel takes whichever is larger when memory is short.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: setting a disposition.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    // A descriptor of the process itself, so that a pid that is used again is not hit.
    let pid = i32::try_from(parent).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let stdin = io::stdin();
    let mut probes = BTreeMap::new();
    let result = watch(stdin.as_fd(), pidfd.as_fd(), &mut probes);
    side_by_side(std::mem::take(&mut probes).into_values().collect());
    result
}

/// Does what pgleak says until it is gone, or silent.
fn watch(
    socket: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
    probes: &mut BTreeMap<u8, OwnedFd>,
) -> io::Result<()> {
    let mut silent = 0;
    loop {
        if !something_comes(socket, PATIENCE / 2)? {
            silent += 1;
            // Twice in a row: the first may be a host that stood still as a whole.
            if silent >= 2 {
                return Ok(pidfd_send_signal(pidfd, Signal::KILL)?);
            }
            continue;
        }
        silent = 0;
        let Some((packet, descriptor)) = wire::receive(socket)? else { return Ok(()) };
        let mut take =
            |numbers: Vec<u8>| -> Vec<OwnedFd> { numbers.iter().filter_map(|n| probes.remove(n)).collect() };
        match packet {
            Packet::Beat | Packet::Done => continue,
            Packet::Keep(number) => {
                probes.extend(descriptor.map(|descriptor| (number, descriptor)));
                continue;
            }
            Packet::OneByOne(numbers) => take(numbers).into_iter().for_each(drop),
            Packet::Together(numbers) => side_by_side(take(numbers)),
        }
        // If nobody waits any more, the next message says so.
        let _ = wire::send(socket, &Packet::Done, None, wire::Wait::Yes);
    }
}

/// Each waits for a grace period of the kernel, about 0.1 s.
fn side_by_side(probes: Vec<OwnedFd>) {
    thread::scope(|scope| {
        for probe in probes {
            scope.spawn(move || drop(probe));
        }
    });
}

fn something_comes(socket: BorrowedFd<'_>, within: Duration) -> io::Result<bool> {
    let mut wanted = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    let within = Timespec::try_from(within).map_err(io::Error::other)?;
    match poll(&mut wanted, Some(&within)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
