//! `cargo xtask bench`: what things cost, each beside its rivals in the same run.

use anyhow::{Result, bail};
use clap::ValueEnum;
use xtask::process::{cargo, is_root, run};

use crate::{build, setup};

/// Measure what tracing costs
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// What to measure
    what: What,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Walking a stack: by way of the last one, anew, and by the kernel's bpf_get_stack
    Unwind,
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
            What::Unwind => "unwind-bench",
        };
        run(&mut cargo(["run", "--release", "--package", "pgleak-tests", "--bin", program]))
    }
}
