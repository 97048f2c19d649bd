//! The command line.

use anyhow::{Context, Result, bail};

/// What is soaked, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How long.
    pub(crate) minutes: u32,
    /// Sessions that wait on the first server.
    pub(crate) backends: usize,
    /// Shared buffers of the first server, all of which are touched.
    pub(crate) buffers_mib: u32,
    /// Lines of the service's configuration after `[census]`.
    pub(crate) config: String,
}

impl Options {
    /// `--minutes 30 --backends 200 --buffers-mib 4096 --fast`: the last looks each second and calls growth over a
    /// minute a trigger, for a soak of minutes.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self { minutes: 30, backends: 200, buffers_mib: 4096, config: String::new() };
        while let Some(name) = arguments.next() {
            if name == "--fast" {
                options.config =
                    "interval = \"2s\"\n[triggers.growth]\nwindow = \"60s\"\n[capture]\nduration = \"30s\"\n"
                        .into();
                continue;
            }
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            let number = || value.parse::<u32>().with_context(|| format!("{name} {value} is no number"));
            match name.as_str() {
                "--minutes" => options.minutes = number()?,
                "--backends" => options.backends = number()? as usize,
                "--buffers-mib" => options.buffers_mib = number()?,
                _ => bail!("soak [--minutes 30] [--backends 200] [--buffers-mib 4096] [--fast], not {name}"),
            }
        }
        Ok(options)
    }
}
