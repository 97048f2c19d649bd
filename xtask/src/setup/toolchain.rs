//! A Rust compiler that can build eBPF: unstable features, and the source of `core`.

use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::process::{find_program, output, run, without_cargo_environment};

use super::apt;

/// LLVM that [`super::linker`] was made for: it reads bitcode of this major.
pub(super) const LLVM_MAJOR: &str = "22";
/// A nightly with that LLVM, for machines that have none.
const NIGHTLY: &str = "nightly-2026-05-20";
/// The distribution's compiler and the source it was built from, in one version.
const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

pub(super) const PLAN: &str = "component rust-src for rustup's nightly, or else packages rustc-web, cargo-web, \
    rust-web-src";

/// A compiler, with all it takes to use it.
#[derive(Debug)]
pub(crate) struct EbpfToolchain {
    /// For messages.
    pub(crate) name: String,
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    /// No nightly: unstable features need `RUSTC_BOOTSTRAP`.
    pub(crate) bootstrap: bool,
    /// The `libLLVM` that it is made with.
    pub(crate) llvm: PathBuf,
}

/// The best compiler that is there: a nightly of rustup, another toolchain of rustup that has the
/// source, the distribution's.
pub(super) fn find() -> Option<EbpfToolchain> {
    let mut roots = rustup_toolchains();
    roots.retain(|root| has_core(root));
    roots.push(PathBuf::from("/usr"));
    roots.iter().find_map(|root| inspect(root))
}

/// Adds the source to a nightly, or gets one, or the distribution's compiler.
pub(super) fn install() -> Result<EbpfToolchain> {
    let mut tried = Vec::new();
    if find_program("rustup").is_some() {
        match add_to_rustup() {
            Ok(()) => {
                if let Some(toolchain) = find() {
                    return Ok(toolchain);
                }
                tried.push("rustup installed a compiler that does not fit".to_owned());
            }
            Err(error) => tried.push(format!("{error:#}")),
        }
        eprintln!("set-up: rustup could not help, using the packages {}", PACKAGES.join(", "));
    }
    if let Err(error) = apt::install(&PACKAGES) {
        tried.push(format!("{error:#}"));
        bail!("no eBPF compiler (a Rust nightly with rust-src and LLVM {LLVM_MAJOR}): {}", tried.join("; "));
    }
    find().with_context(|| format!("{} do not make an eBPF compiler", PACKAGES.join(", ")))
}

fn add_to_rustup() -> Result<()> {
    let nightly = rustup_toolchains().into_iter().find(|root| is_nightly(root) && llvm_fits(root));
    let mut command = Command::new("rustup");
    match nightly.as_deref().and_then(Path::file_name) {
        Some(name) => command.args(["component", "add", "rust-src", "--toolchain"]).arg(name),
        None => command.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "-c", "rust-src"]),
    };
    run(&mut command)
}

/// Nightlies first, newest first.
fn rustup_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".rustup")));
    let Some(entries) = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else {
        return Vec::new();
    };
    let mut roots: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    roots.sort_by(|one, other| (is_nightly(other), other).cmp(&(is_nightly(one), one)));
    roots
}

fn is_nightly(root: &Path) -> bool {
    root.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly"))
}

fn has_core(root: &Path) -> bool {
    root.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
}

fn inspect(root: &Path) -> Option<EbpfToolchain> {
    let (rustc, cargo) = (root.join("bin/rustc"), root.join("bin/cargo"));
    if !has_core(root) || !cargo.is_file() || !llvm_fits(root) {
        return None;
    }
    Some(EbpfToolchain {
        name: if root == Path::new("/usr") {
            "the distribution's Rust".into()
        } else {
            root.file_name()?.to_string_lossy().into_owned()
        },
        llvm: find_llvm(root)?,
        bootstrap: !is_nightly(root),
        cargo,
        rustc,
    })
}

fn llvm_fits(root: &Path) -> bool {
    let mut command = Command::new(root.join("bin/rustc"));
    without_cargo_environment(&mut command).arg("-vV");
    output(&mut command).is_ok_and(|version| {
        version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .is_some_and(|version| version.split('.').next() == Some(LLVM_MAJOR))
    })
}

fn find_llvm(root: &Path) -> Option<PathBuf> {
    let dirs = [root.join("lib"), root.join(format!("lib/{}-linux-gnu", env::consts::ARCH))];
    let mut found: Vec<PathBuf> = dirs
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_llvm) && is_elf(path))
        .collect();
    found.sort();
    found.into_iter().next()
}

/// `libLLVM.so.22.1`, `libLLVM.so.22.1-rust-1.95.0-stable`, `libLLVM-22.so`.
fn is_llvm(name: &str) -> bool {
    ["libLLVM.so.", "libLLVM-"]
        .iter()
        .filter_map(|prefix| name.strip_prefix(prefix))
        .filter_map(|rest| rest.strip_prefix(LLVM_MAJOR))
        .any(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// rustup's `libLLVM-22-….so` is a linker script.
fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"\x7fELF"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_library_by_its_names() {
        for name in ["libLLVM.so.22.1", "libLLVM.so.22.1-rust-1.95.0-stable", "libLLVM-22.so"] {
            assert!(is_llvm(name), "{name}");
        }
        for name in ["libLLVM-14.so.1", "libLLVM-221.so", "libLLVM.so", "librustc_driver-22.so"] {
            assert!(!is_llvm(name), "{name}");
        }
    }
}
