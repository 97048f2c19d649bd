//! `cargo xtask soak`: the service under load for a long while.

use anyhow::{Result, bail};
use xtask::process::{cargo, is_root, run};
use xtask::workspace;

use crate::{build, setup};

/// Run pgleak watch on two busy servers that leak, and check what it finds and what it takes
#[derive(clap::Args)]
pub(crate) struct Soak {
    /// How long
    #[arg(long, default_value_t = 30)]
    minutes: u32,
    /// Sessions that wait on the first server
    #[arg(long, default_value_t = 200)]
    backends: u32,
    /// Its shared buffers, all of which are touched
    #[arg(long, default_value_t = 4096)]
    buffers_mib: u32,
    /// Look more often, and call growth over a minute a trigger: for a soak of minutes
    #[arg(long)]
    fast: bool,
}

impl Soak {
    pub(crate) fn run(self) -> Result<()> {
        if !is_root() {
            bail!("probes need root: run it with sudo");
        }
        let tools = setup::for_build()?;
        setup::for_servers(true)?;
        build::bpf_object(&tools)?;
        build::program(true)?;
        let mut command = cargo(["run", "--release", "--package", "pgleak-tests", "--bin", "soak", "--"]);
        command.env("PGLEAK_BIN", workspace::pgleak(true));
        command.args(["--minutes", &self.minutes.to_string(), "--backends", &self.backends.to_string()]);
        command.args(["--buffers-mib", &self.buffers_mib.to_string()]);
        if self.fast {
            command.arg("--fast");
        }
        run(&mut command)
    }
}
