//! pgleak on the kernels of Debian, each booted in a virtual machine without any hardware's help.

mod boot;
mod emulator;
mod initramfs;
mod judge;
mod packages;

use std::path::PathBuf;

use anyhow::{Context, Result};
use xtask::workspace;

use emulator::Emulator;

/// The oldest kernel that pgleak supports: what every run of the tests boots.
pub(crate) const OLDEST: &str = "6.1";
/// What `--kernels` boots when no kernel is named.
pub(crate) const ALL: [&str; 3] = [OLDEST, "6.12", packages::CURRENT];

/// The machine's memory image, and the kernels to boot it with.
pub(crate) struct Matrix {
    qemu: Emulator,
    initramfs: PathBuf,
}

impl Matrix {
    /// Builds the guest; the eBPF object must be there.
    ///
    /// # Errors
    /// If something is missing and cannot be installed, or is not built.
    pub(crate) fn prepare() -> Result<Self> {
        let qemu = Emulator::find(&directory())?;
        let initramfs = initramfs::build(&directory()).context("cannot make the guest's image")?;
        Ok(Self { qemu, initramfs })
    }

    /// Boots a kernel, named by its series or as `current`, and judges what the guest says.
    ///
    /// # Errors
    /// If its package cannot be had, if it does not boot, or if any check failed or is missing.
    pub(crate) fn check(&self, series: &str) -> Result<()> {
        let kernel = packages::fetch(series, &directory())
            .with_context(|| format!("cannot get a kernel {series} from Debian's archive"))?;
        let console = boot::run(&self.qemu, &kernel, &self.initramfs)?;
        judge::judge(&console)
    }
}

fn directory() -> PathBuf {
    workspace::root().join("target/kernels")
}
