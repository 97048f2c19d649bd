//! memleak of libbpf-tools, which Debian 12 does not have: run from where Debian 13's is unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use xtask::rivals::{MEMLEAK_PROGRAM, memleak_root};

use super::{Working, tool::Tool};

/// Longer than any window, in seconds: what it prints each time is no part of what is measured.
const INTERVAL: &str = "3600";
/// What it says when its probes are set.
const BEGUN: &str = "Tracing outstanding memory allocs";

struct Memleak(Tool);

pub(super) fn begin(pid: u32) -> Result<Box<dyn Working>> {
    let tool = Tool::start("memleak", &mut command(&memleak_root()?, pid)?)?;
    tool.wait_for(BEGUN)?;
    Ok(Box::new(Memleak(tool)))
}

/// It is linked with a newer C library than this system's, which lies beside it.
fn command(root: &Path, pid: u32) -> Result<Command> {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let (loader, program) = (libraries.join("ld-linux-x86-64.so.2"), root.join(MEMLEAK_PROGRAM));
    for file in [&loader, &program] {
        if !file.exists() {
            bail!(
                "there is no {}: remove that directory and run `cargo xtask bench overhead`",
                file.display()
            );
        }
    }
    // Line by line: it prints to a pipe, and does not flush.
    let mut command = Command::new("stdbuf");
    command.args(["--output=L"]).arg(loader).arg("--library-path").arg(libraries).arg(program).args([
        "--pid",
        &pid.to_string(),
        INTERVAL,
    ]);
    Ok(command)
}

impl Working for Memleak {
    fn end(self: Box<Self>) -> Result<Option<u64>> {
        // Otherwise it names the stacks of what is left first.
        self.0.end(Some(libc::SIGKILL))?;
        Ok(None)
    }
}

/// The package that it is from, with its version.
pub(crate) fn package() -> Result<String> {
    let packages: PathBuf = memleak_root()?.join(xtask::debian::PACKAGES);
    let text =
        std::fs::read_to_string(&packages).with_context(|| format!("cannot read {}", packages.display()))?;
    let line = text.lines().find(|line| line.starts_with("libbpf-tools_"));
    line.map(|line| line.trim_end_matches(".deb").replace('_', " ")).context("libbpf-tools is not among them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_with_the_libraries_beside_it() {
        let root = tempfile::tempdir().expect("temporary directory");
        assert!(command(root.path(), 1).is_err(), "nothing is there yet");
        for file in ["usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", MEMLEAK_PROGRAM] {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().expect("in a directory")).expect("mkdir");
            std::fs::write(path, "").expect("write");
        }
        let command = command(root.path(), 4711).expect("all is there");
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let at = |word: &str| words.iter().position(|other| other.ends_with(word)).expect("it is given");
        assert!(
            at("ld-linux-x86-64.so.2") < at("--library-path") && at("--library-path") < at("memleak-libbpf")
        );
        assert_eq!(words[at("--pid") + 1], "4711");
    }
}
