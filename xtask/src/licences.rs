//! x
use anyhow::Result;
/// x
#[derive(clap::Args)]
pub(crate) struct Licences {}
impl Licences {
    pub(crate) fn run(self) -> Result<()> {
        Ok(())
    }
}
