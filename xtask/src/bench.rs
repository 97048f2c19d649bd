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
    /// What user space does when a capture has ended: names, unwind tables, the verdict, artifacts
    Micro,
    /// Walking a stack: by way of the last one, anew, and by the kernel's bpf_get_stack
    Unwind,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        // What was measured before is shown without any set-up.
        let shows = self.arguments.iter().any(|argument| argument == "--show");
        let measures = !(matches!(self.what, What::Overhead) && shows);
        if measures && !matches!(self.what, What::Micro) && !is_root() {
            bail!("probes need root: run it with sudo");
        }
        let tools = setup::for_build()?;
        build::bpf_object(&tools)?;
        let program = match self.what {
            What::Micro => {
                let mut command = cargo(["bench", "--package", "pgleak", "--bench", "micro", "--"]);
                return run(command.args(self.arguments));
            }
            What::Overhead if measures => {
                setup::for_tests()?;
                setup::for_rivals()?;
                build::program(true)?;
                "bench"
            }
            What::Overhead => "bench",
            What::Unwind => {
                setup::for_tests()?;
                "unwind-bench"
            }
        };
        let mut command = cargo(["run", "--release", "--package", "pgleak-tests", "--bin", program, "--"]);
        run(command.args(self.arguments).env("PGLEAK_BIN", workspace::pgleak(true)))
    }
}
