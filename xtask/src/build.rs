//! `cargo xtask build`: the eBPF object, then the program that embeds it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use xtask::process::{cargo, run, without_cargo_environment};
use xtask::workspace;

use crate::setup::{self, Toolset};
use crate::stamp;

/// Build the eBPF object and pgleak with it inside
#[derive(clap::Args)]
pub(crate) struct Build {
    /// Leave `target/release/pgleak` instead of a debug build
    #[arg(long)]
    release: bool,
    /// Only the eBPF object, as after a change to it
    #[arg(long)]
    bpf_only: bool,
}

impl Build {
    pub(crate) fn run(self) -> Result<()> {
        let tools = setup::for_build()?;
        bpf_object(&tools)?;
        if self.bpf_only { Ok(()) } else { program(self.release) }
    }
}

/// Builds `target/bpf/tracer.o` and its stamp.
pub(crate) fn bpf_object(tools: &Toolset) -> Result<()> {
    let root = workspace::root();
    // Taken before the build: a source that changes meanwhile makes the object stale.
    let fingerprint = stamp::fingerprint(&root).context("cannot read the sources of tracer-ebpf")?;
    run(&mut bpf_cargo(tools))
        .with_context(|| format!("the eBPF object was not built (with {})", tools.toolchain.name))?;
    let built = workspace::bpf_target().join("bpfel-unknown-none/bpf/tracer");
    // Only what differs is written: a new time stamp would rebuild the program.
    replace(
        &root.join(stamp::OBJECT),
        &fs::read(&built).with_context(|| format!("no {}", built.display()))?,
    )?;
    replace(&root.join(stamp::STAMP), format!("{fingerprint}\n").as_bytes())
}

/// Builds the program; the object must be there.
pub(crate) fn program(release: bool) -> Result<()> {
    let mut command = cargo(["build", "--package", "pgleak"]);
    if release {
        command.arg("--release");
    }
    run(&mut command)
}

fn bpf_cargo(tools: &Toolset) -> Command {
    let flags = [
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={}", tools.linker.path.display()),
        "-Clink-arg=--btf".to_owned(),
    ];
    let mut command = Command::new(&tools.toolchain.cargo);
    without_cargo_environment(&mut command)
        .args([
            "build",
            "--package",
            "tracer-ebpf",
            "--bin",
            "tracer",
            "--features",
            "bpf",
            "--profile",
            "bpf",
        ])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir"])
        .arg(workspace::bpf_target())
        .current_dir(workspace::root())
        .env("RUSTC", &tools.toolchain.rustc)
        // Separated by a character that no path holds, unlike RUSTFLAGS.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("LD_LIBRARY_PATH", &tools.linker.library_dir);
    if tools.toolchain.bootstrap {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
