//! qemu: the one that is installed, or one that is unpacked below `target`.
//!
//! On a machine that has parts of another qemu (from backports, say), the packages do not go
//! together, and nothing of anybody's is removed for a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use xtask::process::run;

use crate::setup;

/// qemu, and where it is if it is not installed.
pub(super) struct Emulator {
    program: PathBuf,
    root: Option<PathBuf>,
}

impl Emulator {
    /// What is installed, else what can be; else downloaded and unpacked below `dir`.
    ///
    /// # Errors
    /// If its packages cannot be had.
    pub(super) fn find(dir: &Path) -> Result<Self> {
        match setup::for_kernels() {
            Ok(program) => Ok(Self { program, root: None }),
            Err(error) => {
                eprintln!("{error:#}; it is unpacked beside instead");
                Self::unpacked(dir)
            }
        }
    }

    fn unpacked(dir: &Path) -> Result<Self> {
        let root = dir.join("qemu");
        if !root.exists() {
            fs::create_dir_all(dir)?;
            let made = tempfile::tempdir_in(dir).context("cannot make a directory")?;
            let (archives, files) = (made.path().join("archives"), made.path().join("files"));
            fs::create_dir_all(archives.join("partial"))?;
            // All that would be installed, and nothing is.
            run(Command::new("apt-get")
                .args(["-q", "--yes", "--no-install-recommends", "--download-only", "-o"])
                .arg(format!("Dir::Cache::archives={}", archives.display()))
                .args(["install", setup::EMULATOR_PACKAGE])
                .env("DEBIAN_FRONTEND", "noninteractive"))?;
            for entry in fs::read_dir(&archives)? {
                let archive = entry?.path();
                if archive.extension().is_some_and(|extension| extension == "deb") {
                    run(Command::new("dpkg-deb").arg("--extract").args([&archive, &files]))?;
                }
            }
            // Only what is complete gets the name that the next run trusts.
            fs::rename(&files, &root).with_context(|| format!("cannot make {}", root.display()))?;
        }
        Ok(Self { program: root.join("usr/bin").join(setup::EMULATOR), root: Some(root) })
    }

    /// qemu, without arguments of ours.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| root.join(path));
            let path = libraries.map(|path| path.display().to_string()).join(":");
            command.env("LD_LIBRARY_PATH", path);
            for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(firmware));
            }
        }
        command
    }
}
