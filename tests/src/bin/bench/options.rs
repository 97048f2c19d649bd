//! What is asked for on the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pgleak_tests::Build;
use xtask::workspace;

use crate::{
    load::Load,
    rivals::{self, RIVALS},
};

/// What is measured.
pub(crate) struct Options {
    pub(crate) builds: Vec<String>,
    pub(crate) loads: Vec<Load>,
    /// Those that are named; `None` for the usual ones of each load.
    pub(crate) rivals: Option<Vec<&'static str>>,
    pub(crate) rounds: u32,
    /// How long each rival is looked at in each round.
    pub(crate) window: Duration,
    /// Where rounds are kept, a line each.
    pub(crate) file: PathBuf,
    /// `false`: only show what was kept.
    pub(crate) measures: bool,
    /// Whether the page and the picture of the documentation are written from what was kept.
    pub(crate) writes: bool,
}

impl Options {
    /// What is measured under a load.
    pub(crate) fn rivals_under(&self, load: Load) -> Vec<&'static str> {
        let usual = || RIVALS.iter().filter(|rival| rival.is_usual(load)).map(|rival| rival.name).collect();
        self.rivals.clone().unwrap_or_else(usual)
    }
}

/// What is measured if nobody says otherwise.
pub(crate) const BUILDS: [&str; 4] = ["debian-15", "npm-15", "npm-17", "npm-18"];

const HELP: &str = "bench [--builds debian-15,npm-17] [--loads select,tpcb,query,malloc] [--rivals floor,pgleak] \
                    [--rounds 20] [--window-ms 1500] [--file rounds.jsonl] [--show] [--write]";

pub(crate) fn parse() -> Result<Options> {
    let mut options = Options {
        builds: BUILDS.map(str::to_owned).to_vec(),
        loads: Load::ALL.to_vec(),
        rivals: None,
        rounds: 20,
        window: Duration::from_millis(1500),
        file: workspace::root().join("target/bench/overhead.jsonl"),
        measures: true,
        writes: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--show" => {
                options.measures = false;
                continue;
            }
            "--write" => {
                options.writes = true;
                continue;
            }
            "--help" => bail!("{HELP}"),
            _ => {}
        }
        let value = arguments.next().with_context(|| format!("{argument} needs a value; {HELP}"))?;
        let list = || value.split(',').map(str::to_owned);
        match argument.as_str() {
            "--builds" => options.builds = list().collect(),
            "--loads" => options.loads = list().map(|name| Load::named(&name)).collect::<Result<_>>()?,
            "--rivals" => {
                let named = list().map(|name| rivals::named(&name).map(|rival| rival.name));
                options.rivals = Some(named.collect::<Result<_>>()?);
            }
            "--rounds" => options.rounds = value.parse().context("--rounds needs a number")?,
            "--window-ms" => {
                options.window = Duration::from_millis(value.parse().context("--window-ms needs a number")?);
            }
            "--file" => options.file = value.into(),
            _ => bail!("unknown option {argument}; {HELP}"),
        }
    }
    Ok(options)
}

/// `debian-15`, `npm-17`.
pub(crate) fn build(name: &str) -> Result<Build> {
    let major = |text: &str| text.parse().with_context(|| format!("{name} is no build"));
    match name.split_once('-') {
        Some(("debian", text)) => Build::packaged(major(text)?),
        Some(("npm", text)) => Build::npm(major(text)?),
        _ => bail!("{name} is no build; write debian-15 or npm-17"),
    }
}
