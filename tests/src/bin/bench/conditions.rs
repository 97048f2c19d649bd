//! On what it was measured: the machine, and the versions of all that took part.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use pgleak_tests::Build;
use serde::{Deserialize, Serialize};
use xtask::{process::output, workspace};

use crate::rivals;

/// What is kept with each round. Nothing here says whose machine it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Conditions {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    /// Whether it is a virtual machine.
    pub(crate) is_virtual: bool,
    pub(crate) kernel: String,
    /// By program, or by build for servers.
    pub(crate) versions: BTreeMap<String, String>,
}

impl Conditions {
    /// Those of now.
    pub(crate) fn now(builds: &[Build]) -> Result<Self> {
        let cpus = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot ask for the kernel")?;
        let programs = ["bpftrace", "perf", "heaptrack"].map(|name| (name, said_by(Command::new(name))));
        let mut versions: BTreeMap<String, String> =
            programs.into_iter().map(|(name, said)| (name.to_owned(), said)).collect();
        versions.insert("pgleak".into(), pgleak()?);
        let memleak = rivals::memleak_package().unwrap_or_else(|_| "not there".into());
        versions.insert(rivals::MEMLEAK.into(), memleak);
        versions
            .extend(builds.iter().map(|build| (build.name.clone(), said_by(Command::new(build.postgres())))));
        Ok(Self {
            processor: field(&cpus, "model name").unwrap_or("unknown").to_owned(),
            cores: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            is_virtual: field(&cpus, "flags")
                .is_some_and(|all| all.split(' ').any(|flag| flag == "hypervisor")),
            kernel: kernel.trim().to_owned(),
            versions,
        })
    }
}

/// The first value of that name in `/proc/cpuinfo`.
fn field<'a>(cpus: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = cpus.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

/// What a program says to `--version`, in one line.
fn said_by(mut program: Command) -> String {
    let said = output(program.arg("--version")).unwrap_or_default();
    said.lines().next().filter(|line| !line.is_empty()).unwrap_or("not there").to_owned()
}

/// Its version, and the sources that it was built from as far as they are known.
fn pgleak() -> Result<String> {
    let version = said_by(Command::new(pgleak_tests::pgleak::binary()?));
    let mut git = Command::new("git");
    let commit = output(git.args(["describe", "--always", "--dirty"]).current_dir(workspace::root()));
    Ok(commit.map_or_else(|_| version.clone(), |commit| format!("{version}, commit {}", commit.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        let cpus = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu hypervisor\n\nprocessor\t: 1\n";
        assert_eq!(field(cpus, "model name"), Some("AMD EPYC"));
        assert_eq!(field(cpus, "flags"), Some("fpu hypervisor"));
        assert_eq!(field(cpus, "bugs"), None);
    }

    #[test]
    fn a_program_that_is_missing_is_said_to_be() {
        assert_eq!(said_by(Command::new("/nowhere/at-all")), "not there");
    }
}
