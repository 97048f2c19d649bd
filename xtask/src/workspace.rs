//! Where things lie in the workspace.

use std::env;
use std::path::{Path, PathBuf};

/// The top of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the manifest of xtask lies one below the top")
        .to_path_buf()
}

/// Where cargo puts what it builds. A relative `CARGO_TARGET_DIR` counts from the top.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) if !dir.is_empty() => root().join(dir),
        _ => root().join("target"),
    }
}

/// Where the eBPF object and the files of its build lie. It does not follow `CARGO_TARGET_DIR`,
/// because the build script of `pgleak` has to find it without asking.
pub fn bpf_target() -> PathBuf {
    root().join("target/bpf")
}

/// Build tools that were installed for this workspace only.
pub fn tools() -> PathBuf {
    root().join("target/tools")
}

/// The program, as `cargo xtask build` leaves it.
pub fn pgleak(release: bool) -> PathBuf {
    target().join(if release { "release" } else { "debug" }).join("pgleak")
}
