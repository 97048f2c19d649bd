//! One processor for the backend, all others for everything else: what else runs does not take its time.

use std::io;

use anyhow::{Context, Result};

/// The processors that this process may use.
fn allowed() -> Result<libc::cpu_set_t> {
    // SAFETY: a set of bits, of which none is set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a valid buffer of that size.
    let failed = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if failed != 0 {
        return Err(io::Error::last_os_error()).context("cannot ask which processors there are");
    }
    Ok(set)
}

fn numbers(set: &libc::cpu_set_t) -> impl Iterator<Item = usize> + '_ {
    // SAFETY: the index is below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|number| unsafe { libc::CPU_ISSET(*number, set) })
}

fn only(pid: u32, numbers: impl IntoIterator<Item = usize>) -> Result<()> {
    // SAFETY: as above.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for number in numbers {
        // SAFETY: as above.
        unsafe { libc::CPU_SET(number, &mut set) };
    }
    // SAFETY: a valid set of that size.
    let failed = unsafe { libc::sched_setaffinity(pid as libc::pid_t, size_of_val(&set), &raw const set) };
    if failed != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot choose a processor for process {pid}"));
    }
    Ok(())
}

/// The processor that is kept free for backends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept(Option<usize>);

impl Kept {
    /// The last one, which this process and whatever it starts leave alone from now on; none if there is only one.
    pub(crate) fn last() -> Result<Self> {
        let all = allowed()?;
        let Some(last) = numbers(&all).last().filter(|_| numbers(&all).count() > 1) else {
            return Ok(Self(None));
        };
        only(0, numbers(&all).filter(|number| *number != last))?;
        Ok(Self(Some(last)))
    }

    /// Gives it to a process.
    pub(crate) fn give_to(self, pid: u32) -> Result<()> {
        self.0.map_or(Ok(()), |number| only(pid, [number]))
    }
}
