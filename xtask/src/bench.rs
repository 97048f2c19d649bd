//! `cargo xtask bench`: what things cost, each beside its rivals in the same run.

use anyhow::{Result, bail};
use clap::ValueEnum;
use xtask::process::{cargo, is_root, run};
use xtask::workspace;

use crate::{build, setup};

/// Measure what tracing costs
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// What to measure
    what: What,
    /// What that measurement is told; `--help` says what it takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// What tracing adds to a transaction, beside rivals in the same rounds: hours for all of it
    Overhead,
    /// Walking a stack: by way of the last one, anew, and by the kernel's bpf_get_stack
    Unwind,
    /// What a capture costs as processes, live chunks and stacks become more; writes docs/scale.svg
    Scale,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        if !is_root() {
            bail!("probes need root: run it with sudo");
        }
        let tools = setup::for_build()?;
        setup::for_tests()?;
        build::bpf_object(&tools)?;
        let program = match self.what {
            What::Overhead => {
                setup::for_rivals()?;
                build::program(true)?;
                "bench"
            }
            What::Unwind => "unwind-bench",
            What::Scale => {
                build::program(true)?;
                "scale-bench"
            }
        };
        let mut command = cargo(["run", "--release", "--package", "pgleak-tests", "--bin", program, "--"]);
        run(command.args(self.arguments).env("PGLEAK_BIN", workspace::pgleak(true)))
    }
}
