//! Passes signals on to the program that this one waits for, so that it ends in good order and this
//! one can clean up after it.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Who gets them; 0 is nobody.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// While it lives, signals are passed on. Afterwards they do again what they do by default.
pub(crate) struct Forwarding(());

/// Passes on what this process is sent. What a terminal sends goes to the child without our help,
/// since both are in the group that it sends to; Ctrl-C must not arrive twice.
pub(crate) fn to(child: u32) -> io::Result<Forwarding> {
    CHILD.store(i32::try_from(child).map_err(io::Error::other)?, Ordering::SeqCst);
    let forwarding = Forwarding(());
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = pass_on;
    set_all(handler as libc::sighandler_t)?;
    Ok(forwarding)
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        // It succeeded with the same signals before.
        let _ = set_all(libc::SIG_DFL);
        CHILD.store(0, Ordering::SeqCst);
    }
}

fn set_all(handler: libc::sighandler_t) -> io::Result<()> {
    for signal in SIGNALS {
        // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default handler.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: `action` lives through the call; its handler only makes async-signal-safe calls.
        if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let child = CHILD.load(Ordering::SeqCst);
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo_t.
    let from_terminal = unsafe { (*info).si_code } == libc::SI_KERNEL;
    if child > 0 && !from_terminal {
        // SAFETY: kill is async-signal-safe and takes no pointers.
        unsafe { libc::kill(child, signal) };
    }
}
