//! x
use anyhow::Result;
/// x
#[derive(clap::Args)]
pub(crate) struct Demo {}
impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        Ok(())
    }
}
