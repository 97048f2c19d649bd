//! The host: its name, and which boot of it this is.

use std::{fs, io};

/// Of a boot of the host: pids and clock ticks begin anew with each.
///
/// # Errors
/// If the kernel does not say.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The host's name; empty if the kernel does not say.
pub(super) fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}
