//! What init does: mount the kernel's file systems, and end the machine.

use std::ffi::CStr;
use std::fs;
use std::io::{self, Write as _};
use std::ptr;

use anyhow::{Context, Result};

/// File systems that pgleak reads, and where.
const MOUNTS: [(&CStr, &CStr); 3] = [(c"proc", c"/proc"), (c"sysfs", c"/sys"), (c"devtmpfs", c"/dev")];

/// Mounts them all.
///
/// # Errors
/// The kernel's word.
pub(crate) fn mount_all() -> Result<()> {
    MOUNTS.iter().try_for_each(|(kind, at)| mount(kind, at))
}

fn mount(kind: &CStr, at: &CStr) -> Result<()> {
    let path = at.to_str().context("a path of this file")?;
    fs::create_dir_all(path).with_context(|| format!("cannot make {path}"))?;
    // SAFETY: the strings outlive the call, and these file systems take no data.
    if unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, ptr::null()) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // Some kernels mount /dev before init runs.
        error if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        error => Err(error).with_context(|| format!("cannot mount {path}")),
    }
}

/// Restarts, which the host was asked to take for the end.
pub(crate) fn end() {
    // Nothing can be done about a console that is gone.
    let _ = io::stdout().flush();
    // SAFETY: takes no pointers; returns only on an error, and then init's end is a panic that the
    // host sees.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}
