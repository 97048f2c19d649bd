//! What pgleak is measured beside, where the system's packages do not have it.

use std::path::PathBuf;

use anyhow::Result;

use crate::{debian, workspace};

/// memleak, below [`memleak_root`].
pub const MEMLEAK_PROGRAM: &str = "usr/sbin/memleak-libbpf";

/// Where Debian 13's libbpf-tools is unpacked with the libraries that it needs; Debian 12's has no memleak.
///
/// # Errors
/// If it is not there and the archive cannot be reached.
pub fn memleak_root() -> Result<PathBuf> {
    debian::unpacked(&["trixie"], &["libbpf-tools"], &workspace::target().join("debian"))
}

/// Where Debian 12's Prometheus is unpacked: `usr/bin/prometheus` and `usr/bin/promtool`.
///
/// # Errors
/// If it is not there and the archive cannot be reached.
pub fn prometheus_root() -> Result<PathBuf> {
    debian::unpacked(&["bookworm"], &["prometheus"], &workspace::target().join("debian"))
}

/// Go's pprof, which reads what other tools write in its format; of Debian 12, where it is a program of its own.
///
/// # Errors
/// If it is not there and the archive cannot be reached.
pub fn pprof() -> Result<PathBuf> {
    const PROGRAM: &str = "usr/lib/go-1.19/pkg/tool/linux_amd64/pprof";
    let root = debian::unpacked(&["bookworm"], &["golang-1.19-go"], &workspace::target().join("debian"))?;
    Ok(root.join(PROGRAM))
}
