//! Puts the eBPF object where the program embeds it, and refuses one that is not of these sources.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

mod stamp;

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Cargo shows this line as the package's error, and what a build script writes besides.
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    let variable =
        |name: &str| env::var_os(name).map(PathBuf::from).ok_or(format!("cargo did not set {name}"));
    let manifest_dir = variable("CARGO_MANIFEST_DIR")?;
    let root = manifest_dir.parent().unwrap_or(Path::new("/"));
    let object = root.join(stamp::OBJECT);
    for path in
        ["tracer-ebpf/src", "tracer-ebpf/Cargo.toml", "Cargo.lock", "Cargo.toml", stamp::OBJECT, stamp::STAMP]
    {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let Ok(built_from) = fs::read_to_string(root.join(stamp::STAMP)) else {
        return Err("the eBPF object is missing: run `cargo xtask build`".into());
    };
    let sources = stamp::fingerprint(root)
        .map_err(|error| format!("cannot read the sources of the eBPF object: {error}"))?;
    if built_from.trim() != sources {
        return Err("the eBPF object is stale, its sources have changed: run `cargo xtask build`".into());
    }
    let embedded = variable("OUT_DIR")?.join("tracer.o");
    fs::copy(&object, &embedded)
        .map_err(|error| format!("cannot copy {}: {error}; run `cargo xtask build`", object.display()))?;
    Ok(())
}
