//! `bpf-linker`, which turns the compiler's bitcode into an eBPF object.
//!
//! It loads LLVM at run time, from the first directory of `LD_LIBRARY_PATH` that has any `libLLVM*`,
//! whatever its version. So it gets a directory that holds nothing but a link to the library of the
//! compiler whose bitcode it will read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use xtask::process::{cargo, find_program, is_executable, output, run};
use xtask::workspace;

use super::EbpfToolchain;

/// Made for [`super::toolchain::LLVM_MAJOR`].
const VERSION: &str = "0.10.3";
/// Others of this series read the same bitcode.
const SERIES: &str = "0.10.";

/// A linker that runs.
#[derive(Debug)]
pub(crate) struct BpfLinker {
    pub(crate) path: PathBuf,
    /// What its `LD_LIBRARY_PATH` has to be.
    pub(crate) library_dir: PathBuf,
}

pub(super) fn plan() -> String {
    format!("`cargo install bpf-linker` {VERSION} to {}, about a minute", workspace::tools().display())
}

/// The one that was installed for this workspace, or one on `PATH`.
pub(super) fn find(toolchain: &EbpfToolchain) -> Result<Option<BpfLinker>> {
    let own = workspace::tools().join("bin/bpf-linker");
    let candidates = [is_executable(&own).then_some(own), find_program("bpf-linker")];
    let library_dir = only_this_library(&toolchain.llvm)?;
    Ok(candidates
        .into_iter()
        .flatten()
        .find(|path| is_of_series(path) && loads_llvm(path, &library_dir))
        .map(|path| BpfLinker { path, library_dir }))
}

pub(super) fn install() -> Result<()> {
    let mut command = cargo(["install", "bpf-linker", "--version", VERSION, "--locked", "--force", "--root"]);
    run(command.arg(workspace::tools()).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS"))
        .context("bpf-linker was not built")
}

fn only_this_library(llvm: &Path) -> Result<PathBuf> {
    let dir = workspace::tools().join("llvm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let link = dir.join("libLLVM.so");
    if fs::read_link(&link).ok().as_deref() != Some(llvm) {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(llvm, &link).with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(dir)
}

fn is_of_series(path: &Path) -> bool {
    output(Command::new(path).arg("--version"))
        .is_ok_and(|version| version.split_whitespace().nth(1).is_some_and(|v| v.starts_with(SERIES)))
}

/// It loads LLVM before it looks at its input, and panics if there is none. An empty input it
/// refuses in an orderly way.
fn loads_llvm(path: &Path, library_dir: &Path) -> bool {
    let Ok(scratch) = tempfile::tempdir() else { return false };
    let empty = scratch.path().join("empty.o");
    if fs::write(&empty, "").is_err() {
        return false;
    }
    Command::new(path)
        .arg("--output")
        .arg(scratch.path().join("out.o"))
        .arg(&empty)
        .env("LD_LIBRARY_PATH", library_dir)
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| {
            output.status.code() == Some(1)
                && String::from_utf8_lossy(&output.stderr).contains("invalid input file")
        })
}
