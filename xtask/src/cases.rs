//! `cargo xtask cases`: real leaks of released servers.

use std::path::PathBuf;

use anyhow::{Result, bail};
use xtask::process::{cargo, is_root, run};
use xtask::workspace;

use crate::{build, setup};

/// Capture the leaks of a directory of cases, and check what is said of them
#[derive(clap::Args)]
pub(crate) struct Cases {
    /// A directory with a folder for each case: case.toml and run.sh
    #[arg(long)]
    dir: PathBuf,
    /// How long to record each
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// What `pgleak capture --overhead` is told; anything but `full` wants more --seconds
    #[arg(long, default_value = "full")]
    overhead: String,
    /// Only the builds that leak, not those in which it was mended
    #[arg(long)]
    leaking: bool,
    /// Only these
    names: Vec<String>,
}

impl Cases {
    pub(crate) fn run(self) -> Result<()> {
        if !is_root() {
            bail!("probes need root: run it with sudo");
        }
        let tools = setup::for_build()?;
        setup::for_servers(true)?;
        build::bpf_object(&tools)?;
        build::program(true)?;
        let mut command = cargo(["run", "--release", "--package", "pgleak-tests", "--bin", "cases", "--"]);
        command.env("PGLEAK_BIN", workspace::pgleak(true));
        command.arg("--dir").arg(&self.dir).args(["--seconds", &self.seconds.to_string()]);
        if self.leaking {
            command.arg("--leaking");
        }
        command.args(["--overhead", &self.overhead]).args(&self.names);
        run(&mut command)
    }
}
