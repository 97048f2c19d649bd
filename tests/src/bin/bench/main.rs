//! `cargo xtask bench overhead`: what tracing adds to a transaction, beside its rivals in the same rounds.
//!
//! In each round one backend works without a pause while one rival after another is attached to it, in an order by
//! chance. A figure is a ratio of two times of one round; intervals are over rounds.

mod axis;
mod code;
mod conditions;
mod group;
mod load;
mod options;
mod page;
mod plot;
mod processor;
mod ratio;
mod rivals;
mod rounds;
mod table;
mod targets;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use xtask::workspace;

use crate::{group::Group, options::Options, rounds::Round};

fn main() -> ExitCode {
    match options::parse().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if options.measures {
        rounds::measure(options)?;
    }
    let rounds: Vec<Round> = rounds::read(&options.file)?;
    if options.writes { write(&rounds) } else { show(&rounds) }
}

fn show(rounds: &[Round]) -> Result<()> {
    let groups = Group::all(rounds);
    for group in &groups {
        println!("\n{}, {}, {} rounds\n\n{}", group.build, group.load, group.rounds(), table::table(group));
    }
    println!("\nTargets, by the bad end of each interval\n\n{}", targets::table(&groups));
    Ok(())
}

/// The page and the picture of the documentation.
fn write(rounds: &[Round]) -> Result<()> {
    let docs = workspace::root().join("docs");
    let picture = plot::picture(&Group::all(rounds))?
        .context("there is no interval to draw: at least three rounds of a build and load are needed")?;
    for (name, text) in [("benchmarks.md", page::page(rounds)), (page::PICTURE, picture)] {
        let path = docs.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("written: {}", path.display());
    }
    Ok(())
}
