//! The service at rest: it looks at the server of the process, and captures nothing.

use std::time::Duration;

use anyhow::Result;
use pgleak_tests::service::Service;

use super::Working;

/// How long it is looked at: it looks each five seconds.
pub(super) const LOOKED_AT: Duration = Duration::from_secs(15);

struct Watching(Service);

/// As it is installed, but that it captures nothing.
pub(super) fn begin() -> Result<Box<dyn Working>> {
    let service = Service::start_of(&[], "[census]\n[triggers.growth]\nenabled = false\n")?;
    Ok(Box::new(Watching(service)))
}

impl Working for Watching {
    fn end(mut self: Box<Self>) -> Result<Option<u64>> {
        self.0.stop().map(|_| None)
    }
}
