//! What is asked for on the command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use xtask::workspace;

/// What grows.
pub(crate) const AXES: [&str; 3] = ["processes", "live", "stacks"];

/// What is measured.
pub(crate) struct Options {
    pub(crate) axes: Vec<String>,
    /// Nothing beyond this is tried.
    pub(crate) most: u64,
    /// How often each point is measured; the median counts.
    pub(crate) rounds: usize,
    /// Where figures are kept, so that they can be drawn again.
    pub(crate) file: PathBuf,
    /// Where the picture and its page go.
    pub(crate) out: PathBuf,
}

const HELP: &str =
    "scale [--axes processes,live,stacks] [--most N] [--rounds 3] [--file scale.json] [--out docs] [--show]";

pub(crate) fn parse() -> Result<Options> {
    let mut options = Options {
        axes: AXES.map(str::to_owned).to_vec(),
        most: u64::MAX,
        rounds: 3,
        file: workspace::root().join("target/bench/scale.json"),
        out: workspace::root().join("docs"),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--show" {
            options.axes.clear();
            continue;
        }
        let value = arguments.next().with_context(|| format!("{argument} needs a value: {HELP}"))?;
        match argument.as_str() {
            "--axes" => options.axes = axes(&value)?,
            "--most" => options.most = value.parse().context("--most takes a number")?,
            "--rounds" => options.rounds = value.parse().context("--rounds takes a number")?,
            "--file" => options.file = value.into(),
            "--out" => options.out = value.into(),
            _ => bail!("{argument} is unknown: {HELP}"),
        }
    }
    Ok(options)
}

fn axes(list: &str) -> Result<Vec<String>> {
    let names: Vec<String> = list.split(',').map(str::to_owned).collect();
    match names.iter().find(|name| !AXES.contains(&name.as_str())) {
        Some(name) => bail!("nothing is called {name}; there are: {}", AXES.join(", ")),
        None => Ok(names),
    }
}
