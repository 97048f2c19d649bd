//! A second process that sees to it that every probe goes, whatever becomes of pgleak.
//!
//! It ends pgleak when that no longer moves, and it holds a duplicate of every probe's
//! descriptor, which it closes last. The kernel takes a probe away in the process that closes its
//! last descriptor, and cannot do it for one that is being killed: it then says "failed to
//! unregister, leaking uprobe" and leaves the breakpoint in the traced process for good (seen on
//! 6.18; `uprobe_write_opcode` reads the page with `FOLL_FORCE`, which a pending SIGKILL ends).
//! Nobody kills this process; if somebody does all the same, pgleak has its own descriptors.

mod child;
mod wire;

use std::{
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

pub use child::run as run_child;
use wire::Packet;

/// The hidden subcommand that the child is started with.
pub const SUBCOMMAND: &str = "internal-watchdog";

/// How probes are taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// One after the other, in the given order: a tenth of a second each.
    OneByOne,
    /// Side by side, a tenth of a second or two in all.
    Together,
}

/// The watching child.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
    socket: Option<OwnedFd>,
    /// One request at a time waits for its answer.
    asking: Mutex<()>,
}

impl Watchdog {
    /// Starts it.
    ///
    /// # Errors
    /// If no process can be started.
    pub fn start() -> io::Result<Self> {
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("pgleak-watchdog")
            .arg(SUBCOMMAND)
            .arg(std::process::id().to_string())
            .stdin(Stdio::from(its))
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
        Ok(Self { child: command.spawn()?, socket: Some(ours), asking: Mutex::new(()) })
    }

    /// A sign of life.
    pub fn beat(&self) {
        if let Some(socket) = &self.socket {
            // A full socket has signs enough; a closed one has nobody to tell.
            let _ = wire::send(socket, &Packet::Beat, None, wire::Wait::No);
        }
    }

    /// Gives it a duplicate of the descriptor of a probe, which is called `number` from now on.
    ///
    /// # Errors
    /// If it has gone.
    pub fn keep(&self, probe: BorrowedFd<'_>, number: u8) -> io::Result<()> {
        match &self.socket {
            Some(socket) => wire::send(socket, &Packet::Keep(number), Some(probe), wire::Wait::Yes),
            None => Ok(()),
        }
    }

    /// Has it close probes, of which the caller has closed its own descriptors before, and waits
    /// until they are gone. If it has gone itself, they went with the caller's descriptors.
    pub fn release(&self, numbers: Vec<u8>, manner: Manner) {
        let Some(socket) = &self.socket else { return };
        // A panic elsewhere has nothing to do with the order of requests.
        let _one = self.asking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let request = match manner {
            Manner::OneByOne => Packet::OneByOne(numbers),
            Manner::Together => Packet::Together(numbers),
        };
        if wire::send(socket, &request, None, wire::Wait::Yes).is_ok() {
            let _ = wire::receive(socket);
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Closing the socket ends the child, which closes what it still has.
        drop(self.socket.take());
        let _ = self.child.wait();
    }
}
