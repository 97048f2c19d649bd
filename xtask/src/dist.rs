//! `cargo xtask dist`: the Debian package of pgleak and its service.

use std::path::PathBuf;

use anyhow::Result;
use xtask::{package, workspace};

use crate::{build, setup};

/// Build pgleak, and make a Debian package of it
#[derive(clap::Args)]
pub(crate) struct Dist {
    /// Where the package goes, instead of `target/dist`
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Dist {
    pub(crate) fn run(self) -> Result<()> {
        package::check_tools()?;
        let tools = setup::for_build()?;
        build::bpf_object(&tools)?;
        build::program(true)?;
        let out = self.out.unwrap_or_else(|| workspace::target().join("dist"));
        println!("{}", package::debian(&workspace::pgleak(true), &out)?.display());
        Ok(())
    }
}
